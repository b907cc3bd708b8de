"""The page in a real browser, as somebody uses it: watched, steered, reloaded, by keyboard, on a phone's width."""
# edge: drives the system's Chromium; skipped, with the reason, where there is none

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

import curriculum as cu
from benchmarks.browser import CHROMIUM, chromium
from tests.aio_vecenv.harness import until
from tests.trainers.helpers import Corridor, corridor_job, make_corridor
from tests.trainers.service_helpers import endless, served
from tests.trainers.test_cli import read_until, started
from tests.trainers.test_service_cli import link_of
from trainers import Job, PPOConfig, training

expect.set_options(timeout=30_000)  # a busy machine is not a broken page
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
    pytest.mark.asyncio(loop_factories=["asyncio"]),  # the server's loop is tested in test_service.py
]


@contextlib.asynccontextmanager
async def browsing(**context: Any) -> AsyncIterator[tuple[Browser, Page]]:
    """A page of a fresh browser. Afterwards: it has asked nobody but the server, and nothing went wrong in it."""
    wrong: list[str] = []
    async with chromium() as browser:
        page = await (
            await browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        ).new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("request", lambda r: None if _here(r.url) else wrong.append(f"asked {r.url}"))
        yield browser, page
    # what the browser logs by itself where a command is refused, or the server has gone
    expected = (
        "status of 400",
        "ERR_CONNECTION_REFUSED",
        "ERR_CONNECTION_RESET",
        "ERR_EMPTY_RESPONSE",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
    )
    assert not [text for text in wrong if not any(part in text for part in expected)], wrong


