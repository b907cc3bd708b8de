"""Replaying a journal: the same decisions under the same rules, and when other rules would first have moved."""
# pure: records in, stays and decisions out

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curriculum.errors import CurriculumError, JournalError
from curriculum.journal import NOTED, episode_of, read_journal, started_of
from curriculum.stages import Stage, StagePlan
from curriculum.strategies.base import Decision
from curriculum.strategies.staged import Staged

__all__ = ["Replay", "Stay", "logged_runs", "other_rules", "replay"]

_MOVES = ("advance", "regress", "set_stage")


@dataclass(slots=True)
class Stay:
    """One stay in a stage: how it ended in the log, and how other rules would have ended it."""

    stage: str
    began: int  # ended episodes before it
    logged: Decision | None = None  # None: it was not over when the journal ended
    other: Decision | None = None  # None: the other rules would not have moved


@dataclass(frozen=True, slots=True)
class Replay:
    """What folding a journal again gave."""

    logged: tuple[Decision, ...]
    replayed: tuple[Decision, ...]
    total: int  # ended episodes, aborted ones not counted

    @property
    def same(self) -> bool:
        """Every decision came out again: kind, stage, where to, reasons, when, and on what counts."""
        return [_essence(d) for d in self.logged] == [_essence(d) for d in self.replayed]


def _essence(decision: Decision) -> tuple[Any, ...]:
    return (
        *(decision.kind, decision.stage, decision.to, tuple(decision.reasons), decision.total),
        dict(decision.counts),
    )


class _Watcher(Staged):
    """Decides on the logged episodes, but never moves by itself: it notes the first move it would have made."""

    would: Decision | None = None

    def _check(self) -> list[Decision]:
        return [] if self.would is not None else super()._check()

    def _move(self, place: int, kind: str, reasons: tuple[str, ...]) -> Decision:
        self.would = self._decision(kind, reasons, self.plan[place].name)
        return self.would

    def follow(self, decision: Decision) -> None:
        """The logged run began another stay."""
        self.would = None
        super().follow(decision)


def logged_runs(path: str | Path) -> list[tuple[int, int, list[Decision]]]:
    """Of each run in a journal, or part of one that was resumed: its line, the episodes before it, its decisions."""
    runs: list[tuple[int, int, list[Decision]]] = []
    for line, record in _effective(read_journal(path)):
        if record["kind"] == "run":
            state = record["state"]
            runs.append((line, state.get("total", 0) if isinstance(state, dict) else 0, []))
        elif record["kind"] == "decision":
            runs[-1][2].append(_decision(record, f"{path}:{line}"))
    return runs


def _decision(record: Mapping[str, Any], where: str) -> Decision:
    try:
        return Decision.from_dict(record["decision"])
    except (TypeError, KeyError) as error:
        raise JournalError(f"{where}: decision: expected kind, stage, to, reasons, …: {error}") from error


def _build(kind: type[Staged], record: Mapping[str, Any], where: str, changes: Mapping[str, Any]) -> Staged:
    """The strategy of a run line, with changed settings."""
    if not record.get("episodes", True):
        raise JournalError(
            f"{where}: written without episodes: it cannot be replayed; explain reads its decisions"
        )
    config = dict(record["config"])
    if config.pop("strategy", None) != "Staged":
        raise JournalError(f"{where}: config: only journals of Staged can be replayed")
    config.setdefault("start_order", "run")  # version 0.1 knew no other, and named none
    if changes.get("rules") == "sequential" and "window" not in changes:
        changes = {**changes, "window": "started"}
    try:
        plan = StagePlan([Stage(**stage) for stage in config.pop("stages")])
        staged = kind(plan, **config)
    except (CurriculumError, TypeError, KeyError) as error:
        raise JournalError(f"{where}: {error}") from error
    if changes:  # what is wrong with these is no fault of the journal
        staged = kind(plan, **{**config, **changes})
    try:
        staged.load_state_dict({**record["state"], "window": staged.window})
    except (CurriculumError, TypeError, KeyError) as error:
        raise JournalError(f"{where}: {error}") from error
    return staged


