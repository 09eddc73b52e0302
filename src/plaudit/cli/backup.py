"""`plaudit backup` and `plaudit restore`: a whole installation in one file."""

from __future__ import annotations

from pathlib import Path

import click

from plaudit import settings as settings_file
from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import utc_now
from plaudit.loop import backup as backups


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@home_option
@json_option
def backup(out: Path, home: Path | None, as_json: bool) -> None:
    """Write rows, Snapshots, runs, Checkpoints and keys to the new file OUT, while everything goes on."""
    opened = open_home(home)
    try:
        made = backups.back_up(opened.store, opened.settings.home, out, utc_now())
    finally:
        opened.store.close()
    if as_json:
        print_json({"file": str(out), "n_rows": made.n_rows, "n_files": len(made.files), "outside": made.outside})
        return
    click.echo(
        f"{out}: {made.n_rows} rows, {len(made.files)} files. It holds keys: keep it where only you can read it."
    )
    for folder in made.outside:
        click.echo(f"  not in it, because it is outside of the home: {folder}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), required=True, help="New folder to fill.")
@click.option(
    "--to", "store_url", default=None, metavar="URL", help="Empty database for the rows; without it SQLite in the home."
)
@json_option
def restore(file: Path, home: Path, store_url: str | None, as_json: bool) -> None:
    """Bring back what `plaudit backup` wrote to FILE, checked byte by byte."""
    made = backups.restore(file, home, store_url)
    used = settings_file.load(home).store_url
    if as_json:
        print_json({"home": str(home), "made_at": made.made_at, "n_rows": made.n_rows, "n_files": len(made.files)})
    else:
        click.echo(f"{home}: {made.n_rows} rows, {len(made.files)} files, as they were at {made.made_at}.")
    if used != (store_url or ""):
        click.echo(f"PLAUDIT_STORE_URL is set to {used!r}, where these rows are not; unset it.", err=True)
