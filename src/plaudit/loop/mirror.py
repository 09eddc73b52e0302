"""One way to MLflow: what the ledger knows of Runs, Checkpoints and Releases, for people who look there. Nothing is ever read back from it.

    Run         -> a run: fields of its config, the figures of metrics.jsonl, its outputs, card and small files
    Checkpoint  -> a version of the registered model PREFIX-PROJECT-KIND, with gate, lineage and sha256 as tags
    Release     -> aliases of that model: `champion` is what is live, `challenger` the canary

Each pass compares and writes what differs, so a second one writes nothing. How far it has come stands in tags there and nowhere here: an MLflow
that lost its database is filled again, what somebody changed in it is put back, and a pass that broke off goes on. Scoring Runs are left
out: they make nothing, and monitors start one for every window of traffic.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from plaudit import artifacts
from plaudit.domain import CheckpointKind, Json, Project, Run, RunState, SnapshotRecord
from plaudit.errors import BadInput, NotFound, PlauditError
from plaudit.loop import registry, run_files, train
from plaudit.loop.mlflow_server import MAX_METRICS, MAX_PARAMS, MAX_VALUE, MlflowServer, key
from plaudit.store.database import Store

ID, STATE, LINES, LINEAGE = "plaudit.id", "plaudit.state", "plaudit.lines", "plaudit.lineage"
LEFT_OUT = ("score",)
STATUS = {
    RunState.QUEUED: "SCHEDULED",
    RunState.RUNNING: "RUNNING",
    RunState.DONE: "FINISHED",
    RunState.FAILED: "FAILED",
    RunState.CANCELLED: "KILLED",
}
ENDED = (RunState.DONE, RunState.FAILED, RunState.CANCELLED)
# What lies in a Checkpoint and says what it is. Not result.json of the run: it quotes what people wrote.
SHOWN_FILES = (".md", ".svg", ".json")
SMALL_BYTES = 1_000_000


@dataclass(frozen=True)
class Wrote:
    """What one pass changed in MLflow. `problems` are sentences about what it could not take; a later pass tries again."""

    runs: int = 0  # made, or brought to another state
    metrics: int = 0  # points
    files: int = 0
    versions: int = 0
    tags: int = 0  # of versions that were there
    aliases: int = 0
    problems: tuple[str, ...] = ()

    def to_dict(self) -> Json:
        return asdict(self)

    @property
    def nothing(self) -> bool:
        return self == Wrote()


class _Pass:
    """One comparison of one project: the server, what was found there, and what was written."""

    def __init__(self, store: Store, project: Project, server: MlflowServer, prefix: str) -> None:
        self.store, self.project, self.server = store, project, server
        self.name = re.sub(r"[^\w.-]+", "-", f"{prefix}-{project.name}")
        self.wrote: Counter[str] = Counter()
        self.problems: list[str] = []
        self.runs: dict[str, Json] = {}  # id of a Run -> its run there


def mirror(store: Store, project: Project, server: MlflowServer, prefix: str) -> Wrote:
    """Bring MLflow up to date with the ledger. Raises Unavailable where it does not answer: what was written until then stays and counts."""
    now = _Pass(store, project, server, prefix)
    experiment = server.experiment(now.name)
    now.runs = _known_runs(server, experiment)
    snapshots = store.find(SnapshotRecord, project_id=project.id)
    for run in store.find(Run, project_id=project.id):
        if run.step not in LEFT_OUT:
            try:
                _run(now, experiment, run, snapshots)
            except (BadInput, NotFound, OSError, ValueError) as error:
                now.problems.append(f"run {run.id}: {error}")
    _versions(now)
    return Wrote(**now.wrote, problems=tuple(now.problems))


# --- runs --------------------------------------------------------------------------------------------------------------


def _known_runs(server: MlflowServer, experiment: str) -> dict[str, Json]:
    """Ours by the Run's id. Where two workers made the same one at once, all agree on which of them goes."""
    found: dict[str, Json] = {}
    for one in sorted(server.runs(experiment), key=lambda run: str(run["run_id"])):
        id = one["tags"].get(ID)
        if id in found:
            server.delete_run(one["run_id"])
        elif id is not None:
            found[id] = one
    return found


