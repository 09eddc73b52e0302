"""`plaudit loop`: the turn as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import Run


@click.group()
def loop() -> None:
    """Run the whole loop, when it is due."""


@loop.command()
@click.option(
    "--when-due", is_flag=True, help="Only if enough Preferences are new and no alert blocks; else say why not."
)
@click.option(
    "--forbidden-models",
    multiple=True,
    help="Models, * stands for anything, whose terms forbid training, beside those of the setting; the same until the turn is done.",
)
@click.option("--until", default=None, help="The last step to do, such as snapshot (default: all of the turn).")
@home_option
@json_option
def run(when_due: bool, forbidden_models: tuple[str, ...], until: str | None, home: Path | None, as_json: bool) -> None:
    """The next turn, or what is left of it: Preferences, Snapshot, reward model, policy, questions, verdict."""
    from plaudit.loop import pipeline

    opened = open_home(home)
    if when_due:
        pipeline.require_due(opened.store, opened.project_id, opened.settings.min_new_preferences)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("turn", total=None)

        def show(step: str, line: dict[str, Any]) -> None:
            progress.update(task, completed=line["step"], total=line["of"], description=f"{step} {line['phase']}")

        turn = pipeline.turn_of(
            opened.settings, opened.store, opened.project_id, on_progress=show, forbidden_models=forbidden_models
        )
        report = pipeline.run_turn(turn, until)
    if as_json:
        print_json({"turn": report.number, "waiting": report.waiting, "outputs": dict(report.outputs)})
        return
    for name, made in report.outputs.items():
        click.echo(
            f"  {name}: {', '.join(f'{key} {value}' for key, value in made.items() if isinstance(value, str | int))}"
        )
    if report.waiting:
        click.echo(f"Turn {report.number} waits: {report.waiting}. Run this again when they are.")
    elif until:
        click.echo(f"Turn {report.number} is done up to {until}.")
    else:
        click.echo(f"Turn {report.number} is complete: gate {report.outputs['verdict']['gate']}.")


@loop.command()
@home_option
@json_option
def status(home: Path | None, as_json: bool) -> None:
    """Whether a turn is due and why, and the steps of the last one."""
    from plaudit.loop import pipeline

    opened = open_home(home)
    found = pipeline.due(opened.store, opened.project_id, opened.settings.min_new_preferences)
    runs = [run for run in opened.store.find(Run, project_id=opened.project_id) if run.turn]
    if as_json:
        steps = [{"turn": run.turn, "step": run.step, "state": run.state} for run in runs]
        print_json({"due": found.yes, "turn": found.turn, "reasons": list(found.reasons), "steps": steps})
        return
    click.echo(f"Turn {found.turn} is {'due' if found.yes else 'not due'}: {'; '.join(found.reasons)}.")
    for run in runs:
        if run.turn == runs[-1].turn:
            click.echo(f"  {run.step}: {run.state}{f' ({run.error})' if run.error else ''}")
