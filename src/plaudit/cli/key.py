"""`plaudit key`: API keys. A secret is shown once, at its making."""

from __future__ import annotations

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
    """All keys, without their secrets."""
    opened = open_home(home)
    people = {person.id: person.name for person in opened.store.find(Person, project_id=opened.project_id)}
    keys = opened.store.find(ApiKey, project_id=opened.project_id)
    if as_json:
        print_json({"keys": [_row(one, people) for one in keys]})
        return
    table = Table("id", "name", "roles", "person", "made", "revoked")
    for one in keys:
        row = _row(one, people)
        table.add_row(
            one.id, one.name, ", ".join(one.roles), row["person"] or "", row["created_at"], row["revoked_at"] or ""
        )
    Console().print(table)


@key.command()
@click.argument("key_id")
@home_option
def revoke(key_id: str, home: Path | None) -> None:
    """End the key with this id; running services notice within a second."""
    opened = open_home(home)
    ended = govern.revoke_key(opened.store, opened.project_id, key_id, utc_now())
    click.echo(f"{ended.id}  {ended.name}  is revoked.")


def _row(one: ApiKey, people: dict[str, str]) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "roles": list(one.roles),
        "person": people.get(one.person_id or ""),
        "created_at": one.created_at.isoformat(timespec="seconds"),
        "revoked_at": one.revoked_at.isoformat(timespec="seconds") if one.revoked_at else None,
    }
