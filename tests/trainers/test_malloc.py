"""Freed memory stays with the process: the kernel counts the pages that come back."""
# edge: a process of its own

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

_CHURN = """
import ctypes, resource
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from trainers import keep_freed_memory

def layers(count):  # as an update does: in a thread of its own, all of it and all of it back, again and again
    for _ in range(count):
        [np.ones(1 << 18) for _ in range(8)]

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page comes back as one of 512
print(keep_freed_memory())
with ThreadPoolExecutor(1) as learner:
    learner.submit(layers, 3).result()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    learner.submit(layers, 20).result()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_freed_memory_is_kept_unless_someone_set_that_himself() -> None:
    def churn(**environment: str) -> list[str]:
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
        done = subprocess.run(
            [sys.executable, "-c", _CHURN], env={**ours, **environment}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    kept, faults = churn()
    left_alone, faults_left_alone = churn(MALLOC_TRIM_THRESHOLD_="131072")
    assert (kept, left_alone) == ("True", "False")
    assert int(faults) < 1000 < int(faults_left_alone), "pages that came back from the kernel"