def _fold(staged: Staged, record: Mapping[str, Any], where: str) -> list[Decision]:
    for row in record["started"]:
        staged.started(started_of(row, where))
    ended = sorted((episode_of(row, where) for row in record["ended"]), key=lambda episode: episode.order)
    for episode in ended:
        staged.observe(episode)
    staged.beginning(record.get("beginning", ()))
    return list(staged.settle(record["watermark"]))


def _command(staged: Staged, record: Mapping[str, Any], where: str) -> Decision | None:
    """Give the strategy a logged command, as the coordinator did."""
    name, arguments = record["command"], record["arguments"]
    if name in NOTED:
        return Decision(name, staged.stage, total=staged.total)
    if name not in ("set_stage", "set_mixing_ratio", "hold", "release", "record"):
        raise JournalError(f"{where}: command: unknown command {name!r}")
    was_held = staged.held
    try:
        result = getattr(staged, name)(*arguments)
    except (CurriculumError, TypeError) as error:
        raise JournalError(f"{where}: {name}: {error}") from error
    if name == "set_mixing_ratio":
        counts = {"stage": arguments[0], "ratio": arguments[1]}
        return Decision(name, staged.stage, total=staged.total, counts=counts)
    if (name == "hold" and not was_held) or (name == "release" and was_held):
        return Decision(name, staged.stage, total=staged.total)
    return result if isinstance(result, Decision) else None


def replay(path: str | Path) -> Replay:
    """Fold a journal again under its own rules."""
    logged: list[Decision] = []
    replayed: list[Decision] = []
    staged: Staged | None = None
    for line, record in read_journal(path):
        where = f"{path}:{line}"
        if record["kind"] == "run":
            staged = _build(Staged, record, where, {})
            continue
        assert staged is not None
        if record["kind"] == "batch":
            replayed += _fold(staged, record, where)
        elif record["kind"] == "command":
            decision = _command(staged, record, where)
            replayed += [decision] if decision is not None else []
        elif record["kind"] == "published":
            staged.published(record["version"])
        else:
            logged.append(_decision(record, where))
    return Replay(tuple(logged), tuple(replayed), staged.total if staged is not None else 0)


def _effective(records: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Without the run lines that nothing but another one follows: a resume notes one before its state is loaded, and
    one that is refused may have noted no more. A journal of nothing else keeps its last one."""
    run: tuple[int, dict[str, Any]] | None = None
    began = False
    for numbered in records:
        if numbered[1]["kind"] == "run":
            run = numbered
            continue
        if run is not None:
            yield run
            run, began = None, True
        yield numbered
    if run is not None and not began:
        yield run


def other_rules(path: str | Path, changes: Mapping[str, Any]) -> list[Stay]:
    """Stay by stay, when rules with these changed settings would first have moved, on the same episodes.

    `changes`: arguments of `Staged`. What comes after such a first move was drawn under the logged directives, so
    the rest of that stay says nothing about the other rules; each stay starts afresh.
    """
    stays: list[Stay] = []
    watcher: _Watcher | None = None
    for line, record in _effective(read_journal(path)):
        where = f"{path}:{line}"
        if record["kind"] == "run":
            built = _build(_Watcher, record, where, changes)
            assert isinstance(built, _Watcher)
            if watcher is None or built.stage != stays[-1].stage:
                stays.append(Stay(built.stage, built.total))
            built.would = None if watcher is None else stays[-1].other
            watcher = built
            continue
        assert watcher is not None
        if record["kind"] == "batch":
            _fold(watcher, record, where)
            stays[-1].other = watcher.would
        elif record["kind"] == "command" and record["command"] != "set_stage":
            _command(watcher, record, where)
        elif record["kind"] == "published":
            watcher.published(record["version"])
        elif record["kind"] == "decision":
            decision = _decision(record, where)
            if decision.kind in _MOVES and decision.to is not None:
                stays[-1].logged = decision
                watcher.follow(decision)
                stays.append(Stay(decision.to, decision.total))
    return stays
