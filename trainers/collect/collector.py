"""The one acting loop: what envs show → the policy → the workers → rows of the rollout; for training and judging."""
# async: awaits the envs, and whoever looks at each batch

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import aio_vecenv as av
from trainers.collect.observations import split
from trainers.config import ConfigError
from trainers.learn.learner import Learner
from trainers.learn.masks import NOTHING_ALLOWED, MaskError, sizes_of

__all__ = ["Collector"]

Ids = NDArray[np.int64]


class Collector:
    """Plays a learner's policy in envs, into the learner's rollout: what each env shows is its row at the cursor."""

    def __init__(
        self,
        envs: av.AsyncVecEnv,
        learner: Learner,
        *,
        quorum: int | None = None,
        greedy: bool = False,
        events: av.EventStream | None = None,
        on_events: Callable[[av.EventBatch], object] | None = None,
    ) -> None:
        """`quorum`: act once that many envs are ready; None: all of them step together. `greedy`: take the most
        probable actions; such rows cannot be learned from. `events`: the envs' events from their first reset on,
        where rows are to say which episode they belong to; `on_events` gets what is read there, before the batch is
        looked at."""
        self.learner, self._envs = learner, envs
        self._policy, self._head, self._rollout = learner.policy, learner.head, learner.rollout
        self._space = envs.single_observation_space
        self._sizes = () if learner.rollout.masks is None else sizes_of(envs.single_action_space)
        self._quorum, self._greedy, self._events = quorum, greedy, events
        self._on_events = on_events
        self.everyone: Ids = np.arange(envs.num_envs)
        self.playing: Ids = np.zeros(envs.num_envs, np.int64)  # the index of each env's newest episode
        self.aborted: set[tuple[int, int]] = set()  # episodes that were: (env, index); its reader clears it
        self._steps: Ids = np.zeros(envs.num_envs, np.int64)  # executed in each env's episode
        self._over = np.zeros(envs.num_envs, np.bool_)  # the env's next action is not executed
        self.policy_s = 0.0  # spent on inference and storing rows; its reader clears it

    @property
    def masked(self) -> bool:
        """Whether actions come with masks."""
        return bool(self._sizes)

    async def collect(self, rng: np.random.Generator, look: Callable[[av.Batch], Awaitable[bool]]) -> bool:
        """**The loop of the system**: workers → policy → workers, until every env has contributed its T rows: True.
        False: `look`, which is awaited with every batch before anyone acts on it, has said that it is enough.

        With a quorum, an env whose column is full waits, so fast envs contribute no more than slow ones. Cancelling
        loses nothing of the envs: rows under way stay owed.
        """
        envs, lockstep = self._envs, self._quorum is None
        quorum = envs.num_envs if self._quorum is None else self._quorum
        self._rollout.clear()
        ready = self.everyone
        while not self._rollout.full:
            if len(ready):
                envs.send(self._act(ready, rng), None if lockstep else ready)
            batch = await envs.recv(quorum)
            ready = self._store(batch)
            if self._events is not None and self._events.behind:
                await self.follow()
            if not await look(batch):
                return False
        return True

    def see(self, ids: Ids, obs: Any, infos: Mapping[str, Any]) -> None:
        """What these n envs show from now on, the first of an episode: `obs` (n, …) as their space batches it, `infos`
        as Gymnasium joins them. Raises `ConfigError` if a mask cannot be read."""
        self._steps[ids], self._over[ids] = 0, False
        self._show(ids, obs, infos)

    def _show(self, ids: Ids, obs: Any, infos: Mapping[str, Any]) -> None:
        try:
            leaves, masks = split(self._space, obs, infos, len(ids), self._sizes)
        except MaskError as error:
            raise ConfigError(f"{self._place(int(ids[error.row]))}: {error}") from None
        self._rollout.see(ids, leaves, masks)

    def _place(self, env: int, task: Any = None) -> str:
        """Where an env is, in words. `task`: of its episode, if that is not the one that runs."""
        if task is None and (running := self._envs.running_episode(env)) is not None:
            task = running.task
        known = isinstance(task, Mapping) and "stage" in task and "level" in task
        where = f", stage {task['stage']!r}, level {task['level']!r}" if known else ""
        return f"env {env}, after {self._steps[env]} steps of its episode{where}"

    def _act(self, ids: Ids, rng: np.random.Generator) -> NDArray[Any]:
        """Actions (n, …) for these envs, noted in the rollout. Runs on the event loop: it is short."""
        began = time.perf_counter()
        obs, masks = self._rollout.seen(ids)
        if masks is not None:
            self._check_masks(ids, masks)
        if self._greedy:
            actions = self._policy.choose(obs, masks, rng, True)
        else:
            actions, log_probs, values = self._policy.act(obs, rng, masks)
            self._rollout.act(ids, actions, log_probs, values)
        self.policy_s += time.perf_counter() - began
        return self._head.to_env(actions)

    def _check_masks(
        self, ids: Ids, masks: NDArray[np.bool_], tasks: Mapping[int, Any] = MappingProxyType({})
    ) -> None:
        """Raise `ConfigError` where an env that is to act must not do anything; at an episode's end it may say so.
        `tasks`: of envs whose episode is not the one that runs."""
        for env in ids[self._head.nothing_allowed(masks) & ~self._over[ids]].tolist():
            raise ConfigError(f"{self._place(env, tasks.get(env))}: {NOTHING_ALLOWED}")

    def _store(self, batch: av.Batch) -> Ids:
        """Note what came of the actions; the envs that go on."""
        began = time.perf_counter()
        ids = batch.env_ids
        going_on = self._rollout.outcome(
            ids, batch.rewards, batch.terminations, batch.truncations, batch.first,
            None if self._events is None else self.playing[ids],
        )  # fmt: skip
        steps = np.where(batch.first, 0, self._steps[ids] + 1)
        over = batch.terminations | batch.truncations
        if "worker_renewal" in batch.infos:  # who waits still shows the last observation of its episode
            over |= batch.infos["_worker_renewal"]
        self._steps[ids], self._over[ids] = steps, over
        self._show(ids, batch.obs, batch.infos)
        self.policy_s += time.perf_counter() - began
        return going_on

    async def aclose(self) -> None:
        """Stop reading events; the envs are their owner's."""
        if self._events is not None:
            await self._events.aclose()

    async def follow(self) -> None:
        """Read which episode each env plays from its next executed row on."""
        events = self._events
        while events is not None and events.behind:
            batch = await events.next_batch()
            if self._on_events is not None:
                self._on_events(batch)
            for event in batch.events:
                if isinstance(event, av.EpisodeStarted):
                    self.playing[event.env_id] = event.index
                elif event.outcome == "aborted":
                    self.aborted.add((event.env_id, event.index))
