"""A shape is one truth: what `read` accepts is what the JSON Schema allows, as another implementation of JSON Schema (jsonschema) reads it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from plaudit.domain import FeedbackKind, Project, utc_now
from plaudit.errors import BadInput
from plaudit.loop import answers, collect, outcomes, shapes
from plaudit.web.operations import FEEDBACK, annotation_schema

NOW = utc_now()
PROJECT = Project(id="prj_1", project_id="prj_1", name="p", created_at=NOW)
USER = {"role": "user", "content": "hi"}
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 4.5, 127, 128, 1e300, "", "x", "x" * 200, "x" * 201, "thumb", "allowed", [], {}, ["x"], ["x"] * 21, [1], ["x" * 501],
    {"a": 1}, {"a": ["x"]}, {"a": "x" * 501}, {str(n): n for n in range(33)}, [USER], [USER, 1], [{"role": "user"}],
    [{"role": "king", "content": "x"}],
    [{"role": "user", "content": [{"type": "text", "text": "x"}]}], [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "file"}]}], [{"role": "user", "content": ["x"]}], [{"role": "assistant", "tool_calls": [{}]}],
)  # fmt: skip
LOGGED = {"messages": [USER], "responses": ["a"]}
SOLD = {"user": "u", "name": "n", "value": 1, "at": "2026-01-01T00:00:00Z"}


def accepts(read: Callable[[Any], Any], body: Any) -> bool:
    try:
        read(body)
    except BadInput:
        return False
    return True


@pytest.mark.parametrize(("shape", "good"), [(collect.INTERACTION, LOGGED), (outcomes.OUTCOME, SOLD)])
def test_every_field_is_read_as_its_schema_says(shape: shapes.Shape, good: dict[str, Any]) -> None:
    schema = Draft202012Validator(shape)
    assert accepts(lambda body: shapes.read(body, "It", shape), good)
    for name in shape["properties"]:
        without = {other: value for other, value in good.items() if other != name}
        for body in (without, *({**good, name: value} for value in VALUES)):
            if name == "at" and isinstance(body.get("at"), str):
                continue  # jsonschema does not look at formats
            allowed = schema.is_valid(body)
            assert accepts(lambda it: shapes.read(it, "It", shape), body) == allowed, (name, body.get(name))


def test_the_greatest_conversation_and_the_longest_reason_are_read_as_their_schema_says() -> None:
    for n in (1000, 1001):
        body = {**LOGGED, "messages": [USER] * n}
        fits = Draft202012Validator(collect.INTERACTION).is_valid(body)
        assert accepts(lambda it: shapes.read(it, "It", collect.INTERACTION), body) == fits == (n == 1000)
    reasons = shapes.shape({"reasons": shapes.texts(0, 2, 5)})
    for given in (["short"], ["longer"], [""], ["short", "longer"]):
        fits = Draft202012Validator(reasons).is_valid({"reasons": given})
        assert accepts(lambda it: shapes.read(it, "It", reasons), {"reasons": given}) == fits == (given == ["short"])


def test_feedback_of_every_kind_is_read_as_its_schema_says() -> None:
    schema = Draft202012Validator(FEEDBACK)
    inner = ({}, {"up": True}, {"up": 1}, {"rating": 5}, {"rating": 5.0}, {"rating": 6.0}, {"rating": 6},
             {"text": "x"}, {"text": "", "reasons": ["a"]}, {"reasons": ["a"]},
             {"reasons": []}, {"text": "x", "reasons": None}, {"chosen": 0}, {"chosen": None}, {"name": "copy", "seconds": 2, "consent": False},
             {"name": "copy", "seconds": -1}, {"name": "copy", "seconds": 86_401}, {"name": None}, {"up": True, "more": 1})  # fmt: skip
    plain = (None, True, 0, 1, 6, 4.5, "", "x", "x" * 201, "x" * 200_001, [])
    n_accepted = 0
    for kind, value, index, retract in itertools.product(
        FeedbackKind, (..., *inner, *plain), (..., 0, 1), (..., False, True)
    ):
        body = {
            "interaction_id": "int_1",
            "kind": str(kind),
            "value": value,
            "response_index": index,
            "retract": retract,
        }
        body = {name: part for name, part in body.items() if part is not ...}
        accepted = accepts(lambda it: collect._read_feedback(PROJECT, it, NOW), body)
        assert accepted == schema.is_valid(body), body
        n_accepted += accepted
    assert 200 < n_accepted < 1500


def test_an_annotation_is_read_as_its_schema_says() -> None:
    schema = Draft202012Validator(annotation_schema())
    named = {name for variant in annotation_schema()["anyOf"] for name in variant["properties"]}
    assert named == set(answers.ANSWER_FIELDS)
    good = (
        {"verdict": "prefer", "choice": "res_1"},
        {"verdict": "tie"},
        {"verdict": "skip"},
        {"verdict": "rate", "rating": 3},
    )
    for body in good:
        whole = {"lease_id": "lse_1", "seconds": 1, **body}
        assert schema.is_valid(whole)
        assert accepts(answers.read_answer, whole)
        for name, value in itertools.product(
            ("verdict", "choice", "rating", "strength", "edit", "note", "reasons", "seconds"), VALUES
        ):
            changed = {**whole, name: value}
            if not schema.is_valid(changed) and changed[name]:  # what is falsy may stand with any verdict
                assert not accepts(answers.read_answer, changed), changed
            if schema.is_valid(changed):
                assert accepts(answers.read_answer, changed), changed


def test_what_is_wrong_is_named_with_what_is_wanted() -> None:
    for shape, value, said in (
        (shapes.whole(1, 5), 6, "it is 6; give a whole number from 1 to 5"),
        (shapes.texts(1, 2), [], r"it is \[\]; give a list of 1 to 2 strings\."),
        (shapes.FLAG, None, "it is missing; give true or false"),
        (shapes.MOMENT, None, "it is missing; give a time such as"),
        (shapes.texts(0, 2, 9), None, "it is missing; give a list of 0 to 2 strings of 1 to 9 characters"),
        (shapes.real(0, 1), None, "it is missing; give a number from 0 to 1"),
        (shapes.one_of(FeedbackKind), None, "it is missing; give one of: thumb"),
    ):
        with pytest.raises(BadInput, match=said):
            shapes.read({"it": value}, "The body", shapes.shape({"it": shape}))
