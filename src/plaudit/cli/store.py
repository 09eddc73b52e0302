"""`plaudit store`: where the rows live."""

from __future__ import annotations

import click

from plaudit.cli.options import json_option, print_json
from plaudit.store.copy import copy_rows
from plaudit.store.database import open_store


@click.group()
def store() -> None:
    """Move the rows to another database."""


@store.command(name="copy")
@click.option(
    "--from", "source", required=True, metavar="URL", help="Store to read: sqlite:///FILE or postgresql://..."
)
@click.option("--to", "target", required=True, metavar="URL", help="Empty database to fill.")
@json_option
def copy_command(source: str, target: str, as_json: bool) -> None:
    """Copy every row, all or none, and compare counts and hashes. Stop the service first: what comes later is not copied."""
    reading = open_store(source)
    try:
        writing = open_store(target)
        try:
            done = copy_rows(reading, writing)
        finally:
            writing.close()
    finally:
        reading.close()
    if as_json:
        print_json({name: {"n_rows": table.n_rows, "sha256": table.sha256} for name, table in done.items()})
        return
    for name, table in done.items():
        if table.n_rows:
            click.echo(f"{table.n_rows:>10}  {name}  {table.sha256[:12]}")
    click.echo(
        f"{sum(table.n_rows for table in done.values())} rows copied. Set store_url to the new URL, then start the service."
    )
