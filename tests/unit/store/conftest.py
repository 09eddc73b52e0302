"""Every test that asks for `url` or `store` runs on SQLite and on PostgreSQL; what only one of them has asks for `sqlite_url` or `postgres_url`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plaudit.store.database import Store, open_store


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.sqlite'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Of an empty database."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, with_schema: Callable[[Path], str]) -> str:
    """Of what `store` has open."""
    if request.param == "sqlite":
        return with_schema(tmp_path / "store.sqlite")
    return str(request.getfixturevalue("postgres_store_url"))


@pytest.fixture
def other_url(store_url: str, request: pytest.FixtureRequest) -> str:
    """Of an empty database of the other kind than that of `store`."""
    return str(request.getfixturevalue("postgres_url" if store_url.startswith("sqlite") else "other_sqlite_url"))


@pytest.fixture
def other_sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'other.sqlite'}"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    yield opened
    opened.close()
