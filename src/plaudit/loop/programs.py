"""A learn program as a process: started on a run folder, followed by its `metrics.jsonl`, ended with us, its own error read.

`launch` is what a Run of the store and a run folder without one (`alone`) share. The folder says all: config.json goes in, and what a
program leaves is read by `run_files`. Each program is a process of its own, or one of many in a `Resident`'s.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import plaudit.errors
from plaudit import artifacts
from plaudit.domain import Json
from plaudit.errors import ConfigError, Conflict, PlauditError, TrainingStopped
from plaudit.learn.configs import PROGRAMS, from_dict, to_dict
from plaudit.loop import run_files

PROGRAM = (sys.executable, "-m", "plaudit.learn")
Follow = Callable[[Json], None]
_POLL_S = 0.05
_BOUND = sys.platform == "linux"  # a program ends with us
# Becomes the program after asking Linux to kill it when we die (a preexec_fn could deadlock: the worker has threads).
_BOUND_TO_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def alone(
    name: str,
    config: Json,
    folder: Path,
    on_progress: Follow | None,
    on_note: Follow | None = None,
    *,
    program: tuple[str, ...] = PROGRAM,
) -> Json:
    """Run the learn program `name` in `folder` to its end, without a store; returns `result.json`.

    An interrupted run goes on, a finished one is returned as it is. `on_progress` gets every line of metrics.jsonl, `on_note` what the
    program is at between them. Raises ConfigError (config; or the folder was started with another one), Conflict (something works in
    it, or it is another program's), the program's own PlauditError, TrainingStopped where it died otherwise.
    """
    resolved = to_dict(from_dict(PROGRAMS[name], config))
    if (folder / run_files.CONFIG).is_file():
        _same(name, resolved, run_files.read(folder))
    elif folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty and no run folder; give --out a folder that does not exist yet.")
    else:
        artifacts.write_atomic(folder / run_files.CONFIG, json.dumps(resolved, indent=1) + "\n")
    if run_files.read(folder).state != "done":
        code = launch(program, name, folder, on_progress, on_note, lambda: None)
        if code != 0:
            raise failure(name, folder, code)
    result = run_files.read(folder).result
    if result is None:
        raise TrainingStopped(
            f"{folder} ended without a result.json; its log is {folder / 'stderr.log'}; run it again."
        )
    return result


class Resident:
    """One process (`python -m plaudit.learn stay`) that runs programs one after another, so that their imports, 2 to 3 s of CPU, are paid once.
    It starts at the first program, and again after one ended it. For one thread; `rest` now and then, `close` at last."""

    def __init__(self, program: tuple[str, ...] = PROGRAM) -> None:
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._used = 0.0

    def rest(self, idle_s: float = 60.0) -> None:
        """End the process where nothing was asked of it for a while: it holds half a gigabyte."""
        if self._process is not None and time.monotonic() - self._used >= idle_s:
            self.close()

    def close(self) -> None:
        if self._process is not None:
            with self._process as process:  # closes its pipes and waits
                process.kill()
            self._process = None

    def launch(
        self,
        name: str,
        folder: Path,
        on_progress: Follow | None,
        on_note: Follow | None,
        beat: Callable[[], None],
    ) -> int:
        """As the function `launch`."""
        process = self._started()
        code = None

        def answer() -> int | None:
            said = process.stdout.read()  # type: ignore[union-attr]
            return int(said) if said else process.poll()

        try:
            with _folder_lock(folder):
                process.stdin.write(json.dumps([name, str(folder)]).encode() + b"\n")  # type: ignore[union-attr]
                code = _follow(answer, folder, on_progress, on_note, beat)
            return code
        finally:
            self._used = time.monotonic()
            if code is None:  # interrupted
                self.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = _started((*self.program, "stay"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            os.set_blocking(self._process.stdout.fileno(), False)  # type: ignore[union-attr]
        return self._process


Program = tuple[str, ...] | Resident


def launch(
    program: Program,
    name: str,
    folder: Path,
    on_progress: Follow | None,
    on_note: Follow | None,
    beat: Callable[[], None],
) -> int:
    """The exit code of the program `name` in `folder`. Hands on metrics as they come and calls `beat` about 20 times a second; what it raises
    ends the program, which never outlives this call. Raises Conflict while another program works in the folder."""
    if isinstance(program, Resident):
        if _BOUND:
            return program.launch(name, folder, on_progress, on_note, beat)
        program = program.program  # elsewhere it could outlive us, and the folder's lock
    with _folder_lock(folder) as lock, (folder / "stderr.log").open("wb") as errors:
        process = _started(
            (*program, name, str(folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(lock,),  # the folder stays locked as long as the program lives, whatever becomes of us
        )
        try:
            return _follow(process.poll, folder, on_progress, on_note, beat)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def failure(name: str, folder: Path, code: int) -> PlauditError:
    """The program's own error where it left one (exit code 2, last line of stderr as JSON), else where to look."""
    error = run_files.last_error(folder)
    if code == 2 and error is not None:
        return _error_of(*error)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log = folder / "stderr.log"
    last = run_files.last_line(log) or "no message"
    return TrainingStopped(f"Training step {name} {how} ({last}); its log is {log}; run it again to resume.")


# --- inside ------------------------------------------------------------------------------------------------------------


def _started(command: tuple[str, ...], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen((sys.executable, "-I", "-S", "-c", _BOUND_TO_PARENT, str(os.getpid()), *command), **options)


def _follow(
    ended: Callable[[], int | None],
    folder: Path,
    on_progress: Follow | None,
    on_note: Follow | None,
    beat: Callable[[], None],
) -> int:
    """Hand on what a program writes until it has `ended`; its exit code."""
    tail, told = run_files.Tail(folder / run_files.METRICS), None
    while True:
        code = ended()
        if on_progress is not None:
            for line in tail.new():
                on_progress(line)
        if on_note is not None and (note := run_files.read_note(folder)) not in (None, told):
            told = note
            on_note(note)
        if code is not None:
            return code
        beat()
        time.sleep(_POLL_S)


@contextmanager
def _folder_lock(folder: Path) -> Iterator[int]:
    """One program in a run folder. A program whose parent was just killed gets a moment to die."""
    descriptor = os.open(folder / run_files.LOCK, os.O_RDWR | os.O_CREAT, 0o644)
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
        (folder / run_files.NOTE).unlink(missing_ok=True)  # of an attempt that was killed
        yield descriptor
    finally:
        os.close(descriptor)


def _same(name: str, config: Json, there: run_files.RunFiles) -> None:
    """Raises unless the folder was started by this program with this config."""
    if there.program not in (None, name):
        raise Conflict(f"{there.folder} holds a run of {there.program}, not of {name}; give another --out.")
    before = there.resolved(name)
    for key in config:
        if before[key] != config[key]:
            raise ConfigError(
                f"{there.folder} was started with {key} = {json.dumps(before[key])}, not {json.dumps(config[key])}; "
                "give another --out, or what it was started with."
            )


def _error_of(code: str, message: str) -> PlauditError:
    classes = {
        kind.code: kind
        for kind in vars(plaudit.errors).values()
        if isinstance(kind, type) and issubclass(kind, PlauditError)
    }
    return classes.get(code, TrainingStopped)(message)
