"""Reading a run folder: what a learn program was asked, where it is, how fast it goes, what it made. Nothing here writes, or needs torch.

`metrics.jsonl` grows by whole lines and is written anew when a program resumes; `progress.json` says what the program is at between two
lines; the lock is held while a program that Plaudit started works in the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from plaudit.artifacts import MANIFEST
from plaudit.domain import Json
from plaudit.errors import BadInput, NotFound
from plaudit.learn.configs import PROGRAMS, describe, from_dict, to_dict

CONFIG, RESOLVED, METRICS, RESULT = "config.json", "config.resolved.json", "metrics.jsonl", "result.json"
NOTE, LOCK, LOG = "progress.json", "lock", "stderr.log"
LINE = ("step", "of", "phase", "seconds")  # of every line of metrics.jsonl
UNITS = ("tokens", "pairs", "n")  # what a line counts; the first that it has is its speed
WITHOUT_CHECKPOINT = ("score", "best_of")  # programs that end with their result.json
WINDOW = 20  # lines that the speed is taken over
HEADLINES = ("reward", "score", "kl", "loss", "accuracy", "margin")  # drawn large, where a program has them

State = Literal["done", "running", "failed", "stopped"]


@dataclass(frozen=True)
class RunFiles:
    """A run folder as it is now. `program` is None where nothing tells; `stopped` means that it may be continued."""

    folder: Path
    program: str | None
    config: Json
    state: State
    error: str  # what a failed program said last
    lines: tuple[Json, ...]
    note: Json | None
    result: Json | None
    cut: bool = False  # `lines` are the last of more

    def resolved(self, program: str) -> Json:
        """Every field of the config with its value. Raises ConfigError where it is not that program's."""
        return to_dict(from_dict(PROGRAMS[program], self.config))

    def chosen(self) -> list[tuple[str, Any]]:
        """(dotted name, value) of the config's fields that are not at their default. Raises ConfigError as `resolved` does."""
        if self.program is None:
            return sorted(self.config.items())
        config = self.resolved(self.program)
        rows = []
        for name, _, default in describe(PROGRAMS[self.program]):
            value: Any = config
            for part in name.split("."):
                value = value.get(part, default) if isinstance(value, dict) else default
            same = list(value) == list(default) if isinstance(default, tuple) else value == default
            if not same and not isinstance(default, dict):
                rows.append((name, value))
        return rows


@dataclass(frozen=True)
class Pace:
    """How fast a phase goes. `unit` is tokens, pairs or rows, empty where its lines count nothing."""

    step: int
    of: int
    speed: float  # units per second, over the last WINDOW lines
    unit: str
    left_s: float | None  # until the phase's last step; None before there is anything to go by


def read(folder: Path, most_bytes: int | None = None) -> RunFiles:
    """What stands in a run folder; of metrics.jsonl at most the last `most_bytes`, where that is given.

    Raises NotFound where it is none, BadInput where its config is not JSON.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise NotFound(f"{folder} is no run folder: it has no {CONFIG}.")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}).") from error
    result = json.loads((folder / RESULT).read_text()) if (folder / RESULT).is_file() else None
    program = _program(folder, config, result)
    state, says = _state(folder, result, program)
    lines, cut = (Tail(folder / METRICS).new(), False) if most_bytes is None else recent(folder / METRICS, most_bytes)
    note = read_note(folder) if state == "running" else None
    return RunFiles(folder, program, config, state, says, tuple(lines), note, result, cut)


def find(parent: Path) -> list[Path]:
    """Run folders directly below `parent`, oldest first. Raises NotFound where there is no such folder."""
    if not parent.is_dir():
        raise NotFound(f"There is no folder {str(parent)!r}.")
    return sorted((path.parent for path in parent.glob(f"*/{CONFIG}")), key=lambda f: (f / CONFIG).stat().st_mtime)


class Tail:
    """The complete lines of a growing file, each once; a file that was written anew is read from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inode, self.position = 0, 0

    def new(self) -> list[Json]:
        """Lines since the last call; [] where there is no file yet."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self.inode:
                self.inode, self.position = inode, 0
            file.seek(self.position)
            block = file.read()
        end = block.rfind(b"\n") + 1
        self.position += end
        return [json.loads(line) for line in block[:end].splitlines() if line.strip()]


def recent(path: Path, most_bytes: int) -> tuple[list[Json], bool]:
    """The complete lines among the last bytes of a growing file, and whether there are more before them; none where there is no file."""
    if not path.is_file():
        return [], False
    with path.open("rb") as file:
        start = max(file.seek(0, os.SEEK_END) - most_bytes, 0)
        file.seek(start)
        block = file.read(most_bytes)
    first = block.find(b"\n") + 1 if start else 0
    return [json.loads(line) for line in block[first : block.rfind(b"\n") + 1].splitlines() if line.strip()], start > 0


def read_note(folder: Path) -> Json | None:
    """What a running program is at: {"phase", "step", "of"}; None where it does not say."""
    try:
        note = json.loads((folder / NOTE).read_text())
    except (
        OSError,
        ValueError,
    ):  # a note is a courtesy: one that is not there, or half gone with its run, says nothing
        return None
    return note if isinstance(note, dict) and "phase" in note else None


def last_line(path: Path) -> str:
    """The last line of a file that says anything; empty where there is none."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "")


