"""Runs: one execution of a step, done once per key; and the training programs, which are Runs in a process of their own.

A Run's key hashes what it does (step, code version, config, inputs). Whoever claims it holds a lease; a finished one is returned as it is; one
whose holder died is taken over and continues in the same folder, where the program finds its last saved state.

`run_training` has `programs` launch `python -m plaudit.learn STEP RUN_FOLDER` and follow it, and registers the Checkpoint it wrote.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from plaudit import artifacts
from plaudit.domain import (
    RUN_TRANSITIONS,
    Checkpoint,
    CheckpointKind,
    Json,
    Run,
    RunState,
    check_transition,
    new_id,
    utc_now,
)
from plaudit.errors import Conflict, PlauditError
from plaudit.learn.configs import function_names
from plaudit.loop import programs, run_files
from plaudit.store.database import Store

PROGRAM = programs.PROGRAM
CODE_VERSION = "1"  # raised where a step would compute something else from the same inputs
LEASE = timedelta(seconds=30)


def run_key(step: str, config: Mapping[str, Any], inputs: Mapping[str, Any], code_version: str = CODE_VERSION) -> str:
    """What makes two Runs the same: sha256 over step, code version, config and inputs."""
    return artifacts.sha256_of([step, code_version, dict(config), dict(inputs)])


def with_sources(config: Mapping[str, Any], inputs: Mapping[str, Any]) -> Json:
    """`inputs`, and the sha256 of the file of each own function that the config's reward names; as they are where it names none.

    A file is found where the program will import it from, without importing anything; "" where it is not: the program says why.
    """
    names = function_names(config.get("reward"))
    return {**inputs, "functions": {name: _source_sha256(name) for name in names}} if names else dict(inputs)


def _source_sha256(function: str) -> str:
    importlib.invalidate_caches()  # a file may be younger than the last look at its folder
    places, found = [str(Path.cwd()), *sys.path], None
    parts = function.partition(":")[0].split(".")
    for depth in range(len(parts)):
        found = PathFinder.find_spec(".".join(parts[: depth + 1]), places)
        if found is None:
            return ""
        places = list(found.submodule_search_locations or [])
    origin = found.origin if found is not None else None
    return artifacts.sha256_file(Path(origin)) if origin is not None and Path(origin).is_file() else ""


def claim(
    store: Store,
    project_id: str,
    step: str,
    key: str,
    config: Json,
    inputs: Json,
    owner: str,
    now: datetime,
    turn: int = 0,
    folder: Path | None = None,
) -> Run:
    """The Run with this key: DONE as it is, else RUNNING and leased to `owner`. Raises Conflict while another owner's lease lives."""
    with store.write() as tx:
        run = tx.first(Run, project_id=project_id, key=key)
        if run is None:
            run = Run(
                id=new_id(Run),
                project_id=project_id,
                step=step,
                key=key,
                turn=turn,
                config=config,
                inputs=inputs,
                folder=str(folder / key[:16]) if folder else None,
                created_at=now,
            )
            tx.add(run)
        if run.state == RunState.DONE:
            return run
        held = run.state == RunState.RUNNING and run.lease_expires_at is not None and run.lease_expires_at > now
        if held and run.owner != owner:
            raise Conflict(
                f"Run {run.id} ({step}) is being done by {run.owner} until {run.lease_expires_at:%H:%M:%S} UTC."
            )
        check_transition(RUN_TRANSITIONS, run.state, RunState.RUNNING, f"Run {run.id}")
        return tx.change(
            Run,
            run.id,
            {"state": run.state, "attempt": run.attempt},
            state=RunState.RUNNING,
            owner=owner,
            lease_expires_at=now + LEASE,
            attempt=run.attempt + 1,
            started_at=now,
            finished_at=None,
            error=None,
        )


def enqueue(
    store: Store, project_id: str, step: str, config: Json, inputs: Json, runs_folder: Path, now: datetime
) -> Run:
    """Leave a training Run to the worker; the Run with the same key where there is one."""
    inputs = with_sources(config, inputs)
    key = run_key(step, config, inputs)
    with store.write() as tx:
        known = tx.first(Run, project_id=project_id, key=key)
        if known is not None:
            return known
        run = Run(
            id=new_id(Run),
            project_id=project_id,
            step=step,
            key=key,
            turn=0,
            config=config,
            inputs=inputs,
            folder=str(runs_folder / key[:16]),
            created_at=now,
        )
        tx.add(run)
        return run


def renew(store: Store, run: Run, now: datetime) -> None:
    """Another lease period. Raises Conflict where the Run was taken over: stop at once."""
    store.change(Run, run.id, {"attempt": run.attempt, "state": RunState.RUNNING}, lease_expires_at=now + LEASE)


def give_back(store: Store, run: Run, now: datetime) -> None:
    """End the lease of an unfinished Run, so that the next claim need not wait for it. One taken over meanwhile stays the taker's."""
    with store.write() as tx:
        mine = tx.get(Run, run.id)
        if mine.attempt == run.attempt and mine.state == RunState.RUNNING:
            tx.change(Run, run.id, {"attempt": run.attempt}, lease_expires_at=now)


