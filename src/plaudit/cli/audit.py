"""`plaudit audit`: whether what was written about who did what is still what was written."""

from __future__ import annotations

from pathlib import Path

import click

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import utc_now
from plaudit.errors import Corrupt


@click.group()
def audit() -> None:
    """Verify the audit log against its signed anchors."""


@audit.command()
@home_option
@json_option
def verify(home: Path | None, as_json: bool) -> None:
    """Recompute the whole chain and compare it with every anchor. Exit code 1 where something does not fit."""
    from plaudit.loop import anchors

    opened = open_home(home)
    file = anchors.file_of(opened.settings.home, opened.settings.audit_anchor)
    try:
        found = anchors.verify(opened.store, opened.project_id, opened.settings.home, file)
    except Corrupt as error:
        if as_json:
            print_json({"whole": False, "problem": error.message, "anchors": str(file)})
        else:
            click.echo(error.message)
        click.get_current_context().exit(1)
    anchored = found.anchored
    if as_json:
        head = {"seq": found.head.seq, "sha256": found.head.sha256}
        kept = {"seq": anchored.seq, "sha256": anchored.sha256, "at": anchored.at} if anchored else None
        print_json({"whole": True, "head": head, "anchored": kept, "n_anchors": found.n_anchors, "anchors": str(file)})
        return
    click.echo(f"{found.head.seq} entries, whole; the last one is {found.head.sha256}")
    if anchored is None:
        click.echo("Nothing is anchored yet: a cut tail cannot be seen. The worker anchors, or `plaudit audit anchor`.")
    else:
        after = found.head.seq - anchored.seq
        click.echo(f"{found.n_anchors} anchors in {file}; the newest, of {anchored.at}, holds entry {anchored.seq}.")
        click.echo(f"{after} entries came after it and are held by the chain alone.")


@audit.command()
@home_option
@json_option
def anchor(home: Path | None, as_json: bool) -> None:
    """Sign the log's head now, after verifying everything; the worker does it by itself."""
    from plaudit.loop import anchors

    opened = open_home(home)
    file = anchors.file_of(opened.settings.home, opened.settings.audit_anchor)
    made = anchors.anchor(opened.store, opened.project_id, opened.settings.home, file, utc_now())
    if as_json:
        print_json({"anchored": vars(made) if made else None, "anchors": str(file)})
    elif made is None:
        click.echo(f"The head stands in {file} already.")
    else:
        click.echo(f"Entry {made.seq} is anchored in {file}: {made.sha256}")
