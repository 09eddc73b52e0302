"""`plaudit snapshot`: Preferences frozen into a folder that never changes."""

from __future__ import annotations

import getpass
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from plaudit import artifacts
from plaudit import settings as settings_file
from plaudit.cli.options import Command, home_option, json_option, open_home, print_json
from plaudit.domain import LicenceOf, SnapshotRecord, TrainingUse, utc_now
from plaudit.errors import BadInput, Corrupt, NotFound
from plaudit.loop.snapshots.pool import Curation


@click.group()
def snapshot() -> None:
    """Freeze Preferences, list, verify and compare Snapshots."""


def curation_options(command: Command) -> Command:
    """One option for each field of Curation, named as it is."""
    for spec in reversed(fields(Curation)):
        if spec.name == "personal_data":
            kind: dict[str, Any] = {"multiple": True, "metavar": "KIND=TREATMENT"}
        elif spec.name in ("languages", "without", "forbidden_models", "group_by"):
            kind = {"multiple": True}
        elif spec.type == "bool":
            kind = {"is_flag": True}
        elif spec.name == "contradictions":
            kind = {"type": click.Choice(["keep", "drop"]), "default": spec.default, "show_default": True}
        else:
            kind = {"type": type(spec.default), "default": spec.default, "show_default": spec.default != ""}
        name = "--" + spec.name.replace("_", "-")
        command = click.option(name, spec.name, help=spec.metadata["help"], **kind)(command)
    return command


@snapshot.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split by prompt family.")
@curation_options
@click.option(
    "--canaries",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="JSONL file of prompts or messages that nothing may be trained on.",
)
@click.option(
    "--to", default=None, help="Address to copy the folder to: any that fsspec knows, such as s3://bucket/snapshots."
)
@home_option
@json_option
def freeze(
    seed: int, canaries: Sequence[Path], to: str | None, home: Path | None, as_json: bool, **options: Any
) -> None:
    """Freeze everything that may be trained on."""
    options["personal_data"] = _pairs(options["personal_data"])
    options["forbidden_models"] = _forbidden(home, options["forbidden_models"])
    curation = Curation(**options)
    _freeze(home, curation, seed, [one for file in canaries for one in _prompts(file)], to, as_json)


@snapshot.command()
@click.argument("folder", type=click.Path(path_type=Path))
@home_option
@json_option
def rebuild(folder: Path, home: Path | None, as_json: bool) -> None:
    """Freeze anew as FOLDER's manifest says it was frozen, from what is there now, and say what differs. FOLDER may have lost its rows."""
    from plaudit.loop import snapshot as stage
    from plaudit.loop.snapshots import diff as differences

    config = artifacts.read_manifest(folder, "snapshot").body["config"]
    if config.get("canaries") or config.get("finders"):
        raise BadInput(
            f"{folder} was frozen with canaries or finders, which its manifest does not hold; use `snapshot freeze`."
        )
    asked = config.get("curation", {})
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
    given["forbidden_models"] = _forbidden(home, given.get("forbidden_models", ()))
    opened = open_home(home)
    record, made = stage.freeze(
        opened.store,
        opened.project_id,
        opened.settings.home / "snapshots",
        base_licence=_base_licence(opened.settings.home),
        seed=config["seed"],
        fractions=config["fractions"],
        curation=Curation(**given),
        now=utc_now(),
    )
    try:
        found = differences.diff(artifacts.open_snapshot(folder), made)
    except Corrupt:  # purged: only its manifest is left
        found = None
    shown = found.to_json() if found else None
    if as_json:
        print_json({"id": record.id, "folder": record.folder, "sha256": record.sha256, "diff": shown})
    else:
        click.echo(f"{record.id}  {record.folder}")
        click.echo(
            differences.as_markdown(found) if found else f"{folder} has lost its rows, so they cannot be compared."
        )


@snapshot.command()
@click.argument("before")
@click.argument("after")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the comparison as one HTML file with bars."
)
@json_option
def diff(before: str, after: str, out: Path | None, as_json: bool) -> None:
    """What came, went and changed from the Snapshot folder BEFORE to AFTER."""
    from plaudit.loop.snapshots import diff as differences

    with _opened(before) as one, _opened(after) as two:
        found = differences.diff(one, two)
    if out is not None:
        artifacts.write_atomic(out, differences.as_page(found))
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(differences.as_markdown(found))


