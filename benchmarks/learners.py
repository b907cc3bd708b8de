"""PPO three times over: ours, Stable-Baselines3's, and the loop that CleanRL made the usual one.

The same network (parameters are counted), 32 envs × 128 steps, 4 epochs, 4 minibatches. A *step* is an executed
action. What a run needs to start, and its first update, are not counted.
"""
# edge: `python -m benchmarks.learners NAME` answers one line of JSON for each line of JSON

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from benchmarks import workloads

__all__ = ["LEARNERS", "Job", "Learner", "LearnerHost"]

NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCHES = 32, 128, 4, 4
LR, GAMMA, LAMBDA, CLIP, ENTROPY, VALUE, MAX_NORM = 2.5e-4, 0.99, 0.95, 0.2, 0.01, 0.5, 0.5


@dataclass(frozen=True)
class Job:
    """One training."""

    env: Literal["cartpole", "minigrid"]
    updates: int
    """Updates that are timed, after one that is not."""
    threads: int
    """Of torch; 0: as the learner chooses itself."""

    @property
    def make(self) -> Callable[[], Any]:
        return {"cartpole": workloads.make_cartpole, "minigrid": workloads.make_minigrid}[self.env]


Result = dict[str, float]
"""steps, seconds; collect_s and learn_s of them; parameters of the network."""


class Learner:
    """Trains afresh at each call."""

    title: ClassVar[str]

    def train(self, job: Job) -> Result:
        raise NotImplementedError


class Ours(Learner):
    title = "trainers, lockstep"
    collect: ClassVar[Literal["lockstep", "first_ready", "unroll"]] = "lockstep"
    backend: ClassVar[Literal["process", "inline"]] = "process"

    def train(self, job: Job) -> Result:
        import aio_vecenv as av

        return av.run(self._train(job))

    async def _train(self, job: Job) -> Result:
        from trainers import TrainConfig, keep_freed_memory, training
        from trainers.config import PPOConfig

        keep_freed_memory()  # as the command line does

        name = {"cartpole": "CartPole-v1", "minigrid": "benchmarks.workloads:make_minigrid"}[job.env]
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                env=name, num_envs=NUM_ENVS, total_steps=(1 + job.updates) * NUM_ENVS * NUM_STEPS,
                num_workers=2, collect=self.collect, backend=self.backend, torch_threads=job.threads or None,
                device="cpu", runs=Path(folder), checkpoint_every=1 << 30,
                ppo=PPOConfig(
                    num_steps=NUM_STEPS, lr=LR, epochs=EPOCHS, minibatches=MINIBATCHES, gamma=GAMMA,
                    gae_lambda=LAMBDA, clip=CLIP, entropy=ENTROPY, value=VALUE, max_grad_norm=MAX_NORM,
                ),
            )  # fmt: skip
            reports = []
            async with training(config) as run:
                reports = [report async for report in run.reports()]
                parameters = sum(p.numel() for p in run._collector.learner.model.parameters())
        timed = reports[1:]
        return {
            "steps": sum(report.valid_rows for report in timed),
            "seconds": timed[-1].timing.wall_s - reports[0].timing.wall_s,
            "collect_s": sum(report.timing.collect_s for report in timed),
            "learn_s": sum(report.timing.learn_s for report in timed),
            "parameters": parameters,
        }


class OursUnroll(Ours):
    title = "trainers, unrolls of 8"  # the default
    collect = "unroll"


class OursFirstReady(Ours):
    title = "trainers, first-N-ready"
    collect = "first_ready"


class OursInline(Ours):
    title = "trainers, inline"
    backend = "inline"


