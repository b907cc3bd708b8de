"""The one coroutine that turns finished episodes into directives; and the operator's commands."""
# async: awaits events and nothing else; between two awaits: fold, decide, publish

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol

from curriculum.decision_stream import DecisionHub, DecisionStream
from curriculum.directive import Directive
from curriculum.errors import CommandError, CoordinatorError, DirectiveError, StateError
from curriculum.journal import NOTED, SCHEMA, Journal
from curriculum.strategies.base import (
    SUCCESS_EVER,
    Decision,
    Strategy,
    ever_success,
    ever_success_score,
    is_success,
    need,
    recorded_success,
    success_score,
    unclear_success,
)

__all__ = ["Coordinator", "EventBatchLike", "EventsLike", "VecEnvLike"]

TOPIC = "curriculum"
TOO_EARLY = 10  # episodes that succeeded before their last step only, while none did at its last


class EventBatchLike(Protocol):
    """Events that a vec env released together: those of one of its batches.

    It may also have `beginning`: the orders of episodes whose reset is under way.
    """

    @property
    def number(self) -> int: ...
    @property
    def watermark(self) -> int: ...
    @property
    def events(self) -> Sequence[Any]: ...


class EventsLike(Protocol):
    """A reader of events. `behind`: batches with events that it has not read."""

    @property
    def behind(self) -> int: ...
    async def next_batch(self) -> Any: ...
    async def aclose(self) -> None: ...


class VecEnvLike(Protocol):
    """What is used of a vec env."""

    @property
    def num_envs(self) -> int: ...
    def events(self) -> Any: ...
    def broadcast(self, payload: Any, *, topic: str = ..., apply: Any = ...) -> Any: ...


class _Doubts:
    """What seems wrong with how episodes say that they succeed; each is said once. `last`, `ever`: of which steps it is
    read; where neither, by a function of the user's own, there is no doubt."""

    def __init__(self, *, last: bool, ever: bool) -> None:
        self._unclear = last or ever  # looked for until there is an episode whose success cannot be read
        # episodes that succeeded before their last step only; None: another has succeeded at its end, or it is moot
        self._too_early: int | None = 0 if last else None

    def of(self, ended: Sequence[Any]) -> Iterator[str]:
        if self._unclear and (text := next(filter(None, map(unclear_success, ended)), None)) is not None:
            self._unclear = False
            yield text
        if self._too_early is None:
            return
        for episode in ended:
            if is_success(episode):
                self._too_early = None
                return
            self._too_early += bool(episode.final_info.get(SUCCESS_EVER))
        if self._too_early >= TOO_EARLY:
            self._too_early = None
            yield (
                f"{TOO_EARLY} episodes said success at some step and none at its last, which is the one that counts: "
                'if any step counts, say success = "ever" (plan, Staged, --success ever)'
            )


_owners: weakref.WeakKeyDictionary[Any, weakref.ref[Coordinator]] = weakref.WeakKeyDictionary()


