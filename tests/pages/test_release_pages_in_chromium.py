"""The release rooms in a real browser: accessible, fitting at 360 pixels and in the dark, and a rollback with the keyboard alone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest

from plaudit.domain import DEFAULT_PROJECT, Release, ReleaseState, utc_now
from plaudit.loop import abuse

from .furniture import furnish
from .test_abuse_page import trolled
from .test_annotation_screens import lefty
from .test_release_pages import addresses

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium"),
]
PICTURES = os.environ.get("PLAUDIT_PICTURES")  # a folder: then every page is also kept as pictures
PATIENCE_MS = 120_000  # a busy machine is slow, a broken page stays broken


@pytest.fixture
def page(console) -> Iterator[playwright.Page]:
    """A signed-in tab at 360 pixels in the dark that fails the test for a script error or what the security policy had to stop."""
    complaints: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(base_url=console.url, color_scheme="dark", viewport={"width": 360, "height": 760})
        context.set_default_timeout(PATIENCE_MS)
        opened = context.new_page()
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
        opened.goto(f"/sign-in?invitation={console.link('Root', 'admin')}")
        opened.get_by_role("button", name="Sign in").click()
        opened.wait_for_url("**/runs")
        yield opened
        browser.close()
    assert complaints == []


def keep_pictures(page, address: str) -> None:
    """As it opens, and with everything unfolded, at both widths."""
    name = re.sub(r"\W+", "-", address).strip("-")[:40]
    for width, scheme in ((1280, "light"), (360, "dark")):
        page.set_viewport_size({"width": width, "height": 760})
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=f"{PICTURES}/{name}-{width}.png", full_page=True)
        page.evaluate("document.querySelectorAll('main details').forEach(part => { part.open = true })")
        page.screenshot(path=f"{PICTURES}/{name}-{width}-open.png", full_page=True)
        page.evaluate("document.querySelectorAll('main details').forEach(part => { part.open = false })")


def test_every_page_is_accessible_and_fits_and_the_keyboard_rolls_back(page, console) -> None:
    from axe_playwright_python.sync_playwright import Axe

    made = furnish(console.store, console.home, DEFAULT_PROJECT, utc_now(), n_past=9)
    lefty(console)
    trolled(console)
    abuse.quarantine(console.store, DEFAULT_PROJECT, actor="visitor-1", reason="A bot.", by="Otto", now=utc_now())
    for address in (*addresses(console, made), "/abuse?hours=168", "/annotation/signs"):
        page.goto(address)
        if PICTURES:
            keep_pictures(page, address)
        for opened in page.locator("main details > summary").all():
            opened.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, address
        found = Axe().run(page).response["violations"]
        serious = [
            (one["id"], [node["html"][:200] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], address

    page.set_viewport_size({"width": 1200, "height": 760})
    page.emulate_media(color_scheme="light")
    page.goto(f"/releases/{made.canary.id}")
    page.locator("#move-roll_back summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("It is rude.")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("h1 .rolled_back").wait_for()
    assert console.store.get(Release, made.canary.id).state == ReleaseState.ROLLED_BACK
