"""The soak: a short form of what `make soak` runs for ten minutes; and that it would notice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from aio_vecenv import Episode, EpisodeStarted, chaos
from aio_vecenv.chaos import Options, Table, _Books, main, soak

BEGAN = EpisodeStarted(env_id=1, index=0, order=1, version=0, task=None, seed=None)
ENDED = Episode(1, 0, 1, 3, 6.0, "terminated", 0, None, {}, None, 0)


@pytest.mark.alternate_loops
@pytest.mark.parametrize("unroll", [0, 16])
@pytest.mark.asyncio
async def test_everything_adds_up_under_faults(unroll: int) -> None:
    table = await soak(
        Options(
            seconds=5,
            seed=1,
            num_envs=8,
            num_workers=2,
            faults_per_minute=300,
            unroll=unroll,
            renew_after=5,
        )
    )
    assert not table.failures, str(table)
    assert table.started == table.terminated + table.truncated + table.aborted > 0
    assert table.faults
    assert table.steps > 0
    assert table.applied == table.published > 0


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_no_fault_comes_after_the_last_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies then has not taken it, which would be counted as an update that was lost."""
    all_have, all_answer = asyncio.Event(), chaos._all_answer

    async def then_let_it_break(envs: Any) -> None:
        await all_answer(envs)
        all_have.set()
        await asyncio.sleep(0)

    async def break_late(run: Any) -> None:
        await all_have.wait()
        await run._break("kill", 0)

    monkeypatch.setattr(chaos, "_all_answer", then_let_it_break)
    monkeypatch.setattr(chaos._Soak, "break_things", break_late)
    table = await soak(Options(seconds=0.1, num_envs=1, num_workers=1, spares=0))
    assert not table.failures, str(table)


def test_the_books_notice_what_is_lost_or_doubled() -> None:
    def failures(*events: EpisodeStarted | Episode, newest: int = 0) -> list[str]:
        table = Table()
        books = _Books(table, num_envs=2)
        books.newest_at[0] = newest
        for event in events:
            books.fold(event)
        books.close()
        return table.failures

    assert not failures(BEGAN, ENDED)
    assert failures(BEGAN)  # never ended
    assert failures(ENDED)  # never began
    assert failures(BEGAN, ENDED, ENDED)
    assert failures(BEGAN, BEGAN, ENDED)
    assert failures(BEGAN, ENDED, BEGAN._replace(index=2, order=5), ENDED._replace(index=2, order=5))
    assert failures(BEGAN, ENDED, newest=1)  # began under an update older than one published before


def test_the_command_prints_a_table_and_says_when_the_env_is_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aio_vecenv.chaos", "--seconds", "1", "--num-envs", "4", "--num-workers", "2"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "episodes doubled, lost  0, 0" in done.stdout
    with pytest.raises(SystemExit, match=r"--env nowhere:nothing"):
        main(["--env", "nowhere:nothing"])