@snapshot.command()
@click.argument("subject", type=click.Choice([one.value for one in LicenceOf]))
@click.argument("name")
@click.argument("licence")
@click.option(
    "--terms",
    type=click.Choice([use.value for use in TrainingUse]),
    default="unknown",
    show_default=True,
    help="Whether its terms allow training on it; denied keeps all of it out of Snapshots.",
)
@click.option("--by", default=None, help="Who says so (default: your account here).")
@home_option
def licence(subject: str, name: str, licence: str, terms: str, by: str | None, home: Path | None) -> None:
    """Say the LICENCE of an import, or of the answers of a model that is none of ours (* in its NAME stands for anything)."""
    from plaudit.loop import licences

    opened = open_home(home)
    who = by or getpass.getuser()
    said = LicenceOf(subject), name, licence, TrainingUse(terms)
    made = licences.declare(opened.store, opened.project_id, *said, by=who, now=utc_now())
    click.echo(f"{subject} {name}: {made.licence}, terms {made.terms}; said by {made.by}.")


@snapshot.command(name="list")
@home_option
def list_snapshots(home: Path | None) -> None:
    """All Snapshots, oldest first."""
    opened = open_home(home)
    for record in opened.store.find(SnapshotRecord, project_id=opened.project_id):
        click.echo(f"{record.id}  {record.created_at:%Y-%m-%d %H:%M}  {record.folder}  {record.counts}")


@snapshot.command()
@click.argument("folder")
def verify(folder: str) -> None:
    """Read every byte of a Snapshot's FOLDER, or of the one at an address, again and compare it with the manifest."""
    with _opened(folder) as opened:
        manifest = opened.manifest
    click.echo(f"{folder} is whole: {len(manifest.files)} files, sha256 {manifest.id}")


@snapshot.command()
@click.argument("address")
@click.argument("parent", type=click.Path(path_type=Path, file_okay=False))
def fetch(address: str, parent: Path) -> None:
    """Copy the Snapshot at ADDRESS into the folder PARENT and verify it."""
    click.echo(str(artifacts.fetch(address, parent)))


def _freeze(
    home: Path | None, curation: Curation, seed: int, canaries: Sequence[Any], to: str | None, as_json: bool
) -> None:
    from plaudit.loop import copies
    from plaudit.loop import snapshot as stage

    opened = open_home(home)
    parent = opened.settings.home / "snapshots"
    record, made = stage.freeze(
        opened.store,
        opened.project_id,
        parent,
        seed=seed,
        curation=curation,
        canaries=canaries,
        base_licence=_base_licence(opened.settings.home),
        now=utc_now(),
    )
    address = artifacts.publish(made.folder, to) if to else None
    if address is not None:
        copies.of_folder(made.folder, made.manifest.id, address, utc_now())
    if as_json:
        shown = {"id": record.id, "folder": record.folder, "sha256": record.sha256, "counts": record.counts}
        print_json(shown | ({"address": address} if address else {}))
    else:
        click.echo(f"{record.id}  {record.folder}" + (f"  {address}" if address else ""))
        click.echo(f"  {record.counts}")


def _forbidden(home: Path | None, given: Sequence[str]) -> tuple[str, ...]:
    """What is asked for, then what the settings forbid."""
    return tuple(dict.fromkeys((*given, *settings_file.load(home).never_learnt)))


def _base_licence(home: Path) -> str:
    """That of the home's base model; unknown before one is prepared."""
    from plaudit.loop import licences

    note = home / "base.json"
    return licences.base_licence(Path(json.loads(note.read_text())["folder"])) if note.is_file() else licences.UNKNOWN


@contextmanager
def _opened(folder: str) -> Iterator[artifacts.Snapshot]:
    """A folder, or a copy of what lies at an address, for as long as it is needed."""
    if "://" not in folder:
        yield artifacts.open_snapshot(Path(folder))
        return
    with tempfile.TemporaryDirectory() as copy:
        yield artifacts.open_snapshot(artifacts.fetch(folder, Path(copy)))


def _pairs(given: Sequence[str]) -> dict[str, str]:
    for one in given:
        if "=" not in one:
            raise BadInput(f"--personal-data is {one!r}; give KIND=TREATMENT, such as email=redact.")
    return dict(one.split("=", 1) for one in given)


def _prompts(file: Path) -> list[list[dict[str, Any]]]:
    """A line is a JSON string (a prompt), a list of messages, or an object with `messages` or `prompt`."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{file}, line {number} is no JSON ({error}).") from error
        value = value.get("messages", value.get("prompt")) if isinstance(value, dict) else value
        if isinstance(value, str):
            found.append([{"role": "user", "content": value}])
        elif isinstance(value, list) and all(isinstance(one, dict) and "role" in one for one in value):
            found.append(value)
        else:
            raise BadInput(
                f"{file}, line {number} is neither a prompt nor messages; write a JSON string or a list of them."
            )
    if not found:
        raise NotFound(f"{file} holds no prompt; leave --canaries out or fill it.")
    return found
