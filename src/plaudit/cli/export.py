"""`plaudit export`: a Checkpoint or a Snapshot for other programs. Torch is never imported here: `python -m plaudit.learn export` does the work."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from plaudit import settings as settings_file
from plaudit.artifacts import MANIFEST, read_manifest
from plaudit.cli.family import last_sentence
from plaudit.cli.models import prepare_base
from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import Checkpoint, Json, SnapshotRecord, utc_now
from plaudit.errors import BadInput, NotFound
from plaudit.formats import catalogue
from plaudit.loop import copies
from plaudit.loop.exports import snapshot_records
from plaudit.loop.snapshots.splits import EVALUATION, SPLITS


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="CHECKPOINT | FORMAT SNAPSHOT OUT")
@click.option(
    "--as",
    "form",
    type=click.Choice(("peft", "merged")),
    default=None,
    help="A Checkpoint: an adapter, or a whole model folder.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="A Checkpoint: folder to make (default: its name and the form, here).",
)
@click.option(
    "--base",
    "spec",
    default=None,
    help="A Checkpoint: the base it was trained on, a name, folder or hub id (default: the setting `base`).",
)
@click.option(
    "--split",
    type=click.Choice((*SPLITS, EVALUATION)),
    default=None,
    help="A Snapshot: only this split (default: all).",
)
@home_option
@json_option
def export(
    what: tuple[str, ...],
    form: str | None,
    out: Path | None,
    spec: str | None,
    split: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Write a Checkpoint for vLLM, peft and transformers, or a Snapshot in another tool's format.

    \b
    plaudit export CHECKPOINT --as peft|merged     an id, its folder or its run folder
    plaudit export FORMAT SNAPSHOT OUT             a Snapshot's folder or id into the file OUT (.gz, .zst pack it)
    """
    if len(what) == 1 and form is not None:
        _checkpoint(what[0], form, out, spec, home, as_json)
    elif len(what) == 3:
        _snapshot(what[0], what[1], Path(what[2]), split or "", home, as_json)
    else:
        raise BadInput(
            "Say `plaudit export CHECKPOINT --as peft` (or merged), or `plaudit export FORMAT SNAPSHOT OUT` with one of the formats "
            f"{', '.join(catalogue.WRITERS)}."
        )


def _snapshot(format_name: str, snapshot: str, out: Path, split: str, home: Path | None, as_json: bool) -> None:
    write = catalogue.writer(format_name)
    folder = Path(snapshot)
    if not (folder / MANIFEST).is_file():
        opened = open_home(home)
        found = opened.store.find(SnapshotRecord, project_id=opened.project_id, id=snapshot)
        if not found:
            raise NotFound(
                f"{snapshot!r} is neither a Snapshot's folder nor the id of one; `plaudit snapshot list` shows them."
            )
        folder = Path(found[0].folder)
    report = write(snapshot_records(folder, split), out)
    copies.of_file(folder, read_manifest(folder, "snapshot").id, out, utc_now())
    if as_json:
        print_json({"file": str(out), **report.to_json()})
        return
    click.echo(f"{out}  {report.n_written} rows of {report.n_records} records")
    for reason, n in report.dropped.most_common():
        click.echo(f"  {n} not written: {reason}")
    for name, n in report.lost.most_common():
        click.echo(f"  {n} without their {name}: the format has no place for it")


def _checkpoint(
    checkpoint: str, form: str, out: Path | None, spec: str | None, home: Path | None, as_json: bool
) -> None:
    folder, name, evaluation = _find(checkpoint, home)
    settings = settings_file.load(home, base=spec)
    base = prepare_base(settings.base, settings.cache)
    target = out or Path(f"{name}-{form}")
    command = [sys.executable, "-m", "plaudit.learn", "export", str(folder), str(base), form, str(target)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        if evaluation is not None:
            json.dump(evaluation, file)
            file.flush()
            command.append(file.name)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BadInput(last_sentence(done.stderr))
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    if as_json:
        print_json(summary)
    else:
        click.echo(f"{summary['folder']}  {summary['kind']} as {summary['form']}")
        click.echo(f"  {summary['how']}")


def _find(checkpoint: str, home: Path | None) -> tuple[Path, str, Json | None]:
    """(folder, name, what its gate saw last) of a Checkpoint by its folder, its run folder, or its id in the home, which alone knows of gates.
    Raises NotFound."""
    here = Path(checkpoint)
    if (here / MANIFEST).is_file():
        name = here.resolve().parent.name if here.resolve().name == "checkpoint" else here.resolve().name
        return here, name, None
    if (here / "checkpoint" / MANIFEST).is_file():
        return here / "checkpoint", here.resolve().name, None
    opened = open_home(home)
    found = opened.store.find(Checkpoint, project_id=opened.project_id, id=checkpoint)
    if not found:
        raise NotFound(
            f"{checkpoint!r} is neither a Checkpoint's folder nor the id of one; `plaudit train list` shows them."
        )
    from plaudit.loop import registry

    seen = registry.version(opened.store, opened.project_id, checkpoint).evaluation
    said = {name: getattr(seen, name) for name in ("id", "suite", "gate", "reasons", "figures")} if seen else None
    return Path(found[0].folder), checkpoint, said
