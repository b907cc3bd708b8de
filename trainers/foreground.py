"""Runs in the foreground of a terminal: live progress, the page, signals; one run, or one per seed."""
# edge: stdout, stderr, signals; a listening socket

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainers.config import TrainConfig
from trainers.endings import die_by, message
from trainers.opening import training
from trainers.presets import Job
from trainers.record.folder import RunFolder
from trainers.record.plot import draw, draw_seeds
from trainers.record.progress import make_progress, table_lines
from trainers.record.seeds import SeedRuns, seed_table
from trainers.run import Run

__all__ = ["Foreground", "SeedsBroken", "draw_curve", "show_seeds"]

WIDE = (
    "warning: other machines can reach the page. Whoever has this link can steer the run, and it travels over plain "
    "HTTP, which others on the way can read. Safer: --serve alone, and `ssh -L {port}:localhost:{port} {host}` there."
)


class SeedsBroken(RuntimeError):
    """Some seeds' runs ended with an error, the others went on."""


class Foreground:
    """Trains until it is done or a signal comes: the first SIGINT or SIGTERM finishes the step and saves, the second
    ends the process at once."""

    def __init__(self, page: Any = None, job: Job | None = None) -> None:
        self.received: list[signal.Signals] = []
        self._page, self._job = page, job
        self._run: Run | None = None
        self._progress = make_progress()
        self._task: asyncio.Task[Any] | None = None

    async def train(self, config: TrainConfig, resume: Path | None) -> None:
        """One run."""
        with self._handling():
            await self._train(config, resume, None)

    async def train_seeds(self, runs: SeedRuns) -> None:
        """All runs that have not come to their end, one after another. One that breaks does not keep the others from
        theirs, unless it could not even begin. Raises `SeedsBroken` at the end."""
        try:
            with RunFolder(runs.path).held(), self._handling():
                broken = await self._train_each(runs)
                if self.received:
                    return
                show_seeds(runs)
                for warning in await asyncio.to_thread(draw_curve, runs):
                    print(f"warning    {warning}")
                print(f"runs       {runs.path}", flush=True)
        finally:
            runs.remove_if_empty()
        if broken:
            count, named = f"{len(broken)} of {len(runs.seeds)}", ", ".join(map(str, broken))
            raise SeedsBroken(f"{count} seeds broke ({named}); go on with: {_again(runs.path)}") from next(
                iter(broken.values())
            )

    async def _train_each(self, runs: SeedRuns) -> dict[int, Exception]:
        """What broke which seed."""
        broken: dict[int, Exception] = {}
        for seed in runs.seeds:
            if runs.done(seed):
                print(f"seed {seed}: done", flush=True)
                continue
            self._run = None
            try:
                await self._train(runs.of(seed), runs.begun(seed), runs.path)
            except Exception as error:
                if self._run is None:
                    raise
                broken[seed] = error
                print(f"error: seed {seed}: {message(error)}", file=sys.stderr, flush=True)
            if self.received:
                break
        return broken

    async def _train(self, config: TrainConfig, resume: Path | None, group: Path | None) -> None:
        """One run; `group`: the folder to name where the run can be gone on with."""
        self._progress = progress = make_progress()
        try:
            async with training(config, resume=resume, job=self._job) as run:
                self._run = run
                if self.received:
                    run.request_stop()
                async with _served(run, self._page):
                    with progress:
                        progress.start(run)
                        async for report in run.reports():
                            progress.show(report)
                    summary = await run.wait()
                if not self.received:  # whoever sent a signal waits; `plot` draws it later
                    run.warnings.extend(await asyncio.to_thread(draw_curve, run.folder))
            progress.finish(summary, run)
            if self.received or summary.reason == "stopped":
                by = self.received[0].name if self.received else "an operator"
                print(f"stopped by {by}; go on with: {_again(group or run.folder.path)}", flush=True)
        except asyncio.CancelledError:
            if not self.received:
                raise
        except Exception:
            if self._run is not None and (saved := self._run.summary().checkpoint):
                again = _again(group or self._run.folder.path)
                print(f"saved: {saved}; go on with: {again}", file=sys.stderr)
            raise

    def _on_signal(self, number: signal.Signals) -> None:
        if self.received:
            self._progress.__exit__(None, None, None)  # a panel hides the cursor
            die_by(number)
        self.received.append(number)
        if self._run is not None:
            self._run.request_stop()
        elif self._task is not None:
            self._task.cancel()

    @contextmanager
    def _handling(self) -> Iterator[None]:
        """SIGINT and SIGTERM come here, on the loop; the handlers of before are back afterwards."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        self._task = asyncio.current_task()
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


def _again(path: Path) -> str:
    return f"python -m trainers train --resume {path}"


def show_seeds(runs: SeedRuns) -> None:
    """The table over the seeds, printed and written to table.txt."""
    text = "\n".join(table_lines(*seed_table(runs)))
    (runs.path / "table.txt").write_text(text + "\n", encoding="utf-8")
    print("\n" + text, flush=True)


def draw_curve(drawn: RunFolder | SeedRuns) -> list[str]:
    """curve.png, where matplotlib is installed; why there is none otherwise. The run is done: nothing here fails it."""
    out = drawn.path / "curve.png"
    try:
        draw(drawn, out) if isinstance(drawn, RunFolder) else draw_seeds(drawn, out)
    except ImportError:
        return []
    except Exception as error:
        return [f"no {out.name}: {error}"]
    return []


@contextlib.asynccontextmanager
async def _served(run: Run, page: Any) -> AsyncIterator[None]:
    """The page of `run`, if there is one; its link is printed first."""
    if page is None:
        yield
        return
    from trainers.service import serving

    async with serving(run, page) as link:
        print(f"watch and steer: {link}", flush=True)
        if not page.loopback:
            print(WIDE.format(port=page.port, host=socket.gethostname()), flush=True)
        yield
