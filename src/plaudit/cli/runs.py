"""`plaudit runs`: what learn programs do and did, as numbers and curves in the terminal. Reads run folders; starts nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.cli.plot import curve, number, sparkline
from plaudit.domain import Json, Run
from plaudit.errors import NotFound
from plaudit.loop import run_files
from plaudit.loop.run_files import HEADLINES, RunFiles

POLL_S = 0.5
N_CURVES = 4


@click.group()
def runs() -> None:
    """What training does and did: list, figures, curves."""


@runs.command(name="list")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@home_option
def list_runs(folder: Path | None, home: Path | None) -> None:
    """All Runs and what came of them, or the run folders in FOLDER, oldest first."""
    if folder is not None:
        table = Table(Column("run", no_wrap=True), "program", "state", "at", "says")
        for path in run_files.find(folder):
            found = run_files.read(path)
            last = found.lines[-1] if found.lines else {}
            at = f"{last['phase']} {last['step']}/{last['of']}" if last else ""
            table.add_row(path.name, found.program or "?", found.state, at, found.error)
    else:
        opened = open_home(home)
        table = Table(Column("run", no_wrap=True), "step", "turn", "state", "attempts", "made", "says")
        for run in opened.store.find(Run, project_id=opened.project_id):
            made = str(run.outputs.get("checkpoint_id", ""))
            table.add_row(run.id, run.step, str(run.turn), run.state, str(run.attempt), made, run.error or "")
    Console().print(table)


_metric = click.option("--metric", "metrics", multiple=True, help="Draw these only; may be repeated.")


@runs.command()
@click.argument("run")
@_metric
@home_option
@json_option
def show(run: str, metrics: tuple[str, ...], home: Path | None, as_json: bool) -> None:
    """Config, figures, curves and result of RUN: a run folder, or the id of a Run of the home."""
    from plaudit.cli.figures import print_result

    found = run_files.read(_folder(run, home))
    _check(found, metrics)
    phases = run_files.by_phase(found.lines)
    if as_json:
        last = {name: lines[-1] for name, lines in phases.items()}
        print_json(
            {
                "folder": str(found.folder),
                "program": found.program,
                "state": found.state,
                "error": found.error,
                "config": found.config,
                "last": last,
                "result": found.result,
            }
        )
        return
    console = Console()
    console.print(_head(found), soft_wrap=True)
    if metrics:
        console.print(_pictures(phases, metrics))
        return
    for name, value in found.chosen():
        console.print(f"  {name} = {value}", markup=False, highlight=False)
    for phase, lines in phases.items():
        console.print(_figures(phase, lines))
    if found.result is not None:
        print_result(console, found.result)


@runs.command()
@click.argument("run")
@_metric
@home_option
def watch(run: str, metrics: tuple[str, ...], home: Path | None) -> None:
    """Draw RUN (a run folder, or an id) while it grows, until it ends; Ctrl-C leaves it alone."""
    folder, console = _folder(run, home), Console()
    found = run_files.read(folder)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for found in _changes(folder):
                live.update(_screen(found, metrics), refresh=True)
    else:
        told = 0
        for found in _changes(folder):
            for line in found.lines[told:]:
                console.print(_one_line(line), markup=False, highlight=False, soft_wrap=True)
            told = len(found.lines)
    _check(found, metrics)
    console.print(_head(found), soft_wrap=True)


# --- inside ------------------------------------------------------------------------------------------------------------


def _folder(run: str, home: Path | None) -> Path:
    """A path as it is, else the folder of a Run of the home. Raises NotFound."""
    path = Path(run)
    if path.exists() or not run.startswith("run_"):
        return path
    folder = open_home(home).store.get(Run, run).folder
    if folder is None:
        raise NotFound(f"{run} has no run folder: its step runs no learn program.")
    return Path(folder)


def _changes(folder: Path) -> Any:
    """The run at every look, until it is over: done, failed, or stopped after it was seen at work."""
    seen = False
    while True:
        found = run_files.read(folder)
        seen = seen or found.state == "running"
        yield found
        if found.state in ("done", "failed") or (seen and found.state == "stopped"):
            return
        time.sleep(POLL_S)


def _check(found: RunFiles, metrics: Sequence[str]) -> None:
    have = {name for lines in run_files.by_phase(found.lines).values() for name in run_files.curves(lines)}
    for name in metrics:
        if name not in have:
            raise NotFound(f"{found.folder} has no metric {name!r}; it has {', '.join(sorted(have)) or 'none yet'}.")


def _head(found: RunFiles) -> Text:
    says = {
        "done": "done",
        "running": "running",
        "failed": f"failed: {found.error}",
        "stopped": f"stopped{f' ({found.error})' if found.error else ''}; the command that started it continues it",
    }
    colour = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow"}[found.state]
    return Text.assemble((found.program or "?", "bold"), f"  {found.folder}  ", (says[found.state], colour))


def _figures(phase: str, lines: Sequence[Json]) -> Table:
    """first, last, least, greatest and the course of every figure of a phase."""
    pace = run_files.pace(lines)
    title = f"{phase}  {pace.step}/{pace.of}" + (f"  {number(pace.speed)} {pace.unit}/s" if pace.unit else "")
    columns = [Column(name, no_wrap=True) for name in ("figure", "first", "last", "min", "max", "course")]
    table = Table(*columns, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, points in run_files.curves(lines).items():
        values = [value for _, value in points]
        table.add_row(name, *map(number, (values[0], values[-1], min(values), max(values))), sparkline(values, 16))
    return table


def _pictures(phases: dict[str, list[Json]], metrics: Sequence[str]) -> Columns:
    """Curves of these metrics in every phase that has them; of the headlines where none is named."""
    named = {phase: run_files.curves(lines) for phase, lines in phases.items()}
    wanted = [(phase, name) for name in metrics or HEADLINES for phase in named if name in named[phase]]
    panels = [
        Panel(
            Text("\n".join(curve(named[phase][name])), no_wrap=True),
            title=f"{phase} {name} {number(named[phase][name][-1][1])}",
            expand=False,
        )
        for phase, name in (wanted if metrics else wanted[:N_CURVES])
    ]
    return Columns(panels)


def _screen(found: RunFiles, metrics: Sequence[str]) -> RenderableType:
    from plaudit.cli.progress import said

    phases = run_files.by_phase(found.lines)
    bars = Table.grid(padding=(0, 2))
    for phase, lines in phases.items():
        pace = run_files.pace(lines)
        bar = ProgressBar(total=max(pace.of, 1), completed=pace.step, width=30)
        bars.add_row(phase, bar, f"{pace.step}/{pace.of}", *said(pace))
    if found.note is not None:
        share = f"{found.note['step']}/{found.note['of']}" if found.note.get("of") else ""
        bars.add_row(str(found.note["phase"]), "", share, "", "")
    return Group(_head(found), bars, _pictures(phases, metrics))


def _one_line(line: Json) -> str:
    figures = {name: values[-1][1] for name, values in run_files.curves([line]).items()}
    said = "  ".join(f"{name} {number(value)}" for name, value in figures.items())
    return f"{line['phase']} {line['step']}/{line['of']}  {said}  {number(line['seconds'])} s"
