"""PPO in one file, CleanRL-style, on the Gymnasium adapter. `python examples/cleanrl_style.py --steps 200000`

The only lines that differ from a script on `gymnasium.vector.AsyncVectorEnv` are marked with `#!`: where the envs are
made, and one broadcast that changes gravity in every worker while the training goes on.
"""
# edge: argv and prints

from __future__ import annotations

import argparse
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import nn
from torch.distributions import Categorical

import aio_vecenv


class Gravity(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole whose gravity can be changed from outside: what is broadcast arrives in `on_broadcast`."""

    def on_broadcast(self, payload: Any, version: int) -> None:  #!
        self.unwrapped.gravity = payload  # type: ignore[attr-defined]


def _layer(inputs: int, outputs: int, scale: float = 2**0.5) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Actor and critic, two tanh layers of 64 each."""

    def __init__(self, size: int, actions: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            _layer(size, 64), nn.Tanh(), _layer(64, 64), nn.Tanh(), _layer(64, 1, 1.0)
        )
        self.actor = nn.Sequential(
            _layer(size, 64), nn.Tanh(), _layer(64, 64), nn.Tanh(), _layer(64, actions, 0.01)
        )

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.critic(obs).squeeze(-1)
        return value

    def policy(self, obs: torch.Tensor) -> Any:
        return Categorical(logits=self.actor(obs))


def train(
    steps: int, *, num_envs: int = 8, num_steps: int = 128, seed: int = 1, gravity: float = 9.8
) -> float:
    """Train for so many env steps; the mean return of the newest 50 episodes. Half-way, gravity becomes `gravity`."""
    torch.manual_seed(seed)
    gamma, lam, clip, epochs, minibatches = 0.99, 0.95, 0.2, 4, 4
    envs = aio_vecenv.make_vec(  #! gymnasium.make_vec(…, vectorization_mode="async", vector_kwargs={…})
        "CartPole-v1", num_envs, wrappers=[Gravity], autoreset_mode=AutoresetMode.SAME_STEP
    )
    agent = Agent(4, 2)
    optimiser = torch.optim.Adam(agent.parameters(), lr=1e-3, eps=1e-5)
    shape = (num_steps, num_envs)
    obs_s, actions_s = torch.zeros((*shape, 4)), torch.zeros(shape, dtype=torch.long)
    logs_s, rewards_s, values_s, dones_s = (torch.zeros(shape) for _ in range(4))
    running, finished = np.zeros(num_envs), deque[float](maxlen=50)
    first, _ = envs.reset(seed=seed)
    obs = torch.as_tensor(first)
    updates = max(1, steps // (num_envs * num_steps))
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - update / updates)
        if update == updates // 2:
            envs.broadcast(gravity)  #! never waits; every episode that begins from here on has it
        for t in range(num_steps):
            with torch.no_grad():
                policy, value = agent.policy(obs), agent.value(obs)
                action = policy.sample()
            obs_s[t], actions_s[t], values_s[t], logs_s[t] = obs, action, value, policy.log_prob(action)
            following, rewards, terminations, truncations, infos = envs.step(action.numpy())
            running += rewards
            for i in np.flatnonzero(terminations | truncations):
                finished.append(float(running[i]))
                running[i] = 0.0
                # cut off by the time limit: the last observation says what was to come
                if not terminations[i]:
                    last = torch.as_tensor(infos["final_obs"][i])
                    rewards[i] += gamma * float(agent.value(last))
            rewards_s[t] = torch.as_tensor(rewards)
            dones_s[t] = torch.as_tensor(terminations | truncations)
            obs = torch.as_tensor(following)
        with torch.no_grad():
            advantages, carry, after = torch.zeros(shape), torch.zeros(num_envs), agent.value(obs)
            for t in reversed(range(num_steps)):
                going = 1.0 - dones_s[t]
                delta = rewards_s[t] + gamma * after * going - values_s[t]
                advantages[t] = carry = delta + gamma * lam * going * carry
                after = values_s[t]
            returns = advantages + values_s
        flat = [part.flatten(0, 1) for part in (obs_s, actions_s, logs_s, advantages, returns)]
        for _ in range(epochs):
            for rows in torch.randperm(num_envs * num_steps).chunk(minibatches):
                o, a, old, advantage, target = (part[rows] for part in flat)
                policy = agent.policy(o)
                ratio = (policy.log_prob(a) - old).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                surrogate = torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
                value_loss = 0.5 * (agent.value(o) - target).pow(2).mean()
                loss = -surrogate + 0.5 * value_loss - 0.01 * policy.entropy().mean()
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimiser.step()
        if finished and update % 10 == 9:
            print(f"step {(update + 1) * num_envs * num_steps:7d}: mean return {np.mean(finished):6.1f}")
    envs.close()
    return float(np.mean(finished)) if finished else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gravity", type=float, default=12.0, help="from half-way on")
    args = parser.parse_args()
    print(f"mean return {train(args.steps, seed=args.seed, gravity=args.gravity):.1f}")
