from __future__ import annotations

import pytest

from plaudit.errors import BadInput
from plaudit.loop import json_shape

PERSON = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (PERSON, {"name": "Ada", "age": 3}, {"age": 3}),
        (PERSON, {"name": "Ada"}, {"name": "Ada", "extra": 1}),
        (PERSON, {"name": "Ada", "age": 3.0}, {"name": "Ada", "age": 3.5}),
        (PERSON, {"name": "A"}, {"name": ""}),
        (PERSON, {"name": "Ada", "age": 0}, {"name": "Ada", "age": -1}),
        ({"type": "integer"}, 1, True),
        ({"type": ["string", "null"]}, None, 1),
        ({"type": "boolean"}, False, 0),
        ({"enum": [1, "a"]}, "a", True),
        ({"const": 1}, 1, 2),
        ({"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2}, [1, 2.5], [1, 2, 3]),
        ({"type": "array", "items": {"type": "number"}}, [], ["a"]),
        ({"type": "string", "pattern": "^a+$", "maxLength": 3}, "aaa", "aaaa"),
        ({"type": "string", "pattern": "^a+$"}, "a", "b"),
        ({"anyOf": [{"type": "null"}, {"type": "number", "maximum": 5}]}, 5, 6),
        ({"additionalProperties": {"type": "number"}}, {"x": 1}, {"x": "y"}),
    ],
)
def test_shapes(schema, good, bad) -> None:
    json_shape.check(schema)
    assert json_shape.fits(good, schema)
    assert not json_shape.fits(bad, schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "#/x"}, "keyword '\\$ref'"),
        ({"properties": {"a": {"format": "email"}}}, "keyword 'format'"),
        ({"items": {"type": "text"}}, "type 'text'"),
        ({"pattern": "(?=x)"}, "RE2"),
        ([], "give an object"),
    ],
)
def test_a_schema_that_is_not_read_whole_is_refused(schema, said) -> None:
    with pytest.raises(BadInput, match=said):
        json_shape.check(schema)


def test_reading_an_answer() -> None:
    assert json_shape.parse(' {"a": 1} ') == {"a": 1}
    assert json_shape.parse('```json\n{"a": 1}\n```') == {"a": 1}
    for wrong in ("", "yes", "NaN", '{"a": 1} and more'):
        with pytest.raises(ValueError):
            json_shape.parse(wrong)
