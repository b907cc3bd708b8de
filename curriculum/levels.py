"""Levels by stage and generator: from a list, a function, or a safe on-disk format, lazy and validated."""
# pure + files: reads the directory it was given and nothing else; never pickle

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from curriculum.errors import LevelError
from curriculum.level_files import FileSource, Mark, Source, open_source
from curriculum.stages import StagePlan

__all__ = ["Level", "LevelSet"]

_MANY = 2**31  # levels per stage of a function that did not say how many it has


@dataclass(frozen=True, slots=True)
class Level:
    """One concrete thing to play. `data` is whatever `load` needs: a dict, an array, a seed."""

    stage: str
    id: str
    data: Any = None
    generator: str = "default"
    tags: tuple[str, ...] = ()


class _ListSource:
    """Levels that are already in memory."""

    def __init__(self, levels: list[Level]) -> None:
        self._levels = levels

    def __len__(self) -> int:
        return len(self._levels)

    def load(self, i: int) -> tuple[str, Any, tuple[str, ...]]:
        level = self._levels[i]
        return level.id, level.data, level.tags

    def ids(self) -> Iterator[tuple[str, str]]:
        return ((level.id, "the list of levels") for level in self._levels)


class _FunctionSource:
    """Levels that a function makes: level i of a stage is `make(stage, i)`."""

    def __init__(self, make: Callable[[str, int], Any], stage: str, count: int) -> None:
        self._make, self._stage, self._count = make, stage, count

    def __len__(self) -> int:
        return self._count

    def load(self, i: int) -> tuple[str, Any, tuple[str, ...]]:
        return f"{self._stage}-{i}", self._make(self._stage, i), ()

    def ids(self) -> Iterator[tuple[str, str]]:
        return ((f"{self._stage}-{i}", "the function") for i in range(self._count))


