"""result.json as tables."""

from __future__ import annotations

import io

from rich.console import Console

from plaudit.cli.figures import headlines, print_result

RESULT = {
    "program": "reward",
    "n": 3,
    "curve": [1, 2],
    "valid": {"accuracy": {"mean": 0.641, "low": 0.6, "high": 0.68, "n": 30}, "ece": 0.0123456, "bins": [1]},
    "traps": {"by": {"empty": {"median": 0.5}}, "verdict": "ok"},
    "none": None,
    "slices": {
        "category": {"chat": {"accuracy": {"mean": 0.75, "low": 0.5, "high": 1.0}, "n": 8, "difference": {}}},
        "length": {"short": {"accuracy": {"mean": 0.25, "low": 0.0, "high": 0.5}, "n": 4, "difference": {}}},
    },
}


def test_headlines_leave_out_curves_and_what_is_deep() -> None:
    assert headlines(RESULT) == [
        ("program", "reward"),
        ("n", "3"),
        ("valid.accuracy", "0.641 [0.6, 0.68]"),
        ("valid.ece", "0.01235"),
        ("traps.verdict", "ok"),
        ("none", "None"),
    ]


def test_slices_have_a_table() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_result(console, RESULT)
    assert isinstance(console.file, io.StringIO)
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in console.file.getvalue().splitlines()]
    assert ["category", "chat", "0.75 [0.5, 1]", "8"] in rows
    assert ["length", "short", "0.25 [0, 0.5]", "4"] in rows
