"""store copy, backup and restore, as a person types them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from plaudit.cli.main import plaudit
from plaudit.domain import Checkpoint, CheckpointKind, Person, Project
from plaudit.errors import Conflict
from plaudit.store.copy import contents
from plaudit.store.database import open_store

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(plaudit, list(arguments))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    store = open_store(f"sqlite:///{folder / 'store.sqlite'}")
    store.add(
        Project(id="prj_default", project_id="prj_default", name="default", created_at=NOW),
        Person(id="per_1", project_id="prj_default", name="ann", created_at=NOW),
    )
    store.close()
    return folder


def test_a_store_moves_and_says_what_went(home: Path, postgres_url: str) -> None:
    source = f"sqlite:///{home / 'store.sqlite'}"
    done = run("store", "copy", "--from", source, "--to", postgres_url)
    assert done.exit_code == 0, done.output
    assert "1  people" in done.output
    assert "2 rows copied. Set store_url" in done.output
    target = open_store(postgres_url)
    assert target.get(Person, "per_1").name == "ann"
    said = contents(target)
    target.close()
    assert isinstance(run("store", "copy", "--from", source, "--to", postgres_url).exception, Conflict)
    back = run("store", "copy", "--from", postgres_url, "--to", f"sqlite:///{home / 'back.sqlite'}", "--json")
    assert json.loads(back.output)["people"] == {"n_rows": 1, "sha256": said["people"].sha256}


def test_a_home_goes_into_a_file_and_comes_back(home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("PLAUDIT_STORE_URL", raising=False)
    far = tmp_path / "far"
    far.mkdir()
    store = open_store(f"sqlite:///{home / 'store.sqlite'}")
    store.add(
        Checkpoint(
            id="ckp_1",
            project_id="prj_default",
            kind=CheckpointKind.POLICY,
            folder=str(far),
            sha256="f",
            base="b",
            created_at=NOW,
        )
    )
    store.close()
    file, again = tmp_path / "b.tar", tmp_path / "again"
    made = run("backup", str(file), "--home", str(home))
    assert made.exit_code == 0, made.output
    assert "3 rows, 1 files" in made.output
    assert f"outside of the home: {far}" in made.output
    restored = run("restore", str(file), "--home", str(again), "--json")
    assert json.loads(restored.output)["n_rows"] == 3
    assert restored.stderr == ""
    store = open_store(f"sqlite:///{again / 'store.sqlite'}")
    assert store.get(Person, "per_1").name == "ann"
    store.close()
    monkeypatch.setenv("PLAUDIT_STORE_URL", "sqlite:////elsewhere")
    warned = run("restore", str(file), "--home", str(tmp_path / "third"))
    assert "PLAUDIT_STORE_URL is set to 'sqlite:////elsewhere', where these rows are not" in warned.stderr
