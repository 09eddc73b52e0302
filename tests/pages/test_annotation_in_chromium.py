"""Ratings, criteria and the lead's page in a real browser: the keyboard alone, accessibility, two widths, light and dark."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from plaudit.domain import DEFAULT_PROJECT, Annotation, Comparison, ComparisonKind, Person, utc_now
from plaudit.loop import annotate as stage
from plaudit.loop import quality

from .test_annotate_in_chromium import lease, moved_on, sign_in
from .test_annotate_page import answered, questions
from .test_annotation_screens import ROW, make
from .test_in_chromium import chromium, page, pytestmark  # noqa: F401

PICTURES = os.environ.get("PLAUDIT_PICTURES")  # a folder: then every page is also kept as a picture
SIZES = (
    [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] if PICTURES else [(1280, "light"), (360, "dark")]
)


def focused(page) -> str:  # noqa: F811
    return str(page.evaluate("document.activeElement.name"))


def test_a_rating_and_its_criteria_with_the_keyboard_alone(page, console, tmp_path) -> None:  # noqa: F811
    rows = [{"prompt": f"Why {n}?", "response": f"Because {n}."} for n in range(2)]
    make(console, tmp_path, *rows, kind=ComparisonKind.RATING, criteria=("tone", "accuracy"))
    sign_in(page, console)
    page.goto("/annotate")
    first = lease(page)
    page.keyboard.press("4")
    page.keyboard.press("c")
    assert focused(page) == "criterion:tone"
    page.keyboard.press("2")
    assert focused(page) == "criterion:accuracy"
    page.reload()  # the draft has them
    assert page.locator("[name='criterion:tone']:checked").get_attribute("value") == "2"
    page.keyboard.press("c")
    assert focused(page) == "criterion:accuracy"
    page.keyboard.press("5")
    assert page.evaluate("document.activeElement.matches('button.main')")
    page.keyboard.press("Enter")
    moved_on(page, first)
    assert {one.criterion: one.rating for one in console.store.find(Annotation)} == {
        "overall": 4,
        "tone": 2,
        "accuracy": 5,
    }
    page.locator("#quick").check()
    page.locator("h1").click()
    second = lease(page)
    for key in ("1", "c", "3"):
        page.keyboard.press(key)
    assert lease(page) == second  # one criterion is open
    page.keyboard.press("3")
    page.get_by_text("Nothing waits").wait_for()
    assert console.store.count(Annotation) == 6


def test_a_criterion_of_a_pair_by_its_letter(page, console, tmp_path) -> None:  # noqa: F811
    make(console, tmp_path, ROW, criteria=("accuracy",))
    sign_in(page, console)
    page.goto("/annotate")
    for key in ("b", "c", "a"):
        page.keyboard.press(key)
    page.keyboard.press("Control+Enter")
    page.get_by_text("Nothing waits").wait_for()
    found = {one.criterion: one for one in console.store.find(Annotation)}
    order = found["overall"].order
    assert (found["overall"].choice, found["accuracy"].choice) == (order[1], order[0])


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_screens_and_lead_page_are_accessible_and_fit(page, console, tmp_path, width: int, scheme: str) -> None:  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    stage.write_guideline(console.store, DEFAULT_PROJECT, "Prefer *kind* answers.\n\n- short\n- right", utc_now())
    for n, choices in enumerate(("aaa", "aab", "abb", "aaa", "aab")):
        one = answered(console, choices, 3, f"week {n}")
        for given in console.store.find(Annotation, comparison_id=one.id):
            console.store.change(Annotation, given.id, created_at=given.created_at - timedelta(days=6 * (4 - n)))
        console.store.change(Comparison, one.id, created_at=utc_now() - timedelta(days=6 * (4 - n)))
    questions(console, 3, overlap=3, batch="waits")
    voter = console.store.find(Person, name="Voter 0")[0].id
    now = utc_now()
    quality.qualify(console.store, DEFAULT_PROJECT, voter, "law", now + timedelta(days=30), "Lea", now)
    quality.assign(console.store, DEFAULT_PROJECT, voter, batch="waits", by="Lea", now=now)
    page.set_viewport_size({"width": width, "height": 760})
    page.emulate_media(color_scheme=scheme)
    sign_in(page, console, "Root", "admin")
    rating = {
        "prompt": "How do I reset the router?",
        "response": "Hold the *small* button for ten seconds.\n\n1. Wait\n2. Done",
    }
    make(console, tmp_path, rating, kind=ComparisonKind.RATING, criteria=("tone", "accuracy"), priority=9)
    for name, address in (("rating", "/annotate"), ("pair", "/annotate"), ("lead", "/annotation")):
        page.goto(address)
        if name == "pair":
            page.keyboard.press("4")
            page.keyboard.press("Control+Enter")
            page.get_by_role("heading", name="Which answer is better?").wait_for()
        if PICTURES:
            page.screenshot(path=f"{PICTURES}/{name}-{width}-{scheme}.png", full_page=True)
        page.evaluate("document.querySelectorAll('main details').forEach(part => { part.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        found = Axe().run(page).response["violations"]
        serious = [
            (one["id"], [node["html"] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], name
