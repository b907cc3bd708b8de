"""`Stage` and `StagePlan`: the steps of a curriculum, in a fixed order; validation; TOML in and out."""
# pure: text in, plain frozen data out; the only file touched is the plan that from_toml was given

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias

from curriculum.errors import PlanError
from curriculum.rules import exact

__all__ = ["DEFAULT_STAGES", "Stage", "StagePlan"]

_FLOOR_GAP = Fraction(20, 100)  # floor ≤ T - .20: with less, one noisy window undoes what another decided

FloatOverride: TypeAlias = float | Mapping[str, float] | None
IntOverride: TypeAlias = int | Mapping[str, int] | None
Measure: TypeAlias = Literal["success", "return", "steps"]
SuccessRule: TypeAlias = Literal["last", "ever"]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_UNSAID = float("nan")  # this very object: a threshold that nobody gave

_KINDS: tuple[tuple[str, type], ...] = (
    ("name", str),
    ("min_episodes", int),
    ("floor", float),
    ("max_episodes", int),
    ("measure", str),
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the curriculum.

    `measure`: what moves it on. "success", with `threshold` T the success rate of the newest 50 outcomes that is good
    enough, 0 < T ≤ 1 (default .70). "return", with T the mean return of these. "steps", with T the steps to spend in a
    stay: a whole number, or below 1 a share of the run's `total_steps`.

    `min_episodes` M: outcomes before that counts (the rule *early* asks for neither: see `Staged`; "steps" neither).
    `floor`: a success rate, or a mean return, below which the run goes one stage back (None: never; at most T - .20,
    below T for returns). `max_episodes`: outcomes in one stay after which the stage is reported as stalled (None:
    never).
    """

    name: str
    threshold: float = _UNSAID
    min_episodes: int = 100
    floor: float | None = None
    max_episodes: int | None = None
    measure: Measure = "success"

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not re.fullmatch(r"[^\s/\\][^/\\\n]*", name):
            raise PlanError(f"name: expected a non-empty string without slashes, got {self.name!r}")
        measures = ("success", "return", "steps")
        self._expect("measure", self.measure in measures, f"one of {', '.join(map(repr, measures))}")
        self._check_threshold()
        self._expect("min_episodes", _is_count(self.min_episodes), "a whole number of at least 1")
        self._expect(
            "max_episodes",
            self.max_episodes is None or _is_count(self.max_episodes),
            "a whole number of at least 1",
        )
        if self.floor is not None:
            self._check_floor()
        self._make_plain()

    def _check_threshold(self) -> None:
        given: object = self.threshold
        number = _is_number(given)
        if given is _UNSAID:
            if self.measure != "success":
                raise PlanError(f"stage {self.name!r}: threshold: measure = {self.measure!r} needs one")
            object.__setattr__(self, "threshold", 0.70)
        elif self.measure == "success":
            self._expect("threshold", number and 0 < self.threshold <= 1, "a number in (0, 1]")
        elif self.measure == "return":
            self._expect("threshold", number and math.isfinite(self.threshold), "a finite number")
        else:
            whole = number and self.threshold >= 1 and self.threshold == int(self.threshold)
            share = number and 0 < self.threshold < 1
            self._expect("threshold", whole or share, "a whole number of steps, or a share in (0, 1)")

    def _check_floor(self) -> None:
        number = _is_number(self.floor)
        assert self.floor is not None
        if self.measure == "success":
            most = exact(self.threshold) - _FLOOR_GAP
            ok = number and 0 < self.floor < 1 and exact(self.floor) <= most
            self._expect(
                "floor", ok, f"a number above 0 and at most threshold - .20 = {round(float(most), 10):g}"
            )
        elif self.measure == "return":
            ok = number and math.isfinite(self.floor) and self.floor < self.threshold
            self._expect("floor", ok, f"a number below the threshold, {self.threshold:g}")
        else:
            self._expect("floor", False, "nothing: a stage that is left after its steps does not go back")

    def _make_plain(self) -> None:
        """NumPy's numbers and strings are Python's, too, but a checkpoint that holds one is refused when read."""
        for key, kind in _KINDS:
            value = getattr(self, key)
            if value is not None:
                object.__setattr__(self, key, kind(value))
        steps = self.measure == "steps" and self.threshold >= 1
        object.__setattr__(self, "threshold", int(self.threshold) if steps else float(self.threshold))

    def _expect(self, key: str, ok: bool, expected: str) -> None:
        if not ok:
            raise PlanError(f"stage {self.name!r}: {key}: expected {expected}, got {getattr(self, key)!r}")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without what is not set."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            key: value
            for key, value in values.items()
            if value is not None and (key, value) != ("measure", "success")
        }


_KEYS = tuple(f.name for f in fields(Stage))
_OVERRIDES = ("threshold", "min_episodes", "floor", "max_episodes")

DEFAULT_STAGES = (
    Stage("simplest", 0.60, 50),
    Stage("simpler", 0.65, 60),
    Stage("simple", 0.70, 80),
    Stage("medium", 0.70, 100),
    Stage("complex", 0.75, 120),
    Stage("exploration", 0.80, 150),
    Stage("mine_heavy", 0.80, 150),
)


class StagePlan:
    """Stages in order. Without arguments: seven stages of a platform game, as an example.

    `threshold=`, `min_episodes=` (and `floor=`, `max_episodes=`) are **overrides**: one value replaces the
    setting of *every* stage, a mapping `{"far": .9}` replaces it for just the stages it names. None, the
    default, leaves the stages' own settings in force: no override is set unless you set one.

    `success`: an episode succeeded if its "last" step did, or if it "ever" did. None: as the plan that was given as
    `stages` says, else "last".
    """

    __slots__ = ("_index", "stages", "success")

    def __init__(
        self,
        stages: Iterable[Stage] | None = None,
        *,
        threshold: FloatOverride = None,
        min_episodes: IntOverride = None,
        floor: FloatOverride = None,
        max_episodes: IntOverride = None,
        success: SuccessRule | None = None,
    ) -> None:
        if success is None:
            success = stages.success if isinstance(stages, StagePlan) else "last"
        if success not in ("last", "ever"):
            raise PlanError(f"success: expected 'last' or 'ever', got {success!r}")
        self.success: SuccessRule = success
        given = DEFAULT_STAGES if stages is None else tuple(stages)
        for stage in given:
            if not isinstance(stage, Stage):
                raise PlanError(f"expected Stage objects, got {stage!r}")
        if not given:
            raise PlanError("a plan needs at least one stage")
        self._index = {stage.name: i for i, stage in enumerate(given)}
        if len(self._index) < len(given):
            names = [stage.name for stage in given]
            twice = next(name for name in names if names.count(name) > 1)
            raise PlanError(f"stage {twice!r} occurs twice")
        changes: dict[str, dict[str, Any]] = {name: {} for name in self._index}
        overrides = zip(_OVERRIDES, (threshold, min_episodes, floor, max_episodes))
        for key, override in overrides:
            if isinstance(override, Mapping):
                for name, value in override.items():
                    self.index(name, what=f"override {key}")
                    changes[name][key] = value
            elif override is not None:
                measures = sorted({stage.measure for stage in given})
                if key in ("threshold", "floor") and len(measures) > 1:
                    raise PlanError(
                        f"{key}: one value for all stages, but they measure {' and '.join(measures)}: say for which"
                    )
                for change in changes.values():
                    change[key] = override
        self.stages: tuple[Stage, ...] = tuple(replace(stage, **changes[stage.name]) for stage in given)

    @property
    def names(self) -> tuple[str, ...]:
        """The stages' names, in order."""
        return tuple(self._index)

    def index(self, name: object, what: str = "stage") -> int:
        """The place of a stage in the order; PlanError for a name that is not in the plan."""
        place = self._index.get(name) if isinstance(name, str) else None
        if place is None:
            raise PlanError(f"{what}: unknown stage {name!r}; the plan has {', '.join(self._index)}")
        return place

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __getitem__(self, key: str | int) -> Stage:
        return self.stages[self.index(key) if isinstance(key, str) else key]

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StagePlan):
            return False
        return (self.stages, self.success) == (other.stages, other.success)

    def __hash__(self) -> int:
        return hash((self.stages, self.success))

    def __repr__(self) -> str:
        more = "" if self.success == "last" else f", success={self.success!r}"
        return f"StagePlan({list(self.stages)!r}{more})"

    def override(
        self,
        *,
        threshold: FloatOverride = None,
        min_episodes: IntOverride = None,
        floor: FloatOverride = None,
        max_episodes: IntOverride = None,
    ) -> StagePlan:
        """This plan with settings replaced: of all stages by one value, of some by a mapping."""
        return StagePlan(
            self,
            threshold=threshold,
            min_episodes=min_episodes,
            floor=floor,
            max_episodes=max_episodes,
        )

    def to_toml(self) -> str:
        """The text that `from_toml` reads."""
        blocks = [] if self.success == "last" else [f"success = {_toml(self.success)}"]
        for stage in self.stages:
            lines = [f"{key} = {_toml(value)}" for key, value in stage.as_dict().items()]
            blocks.append("\n".join(["[[stage]]", *lines]))
        return "\n\n".join(blocks) + "\n"

    @classmethod
    def from_toml(cls, path: str | Path) -> StagePlan:
        """Read a plan. PlanError names file, line, key and what was expected.

        One `[[stage]]` table per stage, in order, with `name` and any of threshold, min_episodes, floor,
        max_episodes, measure; above them, `success`, and the first four as overrides: a value, or a table
        `{ far = 0.9 }`.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"{path}: cannot be read: {error}") from error
        return _parse(text, str(path))


def _toml(value: Any) -> str:
    """A string or number as TOML writes it: as JSON does, but without surrogate pairs, and with DEL escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _parse(text: str, where: str) -> StagePlan:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        at = line.group(1) if line else str(text.count("\n") + 1)
        raise PlanError(f"{where}:{at}: not valid TOML: {error}") from error

    def fail(message: str, index: int | None, key: str | None) -> PlanError:
        return PlanError(f"{where}:{_line_of(text, index, key)}: {message}")

    for key in data:
        if key not in ("stage", "success", *_OVERRIDES):
            expected = ", ".join(("[[stage]]", *_OVERRIDES, "success"))
            raise fail(f"unknown key {key!r}; expected {expected}", None, key)
    tables = data.get("stage")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise fail("expected one [[stage]] table per stage", None, "stage")
    stages: list[Stage] = []
    for i, table in enumerate(tables):
        for key in table:
            if key not in _KEYS:
                raise fail(f"stage {i + 1}: unknown key {key!r}; expected {', '.join(_KEYS)}", i, key)
        if "name" not in table:
            raise fail(f"stage {i + 1}: name: expected a string, got nothing", i, None)
        try:
            stages.append(Stage(**table))
        except PlanError as error:
            culprit = next((key for key in _KEYS if f"{key}: " in str(error)), None)
            raise fail(str(error), i, culprit) from None
        if stages[-1].name in (stage.name for stage in stages[:-1]):
            raise fail(f"stage {stages[-1].name!r} occurs twice", i, "name")
    overrides = {key: data[key] for key in (*_OVERRIDES, "success") if key in data}
    try:
        return StagePlan(stages, **overrides)
    except PlanError as error:
        culprit = next((key for key in overrides if f"{key}: " in str(error)), next(iter(overrides), None))
        raise fail(str(error), None, culprit) from None


def _line_of(text: str, index: int | None, key: str | None) -> int:
    """Where a key stands: in the index-th [[stage]] table, or above all of them; tomllib does not tell."""
    table, header = -1, 1
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"\s*\[\[\s*[\"']?stage[\"']?\s*\]\]", line):
            table, header = table + 1, number
            if table == index and key is None:
                return number
            continue
        wanted = -1 if index is None else index
        named = key is not None and re.match(rf"\s*\[?\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]", line)
        if named and (table == wanted or line.lstrip().startswith("[")):
            return number
        if index is not None and table > index:
            break
    return header if index is not None else 1
