"""Feedback tokens: a browser without an API key may say something about the one answer that it was given, and about nothing else.

    pft_<claims, base64url>.<HMAC-SHA256 of them, base64url>

The claims are the Interaction, its project, a hash of its actor, the kinds of feedback it is good for, the second at which it ends, and the
id of the key that signed it. So a token is checked without asking the store, before anything else of a request is believed. Keys rotate:
the first of a ring signs, all of it verify. The ring is the setting `feedback_keys` (several machines), else a file in the home that only
its owner may read; a running service sees a rotation at the next request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from plaudit.artifacts import canonical, write_secret
from plaudit.domain import FeedbackKind
from plaudit.errors import ConfigError, Corrupt, Unauthorized

PREFIX = "pft_"
LIFETIME = timedelta(days=1)
KEYS_KEPT = (
    3  # of the file's ring: what rotates out sooner than its tokens end would refuse users who did nothing wrong
)
FILE = Path("keys") / "feedback.json"
MAX_CHARS = 2000
ALL_KINDS = frozenset(FeedbackKind)


@dataclass(frozen=True)
class Claims:
    """What a token says, once its signature held."""

    interaction_id: str
    project_id: str
    actor_sha256: str | None
    kinds: frozenset[FeedbackKind]
    expires_at: datetime
    key_id: str


@dataclass(frozen=True)
class Ring:
    """Secrets by key id, the signing one first."""

    keys: Mapping[str, bytes]

    @property
    def signing(self) -> tuple[str, bytes]:
        return next(iter(self.keys.items()))


def actor_sha256(project_id: str, actor: str | None) -> str | None:
    """What stands for an actor where the pseudonym itself should not be read: in tokens and on tombstones."""
    return None if actor is None else hashlib.sha256(f"{project_id}/{actor}".encode()).hexdigest()


def mint(
    ring: Ring,
    project_id: str,
    interaction_id: str,
    actor: str | None,
    now: datetime,
    kinds: Collection[FeedbackKind] = ALL_KINDS,
    lifetime: timedelta = LIFETIME,
) -> str:
    """A token for one Interaction; needs nothing but the ring, so it can go out before the first byte of the answer."""
    key_id, secret = ring.signing
    claims = {
        "i": interaction_id,
        "p": project_id,
        "a": actor_sha256(project_id, actor),
        "k": "*" if frozenset(kinds) == ALL_KINDS else sorted(str(kind) for kind in kinds),
        "e": int((now + lifetime).timestamp()),
        "v": key_id,
    }
    said = _encode(canonical(claims))
    return f"{PREFIX}{said}.{_encode(_sign(secret, said))}"


def check(ring: Ring, token: str, now: datetime) -> Claims:
    """What the token allows. Raises Unauthorized: forged, signed with a key that has rotated out, or expired."""
    said, _, signature = token.removeprefix(PREFIX).partition(".")
    try:
        if not token.startswith(PREFIX) or len(token) > MAX_CHARS:
            raise ValueError
        raw = json.loads(_decode(said))
        secret = ring.keys.get(raw["v"])
        # A key that we do not have is compared too, so that the time taken does not tell which ids exist.
        right = hmac.compare_digest(_sign(secret or b"?", said), _decode(signature)) and secret is not None
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        right, raw = False, {}
    if not right:
        raise Unauthorized(
            "This feedback token is not ours or its key has rotated out; take the one that came with the answer."
        )
    claims = Claims(
        interaction_id=raw["i"],
        project_id=raw["p"],
        actor_sha256=raw["a"],
        kinds=ALL_KINDS if raw["k"] == "*" else frozenset(FeedbackKind(kind) for kind in raw["k"]),
        expires_at=datetime.fromtimestamp(raw["e"], UTC),
        key_id=raw["v"],
    )
    if now >= claims.expires_at:
        raise Unauthorized(
            f"This feedback token expired at {claims.expires_at:%Y-%m-%d %H:%M:%S} UTC; the answer is too old to rate."
        )
    return claims


class KeyRing:
    """The ring of an installation, read again when its file changes."""

    def __init__(self, home: Path, setting: str = "") -> None:
        """`setting`: `id:secret` pairs with commas, the signing one first; empty means the file in the home. Raises ConfigError."""
        self._file = home / FILE
        self._fixed = _from_setting(setting) if setting else None
        self._known: tuple[tuple[int, int], Ring] | None = None
        self._lock = threading.Lock()

    def current(self) -> Ring:
        """Made at its first use. Raises Corrupt where the file cannot be read."""
        if self._fixed is not None:
            return self._fixed
        stamp = _stamp(self._file)
        known = self._known
        if known is not None and known[0] == stamp:
            return known[1]
        with self._lock:
            if stamp is None:
                write_secret(self._file, json.dumps([_new_key()]))
                stamp = _stamp(self._file)
            ring = _read(self._file)
            self._known = (stamp or (0, 0), ring)
            return ring

    def rotate(self) -> str:
        """Sign with a new key from now on; the ones before verify until they rotate out. Returns its id. Raises ConfigError where the
        ring is a setting."""
        if self._fixed is not None:
            raise ConfigError(
                "The feedback keys are the setting feedback_keys; put a new id:secret first in it and restart the service."
            )
        before = list(self.current().keys.items())
        key = _new_key()
        kept = [key, *((id, secret.hex()) for id, secret in before)][:KEYS_KEPT]
        write_secret(self._file, json.dumps(kept), replace=True)
        return key[0]


def _from_setting(text: str) -> Ring:
    keys: dict[str, bytes] = {}
    for part in text.split(","):
        id, colon, secret = part.strip().partition(":")
        if not colon or not id or len(secret) < 32:
            raise ConfigError(
                "feedback_keys must be id:secret pairs with commas between them, each secret of 32 characters or more."
            )
        keys[id] = secret.encode()
    return Ring(keys)


def _new_key() -> tuple[str, str]:
    return f"k{secrets.token_hex(4)}", secrets.token_hex(32)


def _read(file: Path) -> Ring:
    try:
        return Ring({id: bytes.fromhex(secret) for id, secret in json.loads(file.read_text())})
    except (ValueError, TypeError) as error:
        raise Corrupt(f"{file} is not a ring of feedback keys ({error}); remove it to begin a new one.") from error


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _sign(secret: bytes, said: str) -> bytes:
    return hmac.digest(secret, said.encode(), "sha256")


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
