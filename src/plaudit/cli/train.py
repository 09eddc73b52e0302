"""`plaudit train`: the learn programs as Runs. This process never imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from plaudit.cli.options import Command, Home, home_option, json_option, open_home, print_json
from plaudit.domain import Checkpoint, CheckpointKind, Run, SnapshotRecord, utc_now
from plaudit.errors import BadInput, NotFound


@click.group()
def train() -> None:
    """Train a reward model or a policy; list Runs and Checkpoints."""


def _training_options(command: Command) -> Command:
    snapshot = click.option("--snapshot", default=None, help="Id of the Snapshot (default: the newest).")
    config = click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="JSON file of config fields.",
    )
    queue = click.option("--queue", is_flag=True, help="Leave it to the worker of `plaudit up`.")
    return snapshot(config(queue(home_option(json_option(command)))))


@train.command()
@_training_options
def reward(snapshot: str | None, file: Path | None, queue: bool, home: Path | None, as_json: bool) -> None:
    """A reward model from the Preferences of a Snapshot."""
    _start(open_home(home), "reward", snapshot, file, queue, as_json)


@train.command()
@click.option("--reward", "reward_id", default=None, help="Id of the reward Checkpoint (default: the newest).")
@_training_options
def ppo(
    reward_id: str | None, snapshot: str | None, file: Path | None, queue: bool, home: Path | None, as_json: bool
) -> None:
    """A policy, by PPO against a reward model."""
    opened = open_home(home)
    rewards = [
        c for c in opened.store.find(Checkpoint, project_id=opened.project_id) if c.kind == CheckpointKind.REWARD
    ]
    chosen = [c for c in rewards if reward_id in (None, c.id)]
    if not chosen:
        raise NotFound(f"There is no reward Checkpoint {reward_id or 'yet'}; train one with `plaudit train reward`.")
    more = {"reward": chosen[-1].folder}
    _start(opened, "ppo", snapshot, file, queue, as_json, more, {"parent_id": chosen[-1].id})


@train.command()
@_training_options
def sft(snapshot: str | None, file: Path | None, queue: bool, home: Path | None, as_json: bool) -> None:
    """A policy that imitates Demonstrations, or the chosen side of Preferences."""
    _start(open_home(home), "sft", snapshot, file, queue, as_json)


@train.command(name="list")
@home_option
def list_runs(home: Path | None) -> None:
    """All Runs and what came of them, oldest first."""
    opened = open_home(home)
    table = Table(Column("run", no_wrap=True), "step", "turn", "state", "attempts", "made", "says")
    for run in opened.store.find(Run, project_id=opened.project_id):
        made = str(run.outputs.get("checkpoint_id", ""))
        table.add_row(run.id, run.step, str(run.turn), run.state, str(run.attempt), made, run.error or "")
    Console().print(table)


def _start(
    opened: Home,
    step: Any,
    snapshot: str | None,
    file: Path | None,
    queue: bool,
    as_json: bool,
    more: dict[str, str] | None = None,
    inputs: dict[str, str] | None = None,
) -> None:
    from plaudit.loop import pipeline
    from plaudit.loop import train as stage

    frozen = opened.store.find(SnapshotRecord, project_id=opened.project_id, **({"id": snapshot} if snapshot else {}))
    if not frozen:
        raise NotFound(f"There is no Snapshot {snapshot or 'yet'}; make one with `plaudit snapshot freeze`.")
    record, folder = frozen[-1], opened.settings.home / "runs"
    config = {
        **_fields(file),
        "snapshot": record.folder,
        "base": str(pipeline.base_folder(opened.settings.home)),
        **(more or {}),
    }
    lineage = {"snapshot_id": record.id, **(inputs or {})}
    if queue:
        run = stage.enqueue(opened.store, opened.project_id, step, config, lineage, folder, utc_now())
        click.echo(f"{run.id} is {run.state}.")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(step, total=None)

        def show(line: dict[str, Any]) -> None:
            progress.update(task, completed=line["step"], total=line["of"], description=f"{step} {line['phase']}")

        run = stage.run_training(opened.store, opened.project_id, step, config, lineage, folder, None, show, utc_now())
    if as_json:
        print_json({"run": run.id, **run.outputs})
    else:
        click.echo(f"{run.outputs['checkpoint_id']}  {run.folder}/checkpoint")
        for name, value in run.outputs["result"].items():
            click.echo(f"  {name}: {value}")


def _fields(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    if not file.is_file():
        raise BadInput(f"There is no file {str(file)!r}; give a JSON file of config fields.")
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise BadInput(f"{file} is not JSON ({error}); correct it.") from error
    if not isinstance(found, dict):
        raise BadInput(f"{file} holds no JSON object; write the fields of the program's config.")
    return found
