"""Frames of envs for those who watch: drawn when asked for, at most ten a second of each env."""
# async: waits for workers; encodes in a thread

from __future__ import annotations

import asyncio
import base64
import json
import struct
import zlib
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

import aio_vecenv as av
from trainers.record.pictures import pixels, why_not
from trainers.run import Run
from trainers.service.snapshot import is_over, outcome

__all__ = ["Frames", "png"]

EVERY_S = 0.1
MOST_SIDE = 640  # pixels; larger frames are thinned
WITH_RENDER = "start the run with --render, or make envs with render_mode='rgb_array'"


class Frames:
    """The newest frame of each env that somebody watches. However many watch it, it is drawn once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._locks: dict[int, asyncio.Lock] = {}
        self._newest: dict[int, tuple[float, dict[str, Any]]] = {}  # when it was asked for, and what came

    async def watch(self, env_id: int) -> AsyncGenerator[bytes, None]:
        """Events `frame` for one reader, or one `refused` with the reason, until the run ends. Cancelling or leaving
        the iteration ends this reader only; nothing is drawn while nobody reads.
        """
        loop, shown_s = asyncio.get_running_loop(), -1.0
        reason = self._refusal(env_id)
        while reason is None and not is_over(self._run):
            try:
                asked_s, frame = await self._frame(env_id)
            except av.WorkerLost:
                await asyncio.sleep(EVERY_S)  # it is being replaced
                continue
            except (av.VecEnvError, ValueError) as error:
                reason = why_not(error, f"env {env_id}")
                break
            if asked_s > shown_s:
                shown_s = asked_s
                yield _event("frame", {**frame, "delay_s": loop.time() - asked_s})
            await asyncio.sleep(max(0.0, asked_s + EVERY_S - loop.time()))
        yield _event("refused", reason or f"the run has ended: {outcome(self._run)}")

    def _refusal(self, env_id: int) -> str | None:
        if not 0 <= env_id < self._run.config.num_envs:
            return f"there is no env {env_id}"
        if self._run.config.deterministic:
            return (
                "deterministic=True: drawing may use an env's random numbers, so nobody looks into its envs"
            )
        return None

    async def _frame(self, env_id: int) -> tuple[float, dict[str, Any]]:
        async with self._locks.setdefault(env_id, asyncio.Lock()):
            asked_s = asyncio.get_running_loop().time()
            newest = self._newest.get(env_id)
            if newest is not None and asked_s - newest[0] < EVERY_S:
                return newest
            envs = self._run.envs
            (drawn,) = await envs.call("render", env_ids=[env_id])
            episode = envs.running_episode(env_id)
            data = await run_in_threadpool(png, _picture(env_id, drawn))
            frame = {"png": base64.b64encode(data).decode(), "text": _text(episode)}
            self._newest = {env_id: (asked_s, frame)} if len(self._newest) > 16 else self._newest
            self._newest[env_id] = asked_s, frame
            return asked_s, frame


def _text(episode: av.RunningEpisode | None) -> str:
    """What the env plays, and how far it is."""
    if episode is None:
        return "between two episodes"
    task = episode.task if isinstance(episode.task, dict) else {}
    drawn = [f"{name} {task[name]}" for name in ("stage", "level") if name in task]
    at = f"episode {episode.index + 1}, step {episode.length}"
    return " · ".join([*drawn, at, f"return so far {episode.episode_return:.3g}"])


def _picture(env_id: int, drawn: Any) -> NDArray[np.uint8]:
    """What `render()` gave, thinned where it is large."""
    picture = pixels(drawn, f"env {env_id}", WITH_RENDER)
    step = -(-max(picture.shape[:2]) // MOST_SIDE)
    return np.ascontiguousarray(picture[::step, ::step])


def png(picture: NDArray[np.uint8]) -> bytes:
    """A PNG file of (height, width, 3) uint8 (W3C PNG, third edition; colour type 2, no filter)."""
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # the filter's number, then the pixels
    rows[:, 1:] = picture.reshape(height, -1)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
