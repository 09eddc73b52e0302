"""The shape of a JSON body, once: a JSON Schema (draft 2020-12) that `read` checks bodies against, in the words of `body.py`, and that
`GET /openapi.json` shows. An optional field may be null, which is as if it were not there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from plaudit.errors import BadInput
from plaudit.loop import body as fields

Shape = Mapping[str, Any]

NULL: Shape = {"type": "null"}
FLAG: Shape = {"type": "boolean"}
MOMENT: Shape = {
    "type": "string",
    "format": "date-time",
    "description": "ISO 8601 with its offset from UTC.",
    "examples": ["2026-01-31T12:00:00Z"],
}
_ROLE: Shape = {"type": "string", "enum": list(fields.ROLES)}
_PART: Shape = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        },
        {"type": "object", "properties": {"type": {"type": "string", "not": {"const": "text"}}}, "required": ["type"]},
    ]
}
MESSAGES: Shape = {
    "type": "array",
    "minItems": 1,
    "maxItems": fields.MAX_MESSAGES,
    "description": "A conversation as OpenAI's chat completions have it.",
    "items": {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "role": _ROLE,
                    "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
                },
                "required": ["role", "content"],
            },
            {
                "type": "object",
                "properties": {
                    "role": {"const": "assistant"},
                    "content": NULL,
                    "tool_calls": {"type": "array", "minItems": 1, "items": {"type": "object"}},
                },
                "required": ["role", "tool_calls"],
            },
        ]
    },
}
ATTRIBUTES: Shape = {
    "type": "object",
    "maxProperties": 32,
    "description": "Declared of the user or the request.",
    "additionalProperties": {
        "anyOf": [
            {"type": "string", "maxLength": 500},
            {"type": "number"},
            {"type": "boolean"},
            NULL,
        ]
    },
}


def text(max_chars: int, said: str = "") -> Shape:
    return {"type": "string", "minLength": 1, "maxLength": max_chars} | _said(said)


def whole(low: int, high: int, said: str = "") -> Shape:
    return {"type": "integer", "minimum": low, "maximum": high} | _said(said)


def real(low: float, high: float, said: str = "") -> Shape:
    return {"type": "number", "minimum": low, "maximum": high} | _said(said)


def one_of(kind: type[StrEnum], said: str = "") -> Shape:
    return {"type": "string", "enum": [str(one) for one in kind]} | _said(said)


def texts(least: int, most: int, max_chars: int | None = None, said: str = "") -> Shape:
    """A list of `least` to `most` strings of 1 to `max_chars` characters; None: of any length, empty ones too."""
    item = {"type": "string"} if max_chars is None else text(max_chars)
    return {"type": "array", "minItems": least, "maxItems": most, "items": item} | _said(said)


def shape(required: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    """An object of these fields and no others."""
    may = {name: {"anyOf": [part, NULL]} for name, part in (optional or {}).items()}
    return {
        "type": "object",
        "properties": {**required, **may},
        "required": list(required),
        "additionalProperties": False,
    }


def read(raw: Any, what: str, shape: Shape) -> dict[str, Any]:
    """The fields of `raw`, None for those that are not there. Raises BadInput naming the first that is wrong."""
    body = fields.checked(raw, what, tuple(shape["properties"]))
    return {name: _field(body, name, part, name in shape["required"]) for name, part in shape["properties"].items()}


def _field(body: fields.Body, name: str, part: Shape, needed: bool) -> Any:
    plain = part if needed else part["anyOf"][0]
    if plain is MESSAGES:
        return fields.messages(body, name)
    if plain is ATTRIBUTES:
        return fields.attributes(body, name)
    if body.get(name) is None:
        if needed:
            raise BadInput(f"{name} is missing; give {_wanted(plain)}.")
        return None
    match plain:
        case {"enum": values}:
            return fields.one_of(body, name, values)
        case {"format": "date-time"}:
            return fields.moment(body, name)
        case {"type": "string", "maxLength": most}:
            return fields.text(body, name, max_chars=most)
        case {"type": "integer", "minimum": low, "maximum": high}:
            return fields.integer(body, name, low, high)
        case {"type": "number", "minimum": low, "maximum": high}:
            return fields.number(body, name, low, high)
        case {"type": "boolean"}:
            return fields.flag(body, name)
        case {"type": "array"}:
            return _texts(body, name, plain)
    return body[name]  # of any shape: who reads it checks it


def _texts(body: fields.Body, name: str, plain: Shape) -> tuple[str, ...]:
    value, item = body[name], plain["items"]
    low, high = item.get("minLength", 0), item.get("maxLength", math.inf)
    fits = isinstance(value, list | tuple) and plain["minItems"] <= len(value) <= plain["maxItems"]
    if not fits or not all(isinstance(one, str) and low <= len(one) <= high for one in value):
        raise BadInput(f"{name} is {fields.shown(value)}; give {_wanted(plain)}.")
    return tuple(value)


def _wanted(plain: Shape) -> str:
    match plain:
        case {"enum": values}:
            return f"one of: {', '.join(values)}"
        case {"format": "date-time"}:
            return "a time such as 2026-01-31T12:00:00Z"
        case {"type": "string", "maxLength": most}:
            return f"a string of 1 to {most} characters"
        case {"type": "integer", "minimum": low, "maximum": high}:
            return f"a whole number from {low} to {high}"
        case {"type": "number", "minimum": low, "maximum": high}:
            return f"a number from {low:g} to {high:g}"
        case {"type": "array", "minItems": low, "maxItems": high, "items": item}:
            length = f" of 1 to {item['maxLength']} characters" if "maxLength" in item else ""
            return f"a list of {low} to {high} strings{length}"
    return "true or false"


def _said(said: str) -> dict[str, Any]:
    return {"description": said} if said else {}
