"""A result.json for a reader: headline figures, and accuracy by slice. Curves, bins and what lies deeper stay in the file."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from plaudit.cli.plot import number
from plaudit.domain import Json

DEPTH = 2  # parts of a name that is a headline: `valid.accuracy`, not `traps.by.empty.median`


def print_result(console: Console, result: Json) -> None:
    """One table of figures, and one of slices where the result has them."""
    table = Table("figure", "value")
    for name, value in headlines(result):
        table.add_row(name, value)
    console.print(table)
    if result.get("slices"):
        table = Table("slice", "", "accuracy", "n")
        for slicing, parts in result["slices"].items():
            for name, part in parts.items():
                table.add_row(slicing, name, interval(part["accuracy"]), str(part["n"]))
        console.print(table)


def headlines(value: Json, prefix: str = "", depth: int = 1) -> list[tuple[str, str]]:
    """(dotted name, value) of every figure that is not too deep; an interval is one figure."""
    rows: list[tuple[str, str]] = []
    for name, part in value.items():
        if isinstance(part, dict) and {"mean", "low", "high"} <= set(part):
            rows.append((prefix + name, interval(part)))
        elif isinstance(part, dict):
            rows += headlines(part, f"{prefix}{name}.", depth + 1) if depth < DEPTH else []
        elif not isinstance(part, list):
            rows.append((prefix + name, _text(part)))
    return rows


def interval(part: Json) -> str:
    """0.64 [0.6, 0.68]."""
    return f"{_text(part['mean'])} [{_text(part['low'])}, {_text(part['high'])}]"


def _text(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)
