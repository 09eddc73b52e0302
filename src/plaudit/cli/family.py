"""Processes that belong together: a parent keeps its children alive and takes them along, a child ends with the parent that started it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx

from plaudit.errors import Unavailable

HEALTH_S = 180.0  # a large base model takes its time to load
STOP_S = 10.0
MAX_FALLS = 5  # within FALLS_S
FALLS_S = 60.0
POLL_S = 0.5
GRACE_S = 10.0

# --- the parent's side -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Child:
    """A process to keep. `command` is asked again at each start: what the policy server holds changes with the ledger."""

    name: str
    command: Callable[[], Sequence[str]]
    health: str | None  # URL that answers 200 when it is well; None: well as long as it lives


@dataclass
class _Running:
    child: Child
    process: subprocess.Popen[bytes]
    falls: list[float] = field(default_factory=list)  # when it fell


class Family:
    """Children with a log file each, in sessions of their own, so that Ctrl-C reaches this process alone."""

    def __init__(self, logs: Path, stop: threading.Event, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = {**os.environ, **environment}
        self._stop = stop
        self._running: list[_Running] = []

    def start(self, child: Child) -> None:
        self._running.append(_Running(child, self._launch(child)))

    def wait_until_healthy(self) -> None:
        """Raises Unavailable with the end of its log where a child falls or stays silent. Returns early when told to stop."""
        deadline = time.monotonic() + HEALTH_S
        for one in self._running:
            while not self._stop.is_set() and not _well(one):
                if one.process.poll() is not None:
                    raise Unavailable(f"The {one.child.name} ended at its start: {self._last_words(one.child)}")
                if time.monotonic() > deadline:
                    raise Unavailable(f"The {one.child.name} does not answer: {self._last_words(one.child)}")
                self._stop.wait(0.1)

    def watch(self) -> None:
        """Until told to stop: start again what falls. Raises Unavailable for a child that keeps falling."""
        while not self._stop.wait(0.3):
            for one in self._running:
                if one.process.poll() is None:
                    continue
                now = time.monotonic()
                one.falls = [*(moment for moment in one.falls if now - moment < FALLS_S), now]
                if len(one.falls) > MAX_FALLS:
                    raise Unavailable(f"The {one.child.name} keeps falling: {self._last_words(one.child)}")
                click.echo(
                    f"plaudit: the {one.child.name} ended ({one.process.returncode}); starting it again.", err=True
                )
                self._stop.wait(min(2.0 ** len(one.falls) / 4, 5.0))
                if not self._stop.is_set():
                    one.process = self._launch(one.child)

    def stop(self) -> None:
        """Ask all to end, wait, end them."""
        for one in self._running:
            if one.process.poll() is None:
                one.process.terminate()
        deadline = time.monotonic() + STOP_S
        for one in self._running:
            try:
                one.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()

    def _launch(self, child: Child) -> subprocess.Popen[bytes]:
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._log(child).open("ab") as log:
            return subprocess.Popen(
                list(child.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment,
            )

    def _log(self, child: Child) -> Path:
        return self._logs / f"{child.name}.log"

    def _last_words(self, child: Child) -> str:
        log = self._log(child)
        return f"{last_sentence(log.read_text(errors='replace'))} (all of it: {log})"


def _well(one: _Running) -> bool:
    if one.child.health is None:
        return one.process.poll() is None
    try:
        return httpx.get(one.child.health, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def last_sentence(said: str) -> str:
    """The last line that a program of ours said: the message where it is {"code", "message"}."""
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    try:
        return str(json.loads(last)["message"])
    except (ValueError, KeyError, TypeError):
        return last


# --- the child's side --------------------------------------------------------------------------------------------------


def parent_option(command: Any) -> Any:
    """`--parent PID`: end with that process."""
    return click.option("--parent", type=int, default=None, hidden=True)(command)


def end_with(parent: int | None, grace_s: float = GRACE_S) -> None:
    """Watch the parent from a thread; when it is gone ask this process to stop, and end it where it does not within `grace_s`."""
    if parent is not None:
        threading.Thread(target=_watch, args=(parent, grace_s), name="parent-watch", daemon=True).start()


def _watch(parent: int, grace_s: float) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(1)


def told_to_stop(*signals: signal.Signals) -> threading.Event:
    """An Event that these signals set, from a thread: a handler runs between two steps of the main thread, and where those are of
    Event.wait it would wait for ever for the lock that the main thread holds."""
    stop, told = threading.Event(), queue.SimpleQueue[None]()
    for number in signals:
        signal.signal(number, lambda *_: told.put(None))

    def hand_on() -> None:
        told.get()
        stop.set()

    threading.Thread(target=hand_on, name="told-to-stop", daemon=True).start()
    return stop
