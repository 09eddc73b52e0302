"""`plaudit project`: applications that share an installation. `plaudit --project NAME COMMAND` acts on one of them."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import DEFAULT_PROJECT, ApiKey, Interaction, Project, TrainingUse, utc_now
from plaudit.loop import projects

USES = click.Choice([str(use) for use in TrainingUse])


@click.group()
def project() -> None:
    """Make, list and change projects."""


@project.command()
@click.argument("name")
@click.option(
    "--training-use",
    type=USES,
    default="unknown",
    show_default=True,
    help="Consent of an interaction that does not say.",
)
@click.option("--rating-min", type=int, default=1, show_default=True, help="Least rating of its scale.")
@click.option("--rating-max", type=int, default=5, show_default=True, help="Greatest rating of its scale.")
@home_option
@json_option
def create(name: str, training_use: str, rating_min: int, rating_max: int, home: Path | None, as_json: bool) -> None:
    """Make a project called NAME, whose users the base model answers."""
    store, now = open_home(home).store, utc_now()
    made = projects.create(
        store,
        name,
        now,
        by=getpass.getuser(),
        training_use=TrainingUse(training_use),
        rating_min=rating_min,
        rating_max=rating_max,
    )
    served = projects.serve_base(store, made, DEFAULT_PROJECT, now)
    if as_json:
        print_json({**_row(made), "model": served.model if served else None})
        return
    click.echo(f"{made.id}  {name}  ({served.model if served else 'no model yet: `plaudit up` first serves one'})")
    click.echo(f"A key for it: plaudit --project {name!r} key create NAME --role application")


@project.command(name="list")
@home_option
@json_option
def list_projects(home: Path | None, as_json: bool) -> None:
    """All projects, with their keys and interactions counted."""
    store = open_home(home).store
    rows = [
        {
            **_row(one),
            "keys": store.count(ApiKey, project_id=one.id, revoked_at=None),
            "interactions": store.count(Interaction, project_id=one.id),
        }
        for one in store.find(Project, order="created_at")
    ]
    if as_json:
        print_json({"projects": rows})
        return
    table = Table("id", "name", "training use", "ratings", "keys", "interactions", "made")
    for row in rows:
        scale = f"{row['rating_min']} to {row['rating_max']}"
        shown = (row["id"], row["name"], row["training_use_default"], scale, row["keys"], row["interactions"])
        table.add_row(*map(str, shown), row["created_at"])
    Console().print(table)


@project.command(name="set")
@click.option(
    "--training-use", type=USES, default=None, help="Consent of an interaction that does not say, from now on."
)
@click.option("--rating-min", type=int, default=None, help="Least rating of its scale, before anything was rated.")
@click.option("--rating-max", type=int, default=None, help="Greatest rating of its scale, before anything was rated.")
@home_option
@json_option
def change(
    training_use: str | None, rating_min: int | None, rating_max: int | None, home: Path | None, as_json: bool
) -> None:
    """Change what holds in the project that --project names."""
    opened = open_home(home)
    changed = projects.change(
        opened.store,
        opened.project_id,
        utc_now(),
        by=getpass.getuser(),
        training_use=TrainingUse(training_use) if training_use else None,
        rating_min=rating_min,
        rating_max=rating_max,
    )
    row = _row(changed)
    if as_json:
        print_json(row)
    else:
        click.echo(", ".join(f"{name} {value}" for name, value in row.items() if name not in ("id", "created_at")))


def _row(one: Project) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "training_use_default": str(one.training_use_default),
        "rating_min": one.rating_min,
        "rating_max": one.rating_max,
        "created_at": one.created_at.isoformat(timespec="seconds"),
    }
