"""`plaudit export`: finds a Checkpoint, starts the program, says what came out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from plaudit.cli import export as command
from plaudit.cli.main import plaudit
from plaudit.domain import Checkpoint, CheckpointKind, Evaluation, GateVerdict, utc_now
from plaudit.errors import BadInput, NotFound
from plaudit.loop import govern
from plaudit.store.database import open_store


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What the command would start; the program itself has its own tests."""
    seen = []

    def run(argv, **_):
        seen.append(argv)
        summary = {"folder": argv[-1], "kind": "policy", "form": argv[-2], "how": "vllm serve PATH"}
        return type("Done", (), {"returncode": 0, "stdout": f"noise\n{json.dumps(summary)}\n", "stderr": ""})

    monkeypatch.setattr(command.subprocess, "run", run)
    monkeypatch.setattr(command, "prepare_base", lambda spec, cache: tmp_path / "bases" / spec)
    return seen


def invoke(*arguments):
    return CliRunner().invoke(plaudit, ["export", *map(str, arguments)], catch_exceptions=True)


def test_a_run_folder_and_its_checkpoint_are_the_same_thing(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my-run" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    for given in (tmp_path / "my-run", folder):
        done = invoke(given, "--as", "merged", "--base", "tiny", "--home", tmp_path / "home", "--json")
        assert json.loads(done.output)["folder"] == "my-run-merged"
        assert started[-1][2:] == [
            "plaudit.learn", "export", str(folder), str(tmp_path / "bases" / "tiny"), "merged", "my-run-merged",
        ]  # fmt: skip
    done = invoke(folder, "--as", "peft", "--out", tmp_path / "out", "--home", tmp_path / "home")
    assert started[-1][-2:] == ["peft", str(tmp_path / "out")]
    assert "vllm serve" in done.output


def test_an_unknown_checkpoint_is_said(started, tmp_path):
    done = invoke("chk_nobody", "--as", "peft", "--home", tmp_path / "home")
    assert isinstance(done.exception, NotFound)
    assert "chk_nobody" in str(done.exception)
    assert started == []


def test_what_the_program_refuses_is_its_own_sentence(started, tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text("{}")
    said = 'a hint\n{"code": "bad_input", "message": "It pools mean."}\n'
    failed = type("Done", (), {"returncode": 2, "stdout": "", "stderr": said})
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: failed)
    done = invoke(tmp_path, "--as", "merged", "--home", tmp_path / "home")
    assert isinstance(done.exception, BadInput)
    assert str(done.exception) == "It pools mean."


def test_by_its_id_the_card_gets_what_the_newest_gate_saw(started, tmp_path, monkeypatch):
    store = open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    project = govern.ensure_project(store, utc_now()).id
    facts = {"project_id": project, "created_at": utc_now()}
    store.add(
        Checkpoint(
            id="ckp_1", kind=CheckpointKind.POLICY, folder=str(tmp_path / "f"), sha256="5" * 64, base="b", **facts
        )
    )
    for id, gate in (("evl_1", GateVerdict.FAIL), ("evl_2", GateVerdict.PASS), ("evl_3", None)):
        figures = {"win_rate": {"mean": 0.5}, "of": id}
        store.add(
            Evaluation(id=id, checkpoint_id="ckp_1", against_id=None, suite="s", figures=figures, gate=gate, **facts)
        )
    store.close()
    handed, run = [], command.subprocess.run

    def reads(argv, **more):
        handed.append(json.loads(Path(argv[-1]).read_text()))
        return run(argv[:-1], **more)

    monkeypatch.setattr(command.subprocess, "run", reads)
    invoke("ckp_1", "--as", "peft", "--out", tmp_path / "out", "--home", tmp_path)
    (said,) = handed
    assert (said["id"], said["gate"], said["figures"]["of"]) == ("evl_2", "pass", "evl_2")
    assert started[0][4] == str(tmp_path / "f")
