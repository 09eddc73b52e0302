from __future__ import annotations

import json
import socket

import pytest
from click.testing import CliRunner

from plaudit import artifacts
from plaudit.cli import doctor as module
from plaudit.cli import lock
from plaudit.cli.doctor import doctor, examine
from plaudit.domain import Checkpoint, CheckpointKind, Release, ReleaseState, utc_now
from plaudit.loop import govern, release
from plaudit.settings import Settings
from plaudit.store.database import open_store


def found(settings: Settings) -> dict[str, tuple[str, str]]:
    return {finding.topic: (finding.status, finding.detail) for finding in examine(settings)}


def test_an_empty_home_is_well_and_stays_empty(tmp_path) -> None:
    settings = Settings(home=tmp_path / "home", cache=tmp_path, base="tiny", port=free(), policy_port=free())
    findings = found(settings)
    assert {status for status, _ in findings.values()} <= {"ok", "warn"}
    assert findings["store"] == ("ok", f"none yet in {tmp_path / 'home'}; the first `plaudit up` makes it")
    assert set(findings) >= {
        "installation",
        "training",
        "model",
        "store",
        "running",
        "port",
        "policy_port",
        "cpu",
        "memory",
        "disk",
    }
    assert not (tmp_path / "home").exists()


def test_what_is_there_is_said(tmp_path) -> None:
    settings = Settings(home=tmp_path, cache=tmp_path, base="tiny")
    store = open_store(settings.database_url)
    govern.ensure_project(store, utc_now())
    release.register_base(store, "prj_default", "tiny", "http://x/v1", utc_now())
    store.close()
    (tmp_path / "tiny-1").mkdir()
    (tmp_path / "tiny-1" / "prepared.json").write_text("{}")
    with lock.held(tmp_path, {"service": "http://127.0.0.1:8484"}):
        findings = found(settings)
    assert "0 Interaction, 0 Feedback" in findings["store"][1]
    assert findings["release"] == ("ok", "live: tiny at http://x/v1")
    assert findings["model"] == ("ok", f"tiny is prepared in {tmp_path / 'tiny-1'}")
    assert findings["running"][1].endswith("serves http://127.0.0.1:8484")
    assert "port" not in findings  # it is ours


def test_a_taken_port_and_a_folder_that_is_no_model_are_found(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        findings = found(Settings(home=tmp_path, cache=tmp_path, base=str(tmp_path), port=port, policy_port=free()))
    assert findings["port"][0] == "warn"
    assert str(port) in findings["port"][1]
    assert findings["model"][0] == "fail"


def test_a_store_that_cannot_be_read_fails_and_sets_the_exit_code(tmp_path, monkeypatch) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"this is not a database " * 100)
    monkeypatch.setenv("PLAUDIT_BASE", "tiny")
    result = CliRunner().invoke(doctor, ["--home", str(tmp_path), "--json"])
    findings = {finding["topic"]: finding for finding in json.loads(result.output)["findings"]}
    assert findings["store"]["status"] == "fail"
    assert findings["store"]["detail"].startswith(f"{tmp_path / 'store.sqlite'} is no SQLite database")
    assert result.exit_code == 1


@pytest.mark.parametrize(("state", "status"), [(ReleaseState.CANDIDATE, "warn"), (ReleaseState.LIVE, "fail")])
def test_a_damaged_checkpoint_is_found(tmp_path, state, status) -> None:
    settings = Settings(home=tmp_path, cache=tmp_path, base="tiny", port=free(), policy_port=free())
    store = open_store(settings.database_url)
    project, now = govern.ensure_project(store, utc_now()), utc_now()
    folder = artifacts.new_folder(tmp_path, "ckp_1")
    (folder / "adapter.bin").write_text("weights")
    sha256 = artifacts.finish(folder, "checkpoint", {"checkpoint_kind": "policy"}).id
    made = {"project_id": project.id, "created_at": now}
    policy = CheckpointKind.POLICY
    store.add(Checkpoint(id="ckp_1", kind=policy, folder=str(folder), sha256=sha256, base="tiny", **made))
    store.add(
        Release(id="rel_1", checkpoint_id="ckp_1", model="m", upstream="fake:", state=state, state_at=now, **made)
    )
    store.close()
    assert "checkpoint" not in found(settings)
    (folder / "adapter.bin").write_text("other weights")
    said = found(settings)["checkpoint"]
    assert said[0] == status
    assert "rel_1" in said[1]
    assert "adapter.bin" in said[1]


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        ("model name\t: EPYC 7003\nflags\t\t: fpu avx2 sse\n", "EPYC 7003", {"fpu", "avx2", "sse"}),
        ("Features\t: fp asimd\n", None, {"fp", "asimd"}),
    ],
)
def test_cpu_features_are_read_on_both_kinds_of_linux(tmp_path, monkeypatch, text, name, flags) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / "cpuinfo")
    said, seen = module._cpu()
    assert seen == flags
    assert name is None or said == name


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
