"""Run folders that earlier versions wrote: resumed, judged and played as if nothing had changed."""
# edge: reads the folders in runs_of_before, each stopped on the way; works on copies

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.helpers import Corridor, corridor_job
from trainers import load_policy, training
from trainers.evaluate import evaluate
from trainers.record.metrics import read_metrics

pytestmark = pytest.mark.alternate_loops

BEFORE = Path(__file__).with_name("runs_of_before")


@pytest.fixture(params=sorted(path.name for path in BEFORE.iterdir()))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(BEFORE / request.param, tmp_path / "run"))


@pytest.mark.asyncio
async def test_it_is_resumed_and_its_counts_go_on(old: Path) -> None:
    before = read_metrics(old / "metrics.jsonl")
    async with training(resume=old, job=corridor_job()) as run:
        assert run._outcomes.newest("one")[-1:] == (True,), "what waited counts"
        summary = await run.wait()
    exact = old.joinpath("config.toml").read_text().count("exact_resume = true")
    assert (summary.reason, summary.resumes) == ("steps", 1)
    lines = read_metrics(old / "metrics.jsonl")
    assert [line["update"] for line in lines] == [*range(1, summary.updates + 1)]
    # its checkpoint is that of update 4; what the earlier version learned after it is learned again
    if exact:
        for ours, theirs in zip(lines[4:7], before[4:7], strict=True):
            for key in ("episodes", "episode_return", "entropy", "value_loss", "grad_norm"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key  # other CPUs round otherwise


@pytest.mark.asyncio
async def test_it_is_judged_and_played(old: Path) -> None:
    rows = await evaluate(old, episodes=8, job=corridor_job())
    assert [(row.stage, row.success_rate > 0.3, row.episodes) for row in rows] == [
        ("one", True, 8),
        ("three", True, 8),
    ]
    env: Any = Corridor()
    obs, _ = env.reset(options={"level": {"goal": 1}})
    assert load_policy(old, env).act(obs) in (0, 1, 2)
