"""The console in a real browser: signing in, a run that grows, the keyboard alone, accessibility, narrow and dark."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from plaudit.domain import RunState, utc_now

from .conftest import line

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium"),
]
PATIENCE_MS = 60_000  # a busy machine is slow, a broken page stays broken


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, console) -> Iterator[playwright.Page]:
    """A tab of a fresh browser profile that fails the test for a script error or anything the security policy had to stop."""
    context = chromium.new_context(base_url=console.url, locale="en-GB", timezone_id="Europe/Berlin")
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
    yield opened
    context.close()
    assert complaints == []


def sign_in(page, console, name: str = "Root", *roles: str) -> None:
    page.goto(f"/sign-in?invitation={console.link(name, *(roles or ('admin',)))}")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/runs")


def everything(console, folder: Path) -> list[str]:
    """Pages in their fullest state."""
    (folder / "checkpoint").mkdir()
    card = "# A Checkpoint\n\nIt *was* trained.\n\n| figure | value |\n|---|---|\n| kl | 0.5 |\n\n- item\n"
    (folder / "checkpoint" / "card.md").write_text(card)
    past = utc_now() - timedelta(minutes=3)
    run = console.run(
        folder=folder, lease_expires_at=past, error="It said <this>.", inputs={"snapshot_sha256": "5" * 64}
    )
    console.run("reward", state=RunState.FAILED, error="The disk is full; free some space and run it again.")
    console.run("sft", state=RunState.QUEUED)
    console.link("Ann Annotator", "annotator")
    return ["/runs", f"/runs/{run.id}", "/people", "/sign-in", "/nothing"]


def test_a_link_signs_in_once(page, console) -> None:
    secret = console.link("Ada", "lead")
    page.goto(f"/sign-in?invitation={secret}")
    assert page.get_by_role("heading", name="Sign in as Ada?").is_visible()
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/runs")
    page.get_by_text("Ada", exact=True).click()
    page.get_by_role("button", name="Sign out", exact=True).click()
    page.wait_for_url("**/sign-in")
    page.goto(f"/sign-in?invitation={secret}")
    assert "was used on" in page.get_by_role("alert").inner_text()
    page.goto("/runs")
    assert page.url.endswith("/sign-in")


def test_the_page_of_a_run_grows_with_it_and_stays_as_the_reader_left_it(page, console, folder: Path) -> None:
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    run = console.run(folder=folder)
    sign_in(page, console)
    page.get_by_role("link", name="ppo").click()
    page.get_by_text("3 of 10").wait_for()
    page.get_by_text("2 more figures of ppo").click()
    before = page.locator(".line").first.get_attribute("d")
    page.evaluate("document.querySelector('main summary').kept = true")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(4, score=0.9, kl=0.04, n=8, eos_fraction=1.0))
    page.get_by_text("4 of 10").wait_for()
    assert page.locator(".line").first.get_attribute("d") != before
    assert page.locator("figcaption", has_text="eos_fraction").is_visible()  # what was opened is open
    assert page.evaluate("document.querySelector('main summary').kept")  # and is the same element, with its focus
    console.store.change(type(run), run.id, state=RunState.DONE, finished_at=utc_now())
    os.close(held)
    page.locator("h1 .done").wait_for()
    page.wait_for_function("!document.querySelector('[data-refresh]')")


def test_with_the_keyboard_alone(page, console, folder: Path) -> None:
    console.run(folder=folder)
    page.goto(f"/sign-in?invitation={console.link('Root', 'admin')}")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Sign in"
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs")
    seen = []
    for _ in range(24):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.trim()"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", seen[-1]
        if seen[-1] == "ppo":
            break
    assert {"Skip to content", "Plaudit", "Runs", "People", "Root", "CSV", "JSON"} <= set(seen)
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/run_*")


def test_without_javascript(chromium, console, folder: Path) -> None:
    console.run(folder=folder)
    with chromium.new_context(base_url=console.url, java_script_enabled=False) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        sign_in(page, console)
        page.get_by_role("link", name="ppo").click()
        page.get_by_text("3 of 10").wait_for()
        assert page.locator("svg.curve").count() == 4
        page.get_by_role("link", name="People").click()
        page.get_by_label("Name").fill("Ann")
        page.get_by_label("lead").check()
        page.get_by_role("button", name="Make a link").click()
        assert "/sign-in?invitation=pli_" in page.get_by_label("Sign-in link for Ann").input_value()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_every_page_is_accessible_and_fits(page, console, folder: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.set_viewport_size({"width": width, "height": 760})
    page.emulate_media(color_scheme=scheme)
    addresses = everything(console, folder)
    sign_in(page, console)
    papers = set()
    for address in addresses:
        page.goto(address)
        for opened in page.locator("main details > summary").all():
            opened.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found = Axe().run(page).response["violations"]
        serious = [
            (one["id"], [node["html"] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], address
    assert papers == {"rgb(252, 252, 250)" if scheme == "light" else "rgb(23, 24, 28)"}


def test_times_are_the_readers_own(page, console, folder: Path) -> None:
    run = console.run(folder=folder, state=RunState.DONE)
    sign_in(page, console)
    page.goto(f"/runs/{run.id}")
    shown = page.locator("time").first
    assert shown.get_attribute("title").endswith("UTC")
    assert "UTC" not in shown.inner_text()
