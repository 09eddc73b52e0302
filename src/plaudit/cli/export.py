"""`plaudit export`: a Checkpoint for other programs. Torch is never imported here: `python -m plaudit.learn export` does the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

from plaudit import settings as settings_file
from plaudit.artifacts import MANIFEST
from plaudit.cli.family import last_sentence
from plaudit.cli.models import prepare_base
from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import Checkpoint
from plaudit.errors import BadInput, NotFound


@click.command()
@click.argument("checkpoint")
@click.option(
    "--as", "form", type=click.Choice(("peft", "merged")), required=True, help="An adapter, or a whole model folder."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder to make (default: CHECKPOINT's name and the form, here).",
)
@click.option(
    "--base",
    "spec",
    default=None,
    help="The base it was trained on: a name, folder or hub id (default: the setting `base`).",
)
@home_option
@json_option
def export(checkpoint: str, form: str, out: Path | None, spec: str | None, home: Path | None, as_json: bool) -> None:
    """Write CHECKPOINT (an id, its folder or its run folder) as what vLLM, peft and transformers load."""
    folder, name = _find(checkpoint, home)
    settings = settings_file.load(home, base=spec)
    base = prepare_base(settings.base, settings.cache)
    target = out or Path(f"{name}-{form}")
    command = [sys.executable, "-m", "plaudit.learn", "export", str(folder), str(base), form, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BadInput(last_sentence(done.stderr))
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    if as_json:
        print_json(summary)
    else:
        click.echo(f"{summary['folder']}  {summary['kind']} as {summary['form']}")
        click.echo(f"  {summary['how']}")


def _find(checkpoint: str, home: Path | None) -> tuple[Path, str]:
    """(folder, name) of a Checkpoint by its folder, its run folder, or its id in the home. Raises NotFound."""
    here = Path(checkpoint)
    if (here / MANIFEST).is_file():
        return here, here.resolve().parent.name if here.resolve().name == "checkpoint" else here.resolve().name
    if (here / "checkpoint" / MANIFEST).is_file():
        return here / "checkpoint", here.resolve().name
    opened = open_home(home)
    found = opened.store.find(Checkpoint, project_id=opened.project_id, id=checkpoint)
    if not found:
        raise NotFound(
            f"{checkpoint!r} is neither a Checkpoint's folder nor the id of one; `plaudit train list` shows them."
        )
    return Path(found[0].folder), checkpoint
