"""Unrolls into rollouts: the policy acts in the workers, and a chunk of rows comes back per command."""
# async: awaits the envs, and whoever looks at each chunk

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import aio_vecenv as av
from trainers.collect.collector import Collector
from trainers.learn.masks import MASK
from trainers.learn.networks import leaf_arrays
from trainers.learn.own_networks import parameters_of
from trainers.learn.rollout import joined

__all__ = ["Unroller"]


class Unroller(Collector):
    """Fills the learner's rollout with unrolls of at most `length` rows of all envs, copied into it as blocks.

    `twin` is the policy that the envs were opened with. It computes no values: the learner does, once per rollout.
    """

    def __init__(self, *args: Any, twin: Any, length: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._twin, self._length = twin, length

    async def collect(self, rng: np.random.Generator, look: Callable[[Any], Awaitable[bool]]) -> bool:
        """As of `Collector`; `look` is awaited with every chunk. All rows are acted on the learner's newest parameters.

        Cancelling loses nothing of the envs: the chunk under way stays owed.
        """
        envs, rollout = self._envs, self._rollout
        rollout.clear()
        envs.set_policy(parameters_of(self._twin, self.learner.model))
        while not rollout.full:
            length = min(self._length, rollout.num_steps - int(rollout.cursor[0]))
            began = time.perf_counter()
            envs.send_unroll(self._twin.draw(rng, (length, envs.num_envs)))
            self.policy_s += time.perf_counter() - began
            chunk = await envs.recv_unroll()
            began = time.perf_counter()
            self._store_chunk(chunk)
            self.policy_s += time.perf_counter() - began
            if self._events is not None and self._events.behind:
                await self.follow()
            if not await look(chunk):
                return False
        return True

    def _store_chunk(self, chunk: av.Chunk) -> None:
        length, n = chunk.first.shape
        leaves = leaf_arrays(self._space, chunk.obs)
        inside, masks = leaves.pop(MASK, None), None
        if self._sizes:
            masks = np.asarray(inside, np.bool_).reshape(length + 1, n, sum(self._sizes))
            self._check_chunk(masks[:-1], chunk)
        said = {key: joined(column) for key, column in chunk.outputs.items()}
        stored = self._head.stored(joined(chunk.actions), said).reshape(length, n, *self._head.shape)
        self._rollout.chunk(leaves, masks, stored, chunk.outputs["log_prob"], chunk)
        self._steps = _steps_after(chunk.first, self._steps)

    def _check_chunk(self, masks: NDArray[np.bool_], chunk: av.Chunk) -> None:
        """As `_check_masks`, for all rows (T, n, …) that were acted on."""
        first = chunk.first
        nothing = self._head.nothing_allowed(joined(masks)).reshape(first.shape) & ~first
        for t in np.flatnonzero(nothing.any(axis=1))[:1]:
            self._steps, self._over = _steps_after(first[:t], self._steps), first[t]
            playing = dict(enumerate(chunk.index[t].tolist()))
            tasks = {e.env_id: e.task for e in chunk.episodes if e.index == playing[e.env_id]}
            self._check_masks(self.everyone, masks[t], tasks)


def _steps_after(first: NDArray[np.bool_], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many steps each env's episode has, `steps` of which came before these rows (T, n)."""
    if not len(first):
        return steps
    began = first.any(axis=0)
    after: NDArray[np.int64] = np.where(began, first[::-1].argmax(axis=0), steps + len(first))
    return after
