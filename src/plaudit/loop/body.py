"""Reading the JSON body of a request field by field. Every function raises BadInput with one sentence that names the field.

Used by the stages that take bodies from outside (collect, annotate), so that HTTP, SDK and command line are refused in the same words.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from plaudit.domain import Message
from plaudit.errors import BadInput

Body = Mapping[str, Any]
Kind = TypeVar("Kind", bound=StrEnum)

MAX_DEPTH = 32  # of nested lists and objects
MAX_MESSAGES = 1000
ROLES = ("system", "developer", "user", "assistant", "tool")


def checked(raw: Any, what: str, known: Sequence[str]) -> Body:
    """`raw` as a JSON object whose every name is known and whose every value can be stored."""
    if not isinstance(raw, Mapping):
        raise BadInput(f"{what} is {shown(raw)}; send a JSON object.")
    for name in raw:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise BadInput(f"{what} has a field {name!r}, which is unknown; did you mean {near!r}?")
        _storable(raw[name], str(name), 0)
    return raw


def text(body: Body, name: str, *, max_chars: int, default: str | None = None) -> str | None:
    """A string of 1 to `max_chars` characters, or the default where the field is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or not 0 < len(value) <= max_chars:
        raise BadInput(f"{name} is {shown(value)}; give a string of 1 to {max_chars} characters.")
    return value


def needed(body: Body, name: str, *, max_chars: int) -> str:
    """As `text`, but the field must be there."""
    value = text(body, name, max_chars=max_chars)
    if value is None:
        raise BadInput(f"{name} is missing; give a string of 1 to {max_chars} characters.")
    return value


def integer(body: Body, name: str, low: int, high: int, *, default: int | None = None) -> int | None:
    """A whole number in low..high, or the default where the field is absent or null. A bool is not a number; 5.0 is 5, as in JSON Schema."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(f"{name} is {shown(value)}; give a whole number from {low} to {high}.")
    return value


def number(body: Body, name: str, low: float, high: float) -> float:
    """A number in low..high; the field must be there."""
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadInput(f"{name} is {shown(value)}; give a number from {low:g} to {high:g}.")
    return float(value)


def flag(body: Body, name: str, *, default: bool | None = None) -> bool | None:
    """true or false, or the default where the field is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadInput(f"{name} is {shown(value)}; give true or false.")
    return value


def moment(body: Body, name: str) -> datetime | None:
    """A time in ISO 8601 with its offset from UTC, as UTC; None where the field is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            raise ValueError
        return at.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{name} is {shown(value)}; give a time such as 2026-01-31T12:00:00Z.") from None


def member(body: Body, name: str, kind: type[Kind], *, default: Kind | None = None) -> Kind:
    """One of an enum's values, or the default where the field is absent or null; without a default it must be there."""
    if body.get(name) is None and default is not None:
        return default
    return kind(one_of(body, name, list(kind)))


def one_of(body: Body, name: str, values: Sequence[str]) -> str:
    """One of these; the field must be there."""
    value = body.get(name)
    if not isinstance(value, str) or value not in values:
        raise BadInput(f"{name} is {shown(value)}; give one of: {', '.join(values)}.")
    return value


def messages(body: Body, name: str = "messages") -> tuple[Message, ...]:
    """A conversation in the OpenAI shape: objects with a role and a content (string, list of parts, or null beside tool calls)."""
    value = body.get(name)
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_MESSAGES:
        raise BadInput(f"{name} is {shown(value)}; give a list of 1 to {MAX_MESSAGES} messages.")
    for index, message in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(message, Mapping):
            raise BadInput(f"{where} is {shown(message)}; give an object with role and content.")
        if message.get("role") not in ROLES:
            raise BadInput(f"{where}.role is {shown(message.get('role'))}; give one of: {', '.join(ROLES)}.")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if not isinstance(content, str | list):
            raise BadInput(f"{where}.content is {shown(content)}; give a string or a list of parts.")
        for part in content if isinstance(content, list) else ():
            typed = isinstance(part, Mapping) and isinstance(part.get("type"), str)
            if not typed or (part["type"] == "text" and not isinstance(part.get("text"), str)):
                raise BadInput(
                    f"{where}.content has the part {shown(part)}; give objects with a type, a text beside `text`."
                )
    return tuple(dict(message) for message in value)


def attributes(body: Body, name: str = "attributes") -> dict[str, Any]:
    """What the application declares about the user or the request: at most 32 names with plain values."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > 32:
        raise BadInput(f"{name} is {shown(value)}; give an object of at most 32 names with plain values.")
    for key, entry in value.items():
        if not isinstance(entry, str | int | float | bool | None) or len(str(entry)) > 500:
            raise BadInput(f"{name}.{key} is {shown(entry)}; give a string (up to 500 characters), a number or a bool.")
    return dict(value)


def _storable(value: Any, where: str, depth: int) -> None:
    """Refuse what a database or JSON cannot hold: NUL, half a surrogate pair, NaN, infinity, a nest without end."""
    if depth > MAX_DEPTH:
        raise BadInput(f"{where} is nested deeper than {MAX_DEPTH} levels; flatten it.")
    if isinstance(value, str):
        if "\x00" in value:
            raise BadInput(f"{where} holds a NUL character; remove it.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{where} is not valid Unicode (a lone surrogate at {error.start}); encode it as UTF-8."
            ) from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadInput(f"{where} is {value}; give a finite number.")
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _storable(str(key), where, depth + 1)
            _storable(entry, where, depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            _storable(entry, where, depth + 1)


def shown(value: Any) -> str:
    """A value as an error message shows it: short, and never more than the start of somebody's text."""
    if value is None:
        return "missing"
    try:
        said = json.dumps(value, ensure_ascii=True, default=str)
    except (ValueError, RecursionError):
        said = repr(type(value).__name__)
    return said if len(said) <= 60 else said[:57] + "..."
