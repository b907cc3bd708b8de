"""A run's policy on video: every frame of the episodes, read back; a mistake is one clear error, and leaves nothing."""
# async: real runs, inline; real files

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curriculum as cu
from tests.trainers.helpers import LEVELS, PLAN, Corridor, corridor_job, tiny
from trainers import ConfigError, Job, train
from trainers.video import record

pytestmark = pytest.mark.alternate_loops


class Drawn(Corridor):
    """Where one stands as a bright column; the picture's width is odd, and larger on a larger level."""

    def render(self) -> Any:
        picture = np.zeros((32, 63 + 2 * self.goal, 3), np.uint8)
        picture[:, 5 * self.at : 5 * self.at + 5] = 255
        return picture


class Odd(Corridor):
    """Draws what is no picture."""

    def render(self) -> Any:
        return "a picture"


JOB = Job(PLAN, lambda: cu.CurriculumEnv(Drawn(), cu.LevelSet(LEVELS)))


@pytest.fixture(scope="module")
def module_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    train(tiny(runs, name="run", total_steps=64), job=JOB)
    return runs / "run"


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "fps"), [("out.mp4", None), ("out.mkv", 12)])
async def test_every_frame_of_the_episodes_is_in_it(
    module_run: Path, tmp_path: Path, name: str, fps: int | None
) -> None:
    import av

    played = await record(module_run, tmp_path / name, stage="three", episodes=3, fps=fps, job=JOB)
    assert (played.stage, played.episodes) == ("three", 3)
    with av.open(str(tmp_path / name)) as video:
        stream = video.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
        assert (stream.width, stream.height) == (70, 32)
        assert stream.average_rate == (fps or 30)
    assert len(frames) == round(3 * played.mean_length) + 3, "each episode's first frame, and one per step"
    places = [int(frame[16, 2:60:5, 0].argmax()) for frame in frames]
    assert places[0] == 0
    assert places.count(3) == round(3 * played.success_rate), "an episode's last frame is there"
    assert all(abs(b - a) <= 1 or b == 0 for a, b in itertools.pairwise(places))
    assert os.listdir(tmp_path) == [name]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "thee"}, "the run has no stage 'thee'; there are one, three"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"fps": 0}, "fps must be at least 1, got 0"),
        ({"out": "out.txt"}, r"out\.txt: cannot be written: no video format has this ending, such as \.mp4"),
        ({"out": "none/out.mp4"}, r"out\.mp4: cannot be written: No such file or directory"),
        ({"job": corridor_job()}, r"no video: the env has no render\(\): it cannot draw itself"),
        (
            {"job": Job(PLAN, lambda: cu.CurriculumEnv(Odd(), cu.LevelSet(LEVELS)))},
            r"no video: the env draws str, not \(height, width, 3\) uint8: make it with render_mode='rgb_array'",
        ),
    ],
)
async def test_what_cannot_be_recorded_is_one_clear_error(
    module_run: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    asked = {"out": "out.mp4", "job": JOB, **changes}
    with pytest.raises(ConfigError, match=message):
        await record(module_run, tmp_path / asked.pop("out"), **asked)
    assert os.listdir(tmp_path) == []


@pytest.mark.asyncio
async def test_the_extra_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"record needs the extra: pip install 'aio-vecenv\[video\]'"):
        await record(tmp_path, tmp_path / "out.mp4")
