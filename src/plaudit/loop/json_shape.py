"""Whether a value has the shape that a JSON Schema asks for: the part of draft 2020-12 that describes an answer. An unknown keyword is refused,
because a schema that is not checked whole would pass what it forbids."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from plaudit.errors import BadInput
from plaudit.loop import filters

TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
KEYWORDS = (
    "type enum const properties required additionalProperties items minItems maxItems minLength maxLength pattern minimum maximum anyOf "
    "title description"
).split()


def check(schema: Any) -> None:
    """Raises BadInput for a keyword, a type or a pattern that is not read here."""
    if not isinstance(schema, dict):
        raise BadInput(f"A JSON Schema is {schema!r}; give an object.")
    for name in schema:
        if name not in KEYWORDS:
            raise BadInput(f"A JSON Schema has the keyword {name!r}, which is not read; use {', '.join(KEYWORDS)}.")
    for name in _types(schema):
        if name not in TYPES:
            raise BadInput(f"A JSON Schema asks for the type {name!r}; use {', '.join(TYPES)}.")
    if "pattern" in schema:
        filters.check_pattern(schema["pattern"], "A JSON Schema")
    extra = schema.get("additionalProperties", True)
    below = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    below += [part for part in (schema.get("items"), None if isinstance(extra, bool) else extra) if part is not None]
    for part in below:
        check(part)


def parse(text: str) -> Any:
    """The JSON value of a text, which may stand in a Markdown fence. Raises ValueError; NaN and Infinity are not JSON."""
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        bare = bare[bare.index("\n") : -3]

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    return json.loads(bare, parse_constant=refuse)


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether the value has the shape; `check` has read the schema."""
    wanted = _types(schema)
    if wanted and not any(_is(value, name) for name in wanted):
        return False
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    if isinstance(value, str):
        return _within(len(value), schema, "Length") and (
            "pattern" not in schema or bool(filters.find(schema["pattern"], value))
        )
    if isinstance(value, list):
        return _within(len(value), schema, "Items") and all(fits(one, schema.get("items", {})) for one in value)
    if isinstance(value, dict):
        known, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        rest = [part for name, part in value.items() if name not in known]
        return (
            all(name in value for name in schema.get("required", ()))
            and all(fits(value[name], part) for name, part in known.items() if name in value)
            and (extra is not False or not rest)
            and (isinstance(extra, bool) or all(fits(one, extra) for one in rest))
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf))
    return True


def _types(schema: Mapping[str, Any]) -> list[str]:
    found = schema.get("type", [])
    return [found] if isinstance(found, str) else list(found)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[name])


def _same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)  # in Python 1 == True


def _within(n: int, schema: Mapping[str, Any], what: str) -> bool:
    low, high = schema.get(f"min{what}", 0), schema.get(f"max{what}", math.inf)
    return bool(low <= n <= high)
