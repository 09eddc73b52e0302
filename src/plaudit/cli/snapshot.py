"""`plaudit snapshot`: Preferences frozen into a folder that never changes."""

from __future__ import annotations

from pathlib import Path

import click

from plaudit import artifacts
from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import SnapshotRecord, utc_now


@click.group()
def snapshot() -> None:
    """Freeze Preferences, list and verify Snapshots."""


@snapshot.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split by prompt family.")
@home_option
@json_option
def freeze(seed: int, home: Path | None, as_json: bool) -> None:
    """Freeze everything that may be trained on."""
    from plaudit.loop import snapshot as stage

    opened = open_home(home)
    folder = opened.settings.home / "snapshots"
    record, _ = stage.freeze(opened.store, opened.project_id, folder, seed=seed, now=utc_now())
    if as_json:
        print_json({"id": record.id, "folder": record.folder, "sha256": record.sha256, "counts": record.counts})
    else:
        click.echo(f"{record.id}  {record.folder}")
        click.echo(f"  {record.counts}")


@snapshot.command(name="list")
@home_option
def list_snapshots(home: Path | None) -> None:
    """All Snapshots, oldest first."""
    opened = open_home(home)
    for record in opened.store.find(SnapshotRecord, project_id=opened.project_id):
        click.echo(f"{record.id}  {record.created_at:%Y-%m-%d %H:%M}  {record.folder}  {record.counts}")


@snapshot.command()
@click.argument("folder", type=click.Path(path_type=Path))
def verify(folder: Path) -> None:
    """Read every byte of a Snapshot's FOLDER again and compare it with the manifest."""
    manifest = artifacts.open_snapshot(folder).manifest
    click.echo(f"{folder} is whole: {len(manifest.files)} files, sha256 {manifest.id}")
