"""A video of a run's policy: some episodes of one stage, under frozen weights."""
# async: opens an env of its own; encodes in a thread; PyAV is imported when it is needed

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import aio_vecenv
from trainers.config import ConfigError
from trainers.evaluate import evaluator, judging
from trainers.jobs import resolve_job
from trainers.presets import Job
from trainers.record.checkpoint import load_saved
from trainers.record.metrics import StageResult
from trainers.record.pictures import pixels, why_not

__all__ = ["record"]

FPS = 30  # where the env does not say


async def record(
    run: Path | str,
    out: Path | str,
    *,
    stage: str | None = None,
    episodes: int = 1,
    greedy: bool = False,
    seed: int = 0,
    fps: int | None = None,
    job: Job | None = None,
    on_refused: Callable[[Path, Sequence[str]], object] | None = None,
) -> StageResult:
    """Play episodes of a stage (None: the last one) with a run's newest usable checkpoint, or a checkpoint file in one,
    and write what the env draws to `out`, whose ending says the format. What was played.

    `fps`: frames per second; None: as the env says (`render_fps`), else 30. `on_refused`: as in `evaluate`. Raises
    `ConfigError` without the extra `video`, for an unknown stage or format, and where the env draws no pictures;
    nothing is left then. Cancelling closes everything and leaves nothing.
    """
    if find_spec("av") is None:
        raise ConfigError("record needs the extra: pip install 'aio-vecenv[video]'")
    for name, value in (("episodes", episodes), ("fps", fps)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    folder, saved, path, refused = load_saved(run)
    if refused and on_refused is not None:
        on_refused(path, refused)
    config = judging(folder.config(), num_envs=1, num_workers=1)
    job = resolve_job(config, render=True) if job is None else job
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "trainers.video") as executor:
        async with evaluator(config, job) as judge:
            if stage is not None and stage not in judge.stages:
                raise ConfigError(f"the run has no stage {stage!r}; there are {', '.join(judge.stages)}")
            video = _Video(Path(out), fps or round(judge.envs.metadata.get("render_fps") or FPS))

            async def draw() -> None:
                try:
                    (drawn,) = await judge.envs.call("render")
                    picture = pixels(drawn, "the env", "make it with render_mode='rgb_array'")
                except (aio_vecenv.VecEnvError, ValueError) as error:
                    raise ConfigError(f"no video: {why_not(error, 'the env')}") from error
                await write(video.add, picture)

            async def write(work: Callable[..., None], *what: Any) -> None:
                try:
                    await loop.run_in_executor(executor, work, *what)
                except OSError as error:  # disk full
                    raise ConfigError(f"{out}: cannot be written: {error.strerror}") from None

            try:
                played = await judge.play_one(
                    saved,
                    path,
                    stage or judge.stages[-1],
                    episodes=episodes,
                    greedy=greedy,
                    seed=seed,
                    draw=draw,
                )
                await write(video.finish)
            finally:
                executor.shutdown()  # a frame may be on its way
                video.remove()
    return played


class _Video:
    """A file that grows frame by frame, and has its name once it is whole."""

    def __init__(self, out: Path, fps: int) -> None:
        import av

        self._av, self._out, self._fps = av, out, fps
        self._temporary = out.with_name(f".{out.stem}.tmp{out.suffix}")
        self._stream: Any = None
        try:
            self._container: Any = av.open(str(self._temporary), "w")
            self._temporary.touch()  # PyAV looks only when there is a frame
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no video format has this ending, such as .mp4"
            raise ConfigError(f"{out}: cannot be written: {reason}") from None

    def add(self, picture: NDArray[np.uint8]) -> None:
        """One frame more, scaled to the size of the first."""
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        if self._stream is None:
            self._begin(*picture.shape[:2])
        frame = frame.reformat(self._stream.width, self._stream.height, self._stream.pix_fmt)
        self._container.mux(self._stream.encode(frame))

    def _begin(self, height: int, width: int) -> None:
        codec = self._av.Codec(self._container.default_video_codec, "w")
        formats = [each.name for each in codec.video_formats or ()]
        self._stream = self._container.add_stream(codec.name, rate=self._fps)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2  # H.264's are even
        self._stream.pix_fmt = "yuv420p" if not formats or "yuv420p" in formats else formats[0]

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._temporary.replace(self._out)

    def remove(self) -> None:
        """Leave nothing unfinished."""
        self._container.close()
        self._temporary.unlink(missing_ok=True)