def _run(now: _Pass, experiment: str, run: Run, snapshots: list[SnapshotRecord]) -> None:
    state = f"{run.state} {run.attempt}"
    there = now.runs.get(run.id)
    if there is not None and there["tags"].get(STATE) == state and run.state in ENDED:
        return
    lines = _lines(run)
    n_sent, sent = _sent(there)
    if there is not None and _digest(lines[:n_sent]) != sent:  # it was resumed before the end of what had been sent
        now.server.delete_run(there["run_id"])
        there = None
    if there is None:
        tags = _tags(run, snapshots)
        name = f"{run.step} {run.turn}" if run.turn else run.step
        there = now.server.create_run(experiment, name, _ms(run.created_at), tags)
        now.runs[run.id], n_sent = there, 0
        params = {key(*path): value for path, value in _leaves(run.config)}
        for start in range(0, len(params), MAX_PARAMS):
            now.server.log(there["run_id"], params=dict(list(params.items())[start : start + MAX_PARAMS]))
    _send_lines(now, there["run_id"], run, lines, n_sent)
    if there["tags"].get(STATE) == state:
        return
    if run.state == RunState.DONE:
        figures = [(key(*path), value) for path, value in _leaves(run.outputs) if _is_number(value)]
        _send_metrics(now, there["run_id"], [_metric(name, value, _ms(run.finished_at), 0) for name, value in figures])
        _send_files(now, there, run)
    now.server.update_run(there["run_id"], STATUS[run.state], _ms(run.finished_at) if run.finished_at else None)
    last = {STATE: state, "plaudit.error": run.error or ""}
    now.server.log(there["run_id"], tags=last)
    there["tags"] |= last
    now.wrote["runs"] += 1


def _tags(run: Run, snapshots: list[SnapshotRecord]) -> Json:
    given = [one.sha256 for one in snapshots if registry.given(run, one)]
    known = train.run_key(run.step, run.config, run.inputs) == run.key
    return {
        ID: run.id,
        "plaudit.step": run.step,
        "plaudit.turn": run.turn,
        "plaudit.key": run.key,
        "plaudit.config_sha256": artifacts.sha256_of(run.config),
        "plaudit.snapshot": " ".join(given),
        "plaudit.code_version": train.CODE_VERSION if known else "another",
        "mlflow.source.name": "plaudit",
    }


def _lines(run: Run) -> list[bytes]:
    """The complete lines of its metrics.jsonl so far."""
    path = Path(run.folder) / run_files.METRICS if run.folder else None
    if path is None or not path.is_file():
        return []
    block = path.read_bytes()
    return block[: block.rfind(b"\n") + 1].splitlines()


def _sent(there: Json | None) -> tuple[int, str]:
    """How many lines are there, and their digest."""
    n, _, digest = (there["tags"].get(LINES, "") if there else "").partition(" ")
    return (int(n), digest) if n.isdigit() else (0, _digest([]))


def _digest(lines: list[bytes]) -> str:
    return hashlib.sha256(b"\n".join(lines)).hexdigest()[:16]


def _send_lines(now: _Pass, run_id: str, run: Run, lines: list[bytes], n_sent: int) -> None:
    """Figures of the lines after the first `n_sent`, with the tag that says how far they go, in one request each."""
    at_ms = _ms(run.created_at)
    batch: list[Json] = []
    for i, line in enumerate(lines):
        said = json.loads(line)
        at_ms += round(1000 * float(said["seconds"]))
        if i < n_sent:
            continue
        phase, step = str(said["phase"]), int(said["step"])
        figures = [
            (path, value) for path, value in _leaves(said) if path[0] not in run_files.LINE and _is_number(value)
        ]
        found = [_metric(key(phase, *path), value, at_ms, step) for path, value in figures]
        if batch and len(batch) + len(found) > MAX_METRICS:
            _send_metrics(now, run_id, batch, {LINES: f"{i} {_digest(lines[:i])}"})
            batch = []
        batch += found
    if len(lines) > n_sent:
        _send_metrics(now, run_id, batch, {LINES: f"{len(lines)} {_digest(lines)}"})


def _send_metrics(now: _Pass, run_id: str, metrics: list[Json], tags: Json | None = None) -> None:
    for start in range(0, max(len(metrics), 1), MAX_METRICS):
        part, last = metrics[start : start + MAX_METRICS], start + MAX_METRICS >= len(metrics)
        if part or tags:
            now.server.log(run_id, part, tags=tags if last else None)
            now.wrote["metrics"] += len(part)


def _send_files(now: _Pass, there: Json, run: Run) -> None:
    """Card, pictures and manifest of its Checkpoint, and the config with every field."""
    if not run.folder:
        return
    resolved, made = Path(run.folder) / run_files.RESOLVED, Path(run.folder) / "checkpoint"
    names = sorted(artifacts.read_manifest(made).files) if (made / artifacts.MANIFEST).is_file() else []
    shown = [made / name for name in (*names, artifacts.MANIFEST) if name.endswith(SHOWN_FILES)] if names else []
    for path in (resolved, *shown):
        if path.is_file() and path.stat().st_size <= SMALL_BYTES:
            name = path.name if path == resolved else f"checkpoint/{path.relative_to(made)}"
            now.server.put_file(there["artifact_uri"], name, path.read_bytes())
            now.wrote["files"] += 1


