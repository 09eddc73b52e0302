"""`plaudit train`: the learn programs, as Runs of a home or, with `--out`, in a run folder of their own. This process never imports torch.

There is a command for each program of `learn.configs`, and an option where its config has the field. With `--out` no store is opened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from plaudit import settings as settings_file
from plaudit.cli.models import prepare_base
from plaudit.cli.options import Home, home_option, json_option, open_home, print_json
from plaudit.cli.runs import list_runs
from plaudit.domain import Checkpoint, CheckpointKind, Json, SnapshotRecord, utc_now
from plaudit.errors import BadInput, NotFound, Refused
from plaudit.learn.configs import NEWEST_CHECKPOINT, PROGRAMS, from_dict, with_newest


@click.group()
def train() -> None:
    """Train a reward model or a policy; list Runs and Checkpoints."""


train.add_command(list_runs, "list")

FILE = click.Path(path_type=Path, dir_okay=False)
OUT = "Make this run folder, without a store; the same command continues it."
# option of a config field -> its parameters. `reward` and `snapshot` are ids in a home and folders with --out.
OF_FIELDS: dict[str, dict[str, Any]] = {
    "snapshot": {"help": "Id of the Snapshot (default: the newest); with --out its folder."},
    "preferences": {"type": FILE, "help": "JSONL file of chosen and rejected answers instead of a Snapshot; needs --out."},
    "reward": {"help": "Id of the reward Checkpoint (default: the newest); with --out its folder, or what the config takes."},
    "base": {"help": "smollm2, tiny, a folder or a hub id (default: the setting `base`); needs --out."},
    "seed": {"type": int, "help": "The config's seed."},
}  # fmt: skip
LOCAL = "local-ray"
ALONE = ("best_of", "score")  # programs that run in one process
ON = (
    click.Option(["--on"], help=f"Run on a Ray cluster: ray://HOST:PORT, or {LOCAL} for one of this machine; needs --out."),
    click.Option(["--workers"], type=click.IntRange(1), default=2, show_default=True, help="Processes on the cluster."),
    click.Option(["--storage"], help=f"Folder or address that the whole cluster reaches (default for {LOCAL}: in the cache)."),
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What the command line says, None where it does not."""

    program: str
    out: Path | None
    file: Path | None
    assignments: tuple[str, ...]
    queue: bool
    home: Path | None
    as_json: bool
    snapshot: str | None = None
    preferences: Path | None = None
    reward: str | None = None
    base: str | None = None
    seed: int | None = None
    on: str | None = None
    workers: int = 2
    storage: str | None = None

    def config(self, **more: Any) -> Json:
        """The file's fields, what the options say, then --set."""
        from plaudit.loop import run_config

        given = run_config.read_file(self.file) if self.file else {}
        seed = {} if self.seed is None else {"seed": self.seed}
        return run_config.assign(self.program, {**given, **more, **seed}, self.assignments)


def _command(program: str) -> click.Command:
    kind = PROGRAMS[program]
    has = {entry.name for entry in fields(kind)}
    options: list[click.Parameter] = [
        click.Option(["--out"], type=click.Path(path_type=Path, file_okay=False), help=OUT),
        *(click.Option([f"--{name}"], **said) for name, said in OF_FIELDS.items() if name in has),
        click.Option(["--config", "file"], type=FILE, help="JSON or TOML file of config fields."),
        click.Option(["--set", "assignments"], multiple=True, help="name=value of a config field; may be repeated."),
        click.Option(["--queue"], is_flag=True, help="Leave it to the worker of `plaudit up`."),
        *(ON if program not in ALONE else ()),
    ]

    def act(**values: Any) -> None:
        _start(Asked(program, **values))

    text = str(kind.__doc__).partition(": ")[2].partition("\n")[0]
    command = home_option(json_option(act))  # decorators leave these two on the function, where click finds them
    return click.command(program, params=options, help=text[:1].upper() + text[1:])(command)


def _start(asked: Asked) -> None:
    if asked.out is not None:
        if asked.queue:
            raise BadInput("--queue is for a home's worker, and --out runs here; give one of them.")
        _run_alone(asked, asked.out.absolute())
        return
    if asked.on is not None:
        raise BadInput(f"--on {asked.on} needs --out DIR, the run folder that it brings back.")
    for name in ("preferences", "base"):
        if getattr(asked, name) is not None:
            raise BadInput(
                f"--{name} {getattr(asked, name)} needs --out DIR; a home trains on its Snapshots and its base."
            )
    _run_in_home(asked, open_home(asked.home))


