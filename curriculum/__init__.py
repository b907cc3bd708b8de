"""What to practise next: stages, levels, strategies, and the one coroutine that decides."""
# the door: re-exports; the coordinator, which needs asyncio, is loaded on first use: workers never do

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curriculum.curriculum_env import CurriculumEnv
from curriculum.directive import Directive
from curriculum.errors import (
    CommandError,
    CoordinatorError,
    CurriculumError,
    DirectiveError,
    JournalError,
    LevelError,
    PlanError,
    StampError,
    StateError,
)
from curriculum.journal import Journal, read_journal
from curriculum.levels import Level, LevelSet
from curriculum.stages import DEFAULT_STAGES, Stage, StagePlan
from curriculum.start_order import Entry, StartOrder
from curriculum.strategies import (
    Decision,
    DomainRandomisation,
    FinishedEpisode,
    Ladder,
    Learnability,
    LearningProgress,
    PrioritisedReplay,
    ScorePart,
    Staged,
    Strategy,
    ever_success,
    ever_success_score,
    is_success,
    said_success,
    success_score,
    unclear_success,
)

if TYPE_CHECKING:
    from curriculum.adapters import CurriculumVecEnvWrapper
    from curriculum.coordinator import Coordinator

__all__ = [
    "DEFAULT_STAGES",
    "CommandError",
    "Coordinator",
    "CoordinatorError",
    "CurriculumEnv",
    "CurriculumError",
    "CurriculumVecEnvWrapper",
    "Decision",
    "Directive",
    "DirectiveError",
    "DomainRandomisation",
    "Entry",
    "FinishedEpisode",
    "Journal",
    "JournalError",
    "Ladder",
    "Learnability",
    "LearningProgress",
    "Level",
    "LevelError",
    "LevelSet",
    "PlanError",
    "PrioritisedReplay",
    "ScorePart",
    "Stage",
    "StagePlan",
    "Staged",
    "StampError",
    "StartOrder",
    "StateError",
    "Strategy",
    "ever_success",
    "ever_success_score",
    "is_success",
    "read_journal",
    "said_success",
    "success_score",
    "unclear_success",
]


def __getattr__(name: str) -> Any:
    if name == "Coordinator":
        from curriculum.coordinator import Coordinator

        return Coordinator
    if name == "CurriculumVecEnvWrapper":
        from curriculum.adapters import CurriculumVecEnvWrapper

        return CurriculumVecEnvWrapper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
