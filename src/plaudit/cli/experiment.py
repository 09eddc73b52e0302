"""`plaudit experiment`: users meet the canary, and what they think of it."""

from __future__ import annotations

import getpass
from pathlib import Path

import click

from plaudit.cli.options import Home, home_option, json_option, open_home, print_json
from plaudit.domain import Experiment, Release, ReleaseState, utc_now
from plaudit.errors import BadInput, NotFound


@click.group()
def experiment() -> None:
    """Assign users to two Releases and look at the outcome."""


@experiment.command()
@click.option("--stages", default="0.1,0.5", show_default=True, help="Shares of all users in EACH arm, growing.")
@click.option("--rule", "rules", multiple=True, help="name=value, for example goal_margin=0.1; may be repeated.")
@home_option
def start(stages: str, rules: tuple[str, ...], home: Path | None) -> None:
    """Enrol users for the canary against the live Release."""
    from plaudit.loop import experiment as stage

    opened = open_home(home)
    canary = opened.store.first(Release, project_id=opened.project_id, state=ReleaseState.CANARY)
    live = opened.store.first(Release, project_id=opened.project_id, state=ReleaseState.LIVE)
    if canary is None or live is None:
        raise NotFound("There is no canary to try; make one with `plaudit release canary`.")
    shares = tuple(_number("--stages", part) for part in stages.split(","))
    given = stage.rules_from(
        {name: _number(f"rule {name}", value) for name, _, value in (r.partition("=") for r in rules)}
    )
    made = stage.start(
        opened.store, opened.project_id, canary.id, live.id, utc_now(), shares, given, by=getpass.getuser()
    )
    click.echo(f"{made.id} runs: {canary.id} against {live.id}, {shares[0]:.1%} of all users in each arm.")


@experiment.command()
@click.argument("experiment_id", required=False)
@home_option
@json_option
def look(experiment_id: str | None, home: Path | None, as_json: bool) -> None:
    """The verdict now (default: of the newest experiment). Looking as often as you like is fine."""
    from plaudit.loop import experiment as stage

    opened = open_home(home)
    one = _experiment(opened, experiment_id)
    found = stage.look(opened.store, one.id, utc_now())
    if as_json:
        print_json({"id": one.id, "state": one.state, **found.figures})
        return
    users = found.figures.get("n_users", {})
    click.echo(f"{one.id} ({one.state}, stage {one.stage + 1} of {len(one.stages)}): {found.verdict}")
    for reason in found.reasons:
        click.echo(f"  {reason}")
    click.echo(f"  users: {users.get('candidate', 0)} candidate, {users.get('control', 0)} control")
    for guardrail in found.figures.get("guardrails", []):
        bounds = "" if guardrail["low"] is None else f" [{guardrail['low']:+.3f}, {guardrail['high']:+.3f}]"
        value = "not yet" if guardrail["value"] is None else f"{guardrail['value']:.3g}{bounds}"
        click.echo(f"  {guardrail['name']}: {value} against {guardrail['threshold']:.3g} (n = {guardrail['n']})")


@experiment.command()
@home_option
def advance(home: Path | None) -> None:
    """Enrol the next stage's users, where the look allows it."""
    from plaudit.loop import experiment as stage

    opened = open_home(home)
    one = _experiment(opened, None)
    stage.look(opened.store, one.id, utc_now())
    moved = stage.advance(opened.store, opened.project_id, one.id, getpass.getuser(), utc_now())
    click.echo(f"{moved.id} is at stage {moved.stage + 1}: {moved.stages[moved.stage]:.1%} of all users in each arm.")


def _experiment(opened: Home, experiment_id: str | None) -> Experiment:
    wanted = {"id": experiment_id} if experiment_id else {}
    found = opened.store.first(Experiment, project_id=opened.project_id, **wanted)
    if found is None:
        raise NotFound(f"There is no experiment {experiment_id or 'yet'}; begin one with `plaudit experiment start`.")
    return found


def _number(what: str, text: str) -> float:
    try:
        return int(text) if text.strip().isdigit() else float(text)
    except ValueError:
        raise BadInput(f"{what} is {text!r}; give a number.") from None
