"""Anchors: heads of the audit log, signed and kept outside the store, so that whoever can write the store still cannot rewrite its past.

    {"project_id", "seq", "sha256", "at", "previous", "signature"}      one line an anchor, appended, flushed to the disk

A signature is HMAC-SHA256 over the line and the signature of the line before, with a key of the home that only its owner may read. The chain
alone shows a changed, removed or reordered entry; the anchors show a cut tail and a chain that was written anew. What nobody can see: the
loss of the newest lines of this file together with the entries that they name, so keep it where the store's owner cannot delete (the setting
`audit_anchor`), and compare the head that `plaudit audit verify` prints with one from elsewhere. A HMAC and no public key: whoever verifies
holds the key, and no dependency is needed.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from plaudit.artifacts import canonical, write_secret
from plaudit.errors import Corrupt
from plaudit.loop.govern import EMPTY_CHAIN, AuditHead, verify_audit
from plaudit.store.audit import newest
from plaudit.store.database import Store

KEY = Path("keys") / "audit.key"
FILE = Path("audit") / "anchors.jsonl"


@dataclass(frozen=True)
class Anchor:
    """One line of the file."""

    project_id: str
    seq: int
    sha256: str
    at: str  # ISO 8601, UTC
    previous: str  # signature of the line before; empty in the first
    signature: str = ""

    @property
    def head(self) -> AuditHead:
        return AuditHead(self.seq, self.sha256)


@dataclass(frozen=True)
class Verified:
    """A log that is what was written. Entries after `anchored` are held by the chain alone."""

    head: AuditHead
    anchored: Anchor | None
    n_anchors: int


def file_of(home: Path, setting: str = "") -> Path:
    """Where the anchors are: the setting `audit_anchor`, else in the home."""
    return Path(setting).expanduser() if setting else home / FILE


def anchor(store: Store, project_id: str, home: Path, file: Path, now: datetime) -> Anchor | None:
    """Sign the log's head into `file`; None where it stands there already. Verifies everything first: a log that was tampered with gets no
    anchor. Raises Corrupt."""
    key = _key(home)
    with _opened(file) as opened:
        before = _read(opened.read(), file, key)
        mine = [one for one in before if one.project_id == project_id]
        with store.read() as tx:
            last = newest(tx, project_id)
        if (AuditHead(last.seq, last.sha256) if last else EMPTY_CHAIN) == (mine[-1].head if mine else EMPTY_CHAIN):
            return None
        head = verify_audit(store, project_id, *(one.head for one in mine))
        unsigned = Anchor(project_id, head.seq, head.sha256, now.isoformat(), before[-1].signature if before else "")
        made = Anchor(**{**asdict(unsigned), "signature": _sign(key, unsigned)})
        opened.write(canonical(asdict(made)) + b"\n")
        opened.flush()
        os.fsync(opened.fileno())
    return made


def verify(store: Store, project_id: str, home: Path, file: Path) -> Verified:
    """The whole log against every anchor. Raises Corrupt: an entry changed, removed, put in or moved; a tail cut; a chain written anew; an
    anchor changed or removed between others; the file or its key gone while the other one is there."""
    if not (home / KEY).is_file() and not file.is_file():
        return Verified(verify_audit(store, project_id), None, 0)
    if not file.is_file():
        raise Corrupt(f"{file} is missing although this home has signed anchors; restore it from a backup.")
    if not (home / KEY).is_file():
        raise Corrupt(f"{home / KEY}, which signed {file}, is missing; restore it from a backup.")
    whole = file.read_bytes()  # without a lock: a line that is being written has no end yet
    anchors = _read(whole[: whole.rfind(b"\n") + 1], file, _key(home))
    mine = [one for one in anchors if one.project_id == project_id]
    head = verify_audit(store, project_id, *(one.head for one in mine))
    return Verified(head, mine[-1] if mine else None, len(mine))


# --- inside ------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """The file for reading and appending, by one process at a time; what a crash left of a last line is cut off."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file.open("ab+") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        opened.seek(0)
        whole = opened.read()
        kept = whole.rfind(b"\n") + 1
        if kept < len(whole):
            opened.truncate(kept)
        opened.seek(0)
        yield opened


def _read(whole: bytes, file: Path, key: bytes) -> list[Anchor]:
    """Every line, its signature checked. Raises Corrupt."""
    found: list[Anchor] = []
    for place, line in enumerate(whole.splitlines(), 1):
        try:
            one = Anchor(**json.loads(line))
            previous = found[-1].signature if found else ""
            right = one.previous == previous and hmac.compare_digest(str(one.signature), _sign(key, one))
        except (ValueError, TypeError):
            right = False
        if not right:
            raise Corrupt(
                f"Line {place} of {file} does not carry our signature, or the line before it is gone; compare with a backup."
            )
        found.append(one)
    return found


def _sign(key: bytes, one: Anchor) -> str:
    return hmac.digest(key, canonical({**asdict(one), "signature": ""}), "sha256").hex()


def _key(home: Path) -> bytes:
    """Made at its first use; two processes that start at once take the first one's."""
    file = home / KEY
    if not file.exists():
        write_secret(file, secrets.token_hex(32))
    try:
        key = bytes.fromhex(file.read_text())
    except ValueError as error:
        raise Corrupt(f"{file} is not the key of an audit log ({error}); restore it from a backup.") from error
    if len(key) != 32:
        raise Corrupt(f"{file} holds {len(key)} bytes, not the 32 of a key; restore it from a backup.")
    return key
