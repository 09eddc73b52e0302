"""Bars by phase."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from plaudit.cli.progress import PhaseBars


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, legacy_windows=False)


def drawn(console: Console) -> str:
    found = console.file
    assert isinstance(found, io.StringIO)
    return found.getvalue()


def line(step: int, phase: str, **more: Any) -> dict[str, Any]:
    return {"step": step, "of": 4, "phase": phase, "seconds": 90.0, **more}


def test_a_bar_for_each_phase_with_speed_and_time_left() -> None:
    console = terminal()
    with PhaseBars("reward", console) as bars:
        assert "reward start" in said(bars)
        bars.note({"phase": "trunk", "step": 3, "of": 9})
        assert "reward trunk" in said(bars)
        assert "3/9" in said(bars)
        bars.line(line(1, "train", pairs=45))
        bars.line(line(2, "train", pairs=45))
        bars.line(line(2, "validate", n=9))
        text = said(bars)
    for part in ("reward train", "2/4", "0.5 pairs/s", "3:00 left", "reward validate", "0.1 rows/s"):
        assert part in text
    assert "trunk" not in text  # a line has come since
    assert drawn(console) != ""


def said(bars: PhaseBars) -> str:
    """What the bars show now."""
    console = terminal()
    console.print(bars._progress.get_renderable())
    return drawn(console)


def test_no_terminal_no_bars() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with PhaseBars("sft", console) as bars:
        bars.note({"phase": "load"})
        bars.line(line(1, "train", tokens=3))
    assert drawn(console) == ""
