"""The widget on /chat in a real browser: what is clicked, typed or pressed is a row in the store, once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from plaudit.domain import DEFAULT_PROJECT, Feedback, Interaction, utc_now
from plaudit.loop import release

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium"),
]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, console) -> Iterator[playwright.Page]:
    """/chat, signed in; fails the test for a script error or anything the security policy had to stop."""
    release.register_base(console.store, DEFAULT_PROJECT, "fake-1", "fake:", utc_now())
    context = chromium.new_context(base_url=console.url, locale="en-GB")
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
    opened.goto(f"/sign-in?invitation={console.link('Root', 'admin')}")
    opened.get_by_role("button", name="Sign in").click()
    opened.wait_for_url("**/runs")
    opened.goto("/chat")
    opened.evaluate("window.plaudit.sideBySide = () => false")  # by chance it would be one turn in ten
    yield opened
    context.close()
    assert complaints == []


def ask(page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")
    page.locator("#note", has_text="here.").wait_for()


def rows(console, at_least: int) -> list[Feedback]:
    """What is in the store, oldest first, waited for: a beacon has no answer."""
    deadline = time.monotonic() + 60
    while len(found := console.store.find(Feedback, order="id")) < at_least:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def said(console, at_least: int) -> list[tuple]:
    return [(str(one.kind), one.value, one.retracted) for one in rows(console, at_least)]


def pressed(page, name: str) -> str | None:
    return page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed")


def test_clicked_retracted_reloaded_and_edited(page, console) -> None:
    ask(page, "Is it open?")
    status = page.locator("plaudit-feedback").get_by_role("status")
    height = page.locator("plaudit-feedback").bounding_box()["height"]
    page.get_by_role("button", name="Good answer").click()
    status.filter(has_text="Saved").wait_for()
    assert page.locator("plaudit-feedback").bounding_box()["height"] == height  # nothing moves
    page.get_by_role("button", name="Good answer").click()
    status.filter(has_text="Taken back").wait_for()
    assert pressed(page, "Good answer") == "false"
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_role("button", name="Too long").click()
    page.get_by_label("Anything else").fill("Far too long.")
    page.get_by_role("button", name="Send", exact=True).last.click()
    rows(console, 4)

    page.reload()
    assert pressed(page, "Bad answer") == "true"
    page.get_by_role("button", name="Suggest a better answer").click()
    field = page.get_by_label("The answer as it should be")
    (interaction,) = console.store.find(Interaction)
    assert field.input_value() == page.locator("#answer-0-0").inner_text().strip() != ""
    field.fill("Yes, until six.")
    page.locator("plaudit-feedback").get_by_role("button", name="Send").click()
    assert said(console, 5) == [
        ("thumb", {"up": True}, False),
        ("thumb", {}, True),
        ("thumb", {"up": False}, False),
        ("comment", {"text": "Far too long.", "reasons": ["too_long"]}, False),
        ("edit", {"text": "Yes, until six."}, False),
    ]
    assert {(one.interaction_id, one.actor) for one in rows(console, 5)} == {(interaction.id, interaction.actor)}
    page.wait_for_function("window.plaudit.waiting() === 0")


def test_two_answers_are_chosen_between_and_stay_where_they_were(page, console) -> None:
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Always show two answers").check()
    ask(page, "Which one?")
    sides = "e => [...e.shadowRoot.querySelectorAll('slot')].map(s => Number(s.name))"
    order = page.locator("plaudit-choice").evaluate(sides)
    assert sorted(order) == [0, 1]
    shown = page.locator("plaudit-choice p.said").all_inner_texts()
    assert len(shown) == 2
    page.get_by_role("button", name="Answer B is better").click()
    assert said(console, 1) == [("choice", {"chosen": order[1]}, False)]
    page.reload()
    assert page.locator("plaudit-choice").evaluate(sides) == order
    assert pressed(page, "Answer B is better") == "true"
    page.get_by_role("button", name="Neither is better").click()
    assert said(console, 2)[1:] == [("choice", {"chosen": None}, False)]
    # Over many turns each answer comes first about as often: 64 coins, 6 standard deviations.
    first = page.evaluate(
        """() => [...Array(64)].map((_, n) => {
          const made = document.createElement('plaudit-choice');
          made.setAttribute('interaction', 'int_test' + n);
          document.body.append(made);
          const name = made.shadowRoot.querySelector('slot').name;
          made.remove();
          return Number(name);
        }).reduce((a, b) => a + b)"""
    )
    assert 8 <= first <= 56


def test_with_the_keyboard_alone(page, console) -> None:
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "question":
            break
    page.keyboard.type("Is it open?")
    page.keyboard.press("Enter")
    page.locator("#note", has_text="here.").wait_for()
    back_to(page, "Suggest a better answer")
    page.keyboard.press("Enter")
    assert focused(page) == "TEXTAREA"
    page.keyboard.press("Escape")
    assert focused(page) == "Suggest a better answer"
    assert page.locator("plaudit-feedback .panel").is_hidden()
    page.keyboard.press("Space")
    page.keyboard.press("Control+A")
    page.keyboard.type("Yes.")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert said(console, 1) == [("edit", {"text": "Yes."}, False)]
    assert focused(page) == "Suggest a better answer"
    back_to(page, "Good answer")
    outline = "document.activeElement.shadowRoot.activeElement"
    assert page.evaluate(f"getComputedStyle({outline}).outlineStyle") != "none"
    page.keyboard.press("Space")
    assert said(console, 2)[1:] == [("thumb", {"up": True}, False)]


def focused(page) -> str:
    """The name of the widget's part that has the focus, else its tag."""
    return page.evaluate(
        "(e => e?.getAttribute('aria-label') ?? e?.tagName)(document.activeElement.shadowRoot?.activeElement)"
    )


