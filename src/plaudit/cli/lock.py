"""One `plaudit up` per home: an advisory lock on HOME/lock, which the kernel lets go of however its holder ends. The file says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plaudit.errors import AlreadyRunning


@contextmanager
def held(home: Path, says: dict[str, Any]) -> Iterator[None]:
    """Hold the home while the block runs. Raises AlreadyRunning naming the process that holds it."""
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _read(home)
            where = f" at {other['service']}" if other.get("service") else ""
            raise AlreadyRunning(
                f"Plaudit already runs on {home} as process {other.get('pid', '?')}{where}; "
                "stop that one first, or give another --home and --port."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), **says}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(home: Path) -> dict[str, Any] | None:
    """What the running holder wrote ({pid, service, policy}), or None where nobody holds the home."""
    try:
        descriptor = os.open(home / "lock", os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(home)
    finally:
        os.close(descriptor)
    return None


def _read(home: Path) -> dict[str, Any]:
    try:
        said = json.loads((home / "lock").read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
