from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from plaudit.domain import Verdict
from plaudit.errors import BadInput
from plaudit.loop import body as fields


def test_an_unknown_field_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(BadInput, match=r"'respone_index', which is unknown; did you mean 'response_index'"):
        fields.checked({"respone_index": 1}, "The feedback", ("response_index", "kind"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a\x00b", "NUL"),
        ("\ud800", "Unicode"),
        (float("nan"), "finite"),
        ([float("inf")], "finite"),
        ({"deep": {"key": "\x00"}}, "NUL"),
        ({"\x00": 1}, "NUL"),
    ],
)
def test_what_a_database_cannot_hold_is_refused_by_the_name_of_its_field(value: Any, said: str) -> None:
    with pytest.raises(BadInput, match=rf"^note.*{said}"):
        fields.checked({"note": value}, "The body", ("note",))


def test_a_nest_deeper_than_the_limit_is_refused_before_recursion_fails() -> None:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    with pytest.raises(BadInput, match="nested"):
        fields.checked({"note": nest}, "The body", ("note",))
    shallow: Any = "leaf"
    for _ in range(fields.MAX_DEPTH):
        shallow = [shallow]
    assert fields.checked({"note": shallow}, "The body", ("note",)) == {"note": shallow}
    with pytest.raises(BadInput, match="nested"):
        fields.checked({"note": [shallow]}, "The body", ("note",))


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_body_that_is_no_object_is_refused(raw: Any) -> None:
    with pytest.raises(BadInput, match="JSON object"):
        fields.checked(raw, "The body", ("note",))


def test_numbers_are_not_bools_and_stay_in_range() -> None:
    assert fields.integer({"n": 3}, "n", 1, 3) == 3
    assert fields.integer({}, "n", 1, 3, default=2) == 2
    assert repr(fields.integer({"n": 2.0}, "n", 1, 3)) == "2"  # schemathesis: to JSON Schema 2.0 is an integer
    for wrong in (True, 0, 4, 2.5, 4.0, "2"):
        with pytest.raises(BadInput, match="n is"):
            fields.integer({"n": wrong}, "n", 1, 3)
    for wrong in (True, -0.1, float("nan"), "1", None):
        with pytest.raises(BadInput, match="n is"):
            fields.number({"n": wrong}, "n", 0.0, 1.0)
    with pytest.raises(BadInput, match="true or false"):
        fields.flag({"f": 1}, "f")


def test_an_enum_is_named_with_its_values() -> None:
    assert fields.member({"verdict": "tie"}, "verdict", Verdict) is Verdict.TIE
    with pytest.raises(BadInput, match="verdict is missing; give one of: prefer, tie, both_bad, rate, skip"):
        fields.member({}, "verdict", Verdict)
    with pytest.raises(BadInput, match='verdict is "left"'):
        fields.member({"verdict": "left"}, "verdict", Verdict)


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([], "messages is"),
        ("hello", "messages is"),
        (["hello"], r"messages\[0\] is"),
        ([{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}], r"messages\[1\].role"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content"),
    ],
)
def test_a_malformed_conversation_is_refused_at_its_place(messages: Any, where: str) -> None:
    with pytest.raises(BadInput, match=where):
        fields.messages({"messages": messages})


def test_a_tool_call_needs_no_content() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]
    assert fields.messages({"messages": said}) == tuple(said)


def test_attributes_are_plain_and_few() -> None:
    assert fields.attributes({"attributes": {"plan": "pro", "seats": 3}}) == {"plan": "pro", "seats": 3}
    with pytest.raises(BadInput, match=r"attributes\.nested"):
        fields.attributes({"attributes": {"nested": {}}})
    with pytest.raises(BadInput, match="at most 32"):
        fields.attributes({"attributes": {str(i): i for i in range(33)}})


def test_a_message_never_quotes_more_than_the_start_of_a_value() -> None:
    with pytest.raises(BadInput) as caught:
        fields.text({"note": ["secret" * 100]}, "note", max_chars=5)
    assert len(caught.value.message) < 150


def test_a_time_needs_its_offset_and_becomes_utc() -> None:
    assert fields.moment({"at": "2026-01-31T12:00:00+02:00"}, "at") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    for wrong in ("2026-01-31T12:00:00", "soon", 5, "0001-01-01T00:00:00+23:00"):
        with pytest.raises(BadInput, match=r"^at is"):
            fields.moment({"at": wrong}, "at")
