"""Proximal policy optimisation: the losses and one update, whole, on this page."""
# pure (torch): no env, no loop, no logging; randomness and what follows a schedule come in as arguments

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainers.config import PPOConfig, Rates, known
from trainers.learn.actions import ActionHead
from trainers.learn.networks import Network
from trainers.learn.rollout import Floats, Rollout, generalised_advantages, joined

__all__ = ["UpdateStats", "advantages_of", "make_optimiser", "update"]


@dataclass(frozen=True)
class UpdateStats:
    """What one update did. Means are over all its minibatches unless said otherwise."""

    policy_loss: float
    """Clipped surrogate, to be minimised; near 0 by construction, its size says little."""
    value_loss: float
    """Half the mean squared error of the values against the returns."""
    entropy: float
    """Mean entropy of the policy in nats; falls to 0 as it becomes certain."""
    approx_kl: float
    """KL divergence from the policy that collected, in the last pass: mean(ratio - 1 - log ratio), an
    unbiased estimate that is never negative (Schulman 2020)."""
    clip_fraction: float
    """Share of rows whose ratio left 1 ± clip."""
    grad_norm: float
    """Norm of the gradient before it was clipped."""
    explained_variance: float
    """1 - Var(returns - values) / Var(returns) on the rollout, before the update: 1 is perfect, below 0
    worse than predicting the mean; 0 where the returns do not vary."""
    learning_rate: float
    """Adam's, in this update."""
    valid_rows: int
    """Rows that entered the loss: those whose action was executed."""
    passes: int
    """Passes over the rollout; fewer than `epochs` where `target_kl` ended it."""


def make_optimiser(model: nn.Module, config: PPOConfig) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=known(config.lr, "ppo.lr"), eps=1e-5, fused=True)


def advantages_of(rollout: Rollout, last_values: Floats, config: PPOConfig) -> Floats:
    """The rollout's advantages (T, N)."""
    return generalised_advantages(
        rollout.rewards, rollout.values, last_values,
        rollout.terminations, rollout.truncations, rollout.first,
        gamma=config.gamma, lam=config.gae_lambda, time_limit=config.time_limit,
    )  # fmt: skip


def update(
    model: Network,
    optimiser: torch.optim.Adam,
    head: ActionHead,
    rollout: Rollout,
    last_values: Floats,
    config: PPOConfig,
    *,
    rates: Rates,
    rng: np.random.Generator,
) -> UpdateStats:
    """Improve `model` on a full rollout, in place. Rows that are `first` never enter the loss."""
    epochs, minibatches = known(config.epochs, "ppo.epochs"), known(config.minibatches, "ppo.minibatches")
    advantages = advantages_of(rollout, last_values, config)
    returns = advantages + rollout.values
    valid = np.flatnonzero(~rollout.first.reshape(-1))
    explained = _explained_variance(rollout.values.reshape(-1)[valid], returns.reshape(-1)[valid])

    device = next(model.parameters()).device

    def flat(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(joined(array)).to(device)

    obs = {key: flat(column[:-1]) for key, column in rollout.obs.items()}
    # beside the observations, which can be large: gathered once per pass, then cut into minibatches
    columns = [flat(c) for c in (rollout.actions, rollout.log_probs, rollout.values, advantages, returns)]
    columns += [] if rollout.masks is None else [flat(rollout.masks[:-1])]

    for group in optimiser.param_groups:
        group["lr"] = rates.lr
    model.train()
    gradient = _one_gradient(model)
    sums, count, passes = torch.zeros(5, device=device), 0, 0
    for _ in range(epochs):
        kls: list[torch.Tensor] = []
        order = torch.from_numpy(rng.permutation(valid)).to(device)
        shuffled = [order, *(column.index_select(0, order) for column in columns)]
        for batch in zip(*(column.tensor_split(minibatches) for column in shuffled)):
            rows, *chosen = batch
            if len(rows) == 0:
                continue
            predicted = model({key: column.index_select(0, rows) for key, column in obs.items()})
            loss, kl, parts = _loss(predicted, head, chosen, config, rates)
            gradient.zero_()
            loss.backward()  # type: ignore[no-untyped-call]
            grad_norm = torch.linalg.vector_norm(gradient)
            gradient.mul_((config.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1))
            optimiser.step()
            with torch.no_grad():
                kls.append(kl)
                sums += torch.stack((*parts, grad_norm))
                count += 1
        passes += 1
        if config.target_kl is not None and kls and float(torch.stack(kls).mean()) > config.target_kl:
            break

    model.eval()
    if len(valid):
        model.observe(obs, torch.from_numpy(valid).to(device))
    means = (sums / max(count, 1)).tolist()
    return UpdateStats(
        policy_loss=means[0],
        value_loss=means[1],
        entropy=means[2],
        approx_kl=float(torch.stack(kls).mean()) if kls else 0.0,
        clip_fraction=means[3],
        grad_norm=means[4],
        explained_variance=explained,
        learning_rate=rates.lr,
        valid_rows=len(valid),
        passes=passes,
    )


def _loss(
    predicted: tuple[torch.Tensor, torch.Tensor],
    head: ActionHead,
    batch: Sequence[torch.Tensor],
    config: PPOConfig,
    rates: Rates,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """The loss of a minibatch; the divergence; the losses of policy and value, the entropy, the share clipped."""
    (params, values), (actions, old_log_probs, old_values, advantage, target, *masks) = predicted, batch
    log_probs, entropies = head.evaluate(params, actions, masks[0] if masks else None)

    # the clipped surrogate objective (Schulman et al. 2017, eq. 7)
    if config.normalise_advantages and len(advantage) > 1:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - rates.clip, 1 + rates.clip)
    policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()

    # the value loss, optionally held near the old values
    error = (values - target) ** 2
    if config.clip_value is not None:
        near = old_values + (values - old_values).clamp(-config.clip_value, config.clip_value)
        error = torch.max(error, (near - target) ** 2)
    value_loss = 0.5 * error.mean()

    entropy = entropies.mean()
    loss = policy_loss + known(config.value, "ppo.value") * value_loss - rates.entropy * entropy
    with torch.no_grad():
        kl = (ratio - 1 - log_ratio).mean()
        outside = (clipped != ratio).float().mean()
    return loss, kl, (policy_loss.detach(), value_loss.detach(), entropy.detach(), outside)


def _one_gradient(model: nn.Module) -> torch.Tensor:
    """A vector of which the gradients of all parameters are views: to clear and to clip it takes one call each.

    (A parameter that does not enter the loss has the gradient 0.)
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradient = parameters[0].new_zeros(sum(p.numel() for p in parameters))
    parts = torch.split(gradient, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts):
        parameter.grad = part.view_as(parameter)
    return gradient


def _explained_variance(values: Floats, returns: Floats) -> float:
    variance = float(returns.var()) if len(returns) else 0.0
    return 0.0 if variance == 0 else 1 - float((returns - values).var()) / variance
