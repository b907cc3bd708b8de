"""What envs log in their workers, seen from outside."""
# edge: a script, and its stderr

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import gymnasium as gym
from gymnasium import spaces


class Talking(gym.Env[Any, Any]):
    """Logs each step, at INFO and at DEBUG."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return 0, {}

    def step(self, action: Any) -> Any:
        for name in ("talking", "silent"):
            logging.getLogger(name).info("stepped with %s", action)
            logging.getLogger(name).debug("looked closely")
        return 0, 0.0, False, False, {}


SCRIPT = """
import logging, sys
import aio_vecenv as av
from tests.aio_vecenv.test_logs import Talking

logging.basicConfig(level=logging.INFO, format="%(levelname)s at %(name)s: %(message)s")
logging.getLogger("silent").setLevel(logging.WARNING)

async def main():
    async with av.AsyncVecEnv(Talking, 2, num_workers=2) as envs:
        await envs.reset()
        await envs.step([0, 1])
        if "own" in sys.argv:
            await envs.apply(own)
            await envs.step([1, 1])

def own(env):
    logging.basicConfig(format="of its own: %(message)s")

av.run(main())
"""


def _lines(*arguments: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr
    return sorted(line for line in ran.stderr.splitlines() if "stepped" in line or "looked" in line)


def test_records_of_envs_are_written_as_the_parents_are() -> None:
    """Its levels, logger by logger, and its format; nothing vanishes that the parent would let through."""
    assert _lines() == ["INFO at talking: stepped with 0", "INFO at talking: stepped with 1"]


def test_an_env_may_have_logging_of_its_own() -> None:
    assert _lines("own")[-2:] == ["of its own: stepped with 1"] * 2
