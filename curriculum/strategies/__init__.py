"""Strategies: pure objects that turn finished episodes into directives."""
# pure: no loop, no process, no clock

from curriculum.strategies.base import Decision, FinishedEpisode, Strategy, is_success
from curriculum.strategies.staged import Staged

__all__ = ["Decision", "FinishedEpisode", "Staged", "Strategy", "is_success"]
