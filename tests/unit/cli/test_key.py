from __future__ import annotations

import json
from datetime import UTC, datetime

from click.testing import CliRunner

from plaudit.cli.key import key
from plaudit.domain import ApiKey
from plaudit.errors import BadInput, NotFound
from plaudit.loop import govern
from plaudit.store.database import open_store


def run(home, *arguments: str):
    return CliRunner().invoke(key, [*arguments, "--home", str(home)])


def test_a_key_is_made_shown_once_listed_and_revoked(tmp_path) -> None:
    made = json.loads(run(tmp_path, "create", "shop", "--role", "application", "--json").output)
    run(tmp_path, "create", "ann", "--role", "annotator", "--role", "lead", "--person", "Ann")
    store = open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    found = govern.find_key(store, made["secret"])
    assert found is not None
    assert (found.id, found.roles) == (made["id"], ("application",))
    listed = run(tmp_path, "list", "--json").output
    assert made["secret"] not in listed
    rows = json.loads(listed)["keys"]
    assert [(row["name"], row["roles"], row["person"]) for row in rows] == [
        ("shop", ["application"], None),
        ("ann", ["annotator", "lead"], "Ann"),
    ]
    assert [row["last_used_at"] for row in rows] == [None, None]
    govern.record_use(store, {made["id"]: datetime(2026, 3, 1, 12, tzinfo=UTC)})
    assert json.loads(run(tmp_path, "list", "--json").output)["keys"][0]["last_used_at"] == "2026-03-01T12:00:00+00:00"
    assert "shop" in run(tmp_path, "list").output
    assert run(tmp_path, "revoke", made["id"]).exit_code == 0
    assert govern.find_key(store, made["secret"]) is None
    assert store.get(ApiKey, made["id"]).revoked_at is not None
    store.close()


def test_what_cannot_be_made_or_found_says_so(tmp_path) -> None:
    assert run(tmp_path, "create", "x", "--role", "king").exit_code == 2
    assert isinstance(run(tmp_path, "create", "x", "--role", "annotator").exception, BadInput)
    assert isinstance(run(tmp_path, "revoke", "key_0").exception, NotFound)