def finish(store: Store, run: Run, outputs: Json, now: datetime, *registered: Any) -> Run:
    """DONE with its outputs, together with the rows it registers. Raises Conflict where the Run was taken over."""
    with store.write() as tx:
        tx.add(*registered)
        return tx.change(
            Run,
            run.id,
            {"attempt": run.attempt, "state": RunState.RUNNING},
            state=RunState.DONE,
            outputs=outputs,
            finished_at=now,
        )


def fail(store: Store, run: Run, error: str, now: datetime) -> Run:
    """FAILED with the sentence that says why; the same key may be claimed again."""
    return store.change(
        Run,
        run.id,
        {"attempt": run.attempt, "state": RunState.RUNNING},
        state=RunState.FAILED,
        error=error,
        finished_at=now,
    )


def read_scores(run: Run) -> list[Json]:
    """The lines of a finished `score` Run, in the order of its input: id, index, n_tokens, and its measures."""
    return [json.loads(line) for line in (Path(str(run.folder)) / "scores.jsonl").read_text().splitlines()]


def new_owner() -> str:
    """A name for this process, in leases."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


def run_training(
    store: Store,
    project_id: str,
    step: str,
    config: Json,
    inputs: Json,
    runs_folder: Path,
    key: str | None,
    on_progress: Callable[[Json], None] | None,
    now: datetime,
    *,
    turn: int = 0,
    program: programs.Program = PROGRAM,
    owner: str | None = None,
    stop: threading.Event | None = None,
    on_note: Callable[[Json], None] | None = None,
) -> Run:
    """Run one learn program to its end and register what it made; the Run's outputs are `checkpoint_id` and the figures of `result.json`.

    `config`: fields of `learn.configs.PROGRAMS[step]`. `inputs`: ids the Run depends on (lineage; `parent_id` goes into the Checkpoint);
    the source of own reward functions is added (`with_sources`), so that a changed function is another Run.
    `on_progress` gets every line of metrics.jsonl, after a resume also those of the attempt before; `on_note` what the program is at
    between them. Raises the program's own PlauditError, TrainingStopped where it died otherwise, Conflict while another process does
    it. Interrupted, or told to `stop` (then KeyboardInterrupt), it ends the program and gives the lease back.
    """
    inputs = with_sources(config, inputs)
    claimed = claim(
        store,
        project_id,
        step,
        key or run_key(step, config, inputs),
        config,
        inputs,
        owner or new_owner(),
        now,
        turn,
        runs_folder,
    )
    if claimed.state == RunState.DONE:
        return claimed
    assert claimed.folder is not None
    folder = Path(claimed.folder)
    try:
        artifacts.write_atomic(folder / "config.json", json.dumps(config, indent=1, sort_keys=True))
        code = programs.launch(program, step, folder, on_progress, on_note, _alive(store, claimed, stop))
        if code != 0:
            raise programs.failure(step, folder, code)
        outputs, checkpoints = _harvest(project_id, step, claimed, folder)
    except PlauditError as error:
        fail(store, claimed, error.message, utc_now())
        raise
    except BaseException:
        give_back(store, claimed, utc_now())
        raise
    return finish(store, claimed, outputs, utc_now(), *checkpoints)


# --- inside ------------------------------------------------------------------------------------------------------------


def _alive(store: Store, run: Run, stop: threading.Event | None) -> Callable[[], None]:
    """What happens while the program works: the lease is kept; told to `stop`, KeyboardInterrupt."""
    renewed = time.monotonic()

    def beat() -> None:
        nonlocal renewed
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if time.monotonic() - renewed > LEASE.total_seconds() / 3:
            renew(store, run, utc_now())
            renewed = time.monotonic()

    return beat


def _harvest(project_id: str, step: str, run: Run, folder: Path) -> tuple[Json, list[Checkpoint]]:
    """Figures and the Checkpoint row. Raises Corrupt or NotFound where the folder is not what the program should have left."""
    result = folder / "result.json"
    figures = _without_curves(json.loads(result.read_text())) if result.is_file() else {}
    if step in run_files.WITHOUT_CHECKPOINT:
        return {"result": figures}, []
    manifest = artifacts.verify(folder / "checkpoint", "checkpoint")
    checkpoint = Checkpoint(
        id=new_id(Checkpoint),
        project_id=project_id,
        kind=CheckpointKind(manifest.body["checkpoint_kind"]),
        folder=str(folder / "checkpoint"),
        sha256=manifest.id,
        base=str(run.config.get("base", "")),
        run_id=run.id,
        parent_id=run.inputs.get("parent_id"),
        metrics=figures,
        created_at=utc_now(),
    )
    return {"checkpoint_id": checkpoint.id, "result": figures}, [checkpoint]


def _without_curves(value: Json) -> Json:
    """Headline figures: numbers, texts and nested objects of them; lists (curves, bins) stay in result.json."""
    return {
        name: _without_curves(part) if isinstance(part, dict) else part
        for name, part in value.items()
        if not isinstance(part, list)
    }
