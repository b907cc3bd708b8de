"""Rollout columns fill whatever the order of replies; advantages equal their slow twin."""
# pure: tables and hypothesis

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.learn.rollout import Rollout, generalised_advantages

GAMMA, LAM = 0.9, 0.8


def twin(column: dict[str, Any], last_value: float, time_limit: str) -> list[float]:
    """One env, by the definition: A_t = Σ (γλ)^k δ_{t+k}, up to the end of the episode or what is not of it."""
    n = len(column["rewards"])
    values = [*column["values"], last_value]
    advantages = []
    for t in range(n):
        total, weight = 0.0, 1.0
        for k in range(t, n):
            if column["first"][k]:  # this row's action was not executed: nothing of it is known
                break
            ends = column["terminated"][k] or column["truncated"][k]
            bootstraps = not column["terminated"][k] and not (
                time_limit == "terminal" and column["truncated"][k]
            )
            total += weight * (column["rewards"][k] + GAMMA * values[k + 1] * bootstraps - values[k])
            weight *= GAMMA * LAM
            if ends:
                break
        advantages.append(0.0 if column["first"][t] else total)
    return advantages


row = st.fixed_dictionaries(
    {
        "rewards": st.floats(-2, 2, width=32),
        "values": st.floats(-2, 2, width=32),
        "end": st.sampled_from(["no", "no", "no", "terminated", "truncated", "lost"]),
    }
)


@given(rows=st.lists(row, min_size=1, max_size=12), last=st.floats(-2, 2, width=32), limit=st.booleans())
def test_advantages_equal_their_twin(rows: list[dict[str, Any]], last: float, limit: bool) -> None:
    # after an end comes the reset row; a lost worker's row is itself first and truncated
    column: dict[str, list[Any]] = {
        "rewards": [],
        "values": [],
        "terminated": [],
        "truncated": [],
        "first": [],
    }
    ended = False
    for item in rows:
        lost = item["end"] == "lost" and not ended
        column["rewards"].append(item["rewards"])
        column["values"].append(item["values"])
        column["first"].append(ended or lost)
        column["terminated"].append(item["end"] == "terminated" and not ended)
        column["truncated"].append((item["end"] == "truncated" and not ended) or lost)
        ended = not ended and item["end"] in ("terminated", "truncated")
    time_limit: Literal["bootstrap", "terminal"] = "terminal" if limit else "bootstrap"

    def array(name: str, kind: Any) -> Any:
        return np.array(column[name], kind)[:, None]

    got = generalised_advantages(
        array("rewards", np.float32), array("values", np.float32), np.array([last], np.float32),
        array("terminated", bool), array("truncated", bool), array("first", bool),
        gamma=GAMMA, lam=LAM, time_limit=time_limit,
    )  # fmt: skip
    np.testing.assert_allclose(got[:, 0], twin(column, last, time_limit), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ending", "time_limit", "expected"),
    [
        ("terminated", "bootstrap", 1.0 - 0.5),  # no value after a termination
        ("truncated", "bootstrap", 1.0 + GAMMA * 7.0 - 0.5),  # the final observation's value, 7
        ("truncated", "terminal", 1.0 - 0.5),  # the limit is the task
    ],
)
def test_the_last_row_of_an_episode(ending: str, time_limit: Any, expected: float) -> None:
    flags = {name: np.array([[name == ending], [False]]) for name in ("terminated", "truncated")}
    got = generalised_advantages(
        np.array([[1.0], [99.0]], np.float32),
        np.array([[0.5], [7.0]], np.float32),  # the second row sees the final observation; its action never ran
        np.array([1000.0], np.float32),
        flags["terminated"], flags["truncated"], np.array([[False], [True]]),
        gamma=GAMMA, lam=LAM, time_limit=time_limit,
    )  # fmt: skip
    assert got[0, 0] == pytest.approx(expected)
    assert got[1, 0] == 0.0


def make_rollout(steps: int, envs: int) -> Rollout:
    spaces: dict[str, gym.Space[Any]] = {"": gym.spaces.Box(-1, 1, (2,), np.float32)}
    return Rollout(steps, envs, spaces, action_shape=(1,), action_dtype=np.dtype(np.int64), mask_size=3)


@given(data=st.data())
def test_columns_fill_in_any_order_of_replies(data: st.DataObject) -> None:
    """Every env contributes exactly T rows, each with its own outcome, whoever is fast; and row t + 1 of its
    observations and masks is what row t led to, from one rollout to the next (V18)."""
    steps, envs = 3, 4
    rollout = make_rollout(steps, envs)

    def see(ids: Any, turn: Any) -> None:
        stamp = (100 * ids + turn).astype(np.float32)
        rollout.see(
            ids,
            {"": np.stack([stamp, stamp], axis=1)},
            np.stack([(turn + ids) % 3 == k for k in range(3)], axis=1),
        )

    everyone, turn = np.arange(envs), np.zeros(envs, np.int64)
    see(everyone, turn)
    for number in range(2):
        waiting: Any = everyone
        owed: list[int] = []
        rollout.clear()
        while not rollout.full:
            if len(waiting):
                obs, masks = rollout.seen(waiting)
                stamp = obs[""][:, 0]
                np.testing.assert_array_equal(stamp, 100 * waiting + turn[waiting])
                assert masks is not None
                assert masks[:, 0].tolist() == ((turn + everyone)[waiting] % 3 == 0).tolist()
                rollout.act(waiting, stamp[:, None].astype(np.int64), stamp, stamp)
                owed += waiting.tolist()
            replied = data.draw(st.lists(st.sampled_from(sorted(owed)), min_size=1, unique=True))
            ids = np.array(sorted(replied))
            owed = [env for env in owed if env not in replied]
            none = np.zeros(len(ids), bool)
            waiting = rollout.outcome(ids, (100.0 * ids + turn[ids]).astype(np.float64), none, none, none)
            turn[ids] += 1
            see(ids, turn[ids])
        expected = 100 * everyone[None, :] + np.arange(steps)[:, None] + steps * number
        for stored in (
            rollout.rewards,
            rollout.log_probs,
            rollout.values,
            rollout.obs[""][:-1, :, 1],
            rollout.actions[..., 0],
        ):
            np.testing.assert_array_equal(stored, expected)
        np.testing.assert_array_equal(rollout.last_obs[""][:, 0], expected[-1] + 1)
        assert rollout.masks is not None
        np.testing.assert_array_equal(
            rollout.masks[..., 0], (np.arange(steps + 1)[:, None] + steps * number + everyone) % 3 == 0
        )
        assert not len(waiting)
        assert not owed
