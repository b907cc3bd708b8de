"""The state of all envs as it was seen last: asked for, put back, and given to replacements."""
# async: asks the envs where they live

from __future__ import annotations

import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

from ..core.env_state import EnvState, merge, read, restore, uncarried
from ..errors import EnvError

__all__ = ["EnvStates"]


Apply = Callable[[Callable[[Any], Any]], Awaitable[tuple[Any, ...]]]


class Carrier(Protocol):
    """Who makes replacements, and gives them a state."""

    def carry(self, state: tuple[EnvState, int, bool]) -> None: ...


class EnvStates:
    """Of `count` envs, or VectorEnvs. `apply` calls a function on each of them, as `AsyncVecEnv.apply` does."""

    def __init__(self, supervisor: Carrier, count: int) -> None:
        self._supervisor, self._count = supervisor, count
        self._frozen = False
        self._seen_at: float | None = None  # seconds; None: there is none, or nobody has asked
        self._warned = False

    async def get(self, apply: Apply) -> EnvState:
        """As `AsyncVecEnv.get_state`."""
        found: list[tuple[int, EnvState]] = []  # by position of its env
        for position, states in enumerate(await apply(read)):
            found += [(position, state) for state in states]
        by_name: dict[str, list[Any]] = {}
        owners: dict[int, set[str]] = {}  # an env that has them, and can merge them
        for position, state in found:
            for name, one in state.items():
                if name not in by_name:
                    owners.setdefault(position, set()).add(name)
                by_name.setdefault(name, []).append(one)
        merged: EnvState = {}
        if by_name:
            for position, names in owners.items():
                mine = {name: by_name[name] for name in sorted(names)}
                merged |= (await apply(partial(merge, mine)))[position]
            self._keep(merged)
        await self._warn(apply)
        return merged

    async def set(self, apply: Apply, state: Mapping[str, Any], *, frozen: bool, anew: bool) -> None:
        """As `AsyncVecEnv.set_state`."""
        if not state:
            return
        try:
            known = await apply(partial(restore, state=state, parts=self._count, frozen=frozen, anew=anew))
        except (EnvError, ExceptionGroup) as error:
            first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            raise ValueError(f"the state does not fit: {first}") from error
        if missing := sorted(set(state).difference(*known)):
            raise LookupError(f"there is state of {', '.join(missing)}, but no env has such a wrapper")
        self._frozen = frozen
        self._keep(state)

    def age(self) -> str:
        """What a replacement begins with, in words; empty if nobody knows of any state."""
        if self._seen_at is None:
            return ""
        return f"; its envs have the state of {time.monotonic() - self._seen_at:.1f} s before"

    def _keep(self, state: Mapping[str, Any]) -> None:
        """Replacements get it from now on."""
        self._seen_at = time.monotonic()
        self._supervisor.carry((dict(state), self._count, self._frozen))

    async def _warn(self, apply: Apply) -> None:
        """Say once what is known to have a state that cannot be carried."""
        if self._warned:
            return
        self._warned = True
        found = {text for texts in await apply(uncarried) for text in texts}
        if found:
            warnings.warn(f"state of envs that is not carried: {'; '.join(sorted(found))}", stacklevel=4)
