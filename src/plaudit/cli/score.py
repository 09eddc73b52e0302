"""`plaudit score`: what a reward model says of a file of pairs or answers. `python -m plaudit.learn score` does the work."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.table import Table

from plaudit import artifacts
from plaudit import settings as settings_file
from plaudit.cli.models import prepare_base
from plaudit.cli.options import home_option, json_option, print_json
from plaudit.cli.plot import number
from plaudit.domain import Json
from plaudit.errors import BadInput, NotFound

SHOWN = 20  # answers in the table


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--base", default=None, help="The base it was trained on (default: as its run or its manifest says).")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Keep the run folder with scores.jsonl here."
)
@click.option("--set", "assignments", multiple=True, help="name=value of a field of score's config; may be repeated.")
@home_option
@json_option
def score(
    folder: Path,
    file: Path,
    base: str | None,
    out: Path | None,
    assignments: tuple[str, ...],
    home: Path | None,
    as_json: bool,
) -> None:
    """Score FILE (JSONL: chosen and rejected answers, or conversations with answers) by the reward model in FOLDER."""
    from plaudit.cli.figures import print_result
    from plaudit.cli.progress import PhaseBars
    from plaudit.loop import programs, run_config

    if not file.is_file():
        raise NotFound(f"There is no file {str(file)!r}; give a JSONL file of pairs or answers.")
    checkpoint = reward_in(folder)
    given = {
        "inputs": str(file.absolute()),
        "reward": str(checkpoint.absolute()),
        "base": str(base_of(folder, checkpoint, base, settings_file.load(home).cache)),
    }
    config = run_config.assign("score", given, assignments)
    with ExitStack() as stack:
        place = out.absolute() if out else Path(stack.enter_context(TemporaryDirectory())) / "score"
        with PhaseBars("score") as bars:
            result = programs.alone("score", config, place, bars.line, bars.note)
        lines = [json.loads(line) for line in (place / "scores.jsonl").read_text().splitlines()]
    if as_json:
        print_json(result if out else {**result, "scores": lines})
        return
    print_result(Console(), result)
    if "pairs" not in result:
        _show(lines, out)


def reward_in(folder: Path) -> Path:
    """The reward Checkpoint that a run folder holds, or that the folder is. Raises NotFound, BadInput (another kind)."""
    if not folder.is_dir():
        raise NotFound(f"There is no folder {str(folder)!r}; give the run folder or Checkpoint of a reward model.")
    checkpoint = folder / "checkpoint" if (folder / "config.json").is_file() else folder
    kind = artifacts.read_manifest(checkpoint, "checkpoint").body.get("checkpoint_kind")
    if kind != "reward":
        raise BadInput(f"{checkpoint} is a {kind} Checkpoint; only a reward model gives scores.")
    return checkpoint


def base_of(folder: Path, checkpoint: Path, said: str | None, cache: Path) -> Path:
    """The prepared base: the one asked for, else the run's own folder, else what the manifest names. Raises NotFound, Unavailable."""
    if said is None:
        for run in (folder, checkpoint.absolute().parent):
            if (run / "config.json").is_file():
                known = json.loads((run / "config.json").read_text()).get("base", "")
                if (Path(known) / "tokenizer.json").is_file():
                    return Path(known)
        said = str(artifacts.read_manifest(checkpoint).body["base"]["spec"])
    with Console(stderr=True).status(f"base {said}"):
        return prepare_base(said, cache).absolute()


def _show(lines: list[Json], out: Path | None) -> None:
    """The first answers, each with its figures."""
    names = [name for name in (lines[0] if lines else {}) if isinstance(lines[0][name], int | float | str)]
    table = Table(*names)
    for line in lines[:SHOWN]:
        table.add_row(*(number(line[name]) if isinstance(line[name], float) else str(line[name]) for name in names))
    Console().print(table)
    if len(lines) > SHOWN:
        where = f"all of them: {out / 'scores.jsonl'}" if out else "--out DIR keeps all of them"
        click.echo(f"{SHOWN} of {len(lines)} answers; {where}")