def _run_alone(asked: Asked, out: Path) -> None:
    """A run folder without a store."""
    from plaudit.cli.figures import print_result
    from plaudit.cli.progress import PhaseBars
    from plaudit.loop import programs, run_files

    elsewhere = () if asked.on is None else ("on", asked.on, str(asked.workers), _storage(asked))
    given: Json = {}
    for name in ("snapshot", "preferences"):
        if getattr(asked, name) is not None:
            given[name] = str(_there(Path(getattr(asked, name))))
    if asked.reward is not None:
        given["reward"] = _checkpoint_or_text(asked.reward)
    config = asked.config(**given)
    settings = settings_file.load(asked.home, base=asked.base)
    if asked.base is not None or "base" not in config:
        from_dict(PROGRAMS[asked.program], {**config, "base": settings.base})  # before a base is fetched for nothing
        config["base"] = _known_base(out, settings.base)
        if not config["base"]:
            with Console(stderr=True).status(f"base {settings.base}"):
                config["base"] = str(prepare_base(settings.base, settings.cache).absolute())
    finished = (out / run_files.CONFIG).is_file() and run_files.read(out).state == "done"
    with PhaseBars(asked.program) as bars:
        result = programs.alone(
            asked.program, config, out, bars.line, bars.note, program=(*programs.PROGRAM, *elsewhere)
        )
    if asked.as_json:
        print_json(result)
        return
    if finished:
        click.echo(f"{out} is already finished; nothing to do.")
    print_result(Console(), result)
    made = out / "checkpoint"
    click.echo(f"{made if made.exists() else out}")


def _storage(asked: Asked) -> str:
    """What every machine of the cluster reaches. Raises BadInput where a cluster elsewhere has none, or the address is none."""
    if asked.on != LOCAL and not str(asked.on).startswith("ray://"):
        raise BadInput(f"--on {asked.on} is no cluster; give ray://HOST:PORT, or {LOCAL}.")
    if asked.storage is None and asked.on != LOCAL:
        raise BadInput(
            f"--on {asked.on} needs --storage, a folder or an s3:// or gs:// address that this machine and the cluster reach."
        )
    return asked.storage or str((settings_file.load(asked.home).cache / "cluster").absolute())


def _known_base(out: Path, spec: str) -> str:
    """The base that a run in `out` was started with, where that was `spec`, else empty: continuing need not ask (and load torch) again."""
    from plaudit.loop import run_files

    if not (out / run_files.CONFIG).is_file():
        return ""
    folder = run_files.read(out).config.get("base", "")
    note = Path(folder) / "prepared.json"
    return str(folder) if note.is_file() and json.loads(note.read_text()).get("spec") == spec else ""


def _run_in_home(asked: Asked, opened: Home) -> None:
    """A Run of the store, here or left to the worker."""
    from plaudit.cli.figures import print_result
    from plaudit.cli.progress import PhaseBars
    from plaudit.loop import pipeline
    from plaudit.loop import train as stage

    wanted = {"id": asked.snapshot} if asked.snapshot else {}
    frozen = opened.store.find(SnapshotRecord, project_id=opened.project_id, **wanted)
    if not frozen:
        raise NotFound(f"There is no Snapshot {asked.snapshot or 'yet'}; make one with `plaudit snapshot freeze`.")
    record, folder = frozen[-1], opened.settings.home / "runs"
    gone = record.tainted_at or record.purged_at
    if gone is not None:
        raise Refused(f"Snapshot {record.id} holds what was erased on {gone:%Y-%m-%d}; freeze a new one first.")
    lineage = {"snapshot_id": record.id}
    config = asked.config(snapshot=record.folder)
    said = NEWEST_CHECKPOINT if asked.reward is not None else config.get("reward", NEWEST_CHECKPOINT)
    if _takes(asked.program, "reward") and with_newest(said, "") != said:
        reward = _reward(opened, asked.reward)
        config["reward"], lineage["parent_id"] = with_newest(said, reward.folder), reward.id
    config["base"] = str(pipeline.base_folder(opened.settings.home))
    from_dict(PROGRAMS[asked.program], config)
    if asked.queue:
        run = stage.enqueue(opened.store, opened.project_id, asked.program, config, lineage, folder, utc_now())
        click.echo(f"{run.id} is {run.state}.")
        return
    with PhaseBars(asked.program) as bars:
        run = stage.run_training(
            opened.store,
            opened.project_id,
            asked.program,
            config,
            lineage,
            folder,
            None,
            bars.line,
            utc_now(),
            on_note=bars.note,
        )
    if asked.as_json:
        print_json({"run": run.id, **run.outputs})
        return
    made = run.outputs.get("checkpoint_id")
    click.echo(f"{made}  {run.folder}/checkpoint" if made else f"{run.id}  {run.folder}")
    print_result(Console(), run.outputs["result"])


def _takes(program: str, name: str) -> bool:
    return name in {entry.name for entry in fields(PROGRAMS[program])}


def _reward(opened: Home, wanted: str | None) -> Checkpoint:
    """The reward Checkpoint with this id, else the newest. Raises NotFound."""
    found = opened.store.find(Checkpoint, project_id=opened.project_id)
    chosen = [c for c in found if c.kind == CheckpointKind.REWARD and wanted in (None, c.id)]
    if not chosen:
        raise NotFound(f"There is no reward Checkpoint {wanted or 'yet'}; train one with `plaudit train reward`.")
    return chosen[-1]


def _there(path: Path) -> Path:
    if not path.exists():
        raise NotFound(f"There is no file or folder {str(path)!r}.")
    return path.absolute()


def _checkpoint_or_text(said: str) -> str:
    """A run folder means the Checkpoint in it; what is no folder is left to the config (a function of one's own, say)."""
    folder = Path(said)
    if not folder.is_dir():
        return said
    return str((folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder).absolute())


for _program in PROGRAMS:
    if _program != "score":  # `plaudit score`
        train.add_command(_command(_program))
