"""The config of a run as a person writes it: a JSON or TOML file, and `key.sub=value` beside it, typed by the program's dataclass."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from plaudit.domain import Json
from plaudit.errors import BadInput
from plaudit.learn.configs import PROGRAMS


def read_file(path: Path) -> Json:
    """The fields in a .toml file, or else a JSON one. Raises BadInput where it is missing, malformed or no object."""
    if not path.is_file():
        raise BadInput(f"There is no file {str(path)!r}; give a JSON or TOML file of config fields.")
    kind = "TOML" if path.suffix == ".toml" else "JSON"
    try:
        found = tomllib.loads(path.read_text()) if kind == "TOML" else json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path} is not {kind} ({error}); correct it.") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds no JSON object; write the fields of the program's config.")
    return found


def assign(program: str, config: Json, assignments: Sequence[str]) -> Json:
    """`config` with every `key.sub=value` set. Names are not checked here: building the config does, and names the nearest."""
    changed = copy.deepcopy(config)
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise BadInput(
                f"--set {text!r} sets nothing; write it as name=value, such as optimizer.learning_rate=1e-4."
            )
        *path, last = name.strip().split(".")
        hint: Any = PROGRAMS[program]
        place = changed
        for part in path:
            hint = _hint(hint, part)
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[last] = _value(_hint(hint, last), value)
    return changed


# --- inside ------------------------------------------------------------------------------------------------------------


def _hint(kind: Any, name: str) -> Any:
    """The type of a field of a dataclass, or of the one in an optional; None where there is no such field."""
    inside = next((part for part in (kind, *get_args(kind)) if isinstance(part, type) and is_dataclass(part)), None)
    return None if inside is None else get_type_hints(inside).get(name)


def _value(hint: Any, text: str) -> Any:
    """A JSON value where the field takes one; a text field keeps the text as it is, so `criterion=1` stays "1"."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, type(int | str)) else (hint,)
    takes_text = any(part is str or get_origin(part) is Literal for part in alternatives)
    try:
        found = json.loads(text)
    except ValueError:
        if any(get_origin(part) is tuple for part in alternatives) and not takes_text:
            return [part.strip() for part in text.split(",")]
        return text if takes_text else _decimal(text)
    structured = isinstance(found, list | dict) or (found is None and type(None) in alternatives)
    return text if takes_text and not structured else found


def _decimal(text: str) -> Any:
    """`.5` is a number to people, though not to JSON."""
    try:
        return float(text)
    except ValueError:
        return text
