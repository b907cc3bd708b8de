"""The pictures of the page in README and docs, of a real run: `python -m benchmarks.page_pictures`."""
# edge: a run, its page, a browser

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
from pathlib import Path

from playwright.async_api import Page as Tab

import aio_vecenv as av
from benchmarks.browser import chromium
from trainers import Run, load_preset, training
from trainers.jobs import resolve_job
from trainers.service import Page, serving

DOCS = Path(__file__).parents[1] / "docs"
LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 400, "height": 860},
        "color_scheme": "light",
        "has_touch": True,
        "is_mobile": True,
    },
}


async def main() -> None:
    """Train, steer a little, kill a worker, and look."""
    with tempfile.TemporaryDirectory() as folder:
        preset = load_preset("frozenlake").config
        config = dataclasses.replace(
            preset,
            runs=Path(folder),
            name="frozenlake-seed0",
            solve_rate=None,
            total_steps=100_000,
            num_workers=2,
        )
        page, job = Page("127.0.0.1", 0), resolve_job(config, render=True)
        async with training(config, job=job) as run, serving(run, page) as link, chromium() as browser:
            await _reach(run, 36_000)
            run.coordinator.hold(by="ana", why="a look before lunch")
            await _reach(run, 40_000)
            run.coordinator.release(by="ana")
            os.kill(run.envs.statistics().workers[1].pid, signal.SIGKILL)
            await _reach(run, 44_000)
            for name, context in LOOKS.items():
                tab = await (await browser.new_context(**context)).new_page()  # type: ignore[arg-type]
                await tab.goto(link)
                await _look(tab)
                await tab.screenshot(path=DOCS / f"page-{name}.png", full_page=True)
                if name == "light":
                    await tab.evaluate("scrollTo(0, 0)")
                    await tab.screenshot(path=DOCS / "page.png")
                await tab.context.close()
            await run.stop()
    for path in sorted(DOCS.glob("page*.png")):
        print(path, f"{path.stat().st_size // 1024} KiB")


async def _reach(run: Run, env_steps: int) -> None:
    async for report in run.reports():
        if report.env_steps >= env_steps:
            return


async def _look(tab: Tab) -> None:
    """Everything is drawn, a decision is marked, and an env is watched."""
    await tab.locator("#plot .scatterlayer .trace").nth(8).wait_for(state="attached")
    await tab.locator("#decision-list button", has_text="advance: middle → far").click()
    await tab.locator("#watch-button").click()
    await tab.locator("#frame").wait_for(state="visible")
    await tab.locator("#by").fill("ana")
    await tab.locator("#by").blur()
    await tab.locator("#plot .shapelayer path").nth(3).wait_for(state="attached")
    await tab.wait_for_timeout(500)  # the last redraw


if __name__ == "__main__":
    av.run(main())
