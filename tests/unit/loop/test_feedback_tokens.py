from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plaudit.domain import FeedbackKind
from plaudit.errors import ConfigError, Corrupt, Unauthorized
from plaudit.loop.feedback_tokens import ALL_KINDS, FILE, LIFETIME, KeyRing, Ring, check, mint

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RING = Ring({"k2": b"s" * 32, "k1": b"t" * 32})


def test_a_token_says_what_it_was_minted_for_until_it_ends() -> None:
    token = mint(RING, "prj", "int_1", "ada", NOW, kinds=[FeedbackKind.THUMB])
    claims = check(RING, token, NOW + LIFETIME - timedelta(seconds=1))
    assert (claims.project_id, claims.interaction_id, claims.kinds) == ("prj", "int_1", {FeedbackKind.THUMB})
    assert (claims.key_id, claims.expires_at) == ("k2", NOW + LIFETIME)
    assert "ada" not in base64.urlsafe_b64decode(token.removeprefix("pft_").partition(".")[0] + "==").decode()
    assert check(RING, mint(RING, "prj", "int_1", None, NOW), NOW).kinds == ALL_KINDS
    with pytest.raises(Unauthorized, match="expired"):
        check(RING, token, NOW + LIFETIME)


def forged(token: str, **claims: object) -> str:
    said, _, signature = token.removeprefix("pft_").partition(".")
    raw = json.loads(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))
    other = base64.urlsafe_b64encode(json.dumps({**raw, **claims}).encode()).decode().rstrip("=")
    return f"pft_{other}.{signature}"


def test_whatever_was_not_signed_with_our_key_is_refused() -> None:
    token = mint(RING, "prj", "int_1", "ada", NOW)
    stranger = mint(Ring({"k2": b"x" * 32}), "prj", "int_1", "ada", NOW)
    for wrong in (
        stranger,
        mint(Ring({"k9": b"s" * 32}), "prj", "int_1", "ada", NOW),
        forged(token, i="int_2"),
        forged(token, e=2_000_000_000),
        forged(token, p="prj_2"),
        token[:-2],
        token + "x" * 3000,
        token.replace(".", ""),
        "pft_",
        "pft_!!.??",
        "pft_" + base64.urlsafe_b64encode(b"[" * 3000).decode() + ".x",
        "plk_" + token.removeprefix("pft_"),
    ):
        with pytest.raises(Unauthorized, match="not ours"):
            check(RING, wrong, NOW)


def test_keys_rotate_and_old_tokens_hold_until_their_key_has_rotated_out(tmp_path: Path) -> None:
    service, command = KeyRing(tmp_path), KeyRing(tmp_path)
    first = mint(service.current(), "prj", "int_1", None, NOW)
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    command.rotate()
    second = mint(service.current(), "prj", "int_1", None, NOW)  # the running service signs with the new key at once
    assert check(service.current(), first, NOW).key_id != check(service.current(), second, NOW).key_id
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    command.rotate()
    check(service.current(), first, NOW)
    command.rotate()
    with pytest.raises(Unauthorized, match="rotated out"):
        check(service.current(), first, NOW)
    check(service.current(), second, NOW)


def test_several_machines_share_a_ring_by_a_setting(tmp_path: Path) -> None:
    secret, older = "a" * 32, "b" * 40
    token = mint(KeyRing(tmp_path / "one", f"k1:{older}").current(), "prj", "int_1", None, NOW)
    other = KeyRing(tmp_path / "two", f"k2:{secret}, k1:{older}")
    assert check(other.current(), token, NOW).key_id == "k1"
    assert other.current().signing[0] == "k2"
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="feedback_keys"):
        other.rotate()
    for wrong in ("k1", "k1:short", ":" + secret):
        with pytest.raises(ConfigError, match="32 characters"):
            KeyRing(tmp_path, wrong)


def test_a_ring_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    KeyRing(tmp_path).current()
    (tmp_path / FILE).write_text("[[1]]")
    os.utime(tmp_path / FILE, ns=(1, 1))
    with pytest.raises(Corrupt, match=r"feedback\.json"):
        KeyRing(tmp_path).current()