def _here(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def figure(page: Page, name: str) -> Any:
    """A figure of *Now*, by its name."""
    return page.locator("#figures div", has=page.get_by_text(name, exact=True)).locator("dd")


def worker_row(page: Page, worker: int) -> Any:
    return page.locator("#worker-table tbody tr").nth(worker)


async def steer(page: Page, button: str, *, who: str = "ana", why: str = "") -> None:
    await page.get_by_label("Who").fill(who)
    await page.get_by_label("Why").fill(why)
    await page.get_by_role("button", name=button, exact=True).click()


async def becomes(page: Page, expression: str) -> None:
    """Wait until it is true. (Playwright's own way evaluates text in the page, which the page's policy forbids.)"""
    async with asyncio.timeout(30):
        while not await page.evaluate(expression):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_drawn(page: Page) -> None:
    await becomes(page, "document.querySelectorAll('#plot .scatterlayer .trace').length >= 8")


async def test_the_run_advances_on_the_page(tmp_path: Path) -> None:
    """Figures, stages, curves and decisions move by themselves; the token leaves the address and the history."""
    job = Job(corridor_job().plan, make_corridor(delay_s=0.001))
    async with served(endless(tmp_path), job) as run, browsing() as (_, page):
        await page.goto(run.link)
        await page.wait_for_url(f"{run.url}/")
        assert "token" not in await page.evaluate("location.href + document.referrer")
        assert await page.evaluate("history.length") <= 2
        await expect(page.locator("#status")).to_have_text("Running")
        steps = figure(page, "Env steps")
        await expect(steps).not_to_have_text("–")
        first = await steps.inner_text()
        await expect(steps).not_to_have_text(first)
        await expect(figure(page, "Stage")).to_have_text("three")  # it has advanced
        await expect(page.locator("#decision-list li").last).to_contain_text("advance: one → three")
        await expect(page.locator("#stages tbody tr.current")).to_contain_text("three")
        await until_drawn(page)
        drawn = await page.evaluate("document.getElementById('plot').data[0].x.length")
        await becomes(page, f"document.getElementById('plot').data[0].x.length > {drawn}")
        await becomes(
            page, "document.querySelectorAll('#plot .shapelayer path').length >= 2"
        )  # the stages' timeline
        await page.locator("#decision-list button").last.click()
        await becomes(page, "document.getElementById('plot').layout.shapes.some((s) => s.type === 'line')")
        await expect(page.locator("#decision-list button").last).to_have_attribute("aria-pressed", "true")
        drag, over = page.locator("#plot .nsewdrag").first, page.locator("#plot .hoverlayer .hovertext")
        async with asyncio.timeout(30):
            while not await over.count():  # a curve that is drawn anew forgets where the mouse is
                for x in (40, 60):
                    await drag.hover(position={"x": x, "y": 40})


async def test_the_operator_moves_the_stage_and_all_agree(tmp_path: Path) -> None:
    """Page, journal and every worker's own ratio; in two tabs; a refusal says why."""
    async with served(endless(tmp_path)) as run, browsing() as (_, page):
        await page.goto(run.link)
        other = await page.context.new_page()
        await other.goto(run.url)
        await expect(other.locator("#status")).to_have_text("Running")
        answer = page.locator("#answer")
        await steer(page, "Hold decisions", why="hands off")
        await expect(answer).to_have_text("Done: decisions are on hold; training goes on.")
        await expect(other.locator("#status")).to_have_text("Decisions on hold")
        target = "one" if run.run.stage == "three" else "three"
        await page.locator("#stage").select_option(target)
        await steer(page, "Set stage", why="a demonstration")
        await expect(answer).to_contain_text(f"→ {target}: taken by 2 of 2 workers.")
        for tab in (page, other):
            await expect(tab.locator("#decision-list li").first).to_contain_text(f"→ {target}")
            await expect(tab.locator("#decision-list li").first).to_contain_text(
                "by ana · why: a demonstration"
            )
            await expect(figure(tab, "Stage")).to_have_text(target)
        await page.get_by_label("Mixing ratio of").select_option("three")
        await page.get_by_label("Ratio, 0 to 1").fill("0.35")
        await steer(page, "Fix the ratio")
        await expect(answer).to_have_text(
            "Done: the mixing ratio of three is fixed at 0.35: taken by 2 of 2 workers."
        )
        await expect(other.locator("#stages tbody tr").nth(1)).to_contain_text("0.35 (fixed)")
        assert set(await run.run.envs.call("get_mixing_ratio", "three")) == {0.35}
        await steer(page, "Leave to the rules")
        await expect(other.locator("#stages tbody tr").nth(1)).not_to_contain_text("(fixed)")
        await steer(page, "Release them", who="bob")
        await expect(page.locator("#status")).to_have_text("Running")
        await page.get_by_label("Ratio, 0 to 1").fill("")
        await steer(page, "Fix the ratio")
        await expect(answer).to_contain_text(
            "Refused: mixing ratio of 'three': expected a number from 0 to 1, got ''"
        )
        await steer(page, "Hold decisions", who=" ")
        await expect(answer).to_have_text("Refused: hold: 'by' is missing: who gives the command?")
        await steer(page, "Checkpoint now")
        await expect(answer).to_contain_text("Done: saved checkpoints/step-")
        lines = [json.loads(line) for line in run.run.folder.journal.read_text().splitlines()]
        noted = [(row["command"], row["by"], row["why"]) for row in lines if row["kind"] == "command"]
        assert noted == [
            ("hold", "ana", "hands off"),
            ("set_stage", "ana", "a demonstration"),
            ("set_mixing_ratio", "ana", None),
            ("set_mixing_ratio", "ana", None),
            ("release", "bob", None),
            ("checkpoint", "ana", None),
        ]


async def test_before_the_first_update(tmp_path: Path) -> None:
    """There is no curve yet, and all else is there; a command shows at once, not with the next update."""
    config = endless(tmp_path, ppo=PPOConfig(num_steps=1_000_000, minibatches=1))
    job = replace(
        corridor_job(), plan=cu.StagePlan([cu.Stage("one", 1.0, 10**9), cu.Stage("three", 1.0, 10**9)])
    )
    async with served(replace(config, early=False), job) as run, browsing() as (_, page):
        await page.goto(run.link)
        await expect(page.locator("#plot-empty")).to_be_visible()
        await expect(page.locator("#decisions-empty")).to_be_visible()
        await expect(figure(page, "Stage")).to_have_text("one")
        await expect(figure(page, "Mean return")).to_have_text("–")
        await page.locator("#stage").select_option("three")
        await steer(page, "Set stage")
        await expect(figure(page, "Stage")).to_have_text("three")
        await expect(page.locator("#stages tr.current")).to_contain_text("three")
        assert run.run.last_report is None


async def test_a_resumed_run_before_its_next_update(tmp_path: Path) -> None:
    """The curves of before are drawn, though this process has no update to report yet."""
    config = endless(tmp_path, name="run", backend="inline", num_workers=1, total_steps=512)
    async with training(config, job=corridor_job()) as before:
        await before.wait()
    longer = replace(config, total_steps=10**8, ppo=PPOConfig(num_steps=1_000_000, minibatches=1))
    async with served(longer, resume=before.folder.path) as run, browsing() as (_, page):
        await page.goto(run.link)
        await until_drawn(page)
        assert run.run.last_report is None


async def test_a_killed_worker_appears(tmp_path: Path) -> None:
    """As lost or restarted, with the reason, and with its new process."""
    async with served(endless(tmp_path)) as run, browsing() as (_, page):
        await page.goto(run.link)
        await expect(worker_row(page, 0)).to_contain_text("up")
        pid = run.run.envs.statistics().workers[0].pid
        await expect(worker_row(page, 0)).to_contain_text(str(pid))
        os.kill(pid, signal.SIGKILL)
        await expect(page.locator("#losses")).to_contain_text("Worker 0 ")
        await until(lambda: run.run.envs.statistics().workers[0].ready)
        await expect(worker_row(page, 0)).to_contain_text(str(run.run.envs.statistics().workers[0].pid))
        await expect(worker_row(page, 0).locator("td").last).to_have_text("1")


async def test_a_reload_in_the_middle_and_the_end(tmp_path: Path) -> None:
    """What was shown is there again; commands go on; after the end it says so, and takes none."""
    async with served(endless(tmp_path)) as run, browsing() as (_, page):
        await page.goto(run.link)
        await steer(page, "Hold decisions", why="before the reload")
        await expect(page.locator("#decision-list li").first).to_contain_text("before the reload")
        await page.reload()
        await expect(page.locator("#decision-list li").first).to_contain_text("before the reload")
        await expect(page.locator("#status")).to_have_text("Decisions on hold")
        await expect(page.get_by_label("Who")).to_have_value("ana")
        await until_drawn(page)
        await steer(page, "Stop the run", why="enough")
        await page.get_by_role("button", name="Go on training").click()
        assert run.run.coordinator.decisions[-1].kind != "stop"
        await page.get_by_role("button", name="Stop the run", exact=True).click()
        await page.get_by_role("button", name="Stop it").click()
        await expect(page.locator("#status")).to_have_text("Stopped")
        await expect(page.locator("#notices")).to_contain_text("The run has ended: stopped at ")
        await expect(page.locator("#command-note")).to_contain_text("nothing to command any more")
        await expect(page.get_by_role("button", name="Set stage")).to_be_disabled()
        await page.reload()
        await expect(page.locator("#status")).to_have_text("Stopped")
        await until_drawn(page)


async def test_the_process_goes_and_the_page_says_so(tmp_path: Path) -> None:
    """Killed, it can tell nobody: the page says that it is alone, and shows what it knew."""
    options = ("--num-envs", "8", "--num-workers", "1", "--solve-rate", "None", "--total-steps", "100000000")
    with started("train", "--serve", "--serve-port", "0", *options, cwd=tmp_path) as process:
        out = await asyncio.to_thread(read_until, process, "steps/s")
        async with browsing() as (_, page):
            await page.goto(link_of(out))
            await expect(page.locator("#status")).to_have_text("Running")
            process.kill()
            await expect(page.locator("#status")).to_have_text("No connection")
            await expect(page.locator("#notices")).to_contain_text("The run cannot be reached")
            await expect(figure(page, "Stage")).not_to_have_text("–")


async def test_what_a_run_shows_is_text(tmp_path: Path) -> None:
    """A stage, a name and a reason that are HTML: shown as they are written, everywhere, and nothing of it runs."""
    plan = cu.StagePlan([cu.Stage(HOSTILE, threshold=0.6, min_episodes=20), cu.Stage("<b>three")])
    levels = [
        cu.Level(id=HOSTILE, stage=HOSTILE, data={"goal": 1}),
        cu.Level(id="<b>three", stage="<b>three", data={"goal": 3}),
    ]

    def make() -> Any:
        return cu.CurriculumEnv(Corridor(), cu.LevelSet(levels))

    async with served(endless(tmp_path, backend="inline"), Job(plan, make)) as run, browsing() as (_, page):
        await page.goto(run.link)
        await until_drawn(page)
        await steer(page, "Hold decisions", who=HOSTILE, why=HOSTILE)
        await expect(page.locator("#decision-list li").first).to_contain_text(
            f"by {HOSTILE} · why: {HOSTILE}"
        )
        target = HOSTILE if run.run.stage == "<b>three" else "<b>three"
        await page.locator("#stage").select_option(target)
        await steer(page, "Set stage")
        await expect(page.locator("#answer")).to_contain_text(f"→ {target}")
        await expect(page.locator("#stages tbody")).to_contain_text(HOSTILE)
        await expect(page.locator("#plot .legend")).to_contain_text("<img src=x")
        assert await page.locator("img[src=x], #plot b").count() == 0
        assert "hacked" not in await page.title()


async def test_by_keyboard_alone(tmp_path: Path) -> None:
    """Tab reaches every control in their order, with a visible focus; Enter and Space work them."""
    async with served(endless(tmp_path)) as run, browsing() as (_, page):
        await page.goto(run.link)
        await expect(page.locator("#status")).to_have_text("Running")
        await steer_by_keys(page, "Hold decisions", "kim")
        await expect(page.locator("#answer")).to_contain_text("on hold")
        reached = await tab_through(page, 40)
        for name in (
            "by",
            "why",
            "stage",
            "set_stage",
            "mix-stage",
            "ratio",
            "release",
            "stop",
            "env",
            "watch-button",
        ):
            assert name in reached, (name, reached)
        ring = await page.evaluate(
            "(document.getElementById('by').focus(), getComputedStyle(document.activeElement).outlineStyle)"
        )
        assert ring == "solid"
        await page.locator("#decision-list button").first.focus()
        await page.keyboard.press("Space")
        await expect(page.locator("#decision-list button").first).to_have_attribute("aria-pressed", "true")
        focused = await page.evaluate("document.activeElement.closest('#decision-list') !== null")
        assert focused, "redrawing the list keeps the focus"


async def steer_by_keys(page: Page, button: str, who: str) -> None:
    await page.get_by_label("Who").focus()
    await page.keyboard.type(who)
    for _ in range(30):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.textContent") == button:
            await page.keyboard.press("Enter")
            return
    raise AssertionError(f"Tab does not reach {button!r}")


async def tab_through(page: Page, times: int) -> list[str]:
    reached = []
    for _ in range(times):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id || document.activeElement.name || '-'"))
    return reached


async def test_a_phone(tmp_path: Path) -> None:
    """400 px: nothing runs out of the page, and every view is there, one below the other."""
    context = {"viewport": {"width": 400, "height": 860}, "has_touch": True, "is_mobile": True}
    async with served(endless(tmp_path)) as run, browsing(**context) as (_, page):
        await page.goto(run.link)
        await until_drawn(page)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 400
        tops = await page.evaluate(
            "[...document.querySelectorAll('main > section')].map((s) => s.getBoundingClientRect().top)"
        )
        assert tops == sorted(tops)
        assert len(set(tops)) == 6
        await steer(page, "Hold decisions")
        await expect(page.locator("#answer")).to_contain_text("on hold")


COLOURS = """(kind) => {
    const text = document.createElement("p");
    text.className = kind;
    document.querySelector(".card").append(text);
    const rgb = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
    return [rgb(getComputedStyle(text).color), rgb(getComputedStyle(text.parentNode).backgroundColor)];
}"""


async def test_contrast(tmp_path: Path) -> None:
    """Text on its card: 4.5 to 1 (WCAG 2.2, 1.4.3), in light and in dark, for plain text and every status."""
    async with served(endless(tmp_path)) as run, browsing() as (_, page):
        cards = []
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            await page.goto(run.link)
            for kind in ("", "muted", "good", "warn", "bad"):
                colours = await page.evaluate(COLOURS, kind)
                assert _contrast(*colours) >= 4.5, (scheme, kind, colours)
            await until_drawn(page)
            for text in ("annotation-text", "xtick text", "legendtext"):
                ink = await page.evaluate(f"getComputedStyle(document.querySelector('#plot .{text}')).fill")
                numbers = [float(number) for number in re.findall(r"[\d.]+", ink)[:3]]
                assert _contrast(numbers, colours[1]) >= 4.5, (scheme, text, ink)
            cards.append(colours[1])
        assert cards[0] != cards[1]


def _contrast(one: list[float], other: list[float]) -> float:
    def luminance(rgb: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


async def test_without_the_link_it_says_what_is_needed(tmp_path: Path) -> None:
    async with served(endless(tmp_path)) as run, chromium() as browser:
        page = await browser.new_page()
        await page.goto(run.url)
        text = await page.inner_text("body")
        assert text == "no token: use the link that this start of the run has printed"


async def test_static_files_stay_small() -> None:
    """One HTML, one CSS, one JS module of ours, under 600 lines together."""
    files = sorted((Path(__file__).parents[2] / "trainers" / "service" / "static").iterdir())
    assert [file.name for file in files] == ["app.css", "app.js", "index.html"]
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert len(lines) < 600
    assert max(map(len, lines)) <= 320  # the icon
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", "\n".join(lines))
