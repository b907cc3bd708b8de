"""What the trainer's tests share: one thread for torch, and the command line in this process."""
# edge: argv, the current folder, stdout

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainers import cli

# The test processes share the machine: several threads in each wait for one another, for five times the CPU time.
torch.set_num_threads(1)


class Here:
    """`main()` in this process, in a folder of its own: where only what is printed and written matters."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *args: str) -> tuple[int, str, str]:
        self._capfd.readouterr()
        code = cli.main(list(args))
        return code, *self._capfd.readouterr()


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Here(capfd)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
