"""What the envs of a worker are, and the group that steps them: single envs, or VectorEnvs whose sub-envs are rows."""
# pure: spaces and views; calls no env but for its attributes

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from ..core.layout import Slab, SpaceTree
from ..core.messages import Attachment, Setup, Spaces
from ..core.options import Settings
from ..core.report import RowError
from ..core.spaces import same_space
from ..core.updates import Inbox
from .env_group import EnvGroup
from .rows import Group
from .vector_group import VectorEnvGroup

__all__ = ["build", "check_same", "spaces_of"]


def spaces_of(env: Any, settings: Settings) -> Spaces:
    """The spaces of what a factory made. Raises TypeError if that is no env."""
    if isinstance(env, gym.vector.VectorEnv):
        mode = env.metadata.get("autoreset_mode")
        if mode != settings.autoreset:
            raise ValueError(
                f"the VectorEnv's metadata['autoreset_mode'] is {mode}, the vec env's autoreset {settings.autoreset}"
            )
        observation, action, rows = env.single_observation_space, env.single_action_space, env.num_envs
    else:
        if not callable(getattr(env, "step", None)) or not isinstance(
            getattr(env, "observation_space", None), gym.Space
        ):
            raise TypeError(f"the factory made {type(env).__name__}, not a gymnasium.Env with spaces")
        observation, action, rows = env.observation_space, env.action_space, 1
    vectorised = isinstance(env, gym.vector.VectorEnv)
    return Spaces(observation, action, dict(env.metadata), env.spec, [rows], vectorised)


def check_same(expected: Spaces, got: Spaces, expected_env: int, settings: Settings) -> None:
    """Raise RowError unless both envs have the same spaces."""
    for name in ("observation", "action"):
        want, have = getattr(expected, name), getattr(got, name)
        if not same_space(name, want, have, settings.spaces):
            raise RowError(f"the {name} space", f"{want} as of env {expected_env}", str(have))
    if expected.vectorised != got.vectorised:
        raise RowError("the env", f"a VectorEnv as of env {expected_env}", "a single env or the reverse")


def build(
    envs: list[Any],
    spaces: Spaces,
    setup: Setup,
    where: Attachment,
    block: Any,
    inbox: Inbox,
    catch_up: Callable[[int], None],
    left: Callable[[], int | None],
) -> Group:
    """The group that steps `envs` over the shared block."""
    obs = SpaceTree(spaces.observation, setup.shared_memory)
    action = SpaceTree(spaces.action)
    slab = Slab(block, where.fields, obs, action)
    if spaces.vectorised:
        return VectorEnvGroup(
            envs,
            spaces.rows,
            where.first,
            slab,
            obs,
            action,
            setup.settings,
            inbox,
            catch_up,
            where.restart_seeds,
            left,
        )
    return EnvGroup(
        envs, where.first, slab, obs, action, setup.settings, inbox, catch_up, where.restart_seeds, left
    )
