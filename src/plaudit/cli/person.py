"""`plaudit person`: who may sign in to the console. A link is shown once, at its making."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import Person, Role, utc_now
from plaudit.loop import people


@click.group()
def person() -> None:
    """Who may sign in: invite, list, sign out, remove."""


@person.command()
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice([str(role) for role in Role]),
    help="May be repeated; needed for a new name, and replaces the roles of a known one.",
)
@click.option("--days", type=click.IntRange(1, 365), default=people.VALID.days, help="How long the link works (7).")
@click.option("--url", default=None, help="Address under which people reach the service (default: its own).")
@home_option
@json_option
def invite(name: str, roles: tuple[str, ...], days: int, url: str | None, home: Path | None, as_json: bool) -> None:
    """Make a link that signs NAME in, once, and show it, this once."""
    opened = open_home(home)
    made, invitation, secret = people.invite(
        opened.store, opened.project_id, name, roles, utc_now(), valid=timedelta(days=days)
    )
    address = people.sign_in_link(url or opened.settings.service_url, secret)
    until = invitation.expires_at.isoformat(timespec="seconds")
    if as_json:
        print_json({"id": made.id, "name": name, "roles": list(made.roles), "link": address, "expires_at": until})
    else:
        click.echo(f"{made.id}  {name}  ({', '.join(made.roles)}), until {until}")
        click.echo(address)


@person.command(name="list")
@home_option
@json_option
def list_people(home: Path | None, as_json: bool) -> None:
    """Everybody, with their roles."""
    opened = open_home(home)
    found = opened.store.find(Person, project_id=opened.project_id, order="name")
    rows: list[dict[str, Any]] = [
        {
            "id": one.id,
            "name": one.name,
            "roles": list(one.roles),
            "created_at": one.created_at.isoformat(timespec="seconds"),
            "removed_at": one.removed_at.isoformat(timespec="seconds") if one.removed_at else None,
        }
        for one in found
    ]
    if as_json:
        print_json({"people": rows})
        return
    table = Table("id", "name", "roles", "made", "removed")
    for row in rows:
        table.add_row(row["id"], row["name"], ", ".join(row["roles"]), row["created_at"], row["removed_at"] or "")
    Console().print(table)


@person.command(name="sign-out")
@click.argument("name")
@home_option
def sign_out(name: str, home: Path | None) -> None:
    """Sign NAME out of every browser, at once."""
    opened = open_home(home)
    found = people.find_person(opened.store, opened.project_id, name)
    people.sign_out_everywhere(opened.store, opened.project_id, found.id, utc_now(), by="system")
    click.echo(f"{name} is signed out everywhere.")


@person.command()
@click.argument("name")
@home_option
def remove(name: str, home: Path | None) -> None:
    """End what NAME may do: sign-ins, links, keys. What they did stays theirs."""
    opened = open_home(home)
    found = people.find_person(opened.store, opened.project_id, name)
    people.remove(opened.store, opened.project_id, found.id, utc_now())
    click.echo(f"{name} is removed.")