class SB3(Learner):
    title = "SB3 PPO, SubprocVecEnv"
    parallel = True

    def train(self, job: Job) -> Result:
        torch: Any = import_module("torch")
        sb3: Any = import_module("stable_baselines3")
        vec_env: Any = import_module("stable_baselines3.common.vec_env")
        callbacks: Any = import_module("stable_baselines3.common.callbacks")
        torch.set_num_threads(job.threads)
        marks: list[float] = []  # rollout begins, rollout ends, rollout begins …

        class Marks(callbacks.BaseCallback):  # type: ignore[misc]
            def _on_step(self) -> bool:
                return True

            def _on_rollout_start(self) -> None:
                marks.append(time.perf_counter())

            def _on_rollout_end(self) -> None:
                marks.append(time.perf_counter())

        factories = [job.make] * NUM_ENVS
        envs = (
            vec_env.SubprocVecEnv(factories, start_method="fork")
            if self.parallel
            else vec_env.DummyVecEnv(factories)
        )
        try:
            policy: dict[str, Any] = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
            if job.env == "minigrid":
                policy["features_extractor_class"] = _sb3_extractor()
            model = sb3.PPO(
                "MlpPolicy" if job.env == "cartpole" else "CnnPolicy", envs, learning_rate=LR,
                n_steps=NUM_STEPS, batch_size=NUM_ENVS * NUM_STEPS // MINIBATCHES, n_epochs=EPOCHS, gamma=GAMMA,
                gae_lambda=LAMBDA, clip_range=CLIP, ent_coef=ENTROPY, vf_coef=VALUE, max_grad_norm=MAX_NORM,
                policy_kwargs={**policy, "activation_fn": torch.nn.Tanh}, device="cpu",
            )  # fmt: skip
            model.learn((1 + job.updates) * NUM_ENVS * NUM_STEPS, callback=Marks())
            ended = time.perf_counter()
        finally:
            envs.close()
        starts, ends = marks[2::2], marks[3::2]
        collect_s = sum(end - start for start, end in zip(starts, ends))
        return {
            "steps": job.updates * NUM_ENVS * NUM_STEPS,  # it resets within the step
            "seconds": ended - starts[0],
            "collect_s": collect_s,
            "learn_s": ended - starts[0] - collect_s,
            "parameters": sum(p.numel() for p in model.policy.parameters()),
        }


class SB3Serial(SB3):
    title = "SB3 PPO, DummyVecEnv"
    parallel = False


def _sb3_extractor() -> Any:
    """The same small CNN as `trainers.networks` builds for small grids."""
    nn: Any = import_module("torch").nn
    base: Any = import_module("stable_baselines3.common.torch_layers").BaseFeaturesExtractor

    class SmallCNN(base):  # type: ignore[misc]
        def __init__(self, observation_space: Any) -> None:
            super().__init__(observation_space, 128)
            self.layers = nn.Sequential(*_cnn_layers(nn))

        def forward(self, observations: Any) -> Any:
            return self.layers(observations)

    return SmallCNN


def _cnn_layers(nn: Any) -> list[Any]:
    return [
        nn.Conv2d(3, 16, 2), nn.ReLU(), nn.Conv2d(16, 32, 2), nn.ReLU(), nn.Conv2d(32, 64, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 4 * 64, 128), nn.ReLU(),
    ]  # fmt: skip


class CleanRL(Learner):
    """The loop of CleanRL's ppo.py, without its logging and its episode-statistics wrapper."""

    title = "CleanRL-style PPO, AsyncVectorEnv"
    parallel = True

    def train(self, job: Job) -> Result:
        import gymnasium as gym

        torch: Any = import_module("torch")
        torch.set_num_threads(job.threads)
        factories = [job.make] * NUM_ENVS
        same_step = gym.vector.AutoresetMode.SAME_STEP  # every row is an executed action
        envs: Any = (
            gym.vector.AsyncVectorEnv(factories, autoreset_mode=same_step)
            if self.parallel
            else gym.vector.SyncVectorEnv(factories, autoreset_mode=same_step)
        )
        try:
            return _cleanrl(torch, envs, job)
        finally:
            envs.close()


class CleanRLSerial(CleanRL):
    title = "CleanRL-style PPO, SyncVectorEnv"
    parallel = False


