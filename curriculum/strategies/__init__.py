"""Strategies: pure objects that turn finished episodes into directives."""
# pure: no loop, no process, no clock

from curriculum.strategies.base import (
    Decision,
    FinishedEpisode,
    Strategy,
    ever_success,
    ever_success_score,
    is_success,
    said_success,
    success_score,
    unclear_success,
)
from curriculum.strategies.ladder import Ladder
from curriculum.strategies.learnability import Learnability
from curriculum.strategies.learning_progress import LearningProgress
from curriculum.strategies.prioritised_replay import PrioritisedReplay, ScorePart
from curriculum.strategies.staged import Staged
from curriculum.strategies.weighted import DomainRandomisation

__all__ = [
    "Decision",
    "DomainRandomisation",
    "FinishedEpisode",
    "Ladder",
    "Learnability",
    "LearningProgress",
    "PrioritisedReplay",
    "ScorePart",
    "Staged",
    "Strategy",
    "ever_success",
    "ever_success_score",
    "is_success",
    "said_success",
    "success_score",
    "unclear_success",
]
