"""`plaudit audit` and `plaudit registry` on a home: what they print, their JSON twins, exit code 1 where something does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plaudit import artifacts
from plaudit.cli.audit import audit
from plaudit.cli.registry import registry
from plaudit.domain import AuditEntry, Checkpoint, CheckpointKind, new_id, utc_now
from plaudit.loop import govern, release
from plaudit.store.database import Store, open_store
from plaudit.store.schema import TABLES


@pytest.fixture
def store(tmp_path: Path, with_schema: Any) -> Any:
    opened = open_store(with_schema(tmp_path / "store.sqlite"))
    project = govern.ensure_project(opened, utc_now())
    release.register_base(opened, project.id, "base", "fake:", utc_now())
    yield opened
    opened.close()


def run(command: Any, home: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, [*words, "--home", str(home)], catch_exceptions=False, standalone_mode=False)
    return (done.return_value if isinstance(done.return_value, int) else done.exit_code), done.output


def test_audit(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "elsewhere" / "heads.jsonl"
    monkeypatch.setenv("PLAUDIT_AUDIT_ANCHOR", str(file))
    code, said = run(audit, tmp_path, "verify")
    assert (code, "1 entries, whole" in said, "Nothing is anchored yet" in said) == (0, True, True)
    assert f"Entry 1 is anchored in {file}" in run(audit, tmp_path, "anchor")[1]
    assert "already" in run(audit, tmp_path, "anchor")[1]
    found = json.loads(run(audit, tmp_path, "verify", "--json")[1])
    assert (found["whole"], found["head"]["seq"], found["anchored"]["seq"], found["n_anchors"]) == (True, 1, 1, 1)
    with store.write() as tx:
        tx.connection.execute(TABLES[AuditEntry].delete())
    code, said = run(audit, tmp_path, "verify")
    assert (code, "its tail was cut" in said) == (1, True)
    code, said = run(audit, tmp_path, "verify", "--json")
    assert (code, json.loads(said)["whole"]) == (1, False)


def test_registry(store: Store, tmp_path: Path) -> None:
    folder = artifacts.new_folder(tmp_path / "runs", "ckp_1")
    (folder / "weights.bin").write_text("w")
    manifest = artifacts.finish(folder, "checkpoint", {"checkpoint_kind": "policy"})
    made = Checkpoint(
        id=new_id(Checkpoint), project_id="prj_default", kind=CheckpointKind.POLICY, folder=str(folder),
        sha256=manifest.id, base="tiny", created_at=utc_now(),
    )  # fmt: skip
    store.add(made)
    offered = release.create_candidate(store, "prj_default", made.id, "turn-1", "fake:", utc_now())
    listed = json.loads(run(registry, tmp_path, "list", "--json")[1])
    assert [one["version"] for one in listed["versions"]] == ["policy/1"]
    assert (listed["aliases"]["champion"]["model"], listed["aliases"]["challenger"]) == ("base", None)
    assert "champion: base" in run(registry, tmp_path, "list")[1]
    assert json.loads(run(registry, tmp_path, "show", "policy/1", "--json")[1])["sha256"] == manifest.id
    assert made.id in run(registry, tmp_path, "show", offered.id)[1]
    nodes = json.loads(run(registry, tmp_path, "lineage", offered.id, "--json")[1])["nodes"]
    assert [(node["kind"], node["rests_on"]) for node in nodes] == [("release", [made.id]), ("checkpoint", [])]
    assert f"release {offered.id}" in run(registry, tmp_path, "lineage", "policy/1")[1]
    assert run(registry, tmp_path, "verify") == (0, "1 of 1 artifacts are what was registered.\n")
    (folder / "weights.bin").write_text("x")
    code, said = run(registry, tmp_path, "verify", "policy/1")
    assert (code, "weights.bin" in said, "0 of 1" in said) == (1, True, True)
    assert json.loads(run(registry, tmp_path, "verify", "--json")[1])["whole"] is False