class Coordinator:
    """The only one who counts and decides. Make it before the envs' first reset; then let `run()`
    run.

    The constructor registers for events and publishes the strategy's first directive. A second coordinator on
    the same envs is refused. `journal`: a `Journal`, or a path (then it is closed with the run). `warn`: told, once
    each, what seems wrong and ends nothing; by default a RuntimeWarning.
    """

    def __init__(
        self,
        strategy: Strategy,
        envs: VecEnvLike,
        *,
        journal: Journal | str | Path | None = None,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        owner = _owners.get(envs)
        other = owner() if owner is not None else None
        if other is not None and other.alive:
            raise CoordinatorError(
                "these envs already have a coordinator: there is exactly one writer; command the one there is"
            )
        self.strategy = strategy
        self._envs = envs
        self._owns_journal = journal is not None and not isinstance(journal, Journal)
        self._journal = journal if isinstance(journal, Journal) or journal is None else Journal(journal)
        self._started = self._optional("started")
        self._beginning = self._optional("beginning")
        self._settle = self._optional("settle")
        self._result = _result_of(self._optional("success"), self._optional("score"))
        self._warn = _warn if warn is None else warn
        last, ever = (
            getattr(strategy, "success", None) is success or getattr(strategy, "score", None) is score
            for success, score in ((is_success, success_score), (ever_success, ever_success_score))
        )
        self._doubts = _Doubts(last=last, ever=ever)
        self._directive: Directive | None = None
        self._receipt: Any = None
        self._running: bool = False
        self._stopped: bool = False
        self._error: BaseException | None = None
        self._folding = False
        self._held = False
        self._waiters: list[asyncio.Future[None]] = []
        # stage moves, solved, stalled and commands of this run, oldest first
        self.decisions: list[Decision] = []
        self._decided = DecisionHub()
        self.published = 0  # directives
        # episodes that began after a decision and yet before it was taken: inside of the unroll that it was taken on
        self.late = 0
        self._decided_version = 0  # of the newest directive that followed from batches
        self.folded = 0  # batches
        attached = self._optional("attached")
        if attached is not None:
            attached(envs.num_envs)
        self._publish(note=False)
        self._note_run()
        # last: a strategy that raises above leaves the envs to another coordinator
        self._stream: EventsLike = envs.events()
        _owners[envs] = weakref.ref(self)

    def _tell_version(self) -> None:
        """Give the strategy the version under which its directive was published, if it wants it."""
        published = self._optional("published")
        if published is not None:
            published(self._receipt.version)

    def _optional(self, name: str) -> Callable[..., Any] | None:
        found = getattr(self.strategy, name, None)
        return found if callable(found) else None

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)  # not there if the constructor raised
        if stream is not None and not self._running and not self._stopped and stream.behind:
            warnings.warn(
                "a Coordinator's run() was never started: episodes ended, and nothing counted or decided",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    # ---- the one coroutine

    async def run(self) -> None:
        """Read, fold, decide, publish, until the envs are closed.

        Ends with the exception of a strategy or rule that raises: nothing is swallowed. Cancelling it stops
        it cleanly: what was read is folded, and the envs are free for another coordinator.
        """
        if self._running or self._stopped:
            raise CoordinatorError(f"run() {'is already running' if self._running else 'has ended'}")
        self._running = True
        try:
            while True:
                try:
                    batch = await self._stream.next_batch()
                except StopAsyncIteration:
                    break
                self._folding = True
                self._fold(batch)
                self._folding = False
                self._wake()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._running, self._folding, self._stopped = False, False, True
            self._wake()
            self._decided.close()
            if self._owns_journal and self._journal is not None:
                self._journal.close()
            await self._stream.aclose()

    async def settled(self) -> None:
        """Every batch so far is folded and its directive published; at once, without a turn of the loop,
        if so.

        Awaited between `recv` and `send`, it makes decisions hold for that very step. Raises what ended
        `run()`. Cancelling it loses nothing.
        """
        while self._error is None and not self._stopped and (self._stream.behind or self._folding):
            if not self._running:
                await asyncio.sleep(0)  # run() may be a task that has not had its first turn yet
                self._expect_running()
                continue
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if isinstance(self._error, asyncio.CancelledError):
            raise CoordinatorError("run() was cancelled: nobody decides any more")
        if self._error is not None:
            raise self._error

    def decided(self) -> DecisionStream:
        """The decisions from now on, rules' and operators', as an async iterator; `decisions` has the earlier ones.

        Any number of readers may each open a stream. It ends with `run()`, after what was decided until then; an
        exception that ended `run()` is raised there and by `settled()`, not here. At most 256 decisions wait for a
        reader: beyond that it misses the oldest (`stream.missed`) and delays nobody. Cancelling a read loses nothing.
        """
        return self._decided.open()

    def _expect_running(self) -> None:
        if not self._running and not self._stopped:
            raise CoordinatorError("events wait, but run() is not running: start it as a task")

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def _fold(self, batch: EventBatchLike) -> None:
        """All events of one batch, then one check, then at most one directive."""
        started: list[Any] = []
        ended: list[Any] = []
        for event in batch.events:
            (ended if hasattr(event, "outcome") else started).append(event)
        decided = self._decided_version
        self.late += sum(event.version < decided for event in started)
        if len(ended) > 1:
            ended.sort(key=_by_order)
        beginning: Sequence[int] = getattr(batch, "beginning", ())
        if self._journal is not None:
            results = [(e, None if e.outcome == "aborted" else self._result(e)) for e in ended]
            self._journal.batch(batch.number, batch.watermark, started, results, beginning)
        if ended:
            for text in self._doubts.of(ended):
                self._warn(text)
        if self._started is not None:
            for event in started:
                self._started(event)
        observe = self.strategy.observe
        for event in ended:
            observe(event)
        if self._beginning is not None:
            self._beginning(beginning)
        if self._settle is not None:
            for decision in self._settle(batch.watermark) or ():
                self._decide(decision)
        self.folded += 1
        if not self._held:
            published = self.published
            receipt = self._publish()
            if self.published > published:
                self._decided_version = receipt.version

    def _decide(self, decision: Decision) -> None:
        self.decisions.append(decision)
        if self._journal is not None:
            self._journal.decision(decision)
        self._decided.put(decision)

    def _publish(self, *, note: bool = True) -> Any:
        """Broadcast the directive if it changed; the receipt of the one in force."""
        directive = self.strategy.directive()
        if not isinstance(directive, Directive):
            raise DirectiveError(
                f"{type(self.strategy).__name__}.directive(): expected a Directive, the same one while nothing "
                f"changed, got {directive!r:.60}"
            )
        if directive is not self._directive and directive != self._directive:
            self._receipt = self._envs.broadcast(directive, topic=TOPIC, apply="now")
            self.published += 1
            if self._journal is not None and note:
                self._journal.write(
                    "published",
                    version=self._receipt.version,
                    stage=directive.stage,
                    ratios=dict(zip(directive.stages, directive.ratios)),
                    mix=directive.mix,
                )
            self._tell_version()
        self._directive = directive
        return self._receipt

    def _note_run(self) -> None:
        if self._journal is not None:
            config = self._optional("config")
            self._journal.write(
                "run",
                schema=SCHEMA,
                num_envs=self._envs.num_envs,
                version=self._receipt.version,
                config={"strategy": type(self.strategy).__name__} if config is None else config(),
                state=self.strategy.state_dict(),
            )

    # ---- commands

    def set_stage(self, name: str, *, by: str | None = None, why: str | None = None) -> Any:
        """Begin a stay in that stage, now; returns the broadcast receipt. The current stage
        again: a no-op.
        """
        decision = self._command("set_stage", (name,), by, why)
        if isinstance(decision, Decision):
            self._decide(replace(decision, by=by, why=why))
        return self._publish()

    def set_mixing_ratio(
        self, stage: str, ratio: float | None, *, by: str | None = None, why: str | None = None
    ) -> Any:
        """Fix a stage's mixing ratio, or with None give it back to the rules; returns the
        broadcast receipt.
        """
        if isinstance(ratio, Real) and not isinstance(ratio, bool):
            # NumPy's are numbers, too, but a checkpoint that holds one is refused when read
            ratio = float(ratio)
        self._command("set_mixing_ratio", (stage, ratio), by, why)
        self._decide(self._plain_decision("set_mixing_ratio", by, why, {"stage": str(stage), "ratio": ratio}))
        return self._publish()

    def hold(self, *, by: str | None = None, why: str | None = None) -> Any:
        """Keep counting, decide nothing; returns the receipt of the directive in force."""
        self._command("hold", (), by, why, required=False)
        if not self._held:
            self._decide(self._plain_decision("hold", by, why, {}))
        self._held = True
        return self._receipt

    def release(self, *, by: str | None = None, why: str | None = None) -> Any:
        """Decide again; returns the broadcast receipt."""
        self._command("release", (), by, why, required=False)
        if self._held:
            self._decide(self._plain_decision("release", by, why, {}))
        self._held = False
        return self._publish()

    def _command(
        self, name: str, arguments: tuple[Any, ...], by: str | None, why: str | None, *, required: bool = True
    ) -> Any:
        self._expect_alive(name)
        _expect_words(by, why)
        command = self._optional(name)
        if command is None and required:
            raise CommandError(f"{type(self.strategy).__name__} has no {name}")
        result = None if command is None else command(*arguments)  # raises before anything is noted
        self._note_command(name, arguments, by, why)
        return result

    def _expect_alive(self, name: str) -> None:
        if self._stopped:
            raise CoordinatorError(f"{name}: run() has ended")

    def _note_command(self, name: str, arguments: tuple[Any, ...], by: str | None, why: str | None) -> None:
        if self._journal is not None:
            self._journal.write("command", command=name, arguments=list(arguments), by=by, why=why)

    def _plain_decision(
        self, kind: str, by: str | None, why: str | None, counts: Mapping[str, Any]
    ) -> Decision:
        return Decision(kind, self.stage, None, (), getattr(self.strategy, "total", 0), counts, by, why)

    def note(
        self, command: Literal["checkpoint", "stop"], *, by: str | None = None, why: str | None = None
    ) -> None:
        """Note an operator's command that somebody else carries out, among decisions and in the journal."""
        if command not in NOTED:
            raise CommandError(f"note: expected {' or '.join(map(repr, NOTED))}, got {command!r}")
        self._expect_alive(command)
        _expect_words(by, why)
        self._note_command(command, (), by, why)
        self._decide(self._plain_decision(command, by, why, {}))

    def record(self, stage: str, success: bool, *, by: str | None = None, why: str | None = None) -> Any:
        """Count an outcome without an episode, at once, and note it in the journal; returns the receipt."""
        self._command("record", (stage, recorded_success(success)), by, why)
        return self._receipt if self._held else self._publish()

    def record_scores(self, parts: Iterable[Any]) -> None:
        """What the learner measured on parts of episodes, for strategies that ask for it;
        others ignore it.
        """
        record = self._optional("record_scores")
        if record is not None:
            record(parts)
            if not self._held and not self._stopped:
                self._publish()

    # ---- what is in force

    @property
    def stage(self) -> str | None:
        """The current stage; None for strategies without stages."""
        stage: str | None = getattr(self.strategy, "stage", None)
        return stage

    @property
    def solved(self) -> bool:
        """The last stage has met its own rule."""
        return bool(getattr(self.strategy, "solved", False))

    @property
    def alive(self) -> bool:
        """run() has not ended: these envs have their one writer."""
        return not self._stopped

    @property
    def held(self) -> bool:
        """Decisions are on hold."""
        return self._held

    @property
    def receipt(self) -> Any:
        """The receipt of the directive in force."""
        return self._receipt

    def mixing_ratio(self, stage: str) -> float:
        """The mixing ratio of a stage, as published."""
        return self.strategy.directive().mixing_ratio(stage)

    def progress(self) -> list[dict[str, Any]]:
        """One row per stage (or level): success rate, outcomes, what is missing to advance, ratio, trend."""
        progress = self._optional("progress")
        return [] if progress is None else list(progress())

    def explain(self) -> str:
        """Why the last decision was what it was."""
        explain = self._optional("explain")
        if explain is None:
            return f"{type(self.strategy).__name__} does not explain itself"
        moves = [decision for decision in self.decisions if decision.to is not None]
        last = [f"last move: {moves[-1].describe()}"] if moves else []
        return "\n".join([*last, f"last check: {explain()}"])

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Plain data, with a schema version."""
        return {
            "schema": 1,
            "held": self._held,
            "decisions": [decision.as_dict() for decision in self.decisions],
            "strategy": self.strategy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run on these envs, and publish. StateError, and nothing changed, if the state does not
        fit.
        """
        if need(state, "schema", int, "Coordinator state") != 1:
            raise StateError(f"Coordinator state: schema: expected 1, got {state['schema']}")
        held = need(state, "held", bool, "Coordinator state")
        saved = need(state, "decisions", list, "Coordinator state")
        try:
            decisions = [Decision.from_dict(decision) for decision in saved]
        except (TypeError, KeyError) as error:
            raise StateError(f"Coordinator state: decisions: {error}") from error
        self.strategy.load_state_dict(need(state, "strategy", dict, "Coordinator state"))
        self.decisions, self._held = decisions, held
        attached = self._optional("attached")
        if attached is not None:
            attached(self._envs.num_envs)
        self._publish(note=False)
        self._tell_version()
        self._note_run()


def _result_of(
    success: Callable[..., Any] | None, score: Callable[..., Any] | None
) -> Callable[[Any], float | None]:
    """What the journal notes of an episode that ended: a success as the strategy reads it, else a score."""

    def result(episode: Any) -> float | None:
        if success is not None:
            return float(bool(success(episode)))
        given = None if score is None else score(episode)
        try:
            return None if given is None else float(given)
        except (TypeError, ValueError):
            return None  # the strategy will say so, and name the env

    return result


def _expect_words(by: object, why: object) -> None:
    for key, value in (("by", by), ("why", why)):
        if not (value is None or isinstance(value, str)):
            raise CommandError(f"{key}: expected a string, got {value!r:.60}")


def _by_order(episode: Any) -> int:
    order: int = episode.order
    return order


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
