"""`plaudit erase`: what one user said and was told goes, and what was built from it is named."""

from __future__ import annotations

from pathlib import Path

import click

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import utc_now


@click.command()
@click.argument("user")
@click.option(
    "--purge", "at_once", is_flag=True, help="Purge tainted Snapshots and Checkpoints now, not after purge_days."
)
@home_option
@json_option
def erase(user: str, at_once: bool, home: Path | None, as_json: bool) -> None:
    """Erase everything of the user with the pseudonym USER."""
    from plaudit.loop import erasure

    opened, now = open_home(home), utc_now()
    settings, store, project_id = opened.settings, opened.store, opened.project_id
    done = erasure.erase_user(store, settings.home, project_id, user, "command line", settings.purge_days, now)
    purged = erasure.purge(store, project_id, now, at_once=True) if at_once else []
    clean = erasure.compact(store, project_id, now)
    if as_json:
        print_json({**erasure.shown(done), "purged": purged, "compacted": clean})
        return
    counts = ", ".join(f"{n} {name}" for name, n in done.counts.items())
    click.echo(f"{done.id}  erased: {counts}")
    for name, ids in (("Snapshots", done.snapshot_ids), ("Checkpoints", done.checkpoint_ids)):
        if ids:
            click.echo(f"tainted {name}: {', '.join(ids)}")
    if done.snapshot_ids or done.checkpoint_ids:
        click.echo(
            f"purged: {', '.join(purged)}" if purged else f"They lose their content on {done.purge_at:%Y-%m-%d}."
        )
    if not clean:
        click.echo("The store's file is being read; the worker rewrites it without the erased bytes later.")
