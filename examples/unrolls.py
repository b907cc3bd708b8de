"""PPO in one file, CleanRL-style, on unrolls: the policy acts in the workers, in numpy, and rows come back in chunks.

`python examples/unrolls.py --steps 200000`. The lines that differ from a script that steps its envs are marked with
`#!`: a policy in numpy, one command per chunk instead of one per step, and a mask for the rows whose action never ran.
"""
# edge: argv and prints

from __future__ import annotations

import argparse
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import aio_vecenv as av


class Actor:  #! what a worker knows of the agent: numpy, no torch
    noise = (2, np.float32)
    outputs = {"log_prob": ((), np.float32)}  # noqa: RUF012 - not changed by anyone
    layers: Any = ()

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> Any:
        return rng.gumbel(size=(*rows, 2)).astype(np.float32)

    def load(self, params: Any) -> None:
        self.layers = params

    def act(self, obs: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        (w1, b1), (w2, b2), (w3, b3) = self.layers
        logits = np.tanh(np.tanh(obs @ w1 + b1) @ w2 + b2) @ w3 + b3
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        actions = (logits + noise).argmax(axis=1)  # Gumbel-max: a draw from softmax(logits)
        return actions, {"log_prob": log_p[np.arange(len(obs)), actions]}


def _tower(outputs: int, scale: float) -> nn.Sequential:
    layers = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)]
    for layer, gain in zip(layers[::2], (2**0.5, 2**0.5, scale)):
        nn.init.orthogonal_(layer.weight, gain)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def weights(tower: nn.Sequential) -> list[Any]:
    arrays = [parameter.detach().numpy() for parameter in tower.parameters()]
    return [(weight.T, bias) for weight, bias in zip(arrays[::2], arrays[1::2])]


async def train(
    steps: int, *, num_envs: int = 16, num_steps: int = 64, unroll: int = 16, seed: int = 1
) -> float:
    """Train for so many env steps; the mean return of the newest 50 episodes."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    gamma, lam, clip, epochs, minibatches = 0.98, 0.9, 0.2, 6, 8
    actor, critic, policy = _tower(2, 0.01), _tower(1, 1.0), Actor()
    parameters = [*actor.parameters(), *critic.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=2e-3, eps=1e-5)
    finished = deque[float](maxlen=50)
    updates = max(1, steps // (num_envs * num_steps))
    async with av.AsyncVecEnv("CartPole-v1", num_envs, policy=policy, unroll=unroll) as envs:
        await envs.reset(seed=seed)
        for update in range(updates):
            optimiser.param_groups[0]["lr"] = 2e-3 * (1 - update / updates)
            envs.set_policy(weights(actor))  #! the workers act on it from the next chunk on
            chunks = [
                await envs.unroll(policy.draw(rng, (unroll, num_envs))) for _ in range(num_steps // unroll)
            ]  #!
            finished.extend(episode.episode_return for chunk in chunks for episode in chunk.episodes)

            def rows(name: str) -> torch.Tensor:  # (T, N, …), of all chunks
                return torch.as_tensor(np.concatenate([getattr(chunk, name) for chunk in chunks]))  # noqa: B023

            obs = torch.as_tensor(
                np.concatenate([*(chunk.obs[:-1] for chunk in chunks), chunks[-1].obs[-1:]])
            )
            logs = torch.as_tensor(np.concatenate([chunk.outputs["log_prob"] for chunk in chunks]))
            rewards, actions = rows("rewards").float(), rows("actions")
            terminal, ended, valid = (
                rows("terminations"),
                rows("truncations") | rows("terminations"),
                ~rows("first"),
            )
            with torch.no_grad():
                values = critic(obs).squeeze(-1)
                advantages, carry = torch.zeros_like(rewards), torch.zeros(num_envs)
                for t in reversed(range(num_steps)):
                    delta = rewards[t] + gamma * values[t + 1] * ~terminal[t] - values[t]
                    advantages[t] = carry = (delta + gamma * lam * ~ended[t] * carry) * valid[
                        t
                    ]  #! cut where none ran
                returns = advantages + values[:-1]
            keep = valid.flatten().nonzero().squeeze(1)  #! rows whose action was executed
            flat = [part.flatten(0, 1)[keep] for part in (obs[:-1], actions, logs, advantages, returns)]
            for _ in range(epochs):
                for batch in torch.randperm(len(keep)).chunk(minibatches):
                    o, a, old, advantage, target = (part[batch] for part in flat)
                    distribution: Any = Categorical(logits=actor(o))
                    ratio = (distribution.log_prob(a) - old).exp()
                    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                    surrogate = torch.min(
                        ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
                    ).mean()
                    value_loss = 0.5 * (critic(o).squeeze(-1) - target).pow(2).mean()
                    loss = -surrogate + 0.5 * value_loss
                    optimiser.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(parameters, 0.5)
                    optimiser.step()
            if finished and update % 10 == 9:
                print(f"step {(update + 1) * num_envs * num_steps:7d}: mean return {np.mean(finished):6.1f}")
    return float(np.mean(finished)) if finished else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"mean return {av.run(train(args.steps, seed=args.seed)):.1f}")
