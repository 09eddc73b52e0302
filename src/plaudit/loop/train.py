"""Runs: one execution of a step, done once per key; and the training programs, which are Runs in a process of their own.

A Run's key hashes what it does (step, code version, config, inputs). Whoever claims it holds a lease; a finished one is returned as it is; one
whose holder died is taken over and continues in the same folder, where the program finds its last saved state.

`run_training` launches `python -m plaudit.learn STEP RUN_FOLDER`, follows its `metrics.jsonl`, and registers the Checkpoint it wrote.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import plaudit.errors
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
from plaudit.errors import Conflict, PlauditError, TrainingStopped
from plaudit.store.database import Store

Step = Literal["reward", "ppo", "sft", "score"]
KINDS: Mapping[str, CheckpointKind] = {
    "reward": CheckpointKind.REWARD,
    "ppo": CheckpointKind.POLICY,
    "sft": CheckpointKind.POLICY,
}
PROGRAM = (sys.executable, "-m", "plaudit.learn")
CODE_VERSION = "1"  # raised where a step would compute something else from the same inputs
LEASE = timedelta(seconds=30)
_POLL_S = 0.05
# Becomes the program after asking Linux to kill it when we die (a preexec_fn could deadlock: the worker has threads).
_BOUND_TO_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def run_key(step: str, config: Mapping[str, Any], inputs: Mapping[str, Any], code_version: str = CODE_VERSION) -> str:
    """What makes two Runs the same: sha256 over step, code version, config and inputs."""
    return artifacts.sha256_of([step, code_version, dict(config), dict(inputs)])


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
    store: Store, project_id: str, step: Step, config: Json, inputs: Json, runs_folder: Path, now: datetime
) -> Run:
    """Leave a training Run to the worker; the Run with the same key where there is one."""
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
    step: Step,
    config: Json,
    inputs: Json,
    runs_folder: Path,
    key: str | None,
    on_progress: Callable[[Json], None] | None,
    now: datetime,
    *,
    turn: int = 0,
    program: tuple[str, ...] = PROGRAM,
    owner: str | None = None,
    stop: threading.Event | None = None,
) -> Run:
    """Run one learn program to its end and register what it made; the Run's outputs are `checkpoint_id` and the figures of `result.json`.

    `config`: fields of `learn.configs.PROGRAMS[step]`. `inputs`: ids the Run depends on (lineage; `parent_id` goes into the Checkpoint).
    `on_progress` gets every line of metrics.jsonl, after a resume also those of the attempt before. Raises the program's own
    PlauditError, TrainingStopped where it died otherwise, Conflict while another process does it. Interrupted, or told to `stop` (then
    KeyboardInterrupt), it ends the program and gives the lease back.
    """
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
        code = _launch(store, claimed, (*program, step, str(folder)), folder, on_progress, stop)
        if code != 0:
            raise _failure(step, folder, code)
        outputs, checkpoints = _harvest(project_id, step, claimed, folder)
    except PlauditError as error:
        fail(store, claimed, error.message, utc_now())
        raise
    except BaseException:
        give_back(store, claimed, utc_now())
        raise
    return finish(store, claimed, outputs, utc_now(), *checkpoints)


# --- inside ------------------------------------------------------------------------------------------------------------


def _launch(
    store: Store,
    run: Run,
    command: tuple[str, ...],
    folder: Path,
    on_progress: Callable[[Json], None] | None,
    stop: threading.Event | None,
) -> int:
    """The exit code. Keeps the lease alive, hands on metrics as they come; the program never outlives this call."""
    with _folder_lock(folder) as lock, (folder / "stderr.log").open("wb") as errors:
        process = subprocess.Popen(
            (sys.executable, "-I", "-S", "-c", _BOUND_TO_PARENT, str(os.getpid()), *command),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            pass_fds=(lock,),  # the folder stays locked as long as the program lives, whatever becomes of us
        )
        try:
            read, renewed = (0, 0), time.monotonic()
            while True:
                code = process.poll()
                read = _follow(folder / "metrics.jsonl", read, on_progress)
                if code is not None:
                    return code
                if stop is not None and stop.is_set():
                    raise KeyboardInterrupt
                if time.monotonic() - renewed > LEASE.total_seconds() / 3:
                    renew(store, run, utc_now())
                    renewed = time.monotonic()
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def _folder_lock(folder: Path) -> Iterator[int]:
    """One program in a run folder. A program whose parent was just killed gets a moment to die."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + 5
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Conflict(f"Another program still works in {folder}; end it, then run this again.") from None
                time.sleep(_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _follow(path: Path, read: tuple[int, int], on_progress: Callable[[Json], None] | None) -> tuple[int, int]:
    """Hand on complete lines that are new; (inode, position) to go on from. A resumed program writes the file anew: it is read again."""
    if on_progress is None or not path.is_file():
        return read
    with path.open("rb") as file:
        inode = os.fstat(file.fileno()).st_ino
        position = read[1] if inode == read[0] else 0
        file.seek(position)
        block = file.read()
    end = block.rfind(b"\n") + 1
    for line in block[:end].splitlines():
        if line.strip():
            on_progress(json.loads(line))
    return inode, position + end


def _failure(step: str, folder: Path, code: int) -> PlauditError:
    """The program's own error where it left one (exit code 2, last line of stderr as JSON), else where to look."""
    log = folder / "stderr.log"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if code == 2:
        try:
            raw = json.loads(last)
            return _error_of(raw["code"], raw["message"])
        except (ValueError, KeyError, TypeError):
            pass  # not the program's sentence; fall through to the general one
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return TrainingStopped(
        f"Training step {step} {how} ({last or 'no message'}); its log is {log}; run it again to resume."
    )


def _error_of(code: str, message: str) -> PlauditError:
    classes = {
        kind.code: kind
        for kind in vars(plaudit.errors).values()
        if isinstance(kind, type) and issubclass(kind, PlauditError)
    }
    return classes.get(code, TrainingStopped)(message)


def _harvest(project_id: str, step: str, run: Run, folder: Path) -> tuple[Json, list[Checkpoint]]:
    """Figures and the Checkpoint row. Raises Corrupt or NotFound where the folder is not what the program should have left."""
    result = folder / "result.json"
    figures = _without_curves(json.loads(result.read_text())) if result.is_file() else {}
    if step not in KINDS:
        return {"result": figures}, []
    manifest = artifacts.verify(folder / "checkpoint", "checkpoint")
    checkpoint = Checkpoint(
        id=new_id(Checkpoint),
        project_id=project_id,
        kind=KINDS[step],
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
