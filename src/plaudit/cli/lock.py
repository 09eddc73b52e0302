"""One `plaudit up` per home, or one for each role in it: advisory locks, which the kernel lets go of however their holder ends.

Who serves all holds HOME/lock alone. Who serves some roles shares it, and holds a HOME/lock-ROLE alone for each. A file says who holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from plaudit.errors import AlreadyRunning
from plaudit.settings import ROLES

ALL = "lock"


@contextmanager
def held(home: Path, says: dict[str, Any], roles: Collection[str] = ROLES) -> Iterator[None]:
    """Hold the home, for these roles, while the block runs. Raises AlreadyRunning naming the process that holds it."""
    home.mkdir(parents=True, exist_ok=True)
    own = [ALL] if set(roles) == set(ROLES) else [f"{ALL}-{role}" for role in sorted(roles)]
    with ExitStack() as locks:
        if ALL not in own:
            locks.enter_context(_locked(home, ALL, fcntl.LOCK_SH))
        for name in own:
            descriptor = locks.enter_context(_locked(home, name, fcntl.LOCK_EX))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), **says}).encode(), 0)
        yield


def holder(home: Path) -> dict[str, Any] | None:
    """What the running holder wrote ({pid, service, policy}), the first one where there are several; None where nobody holds the home."""
    for name in (ALL, *(f"{ALL}-{role}" for role in ROLES)):
        try:
            descriptor = os.open(home / name, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(home / name)
        finally:
            os.close(descriptor)
    return None


@contextmanager
def _locked(home: Path, name: str, how: int) -> Iterator[int]:
    descriptor = os.open(home / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _read(home / name) if name != ALL else holder(home) or {}
            where = f" at {other['service']}" if other.get("service") else ""
            raise AlreadyRunning(
                f"Plaudit already runs on {home} as process {other.get('pid', '?')}{where}; "
                "stop that one first, or give another --home and --port."
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _read(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
