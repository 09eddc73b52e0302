from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from plaudit.web.pages import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12,345"),
        (-3, "−3"),
        (0.693147, "0.6931"),
        (-12.3456, "−12.35"),
        (123456.7, "123,457"),
        (float("nan"), "not a number"),
        (float("-inf"), "−∞"),
        ("as it is", "as it is"),
    ],
)
def test_number(value: object, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.3517, "0.35 s"),
        (8, "8 s"),
        (59.6, "1:00 min"),
        (185, "3:05 min"),
        (7800, "2:10 h"),
        (273600, "3 d 4 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_a_moment_is_said_in_utc() -> None:
    at = datetime(2026, 3, 1, 14, 30, tzinfo=timezone(timedelta(hours=2)))
    assert words.moment(at) == '<time datetime="2026-03-01T12:30:00+00:00">2026-03-01 12:30 UTC</time>'
    assert words.moment(None) == "–"
    assert words.plain(at) == "2026-03-01T12:30:00+00:00"
    assert words.plain(datetime(2026, 3, 1, tzinfo=UTC)) == "2026-03-01T00:00:00+00:00"
    assert [words.plain(value) for value in (float("nan"), 0.5, "x")] == [None, 0.5, "x"]
    assert words.percent(0.415) == "42 %"