def last_error(folder: Path) -> tuple[str, str] | None:
    """(code, message) that a program ended with, where it left them."""
    try:
        raw = json.loads(last_line(folder / LOG))
        return str(raw["code"]), str(raw["message"])
    except (ValueError, KeyError, TypeError):
        return None


def by_phase(lines: Iterable[Json]) -> dict[str, list[Json]]:
    """Lines by their phase, both in the order they came. A step that comes again, after a resume, replaces what it was before."""
    found: dict[str, list[Json]] = {}
    for line in lines:
        add(found, line)
    return found


def add(found: dict[str, list[Json]], line: Json) -> None:
    """One more line for `by_phase`."""
    mine = found.setdefault(str(line["phase"]), [])
    while mine and mine[-1]["step"] >= line["step"]:
        mine.pop()
    mine.append(line)


def pace(mine: Sequence[Json]) -> Pace:
    """Speed and time left of the lines of one phase. Seconds are the program's own, so lines that come at once after a resume count right."""
    if not mine:
        return Pace(0, 0, 0.0, "", None)
    step, of = int(mine[-1]["step"]), int(mine[-1]["of"])
    recent = mine[-WINDOW:]
    seconds = sum(float(line["seconds"]) for line in recent)
    unit = next((name for name in UNITS if name in mine[-1]), "")
    count = sum(float(line.get(unit, 0)) for line in recent)
    if "tokens_per_second" in mine[-1]:
        unit, count = "tokens", sum(line["tokens_per_second"] * line["seconds"] for line in recent)
    steps = step - (int(mine[-WINDOW - 1]["step"]) if len(mine) > WINDOW else 0)
    left = seconds / steps * (of - step) if steps > 0 else None
    return Pace(step, of, count / seconds if seconds > 0 else 0.0, "rows" if unit == "n" else unit, left)


def curves(mine: Sequence[Json]) -> dict[str, list[tuple[int, float]]]:
    """name -> [(step, value)] of every figure in the lines of one phase that is a number."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in mine:
        for name, value in line.items():
            if name not in LINE and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, []).append((int(line["step"]), float(value)))
    return found


# --- inside ------------------------------------------------------------------------------------------------------------


def _program(folder: Path, config: Json, result: Json | None) -> str | None:
    """Its result says it; before there is one, the names of all fields do, since no two programs have the same."""
    if result is not None and result.get("program") in PROGRAMS:
        return str(result["program"])
    resolved = folder / RESOLVED
    names = set(json.loads(resolved.read_text()) if resolved.is_file() else config)
    exact = [name for name, kind in PROGRAMS.items() if {entry.name for entry in fields(kind)} == names]
    return exact[0] if len(exact) == 1 else None


def _state(folder: Path, result: Json | None, program: str | None) -> tuple[State, str]:
    if (folder / "checkpoint" / MANIFEST).is_file() or (result is not None and program in WITHOUT_CHECKPOINT):
        return "done", ""
    if _locked(folder):
        return "running", ""
    error = last_error(folder)
    if error is not None:
        return "failed", error[1]
    return "stopped", last_line(folder / LOG)


def _locked(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
