"""What an env's `render()` gave, as pixels; or why it is none."""
# pure: arrays

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import aio_vecenv as av

__all__ = ["pixels", "why_not"]


def pixels(drawn: Any, who: str, hint: str) -> NDArray[np.uint8]:
    """The picture as (height, width, 3) uint8. Raises ValueError that says what `who` gave instead, and `hint`."""
    if isinstance(drawn, list) and drawn:  # render_mode="rgb_array_list": the frames since the last time
        drawn = drawn[-1]
    if drawn is None:
        raise ValueError(f"{who} does not draw itself: {hint}")
    picture = np.asarray(drawn)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4) or 0 in picture.shape:
        what = f"{picture.dtype} {picture.shape}" if isinstance(drawn, np.ndarray) else type(drawn).__name__
        raise ValueError(f"{who} draws {what}, not (height, width, 3) uint8: {hint}")
    return picture[:, :, :3]


def why_not(error: Exception, who: str) -> str:
    """Why a call of `render`, or `pixels`, failed."""
    if not isinstance(error, av.VecEnvError):
        return str(error)
    cause = error.__cause__ or error
    if isinstance(cause, NotImplementedError):
        return f"{who} has no render(): it cannot draw itself"
    return f"{who} cannot be drawn: {type(cause).__name__}: {cause}"