# --- versions and aliases ----------------------------------------------------------------------------------------------


def _versions(now: _Pass) -> None:
    """A version for each Checkpoint, oldest first, with the tags of today, and the aliases of the policies."""
    ours = registry.versions(now.store, now.project.id)
    for kind in CheckpointKind:
        mine = [one for one in ours if one.checkpoint.kind == kind]
        if not mine:
            continue
        model = f"{now.name}-{kind}"
        try:
            aliases = now.server.aliases(model)
        except NotFound:
            now.server.create_model(model, f"Checkpoints of kind {kind} of the Plaudit project {now.project.name}.")
            aliases = {}
        there = {one["tags"].get(ID): one for one in now.server.versions(model)}
        numbers: dict[str, str] = {}
        for one in mine:
            try:
                numbers[one.checkpoint.id] = _version(now, model, one, there.get(one.checkpoint.id))
            except (BadInput, NotFound) as error:
                now.problems.append(f"checkpoint {one.checkpoint.id}: {error}")
        if kind == CheckpointKind.POLICY:
            _aliases(now, model, aliases, numbers)


def _version(now: _Pass, model: str, one: registry.Version, there: Json | None) -> str:
    """Its number there, which is not always ours: a version that somebody deleted comes back with a new one."""
    tags = _version_tags(one)
    if there is None:
        run = now.runs.get(one.checkpoint.run_id or "")
        run_id = str(run["run_id"]) if run else None
        source = f"runs:/{run_id}/checkpoint" if run_id else f"plaudit:/{one.checkpoint.id}"
        now.wrote["versions"] += 1
        return now.server.create_version(
            model, source, run_id, f"{one.name} of Plaudit", {**tags, LINEAGE: _lineage(now, one)}
        )
    version = str(there["version"])
    if LINEAGE not in there["tags"]:
        tags[LINEAGE] = _lineage(now, one)
    for name, value in tags.items():
        if there["tags"].get(name) != value:
            now.server.tag_version(model, version, name, value)
            now.wrote["tags"] += 1
    return version


def _version_tags(one: registry.Version) -> dict[str, str]:
    made = one.checkpoint
    return {
        ID: made.id,
        "plaudit.version": one.name,
        "plaudit.sha256": made.sha256,
        "plaudit.base": made.base,
        "plaudit.gate": str(one.evaluation.gate) if one.evaluation else "not judged",
        "plaudit.releases": ", ".join(f"{release.id} {release.state}" for release in one.releases) or "none",
        "plaudit.content": "purged" if made.purged_at else "tainted" if made.tainted_at else "whole",
    }


def _lineage(now: _Pass, one: registry.Version) -> str:
    """Checkpoints, Runs and Snapshots that it rests on, with their facts, as JSON; what comes later (evaluations, approvals) has tags of its own."""
    try:
        nodes = registry.lineage(now.store, now.project.id, one.checkpoint.id)
    except (PlauditError, OSError) as error:
        return f"cannot be told: {error}"
    kept = [asdict(node) for node in nodes if node.kind in ("checkpoint", "run", "snapshot")]
    said = json.dumps(kept, sort_keys=True, default=str)
    short = [{name: node[name] for name in ("id", "kind", "rests_on")} for node in kept]
    return said if len(said) <= MAX_VALUE else json.dumps(short, sort_keys=True)


def _aliases(now: _Pass, model: str, there: Mapping[str, str], numbers: Mapping[str, str]) -> None:
    """As the ledger has it now. The base model has no version, so while it is live nothing is champion."""
    for alias, release in registry.aliases(now.store, now.project.id).items():
        wanted = numbers.get(release.checkpoint_id or "") if release else None
        if wanted == there.get(alias):
            continue
        if wanted is None:
            now.server.remove_alias(model, alias)
        else:
            now.server.set_alias(model, alias, wanted)
        now.wrote["aliases"] += 1


# --- figures -----------------------------------------------------------------------------------------------------------


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of everything in nested objects that is none; lists are values."""
    for name, part in value.items():
        if isinstance(part, dict):
            yield from _leaves(part, (*path, str(name)))
        else:
            yield (*path, str(name)), part


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric(name: str, value: float, at_ms: int, step: int) -> Json:
    return {"key": name, "value": value, "timestamp": at_ms, "step": step}


def _ms(at: datetime | None) -> int:
    return int(at.timestamp() * 1000) if at is not None else 0
