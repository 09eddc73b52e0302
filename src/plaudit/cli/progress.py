"""What a learn program does, as it does it: a bar for each phase with speed and time left, and what it is at between two lines."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from plaudit.cli.plot import duration, number
from plaudit.domain import Json
from plaudit.loop import run_files


class PhaseBars:
    """`with PhaseBars("reward") as bars:` then hand it lines and notes. On stderr; silent where that is no terminal."""

    def __init__(self, program: str, console: Console | None = None) -> None:
        self.program = program
        self.lines: dict[str, list[Json]] = {}
        self._tasks: dict[str, TaskID] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[left]}"),
        )
        console = console or Console(stderr=True)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> PhaseBars:
        self._progress.start()
        self._now = self._progress.add_task(f"{self.program} start", total=None, done="", speed="", left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, note: Json) -> None:
        """What the program is at; how far it is, where it knows."""
        of, step = note.get("of", 0), note.get("step", 0)
        done = f"{step}/{of}" if of else ""
        self._progress.update(
            self._now,
            description=f"{self.program} {note['phase']}",
            completed=step,
            total=of or None,
            done=done,
            visible=True,
        )

    def line(self, line: Json) -> None:
        """A line of metrics.jsonl."""
        run_files.add(self.lines, line)
        phase = str(line["phase"])
        if phase not in self._tasks:
            name = self.program if phase == self.program else f"{self.program} {phase}"
            self._tasks[phase] = self._progress.add_task(name, total=None, done="", speed="", left="")
        self._progress.update(self._now, visible=False)  # until it says that it is at something else
        pace = run_files.pace(self.lines[phase])
        speed, left = said(pace)
        done = f"{pace.step}/{pace.of}"
        self._progress.update(self._tasks[phase], completed=pace.step, total=pace.of, done=done, speed=speed, left=left)


def said(pace: run_files.Pace) -> tuple[str, str]:
    """Speed and time left in words; empty where they are unknown."""
    speed = f"{number(pace.speed)} {pace.unit}/s" if pace.unit and pace.speed else ""
    return speed, f"{duration(pace.left_s)} left" if pace.left_s else ""