def back_to(page, name: str) -> None:
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if focused(page) == name:
            return
    raise AssertionError(f"{name} cannot be reached with the keyboard")


def test_what_could_not_be_sent_arrives_once_after_a_reload(page, console) -> None:
    ask(page, "Is it open?")
    page.route("**/v1/feedback/batch", lambda route: route.abort())
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_role("status").filter(has_text="Not sent yet").wait_for()
    assert page.evaluate("window.plaudit.waiting()") == 1
    page.unroute("**/v1/feedback/batch")
    page.reload()
    assert said(console, 1) == [("thumb", {"up": False}, False)]
    page.wait_for_function("window.plaudit.waiting() === 0")
    # A token that holds no longer: the page shows what is true again, and says why.
    page.evaluate("document.querySelector('plaudit-feedback').setAttribute('token', 'pft_e30.e30')")
    page.get_by_role("button", name="Good answer").click()
    page.get_by_role("status").filter(has_text="Not saved: This feedback token is not ours").wait_for()
    assert pressed(page, "Bad answer") == "true"
    assert len(rows(console, 1)) == 1


def test_signals_only_with_consent(page, console) -> None:
    ask(page, "Is it open?")
    copy = "getSelection().selectAllChildren(document.getElementById('answer-0-0'))"
    page.evaluate(copy)
    page.evaluate("document.dispatchEvent(new ClipboardEvent('copy', { bubbles: true }))")
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Also record what I do").check()
    page.evaluate(copy)
    page.evaluate("document.dispatchEvent(new ClipboardEvent('copy', { bubbles: true }))")
    assert said(console, 1) == [("signal", {"name": "copy", "consent": True}, False)]
    page.get_by_role("button", name="Answer again").click()
    page.locator("#note", has_text="here.").wait_for()
    page.evaluate("new Promise(done => setTimeout(done, 1200))")  # what is read is read for a while
    page.goto("/runs")
    given = [value for _, value, _ in said(console, 3)]
    found = {value["name"]: value for value in given}
    assert set(found) == {"copy", "regenerate", "dwell"}
    assert [value["name"] for value in given].count("copy") == 1  # the one before the consent is not there
    assert found["dwell"]["seconds"] >= 1
    assert all(value["consent"] for value in found.values())


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_accessible_and_fits(page, console, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    ask(page, "Is it open? " * 10)
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Always show two answers").check()
    ask(page, "And a-very-long-word-without-any-place-to-break-it-in-two-" * 3)
    page.get_by_role("button", name="Answer A is better").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [
        (one["id"], [node["html"] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ] == []
