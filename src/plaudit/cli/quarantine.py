"""`plaudit quarantine`: feedback that looks like abuse, kept out of Snapshots and metrics until somebody gives it back."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import utc_now


@click.group()
def quarantine() -> None:
    """Feedback that looks like abuse: find, hold, give back."""


@quarantine.command()
@click.option("--hours", type=float, default=24.0, show_default=True, help="How far back to look.")
@click.option("--hold", is_flag=True, help="Quarantine all of them.")
@home_option
@json_option
def suspects(hours: float, hold: bool, home: Path | None, as_json: bool) -> None:
    """Show bursts, sub-second clicks, repeat raters and brigades."""
    from plaudit.loop import abuse

    opened, now = open_home(home), utc_now()
    found = abuse.suspects(opened.store, opened.project_id, now - timedelta(hours=hours), now)
    held = abuse.quarantine_suspects(opened.store, opened.project_id, now - timedelta(hours=hours), now) if hold else []
    if as_json:
        print_json({"suspects": [vars(one) for one in found], "held": [one.id for one in held]})
        return
    table = Table("signal", "actor", "interaction", "acts", "first", "last")
    for one in found:
        first, last = (f"{at:%Y-%m-%d %H:%M:%S}" for at in (one.first_at, one.last_at))
        table.add_row(one.signal, one.actor or "", one.interaction_id or "", str(one.n), first, last)
    Console().print(table if found else f"Nothing in the last {hours:g} hours looks like abuse.")
    for made in held:
        click.echo(f"{made.id}  holds {made.n_feedback}  ({made.reason})")


@quarantine.command(name="list")
@click.option("--all", "lifted_too", is_flag=True, help="Lifted ones too.")
@home_option
@json_option
def list_quarantines(lifted_too: bool, home: Path | None, as_json: bool) -> None:
    """What is held now, and why."""
    from plaudit.loop import abuse

    opened = open_home(home)
    found = abuse.quarantines(opened.store, opened.project_id, lifted_too)
    if as_json:
        print_json({"quarantines": [vars(one) for one in found]})
        return
    table = Table("id", "actor", "interaction", "feedback", "since", "by", "reason", "lifted")
    for one in found:
        lifted = f"{one.lifted_at:%Y-%m-%d %H:%M}" if one.lifted_at else ""
        since = f"{one.created_at:%Y-%m-%d %H:%M}"
        table.add_row(
            one.id, one.actor or "", one.interaction_id or "", str(one.n_feedback), since, one.by, one.reason, lifted
        )
    Console().print(table if found else "Nothing is in quarantine.")


@quarantine.command()
@click.option("--actor", default=None, help="All feedback of this user.")
@click.option("--interaction", default=None, help="All feedback on this Interaction.")
@click.option("--reason", required=True, help="Why, in a sentence.")
@home_option
@json_option
def add(actor: str | None, interaction: str | None, reason: str, home: Path | None, as_json: bool) -> None:
    """Hold feedback that is there and that comes: it is stored and counts for nothing."""
    from plaudit.loop import abuse

    opened = open_home(home)
    made = abuse.quarantine(
        opened.store,
        opened.project_id,
        actor=actor,
        interaction_id=interaction,
        reason=reason,
        by="command line",
        now=utc_now(),
    )
    if as_json:
        print_json({"id": made.id, "n_feedback": made.n_feedback})
    else:
        click.echo(f"{made.id}  holds {made.n_feedback}")


@quarantine.command()
@click.argument("quarantine_id")
@home_option
def lift(quarantine_id: str, home: Path | None) -> None:
    """Give the feedback of a quarantine back: it counts again."""
    from plaudit.loop import abuse

    opened = open_home(home)
    ended = abuse.lift(opened.store, opened.project_id, quarantine_id, "command line", utc_now())
    click.echo(f"{ended.id}  is lifted; {ended.n_feedback} count again.")
