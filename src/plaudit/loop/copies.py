"""Copies of Snapshots outside their folders: files that `plaudit export` wrote, and addresses that `plaudit snapshot freeze --to` copied a folder to.

The ledger is `copies.jsonl` beside the Snapshots' folders, so that an erasure (erasure.py) follows what it removes to wherever it went.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

LEDGER = "copies.jsonl"


@dataclass(frozen=True)
class Copy:
    """`place`: absolute path of a file, or with `whole` the address of a folder."""

    snapshot: str  # its sha256
    place: str
    whole: bool
    at: str


def remember(parent: Path, copy: Copy) -> None:
    """Write down a copy of a Snapshot of the folder `parent`. One that lies where nothing can be written is in no home, and no erasure's."""
    if not os.access(parent, os.W_OK):
        return
    line = json.dumps(asdict(copy), ensure_ascii=False) + "\n"
    descriptor = os.open(parent / LEDGER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remembered(parent: Path) -> list[Copy]:
    """Each place once, as it was written last."""
    file = parent / LEDGER
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return list({one.place: one for one in (Copy(**json.loads(line)) for line in lines)}.values())


def of_file(folder: Path, sha256: str, file: Path, now: datetime) -> None:
    """Remember that rows of the Snapshot in `folder` were written to `file`."""
    remember(folder.absolute().parent, Copy(sha256, str(file.absolute()), whole=False, at=now.isoformat()))


def of_folder(folder: Path, sha256: str, address: str, now: datetime) -> None:
    """Remember that the Snapshot's `folder` was copied to `address`."""
    remember(folder.absolute().parent, Copy(sha256, address, whole=True, at=now.isoformat()))
