"""The programs in README and docs that say they run as they stand do."""
# edge: real subprocesses

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (
            "README.md",
            r"advance   near → far .*\n(.*\n)?after .* solved    far .*\n.* set_stage far → near  by operator\n",
        ),
        ("docs/runtime.md", "^$"),
        ("docs/unrolls.md", r"^1 \(16, 32\) \d+\n"),
    ],
)
def test_the_first_program_of_a_page_runs(page: str, says: str, tmp_path: Path) -> None:
    program = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[0]
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(says, done.stdout), done.stdout
