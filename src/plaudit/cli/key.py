"""`plaudit key`: API keys. A secret is shown once, at its making."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import ApiKey, Person, Role, utc_now
from plaudit.loop import govern


@click.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command()
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice([str(role) for role in Role]),
    help="May be repeated.",
)
@click.option("--person", default=None, help="Whose key it is; annotators, leads and approvers need one.")
@home_option
@json_option
def create(name: str, roles: tuple[str, ...], person: str | None, home: Path | None, as_json: bool) -> None:
    """Make a key called NAME and show its secret, this once."""
    opened = open_home(home)
    made, secret = govern.create_key(opened.store, opened.project_id, name, list(roles), person, now=utc_now())
    if as_json:
        print_json({"id": made.id, "name": made.name, "roles": list(made.roles), "secret": secret})
    else:
        click.echo(f"{made.id}  {name}  ({', '.join(made.roles)})")
        click.echo(secret)


@key.command(name="list")
@home_option
@json_option
def list_keys(home: Path | None, as_json: bool) -> None:
    """All keys, without their secrets, and when each was last used."""
    opened = open_home(home)
    people = {person.id: person.name for person in opened.store.find(Person, project_id=opened.project_id)}
    keys = opened.store.find(ApiKey, project_id=opened.project_id)
    if as_json:
        print_json({"keys": [_row(one, people) for one in keys]})
        return
    table = Table("id", "name", "roles", "person", "made", "last used", "revoked")
    for one in keys:
        row = _row(one, people)
        times = [row[name] or "" for name in ("created_at", "last_used_at", "revoked_at")]
        table.add_row(one.id, one.name, ", ".join(one.roles), row["person"] or "", *times)
    Console().print(table)


@key.command()
@click.argument("key_id")
@home_option
def revoke(key_id: str, home: Path | None) -> None:
    """End the key with this id; running services notice within a second."""
    opened = open_home(home)
    ended = govern.revoke_key(opened.store, opened.project_id, key_id, utc_now())
    click.echo(f"{ended.id}  {ended.name}  is revoked.")


@key.command()
@home_option
def rotate(home: Path | None) -> None:
    """Sign feedback tokens with a new key from now on; tokens of the two keys before still hold."""
    from plaudit.loop.feedback_tokens import KeyRing

    opened = open_home(home)
    made = KeyRing(opened.settings.home, opened.settings.feedback_keys).rotate()
    click.echo(f"{made}  signs from now on; running services know at their next request.")


def _row(one: ApiKey, people: dict[str, str]) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "roles": list(one.roles),
        "person": people.get(one.person_id or ""),
        "created_at": one.created_at.isoformat(timespec="seconds"),
        "last_used_at": _at(one.last_used_at),
        "revoked_at": _at(one.revoked_at),
    }


def _at(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
