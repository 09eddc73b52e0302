"""`plaudit interactions`: what an application logged before it knew us."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import utc_now

SHOWN = 20  # rejected rows that are listed one by one


@click.group()
def interactions() -> None:
    """Import what was logged elsewhere."""


@interactions.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@home_option
@json_option
def import_interactions(file: Path, home: Path | None, as_json: bool) -> None:
    """Log the lines of FILE (.jsonl, also packed): each the body of POST /v1/interactions, with `feedback`, a list, beside it. Importing it
    twice changes nothing; exit code 1 where a line was turned away."""
    from plaudit.loop import log_file

    opened = open_home(home)
    done = log_file.import_file(opened.store, opened.project_id, file, utc_now())
    if as_json:
        rejected = [vars(one) for one in done.rejected]
        figures = {"n_recorded": done.n_recorded, "n_replayed": done.n_replayed, "n_feedback": done.n_feedback}
        print_json({**figures, "rejected": rejected})
    else:
        click.echo(
            f"{done.n_recorded} interactions recorded, {done.n_replayed} were there, {done.n_feedback} feedback recorded, "
            f"{len(done.rejected)} turned away."
        )
        for one in done.rejected[:SHOWN]:
            click.echo(f"  {one.file}, line {one.line}: {one.reason}")
    sys.exit(1 if done.rejected else 0)
