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
        rows = [
            {"id": r.id, "state": r.state, "model": r.model, "segment": r.segment, "checkpoint_id": r.checkpoint_id}
            for r in found
        ]
        print_json({"releases": [{**row, "approvals": said.get(row["id"] or "", [])} for row in rows]})
        return
    table = Table(Column("release", no_wrap=True), "state", "since", "for", "model", "checkpoint", "approvals")
    for one in found:
        since = f"{one.state_at:%Y-%m-%d %H:%M}"
        whom = one.segment or "everybody"
        table.add_row(
            one.id, one.state, since, whom, one.model, one.checkpoint_id or "base", ", ".join(said.get(one.id, []))
        )
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
@person_option
@reason_option
@home_option
def override(release_id: str, person: str, reason: str, home: Path | None) -> None:
    """Answer, on record, for what nobody knows the licence of behind RELEASE_ID. Approvals need other people."""
    from plaudit.loop import licences

    opened = open_home(home)
    made = licences.override(opened.store, opened.project_id, release_id, person, reason, utc_now())
    click.echo(f"{person} ({made.role}) answers for the licences of {release_id}: entry {made.seq} of the audit log.")


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
@click.argument("segment")
@by_option
@home_option
def scope(release_id: str, segment: str, by: str | None, home: Path | None) -> None:
    """Say that candidate RELEASE_ID is for users of SEGMENT, such as plan=pro ('' is everybody), before anybody approves it."""
    from plaudit.loop import release as stage

    def act(store: Any, project: str) -> Release:
        return stage.scope(store, project, release_id, segment, by or getpass.getuser(), utc_now())

    _act(home, act)


@release.command()
@click.argument("release_id")
@by_option
@home_option
def shadow(release_id: str, by: str | None, home: Path | None) -> None:
    """Let candidate RELEASE_ID answer copies of live requests, which nobody sees."""
    from plaudit.loop import release as stage

    _act(home, lambda store, project: stage.to_shadow(store, project, release_id, by or getpass.getuser(), utc_now()))


@release.command()
@click.argument("release_id")
@home_option
@json_option
def shadowed(release_id: str, home: Path | None, as_json: bool) -> None:
    """What RELEASE_ID made of live requests in shadow, beside what their users were answered."""
    from plaudit.loop import shadow as stage

    opened = open_home(home)
    found = stage.figures(opened.store, opened.project_id, release_id)
    if as_json:
        print_json(found)
        return
    table = Table("figure", "in shadow", "live", "difference", "n")
    for name, one in found["figures"].items():
        bounds = one["difference"]
        said = f"{bounds['mean']:+.4g} [{bounds['low']:+.4g}, {bounds['high']:+.4g}]" if bounds else "-"
        shown = ("-" if one[side] is None else f"{one[side]:.4g}" for side in ("shadow", "live"))
        table.add_row(name, *shown, said, str(one["n"]))
    Console().print(table)
    click.echo(f"{found['n']} requests copied.")


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
