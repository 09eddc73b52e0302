"""Annotate in a real browser: the keyboard alone, drafts, a lost connection, no JavaScript, accessibility at two widths."""

from __future__ import annotations

import os

import pytest

from plaudit.domain import DEFAULT_PROJECT, Annotation, Review, ReviewKind, Verdict, new_id, utc_now
from plaudit.loop import annotate as stage

from .test_annotate_page import answered, questions
from .test_in_chromium import chromium, page, pytestmark  # noqa: F401

PICTURES = os.environ.get("PLAUDIT_PICTURES")  # a folder: then every page is also kept as a picture


def sign_in(page, console, name: str = "Ann", role: str = "annotator") -> None:  # noqa: F811
    page.goto(f"/sign-in?invitation={console.link(name, role)}")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text(name, exact=True).wait_for()


def lease(page) -> str:  # noqa: F811
    return str(page.locator("[name=lease_id]").get_attribute("value"))


def moved_on(page, from_lease: str) -> None:  # noqa: F811
    page.wait_for_function("old => document.querySelector('[name=lease_id]')?.value !== old", arg=from_lease)


def test_with_the_keyboard_alone_and_none_while_typing(page, console) -> None:  # noqa: F811
    questions(console, 5, overlap=2)
    sign_in(page, console)
    page.goto("/annotate")
    first = lease(page)
    page.keyboard.press("1")
    page.keyboard.press("Control+Enter")
    moved_on(page, first)
    second = lease(page)
    page.keyboard.press("b")
    assert page.locator("[name=verdict]:checked").get_attribute("data-key") == "6"
    page.keyboard.press("e")
    page.get_by_text("Note, or a better wording").click()
    page.get_by_label("Note", exact=True).fill("")
    page.keyboard.type("fazes 7?")
    assert page.get_by_label("Note", exact=True).input_value() == "fazes 7?"
    assert page.locator("[name=verdict]:checked").get_attribute("data-key") == "4"
    assert not page.locator("#keys").is_visible()
    page.locator("h1").click()
    page.keyboard.press("?")
    page.locator("#keys").wait_for()
    page.keyboard.press("a")  # not under the sheet
    page.keyboard.press("Escape")
    assert page.locator("[name=verdict]:checked").get_attribute("data-key") == "4"
    page.locator("h1").click()
    page.keyboard.press("Control+Enter")
    moved_on(page, second)
    third = lease(page)
    page.keyboard.press("z")
    moved_on(page, third)
    assert lease(page) == second
    page.keyboard.press("x")
    page.keyboard.press("Control+Enter")
    moved_on(page, second)
    page.keyboard.press("s")
    page.keyboard.press("Space")
    skipped = lease(page)
    page.get_by_role("button", name="Skip it").press("Enter")
    moved_on(page, skipped)
    page.locator("#quick").check()
    page.locator("h1").click()
    last = lease(page)
    page.keyboard.press("a")  # one key
    moved_on(page, last)
    given = console.store.find(Annotation)
    assert [(one.verdict, one.strength) for one in given] == [
        (Verdict.PREFER, 3),
        (Verdict.BOTH_BAD, None),
        (Verdict.SKIP, None),
        (Verdict.PREFER, 2),
    ]
    assert given[0].choice == given[0].order[0]
    assert given[2].reasons
    assert all(0 < one.seconds < 600 for one in given)


def test_a_draft_survives_a_reload_and_a_lost_connection(page, console) -> None:  # noqa: F811
    questions(console, 2)
    sign_in(page, console)
    page.goto("/annotate")
    first = lease(page)
    page.keyboard.press("2")
    page.get_by_text("Note, or a better wording").click()
    page.get_by_role("button", name="Start from the one I chose").click()
    page.get_by_label("The better answer").press("End")
    page.keyboard.type(" And more.")
    page.get_by_label("Note", exact=True).fill("so so")
    page.reload()
    assert lease(page) == first
    assert page.locator("[name=verdict]:checked").get_attribute("data-key") == "2"
    assert page.get_by_label("Note", exact=True).input_value() == "so so"
    page.context.set_offline(True)
    page.get_by_role("button", name="Send and next").click()
    page.get_by_text("there is no connection").wait_for()
    assert console.store.count(Annotation) == 0
    page.context.set_offline(False)
    moved_on(page, first)
    (given,) = console.store.find(Annotation)
    assert (given.strength, given.note) == (2, "so so")
    assert "And more." in (given.edit or "")
    assert not page.evaluate("Object.keys(localStorage).some(name => name.startsWith('plaudit draft'))")


def test_without_javascript(chromium, console) -> None:  # noqa: F811
    questions(console, 2)
    with chromium.new_context(base_url=console.url, java_script_enabled=False) as context:
        tab = context.new_page()
        sign_in(tab, console)
        tab.goto("/annotate")
        first = lease(tab)
        assert not tab.get_by_role("button", name="Keys").is_visible()
        tab.get_by_label("Equal").check()
        tab.get_by_role("button", name="Send and next").click()
        assert lease(tab) != first
        tab.get_by_role("button", name="Take my last answer back").click()
        assert "its question is closed" in tab.get_by_role("status").inner_text()
    assert console.store.find(Annotation)[0].verdict is Verdict.TIE


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_the_pages_are_accessible_and_fit(page, console, width: int, scheme: str) -> None:  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    stage.write_guideline(console.store, DEFAULT_PROJECT, "Prefer *kind* answers.\n\n- short\n- right", utc_now())
    answered(console, "aaa", 3, "agreed")
    disputed = answered(console, "aab", 3, "disputed")
    questions(console, 2, overlap=2, batch="waits")
    review = Review(
        id=new_id(Review), project_id=DEFAULT_PROJECT, comparison_id=disputed.id, kind=ReviewKind.DISPUTE,
        probability=0.8, created_at=utc_now(),
    )  # fmt: skip
    console.store.add(review)
    page.set_viewport_size({"width": width, "height": 760})
    page.emulate_media(color_scheme=scheme)
    sign_in(page, console, "Root", "admin")
    for address in ("/annotate", "/annotation", "/reviews", f"/reviews/{review.id}"):
        page.goto(address)
        if PICTURES:
            page.screenshot(path=f"{PICTURES}/{address.split('/')[1]}-{len(address) > 12}-{width}.png", full_page=True)
        page.evaluate("document.querySelectorAll('main details').forEach(part => { part.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        found = Axe().run(page).response["violations"]
        serious = [
            (one["id"], [node["html"] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], address
