"""Whether the spaces of several envs agree."""
# pure: compares spaces; makes no env

from __future__ import annotations

from typing import Any, Literal

from gymnasium.spaces.utils import is_space_dtype_shape_equiv

__all__ = ["SpacesRule", "same_space"]

SpacesRule = Literal["equal", "equivalent"]


def same_space(name: str, want: Any, have: Any, rule: SpacesRule) -> bool:
    """Whether two envs' spaces agree: equal, or as `rule` says for observations."""
    if want == have:
        return True
    if name != "observation" or rule == "equal":
        return False
    return type(want) is type(have) and bool(is_space_dtype_shape_equiv(want, have))
