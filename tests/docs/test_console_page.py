"""docs/console.md lists the pages that there are, with the permission that they need."""

from __future__ import annotations

from datetime import timedelta

from plaudit.loop import people
from plaudit.web import sign_in
from plaudit.web.app import PAGES

from .conftest import code_in


def test_pages(pages) -> None:
    shown = [(*code_in(row[0])[0].split(), row[1]) for row in pages["console.md"].section("Who may").rows()]
    assert shown == [(method, path, str(may or "none")) for method, path, _, may in PAGES]


def test_times(pages) -> None:
    text = pages["console.md"].section("Signing in").text
    assert "for 30 days" in text
    assert "for seven days" in text
    assert (timedelta(days=30), timedelta(days=7)) == (sign_in.SIGNED_IN, people.VALID)