def _cleanrl_agent(torch: Any, envs: Any, job: Job) -> Any:
    nn = torch.nn
    actions = int(envs.single_action_space.n)

    def init(layer: Any, gain: float = 2**0.5) -> Any:
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.constant_(layer.bias, 0.0)
        return layer

    def tower(width: int, out: int, gain: float) -> Any:
        return nn.Sequential(
            init(nn.Linear(width, 64)), nn.Tanh(), init(nn.Linear(64, 64)), nn.Tanh(), init(nn.Linear(64, out), gain)
        )  # fmt: skip

    class Agent(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            image = job.env == "minigrid"
            self.network = nn.Sequential(*_cnn_layers(nn)) if image else nn.Identity()
            for layer in self.network.children():
                if hasattr(layer, "weight"):
                    init(layer)
            self.image = image
            width = 128 if image else int(np.prod(envs.single_observation_space.shape))
            self.actor, self.critic = tower(width, actions, 0.01), tower(width, 1, 1.0)

        def features(self, x: Any) -> Any:
            return self.network(x.permute((0, 3, 1, 2)) / 10.0) if self.image else x

        def get_value(self, x: Any) -> Any:
            return self.critic(self.features(x))

        def get_action_and_value(self, x: Any, action: Any = None) -> Any:
            hidden = self.features(x)
            probs = torch.distributions.categorical.Categorical(logits=self.actor(hidden))
            if action is None:
                action = probs.sample()
            return action, probs.log_prob(action), probs.entropy(), self.critic(hidden)

    return Agent()


def _cleanrl(torch: Any, envs: Any, job: Job) -> Result:
    """As in ppo.py: its names, its order of things."""
    nn, batch_size = torch.nn, NUM_ENVS * NUM_STEPS
    agent = _cleanrl_agent(torch, envs, job)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LR, eps=1e-5)
    shape = envs.single_observation_space.shape
    obs = torch.zeros((NUM_STEPS, NUM_ENVS, *shape))
    actions = torch.zeros((NUM_STEPS, NUM_ENVS))
    logprobs, rewards, dones, values = (torch.zeros((NUM_STEPS, NUM_ENVS)) for _ in range(4))
    next_obs, _ = envs.reset(seed=0)
    next_obs, next_done = torch.Tensor(next_obs), torch.zeros(NUM_ENVS)
    collect_s = learn_s = 0.0
    for iteration in range(1 + job.updates):
        began = time.perf_counter()
        optimizer.param_groups[0]["lr"] = (1.0 - iteration / (1 + job.updates)) * LR
        for step in range(NUM_STEPS):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                action, logprob, _, value = agent.get_action_and_value(next_obs)
                values[step] = value.flatten()
            actions[step], logprobs[step] = action, logprob
            next_obs, reward, terminations, truncations, _ = envs.step(action.cpu().numpy())
            next_done = np.logical_or(terminations, truncations)
            rewards[step] = torch.tensor(reward).view(-1)
            next_obs, next_done = torch.Tensor(next_obs), torch.Tensor(next_done)
        collected = time.perf_counter()

        with torch.no_grad():
            next_value = agent.get_value(next_obs).reshape(1, -1)
            advantages, lastgaelam = torch.zeros_like(rewards), 0
            for t in reversed(range(NUM_STEPS)):
                last = t == NUM_STEPS - 1
                nextnonterminal = 1.0 - (next_done if last else dones[t + 1])
                nextvalues = next_value if last else values[t + 1]
                delta = rewards[t] + GAMMA * nextvalues * nextnonterminal - values[t]
                advantages[t] = lastgaelam = delta + GAMMA * LAMBDA * nextnonterminal * lastgaelam
            returns = advantages + values
        b_obs, b_logprobs = obs.reshape((-1, *shape)), logprobs.reshape(-1)
        b_actions, b_advantages, b_returns = actions.reshape(-1), advantages.reshape(-1), returns.reshape(-1)
        b_inds = np.arange(batch_size)
        clipfracs = []
        for _epoch in range(EPOCHS):
            np.random.shuffle(b_inds)  # noqa: NPY002 - as it is there
            for start in range(0, batch_size, batch_size // MINIBATCHES):
                mb_inds = b_inds[start : start + batch_size // MINIBATCHES]
                _, newlogprob, entropy, newvalue = agent.get_action_and_value(
                    b_obs[mb_inds], b_actions.long()[mb_inds]
                )
                logratio = newlogprob - b_logprobs[mb_inds]
                ratio = logratio.exp()
                with torch.no_grad():
                    clipfracs += [((ratio - 1.0).abs() > CLIP).float().mean().item()]
                mb_advantages = b_advantages[mb_inds]
                mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)
                pg_loss = torch.max(
                    -mb_advantages * ratio, -mb_advantages * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
                ).mean()
                v_loss = 0.5 * ((newvalue.view(-1) - b_returns[mb_inds]) ** 2).mean()
                loss = pg_loss - ENTROPY * entropy.mean() + v_loss * VALUE
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_NORM)
                optimizer.step()
        if iteration:
            collect_s += collected - began
            learn_s += time.perf_counter() - collected
    return {
        "steps": job.updates * batch_size,
        "seconds": collect_s + learn_s,
        "collect_s": collect_s,
        "learn_s": learn_s,
        "parameters": sum(p.numel() for p in agent.parameters()),
    }


LEARNERS: dict[str, type[Learner]] = {
    "ours": Ours,
    "ours-unroll": OursUnroll,
    "ours-first": OursFirstReady,
    "ours-inline": OursInline,
    "sb3-subproc": SB3,
    "sb3-dummy": SB3Serial,
    "cleanrl-async": CleanRL,
    "cleanrl-sync": CleanRLSerial,
}


class LearnerHost:
    """What the harness asks of a learner's process."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def train(self, env: Literal["cartpole", "minigrid"], updates: int, threads: int) -> dict[str, Any]:
        return dict(self._learner.train(Job(env, updates, threads)))

    def close(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    from benchmarks import learners  # pickled by this name, not as __main__
    from benchmarks.host import serve

    serve(learners.LearnerHost(learners.LEARNERS[sys.argv[1]]()))
