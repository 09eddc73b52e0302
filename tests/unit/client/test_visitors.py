from __future__ import annotations

import pytest

from plaudit.client import visitor


def test_a_visitor_comes_back_as_the_same() -> None:
    first = visitor("our secret")
    assert first.new
    again = visitor("our secret", first.cookie)
    assert (again.user, again.cookie, again.new) == (first.user, first.cookie, False)
    assert visitor("our secret").user != first.user


@pytest.mark.parametrize("forge", [
    lambda one: "anon_" + "0" * 24 + "." + one.cookie.partition(".")[2],
    lambda one: one.user,
    lambda one: one.cookie[:-2],
    lambda one: "u-17." + one.cookie.partition(".")[2],
    lambda one: "é.ü",
    lambda one: "",
])  # fmt: skip
def test_nobody_chooses_who_they_are(forge) -> None:
    first = visitor("our secret")
    other = visitor("our secret", forge(first))
    assert other.new
    assert other.user not in (first.user, "u-17", "anon_" + "0" * 24)


def test_another_secret_knows_nobody() -> None:
    assert visitor("another", visitor("our secret").cookie).new
