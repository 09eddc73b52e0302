"""Two projects of one installation, made and kept apart by commands alone."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from plaudit.cli.main import plaudit
from plaudit.domain import ApiKey, Feedback, Project, utc_now
from plaudit.errors import BadInput, Conflict, NotFound
from plaudit.loop import govern, projects, release
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store
from plaudit.web.app import create_app

LOGGED = {"messages": [{"role": "user", "content": "hi"}], "responses": ["hello"], "user": "u"}


def opened(home: Path) -> closing[Store]:
    return closing(open_store(f"sqlite:///{home / 'store.sqlite'}"))


def run(home: Path, *words: str) -> dict:
    done = CliRunner().invoke(plaudit, [*words, "--home", str(home), "--json"])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.output.splitlines()[-1])


def test_two_projects_by_command_line_see_nothing_of_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        release.register_base(store, govern.ensure_project(store, utc_now()).id, "base-1", "fake:", utc_now())
    made = run(tmp_path, "project", "create", "shop", "--rating-max", "10", "--training-use", "denied")
    assert (made["model"], made["rating_max"], made["training_use_default"]) == ("base-1", 10, "denied")
    keys = {
        name: run(tmp_path, "--project", name, "key", "create", "app", "--role", "application")
        for name in ("default", "shop")
    }
    monkeypatch.setenv("PLAUDIT_PROJECT", "shop")
    assert [one["id"] for one in run(tmp_path, "key", "list")["keys"]] == [keys["shop"]["id"]]
    monkeypatch.delenv("PLAUDIT_PROJECT")
    with (
        opened(tmp_path) as store,
        TestClient(create_app(Settings(home=tmp_path), store)) as client,
    ):
        headers = {name: {"authorization": f"Bearer {one['secret']}"} for name, one in keys.items()}
        said = client.post("/v1/interactions", json=LOGGED, headers=headers["shop"]).json()["id"]
        rating = {"interaction_id": said, "kind": "rating", "value": 9}
        assert (
            client.post("/v1/feedback", json=rating, headers=headers["default"]).status_code == 422
        )  # off its own scale
        assert client.post("/v1/feedback", json={**rating, "value": 3}, headers=headers["default"]).status_code == 404
        assert client.post("/v1/feedback", json=rating, headers=headers["shop"]).status_code == 201
        refused = client.post("/v1/feedback", json={**rating, "value": 11}, headers=headers["shop"])
        assert (refused.status_code, "11; give a whole number from 1 to 10" in refused.text) == (422, True)
        assert [one.project_id for one in store.find(Feedback)] == [made["id"]]
    counted = {one["name"]: (one["keys"], one["interactions"]) for one in run(tmp_path, "project", "list")["projects"]}
    assert counted == {"default": (1, 0), "shop": (1, 1)}


def test_a_scale_holds_once_something_was_rated_on_it(tmp_path: Path) -> None:
    run(tmp_path, "project", "create", "shop")
    assert run(tmp_path, "--project", "shop", "project", "set", "--rating-max", "7")["rating_max"] == 7
    with opened(tmp_path) as store:
        shop = projects.find(store, "shop")
        assert (shop.rating_min, shop.rating_max) == (1, 7)
        govern.verify_audit(store, shop.id)
        with TestClient(create_app(Settings(home=tmp_path), store)) as client:
            secret = govern.create_key(store, shop.id, "k", ["application"], now=utc_now())[1]
            headers = {"authorization": f"Bearer {secret}"}
            said = client.post("/v1/interactions", json=LOGGED, headers=headers).json()["id"]
            client.post("/v1/feedback", json={"interaction_id": said, "kind": "rating", "value": 7}, headers=headers)
    with pytest.raises(Conflict, match="scale from 1 to 7"):
        run(tmp_path, "--project", "shop", "project", "set", "--rating-max", "5")
    assert (
        run(tmp_path, "--project", "shop", "project", "set", "--training-use", "denied")["training_use_default"]
        == "denied"
    )
    assert run(tmp_path, "project", "set", "--rating-max", "3")["name"] == "default"


def test_what_cannot_be_a_project_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "project", "create", "shop")
    for words, kind, said in (
        (("project", "create", "shop"), Conflict, "already"),
        (("project", "create", " "), BadInput, "name"),
        (("project", "create", "x", "--rating-min", "5"), BadInput, "from 5 to 5"),
        (("--project", "shoop", "key", "list"), NotFound, "there are: default, shop"),
    ):
        with pytest.raises(kind, match=said):
            run(tmp_path, *words)
    with opened(tmp_path) as store:
        assert (store.count(Project), store.count(ApiKey)) == (2, 0)
