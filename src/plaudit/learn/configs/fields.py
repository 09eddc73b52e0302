"""What a field of a config is, and how a config is read, written and described. Nothing here knows a program."""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from plaudit.errors import ConfigError

T = TypeVar("T")


def option(default: Any, doc: str) -> Any:
    """A field with its documentation; `MISSING` makes it required."""
    if default is MISSING:
        return field(metadata={"doc": doc})
    if isinstance(default, type) or callable(default):
        return field(default_factory=default, metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


def from_dict(kind: type[T], raw: Mapping[str, Any]) -> T:
    """Build a config from parsed JSON. Raises ConfigError: unknown or missing name, wrong type, value out of range."""
    built: T = _build(kind, raw, kind.__name__)
    return built


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values; `from_dict(type(config), to_dict(config)) == config`."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def describe(kind: type[Any], prefix: str = "") -> list[tuple[str, str, Any]]:
    """(dotted name, documentation, default) of every field, nested ones included; a required field has the default `...`."""
    rows: list[tuple[str, str, Any]] = []
    hints = get_type_hints(kind)
    for entry in fields(kind):
        nested = [part for part in (hints[entry.name], *get_args(hints[entry.name])) if is_dataclass(part)]
        name = f"{prefix}{entry.name}"
        factory: Callable[[], Any] | Any = entry.default_factory
        default = _plain(asdict(factory())) if factory is not MISSING else entry.default
        rows.append((name, entry.metadata["doc"], ... if default is MISSING else default))
        if nested and isinstance(nested[0], type):
            rows += describe(nested[0], f"{name}.")
    return rows


def _build(kind: type[Any], raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is {raw!r}; it must be an object with the fields of {kind.__name__}.")
    names = [entry.name for entry in fields(kind)]
    for name in raw:
        if name not in names:
            raise ConfigError(f"{where} has no field {name!r}, {nearest(str(name), names)}.")
    for entry in fields(kind):
        if entry.default is MISSING and entry.default_factory is MISSING and entry.name not in raw:
            raise ConfigError(f"{where} lacks the required field {entry.name!r}: {entry.metadata['doc']}.")
    hints = get_type_hints(kind)
    return kind(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in raw.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(_choose([part for part in arguments if part is not type(None)], value, where), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}, {nearest(str(value), [str(a) for a in arguments])}.")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}; it must be a list.")
        return tuple(_convert(arguments[0], part, f"{where}[{index}]") for index, part in enumerate(value))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be a value of type {hint.__name__}.")


def _choose(parts: list[Any], value: Any, where: str) -> Any:
    """Which member of a union a value is meant for: by its `kind` among dataclasses, else a text or the other one."""
    if len(parts) == 1:
        return parts[0]
    if not all(is_dataclass(part) for part in parts):
        return next(part for part in parts if (part is str) == isinstance(value, str))
    kinds = {part.kind: part for part in parts}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; it must be an object with a kind, one of {', '.join(kinds)}.")
    if "kind" not in value:
        raise ConfigError(f"{where} lacks the required field 'kind': one of {', '.join(kinds)}.")
    kind = str(value["kind"])
    if kind not in kinds:
        raise ConfigError(f"{where}.kind is {value['kind']!r}, {nearest(kind, kinds)}.")
    return kinds[kind]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def nearest(name: str, valid: Any) -> str:
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    choices = ", ".join(valid)
    return f"did you mean {close[0]!r}? (valid: {choices})" if close else f"valid are: {choices}"


def check(config: Any, name: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}; it must be {wanted}.")


def at_least(config: Any, low: float, *names: str) -> None:
    for name in names:
        check(config, name, getattr(config, name) >= low, f"{low} or above")
