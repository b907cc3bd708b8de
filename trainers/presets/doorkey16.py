"""As `doorkey`, and on to 16×16, whose episodes may take 2,560 steps (extra `minigrid`)."""
# data: the plan and settings of `doorkey`, one stage longer

from __future__ import annotations

from dataclasses import replace

from trainers.presets import Preset, doorkey

__all__ = ["PRESET"]

PRESET = Preset(
    name="doorkey16",
    summary="MiniGrid DoorKey, 5×5 → 6×6 → 8×8 → 16×16 (minutes; extra `minigrid`)",
    config=replace(doorkey.PRESET.config, preset="doorkey16", total_steps=10_000_000),
    job=lambda: doorkey.job_of((*doorkey.SIZES, 16)),
)
