"""`plaudit outcomes`: the business's own metrics."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import utc_now

SHOWN = 20  # rejected rows that are listed one by one


@click.group()
def outcomes() -> None:
    """Import the business's own metrics of users."""


@outcomes.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@home_option
@json_option
def import_outcomes(file: Path, home: Path | None, as_json: bool) -> None:
    """Record the rows of FILE (.csv or .jsonl, also packed): user, name, value, at and optionally key. Importing it twice changes nothing;
    exit code 1 where a row was turned away."""
    from plaudit.loop import outcome_file

    opened = open_home(home)
    done = outcome_file.import_file(opened.store, opened.project_id, file, utc_now())
    if as_json:
        rejected = [vars(one) for one in done.rejected]
        print_json({"n_recorded": done.n_recorded, "n_replayed": done.n_replayed, "rejected": rejected})
    else:
        click.echo(f"{done.n_recorded} recorded, {done.n_replayed} were there, {len(done.rejected)} turned away.")
        for one in done.rejected[:SHOWN]:
            click.echo(f"  {one.file}, line {one.line}: {one.reason}")
    sys.exit(1 if done.rejected else 0)
