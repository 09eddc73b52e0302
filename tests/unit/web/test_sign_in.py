from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta

import pytest

from plaudit.domain import Person
from plaudit.errors import Corrupt
from plaudit.web.sign_in import SIGNED_IN, Cookies, load_secret

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADA = Person(id="per_1", project_id="p", name="Ada", generation=3, created_at=NOW)


def test_a_cookie_names_person_and_generation_until_it_is_old() -> None:
    cookies = Cookies(b"s" * 32)
    value = cookies.mint(ADA, NOW)
    assert cookies.read(value, NOW + SIGNED_IN) == ("per_1", 3)
    assert cookies.read(value, NOW + SIGNED_IN + timedelta(seconds=1)) is None


def test_a_cookie_of_another_home_or_changed_anywhere_is_none() -> None:
    cookies = Cookies(b"s" * 32)
    value = cookies.mint(ADA, NOW)
    assert Cookies(b"t" * 32).read(value, NOW) is None
    assert Cookies(b"t" * 32).name != cookies.name
    for at in range(len(value)):
        changed = value[:at] + ("0" if value[at] != "0" else "1") + value[at + 1 :]
        assert cookies.read(changed, NOW) is None


def test_the_secret_is_made_once_and_its_owners_alone(tmp_path) -> None:
    secret = load_secret(tmp_path / "home")
    file = tmp_path / "home" / "keys" / "cookie.key"
    assert load_secret(tmp_path / "home") == secret == file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["cookie.key"]
    file.write_bytes(b"short")
    with pytest.raises(Corrupt, match="5 bytes"):
        load_secret(tmp_path / "home")
