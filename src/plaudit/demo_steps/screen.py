"""What a person sees while the demo runs: a bar with the time left for the step that runs, a line with its seconds for each that is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class Bar:
    """The running step's bar. `to` may be called from any thread."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress = progress
        self._task = progress.task_ids[task]

    def to(self, done: int, of: int | None = None, what: str | None = None) -> None:
        """Set the bar; a new `what` starts it again, with a time left of its own."""
        if what is not None:
            self._progress.reset(self._task, total=of, what=what)
        elif of is not None:
            self._progress.update(self._task, total=of)
        self._progress.update(self._task, completed=done)


class Screen:
    """Writes to `console`; on a terminal the bar moves, in a file only the finished lines stand."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def bar(self, number: int, name: str) -> Iterator[Bar]:
        """A bar for step `number`, gone at the end of the block."""
        columns = (
            SpinnerColumn(),
            TextColumn(f"{number:>2}  {name}"),
            TextColumn("[dim]{task.fields[what]}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            progress.add_task("", total=None, what="")
            yield Bar(progress, 0)

    def done(self, number: int, name: str, seconds: float, said: str) -> None:
        self.console.print(
            f"[green]✓[/] {number:>2}  {name:<18} {seconds:6.1f} s   {said}", highlight=False, soft_wrap=True
        )

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)
