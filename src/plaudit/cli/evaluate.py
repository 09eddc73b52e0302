"""`plaudit evaluate`: a Checkpoint against the base, and what the gate says."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import Checkpoint, CheckpointKind, Evaluation
from plaudit.errors import NotFound


@click.group()
def evaluate() -> None:
    """Compare a Checkpoint with the base and ask the gate."""


@evaluate.command()
@click.argument("checkpoint_id", required=False)
@home_option
@json_option
def run(checkpoint_id: str | None, home: Path | None, as_json: bool) -> None:
    """Ask annotators about CHECKPOINT_ID (default: the newest policy), or read the verdict once they have answered."""
    from plaudit.loop import pipeline

    opened = open_home(home)
    policies = [
        c for c in opened.store.find(Checkpoint, project_id=opened.project_id) if c.kind == CheckpointKind.POLICY
    ]
    chosen = [c for c in policies if checkpoint_id in (None, c.id)]
    if not chosen:
        raise NotFound(f"There is no policy Checkpoint {checkpoint_id or 'yet'}; train one with `plaudit train ppo`.")
    turn = pipeline.turn_of(opened.settings, opened.store, opened.project_id, number=0)
    report = pipeline.evaluate_checkpoint(turn, chosen[-1].id)
    if as_json:
        print_json({"checkpoint_id": chosen[-1].id, "waiting": report.waiting, "outputs": dict(report.outputs)})
    elif report.waiting:
        click.echo(f"Waiting: {report.waiting}. Run this again when they are.")
    else:
        _show(opened.store.get(Evaluation, report.outputs["verdict"]["evaluation_id"]))


@evaluate.command()
@click.argument("evaluation_id", required=False)
@home_option
@json_option
def show(evaluation_id: str | None, home: Path | None, as_json: bool) -> None:
    """The gate's conditions in an Evaluation (default: the newest)."""
    opened = open_home(home)
    wanted = {"id": evaluation_id} if evaluation_id else {}
    found = opened.store.first(Evaluation, project_id=opened.project_id, **wanted)
    if found is None:
        raise NotFound(f"There is no Evaluation {evaluation_id or 'yet'}; make one with `plaudit evaluate run`.")
    if as_json:
        print_json({"id": found.id, "gate": found.gate, "reasons": list(found.reasons), "figures": found.figures})
    else:
        _show(found)


def _show(found: Evaluation) -> None:
    table = Table("", "condition")
    for condition in found.figures["conditions"]:
        table.add_row("pass" if condition["passed"] else "[red]fail[/red]", condition["text"])
    Console().print(f"{found.id}  {found.checkpoint_id}  gate: {found.gate or 'not asked'}")
    Console().print(table)