class LevelSet:
    """All levels of a curriculum, numbered 0 … len-1: stage by stage, generator by generator, in order.

    Built from a list of `Level`; `LevelSet.from_function(make, stages)` and `LevelSet.from_directory(path)`
    are the other ways. A list travels to the workers whole; a directory travels as its path, and a worker
    reads only the levels it plays, keeping at most `cache` of them. LevelError names file and line of what is
    wrong.
    """

    def __init__(self, levels: Iterable[Level], *, stages: Sequence[str] | None = None) -> None:
        groups: dict[str, dict[str, list[Level]]] = {name: {} for name in stages or ()}
        for level in levels:
            if not isinstance(level, Level):
                raise LevelError(f"expected Level objects, got {level!r}")
            for key in ("stage", "id", "generator"):
                if not isinstance(name := getattr(level, key), str) or not name:
                    raise LevelError(
                        f"level {level.id!r} of stage {level.stage!r}: {key}: expected a non-empty string, "
                        f"got {name!r:.60}"
                    )
            if stages is not None and level.stage not in groups:
                raise LevelError(
                    f"level {level.id!r}: unknown stage {level.stage!r}; known are {', '.join(groups)}"
                )
            groups.setdefault(level.stage, {}).setdefault(level.generator, []).append(level)
        sources: dict[str, dict[str, Source]] = {
            stage: {name: _ListSource(found) for name, found in generators.items()}
            for stage, generators in groups.items()
        }
        self._setup(sources, cache=0, plan=None)
        self._number()

    @classmethod
    def from_function(
        cls, make: Callable[[str, int], Any], stages: Sequence[str], *, count: int = _MANY, cache: int = 64
    ) -> LevelSet:
        """Levels that `make(stage, i) -> data` makes, i from 0 to count - 1; their ids are "stage-i".

        `count`: levels per stage. Without it `i` is any number below 2**31, to be used as a seed.
        """
        if isinstance(stages, (str, Mapping)):  # its letters or keys would be taken as names
            raise LevelError(f"stages: expected a sequence of names, got {stages!r:.60}")
        if type(count) is bool or not isinstance(count, int) or count < 1:
            raise LevelError(f"count: expected a whole number of at least 1, got {count!r:.60}")
        self = cls.__new__(cls)
        sources: dict[str, dict[str, Source]] = {
            stage: {"default": _FunctionSource(make, stage, count)} for stage in stages
        }
        self._setup(sources, cache=cache, plan=None)
        return self

    @classmethod
    def from_directory(cls, path: str | Path, *, cache: int = 256) -> LevelSet:
        """Index and check a directory: `plan.toml`, and per stage a folder of GENERATOR.jsonl and
        GENERATOR.npz.

        Every line is checked now, and every array's header; data is read on first use, and the newest `cache` levels
        are kept.
        """
        self = cls._open(str(Path(path).absolute()), cache, None)
        self._number()
        return self

    @classmethod
    def _open(cls, path: str, cache: int, checked: dict[str, Mark] | None) -> LevelSet:
        """`checked`: the marks of the files when they were checked, in their order; None: check them now."""
        root = Path(path)
        if not root.is_dir():
            raise LevelError(f"{root}: not a directory of levels")
        plan = StagePlan.from_toml(root / "plan.toml")
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and entry.name not in plan:
                raise LevelError(
                    f"{entry}: unknown stage {entry.name!r}; plan.toml has {', '.join(plan.names)}"
                )
        folders = {
            stage: sorted((root / stage).iterdir()) if (root / stage).is_dir() else [] for stage in plan.names
        }
        if checked is not None:
            _same_files(
                [f"{stage}/{file.name}" for stage in folders for file in folders[stage]], checked, root
            )
        sources: dict[str, dict[str, Source]] = {}
        for stage, files in folders.items():
            found: dict[str, Source] = {}
            for file in files:
                if file.stem in found:
                    raise LevelError(f"{file}: generator {file.stem!r} already has a file in this stage")
                mark = None if checked is None else checked[f"{stage}/{file.name}"]
                found[file.stem] = open_source(file, mark)
            sources[stage] = found
        self = cls.__new__(cls)
        self._setup(sources, cache=cache, plan=plan, path=path)
        return self

    def _setup(
        self,
        sources: dict[str, dict[str, Source]],
        *,
        cache: int,
        plan: StagePlan | None,
        path: str | None = None,
    ) -> None:
        self.plan = plan  # of a directory's plan.toml
        self._path = path
        self._groups: dict[tuple[str, str], range] = {}
        self._stages: dict[str, range] = {}
        self._generators: dict[str, tuple[str, ...]] = {}
        self._sources: list[tuple[range, str, str, Source]] = []
        self._ids: dict[str, int] | None = None
        self._cache: OrderedDict[int, Level] = OrderedDict()
        self._cache_size = cache
        start = 0
        for stage, generators in sources.items():
            first = start
            for generator, source in generators.items():
                group = range(start, start + len(source))
                if len(group) == 0:
                    at = f"{source.file}: " if hasattr(source, "file") else ""
                    raise LevelError(f"{at}stage {stage!r}: generator {generator!r} has no levels")
                self._groups[stage, generator] = group
                self._sources.append((group, stage, generator, source))
                start = group.stop
            if start == first:
                at = "" if path is None else f"{Path(path) / stage}: "
                raise LevelError(f"{at}stage {stage!r} has no levels")
            self._stages[stage] = range(first, start)
            self._generators[stage] = tuple(generators)
        if not sources:
            raise LevelError("a level set needs at least one level")
        self._size = start

    def _number(self) -> dict[str, int]:
        """Level id → number; an id that occurs twice is an error."""
        numbers: dict[str, int] = {}
        places: dict[str, str] = {}
        i = 0
        for _, _, _, source in self._sources:
            for name, place in source.ids():
                if name in numbers:
                    raise LevelError(f"{place}: id {name!r} occurs twice, first in {places[name]}")
                numbers[name], places[name] = i, place
                i += 1
        self._ids = numbers
        return numbers

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            return (_restore, (self._sources, self._cache_size))
        checked = {
            f"{stage}/{source.file.name}": source.mark
            for _, stage, _, source in self._sources
            if isinstance(source, FileSource)
        }
        return (LevelSet._open, (self._path, self._cache_size, checked))

    def __len__(self) -> int:
        return self._size

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that have levels, in order."""
        return tuple(self._stages)

    def generators(self, stage: str) -> tuple[str, ...]:
        """The generators of a stage, in order."""
        self.of_stage(stage)
        return self._generators[stage]

    def of_stage(self, stage: str) -> range:
        """The numbers of a stage's levels."""
        numbers = self._stages.get(stage)
        if numbers is None:
            raise LevelError(f"no levels for stage {stage!r}; there are levels for {', '.join(self._stages)}")
        return numbers

    def of_generator(self, stage: str, generator: str) -> range:
        """The numbers of one generator's levels in a stage."""
        numbers = self._groups.get((stage, generator))
        if numbers is None:
            raise LevelError(f"stage {stage!r} has no generator {generator!r}: {self.generators(stage)}")
        return numbers

    def ids(self) -> Iterator[str]:
        """Every level's id, by number."""
        for _, _, _, source in self._sources:
            for name, _ in source.ids():
                yield name

    def place(self, number: int) -> tuple[str, str]:
        """(stage, generator) of a level, without loading it."""
        group, stage, generator, _ = self._find(number)
        del group
        return stage, generator

    def index(self, level_id: str) -> int:
        """The number of the level with that id. The first call over a directory in a worker
        reads every id.
        """
        ids = self._ids if self._ids is not None else self._number()
        number = ids.get(level_id)
        if number is None:
            raise LevelError(f"unknown level {level_id!r}")
        return number

    def __getitem__(self, number: int) -> Level:
        """Load a level by its number."""
        level = self._cache.get(number)
        if level is not None:
            self._cache.move_to_end(number)
            return level
        group, stage, generator, source = self._find(number)
        name, data, tags = source.load(number - group.start)
        level = Level(stage, name, data, generator, tags)
        if self._cache_size:
            self._cache[number] = level
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return level

    def _find(self, number: int) -> tuple[range, str, str, Source]:
        if not 0 <= number < self._size:
            raise LevelError(f"level {number}: there are levels 0 to {self._size - 1}")
        low, high = 0, len(self._sources) - 1
        while low < high:
            middle = (low + high) // 2
            if number < self._sources[middle][0].stop:
                high = middle
            else:
                low = middle + 1
        return self._sources[low]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many levels each generator of each stage has."""
        return {
            stage: {name: len(self._groups[stage, name]) for name in self._generators[stage]}
            for stage in self._stages
        }


def _same_files(now: Sequence[str], then: Iterable[str], root: Path) -> None:
    """LevelError unless a directory has the files that it had when it was checked: their order numbers the levels."""
    for found, expected in zip_longest(now, then, fillvalue="no more files"):
        if found != expected:
            raise LevelError(f"{root}: changed after it was checked ({expected} then, {found} now)")


def _restore(sources: list[tuple[range, str, str, Source]], cache: int) -> LevelSet:
    grouped: dict[str, dict[str, Source]] = {}
    for _, stage, generator, source in sources:
        grouped.setdefault(stage, {})[generator] = source
    levels = LevelSet.__new__(LevelSet)
    levels._setup(grouped, cache=cache, plan=None)
    return levels
