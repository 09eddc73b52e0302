"""`plaudit import`: judgements from other people's files."""

from __future__ import annotations

import getpass
from pathlib import Path

import click
from rich.console import Console

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import LicenceOf, TrainingUse, utc_now
from plaudit.formats import catalogue
from plaudit.formats.files import Rejected

SHOWN = 20


@click.command(name="import")
@click.argument("format", type=click.Choice(tuple(catalogue.READERS)))
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--name", default=None, help="Batch that the Comparisons join (default: the first file's name).")
@click.option(
    "--training-use",
    type=click.Choice([use.value for use in TrainingUse]),
    default=None,
    help="Consent of what is imported (default: the setting `training_use_default`).",
)
@click.option(
    "--licence", default=None, help="Licence of the data, such as mit (default: unknown, which blocks a release)."
)
@click.option(
    "--terms",
    type=click.Choice([use.value for use in TrainingUse]),
    default=None,
    help="Whether the terms of whoever it comes from allow training on it (default: unknown).",
)
@click.option("--check", is_flag=True, help="Read everything, store nothing.")
@home_option
@json_option
def import_(
    format: str,
    files: tuple[Path, ...],
    name: str | None,
    training_use: str | None,
    licence: str | None,
    terms: str | None,
    check: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Read FILES of a FORMAT into the store; a row that cannot be used is named, the good ones go in.

    People's names become pseudonyms. The same file twice adds nothing. `plaudit annotate aggregate` then concludes Preferences.
    """
    from plaudit.loop import imports, licences

    opened = open_home(home)
    read = catalogue.reader(format)
    found = (one for file in files for one in read(file, opened.project_id))
    if check:
        report = imports.ImportReport()
        for one in found:
            if isinstance(one, Rejected):
                report.reject(one)
            else:
                report.n_records += 1
    else:
        batch, now = name or files[0].name, utc_now()
        if licence is not None or terms is not None:
            rights = licence or licences.UNKNOWN, TrainingUse(terms or TrainingUse.UNKNOWN)
            licences.declare(
                opened.store, opened.project_id, LicenceOf.IMPORT, batch, *rights, by=getpass.getuser(), now=now
            )
        with Console(stderr=True).status("Reading ...") as status:
            report = imports.take_in(
                opened.store,
                opened.project_id,
                found,
                name=batch,
                training_use=TrainingUse(training_use or opened.settings.training_use_default),
                now=now,
                progress=lambda done: status.update(f"Reading ... {done:,} judgements"),
            )
    if as_json:
        print_json(report.to_json())
        return
    click.echo(
        f"{report.n_records} judgements{' (nothing stored)' if check else ''}, {report.n_rejected} rows rejected."
    )
    if not check:
        click.echo("  added: " + (", ".join(f"{n} {kind}" for kind, n in report.added.items() if n) or "nothing new"))
    for reason, n in report.reasons.most_common():
        click.echo(f"  {n} rejected: {reason}")
    for one in report.rejected[:SHOWN]:
        click.echo(f"    {one.file} line {one.line}: {one.reason}")
    if report.n_rejected > SHOWN:
        click.echo(f"    and {report.n_rejected - SHOWN} more (--json names {imports.MAX_REJECTED})")
