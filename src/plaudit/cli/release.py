"""`plaudit release`: approve, promote, roll back. Commands act as the person who is signed in on this machine, unless `--by` says who."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import Approval, AuditEntry, Decision, Release, utc_now

by_option = click.option("--by", default=None, help="Who acts (default: your account here).")
stage_option = click.option("--stage", type=click.Choice(["canary", "live"]), required=True, help="What is decided on.")
person_option = click.option("--person", required=True, help="Who decides; a Person with a key.")
reason_option = click.option("--reason", required=True, help="Why, in a sentence; it is kept.")


@click.group()
def release() -> None:
    """Approve, promote and roll back Releases."""


@release.command(name="list")
@home_option
@json_option
def list_releases(home: Path | None, as_json: bool) -> None:
    """All Releases with their approvals, oldest first."""
    opened = open_home(home)
    said: dict[str, list[str]] = {}
    for approval in opened.store.find(Approval, project_id=opened.project_id):
        said.setdefault(approval.release_id, []).append(f"{approval.person}: {approval.decision} {approval.stage}")
    found = opened.store.find(Release, project_id=opened.project_id)
    if as_json:
        rows = [{"id": r.id, "state": r.state, "model": r.model, "checkpoint_id": r.checkpoint_id} for r in found]
        print_json({"releases": [{**row, "approvals": said.get(row["id"] or "", [])} for row in rows]})
        return
    table = Table(Column("release", no_wrap=True), "state", "since", "model", "checkpoint", "approvals")
    for one in found:
        since = f"{one.state_at:%Y-%m-%d %H:%M}"
        table.add_row(one.id, one.state, since, one.model, one.checkpoint_id or "base", ", ".join(said.get(one.id, [])))
    Console().print(table)


@release.command()
@click.argument("release_id")
@stage_option
@person_option
@reason_option
@home_option
def approve(release_id: str, stage: str, person: str, reason: str, home: Path | None) -> None:
    """Say yes to RELEASE_ID for a stage. The two stages need two people."""
    from plaudit.loop import govern

    opened = open_home(home)
    govern.approve(opened.store, opened.project_id, release_id, stage, person, Decision.APPROVE, reason, utc_now())
    click.echo(f"{person} approved {release_id} for {stage}.")


@release.command()
@click.argument("release_id")
@stage_option
@person_option
@reason_option
@home_option
def refuse(release_id: str, stage: str, person: str, reason: str, home: Path | None) -> None:
    """Say no to RELEASE_ID for a stage; the newest decision counts."""
    from plaudit.loop import govern

    opened = open_home(home)
    govern.approve(opened.store, opened.project_id, release_id, stage, person, Decision.REFUSE, reason, utc_now())
    click.echo(f"{person} refused {release_id} for {stage}.")


@release.command()
@click.argument("release_id")
@by_option
@home_option
def canary(release_id: str, by: str | None, home: Path | None) -> None:
    """Make RELEASE_ID the canary; `plaudit experiment start` then lets users meet it."""
    from plaudit.loop import release as stage

    _act(home, lambda store, project: stage.to_canary(store, project, release_id, by or getpass.getuser(), utc_now()))


@release.command()
@click.argument("release_id")
@by_option
@home_option
def promote(release_id: str, by: str | None, home: Path | None) -> None:
    """Make RELEASE_ID live, after a fresh look at its experiment."""
    from plaudit.loop import pipeline

    _act(home, lambda store, project: pipeline.promote(store, project, release_id, by or getpass.getuser(), utc_now()))


@release.command()
@click.argument("release_id", required=False)
@click.option("--reason", default="by hand", show_default=True, help="Why; it is kept.")
@by_option
@home_option
def rollback(release_id: str | None, reason: str, by: str | None, home: Path | None) -> None:
    """Take RELEASE_ID away from users (default: the canary, else the live one) and go back to the one before."""
    from plaudit.loop import release as stage

    def act(store: Any, project: str) -> Release:
        return stage.roll_back(store, project, by or getpass.getuser(), reason, utc_now(), release_id)

    _act(home, act)


@release.command()
@click.argument("release_id")
@click.option("--reason", default="by hand", show_default=True, help="Why; it is kept.")
@by_option
@home_option
def retire(release_id: str, reason: str, by: str | None, home: Path | None) -> None:
    """Put away a candidate that no user has met, for example one that its gate refused."""
    from plaudit.loop import release as stage

    _act(
        home,
        lambda store, project: stage.refuse(
            store, project, release_id, by or getpass.getuser(), reason, utc_now(), "operator"
        ),
    )


@release.command()
@home_option
def log(home: Path | None) -> None:
    """The audit log, after checking that nothing in it was changed."""
    from plaudit.loop import govern

    opened = open_home(home)
    head = govern.verify_audit(opened.store, opened.project_id)
    table = Table("#", "at", "who", "as", "did", "to", "now")
    for entry in opened.store.find(AuditEntry, project_id=opened.project_id, order="seq"):
        at = f"{entry.created_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(str(entry.seq), at, entry.actor, entry.role, entry.action, entry.object_id, str(entry.after))
    Console().print(table)
    click.echo(f"{head.seq} entries, whole; the last one is {head.sha256}")


def _act(home: Path | None, act: Callable[[Any, str], Release]) -> None:
    opened = open_home(home)
    moved = act(opened.store, opened.project_id)
    click.echo(f"{moved.id} ({moved.model}) is {moved.state}.")
