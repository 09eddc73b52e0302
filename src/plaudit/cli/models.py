"""`plaudit models`: base models made ready once. Torch is never imported here: `python -m plaudit.learn prepare` does the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

from plaudit import settings as settings_file
from plaudit.artifacts import write_atomic
from plaudit.cli.family import last_sentence
from plaudit.cli.options import home_option, json_option, print_json
from plaudit.errors import Unavailable


@click.group()
def models() -> None:
    """Prepare base models."""


@models.command()
@click.argument("spec", required=False)
@home_option
@json_option
def prepare(spec: str | None, home: Path | None, as_json: bool) -> None:
    """Convert or download SPEC (default: the setting `base`) into the cache, so that it loads in about a second."""
    settings = settings_file.load(home, base=spec)
    folder = prepare_base(settings.base, settings.cache)
    if as_json:
        print_json({"base": settings.base, "folder": str(folder)})
    else:
        click.echo(f"{settings.base} is ready in {folder}")


def prepare_base(spec: str, cache: Path, remember: Path | None = None) -> Path:
    """The prepared folder of a base model. `remember` is a file that spares the next start the question. Raises what the program said."""
    if remember is not None and remember.is_file():
        known = json.loads(remember.read_text())
        if known["spec"] == spec and known["cache"] == str(cache) and (Path(known["folder"]) / "config.json").is_file():
            return Path(known["folder"])
    command = [sys.executable, "-m", "plaudit.learn", "prepare", spec, str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(last_sentence(done.stderr))
    folder = Path(done.stdout.strip().splitlines()[-1])
    if remember is not None:
        write_atomic(remember, json.dumps({"spec": spec, "cache": str(cache), "folder": str(folder)}))
    return folder
