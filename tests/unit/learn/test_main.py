"""`python -m plaudit.learn`: exit codes, the last line of stderr, idempotence, and kill -9 at any moment."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from plaudit.artifacts import PreferenceRow, write_snapshot
from plaudit.learn import __main__ as program
from plaudit.learn.configs import PROGRAMS
from plaudit.learn.run_folder import read_jsonl


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(base folder, Snapshot folder) of 24 pairs."""
    from plaudit.learn import base_models

    parent = tmp_path_factory.mktemp("world")
    rows = [
        PreferenceRow(
            preference_id=f"p{i}", comparison_id=f"c{i}", criterion="overall", family=f"f{i}",
            split="valid" if i % 4 == 3 else "train", messages=({"role": "user", "content": f"say {i}"},),
            chosen="aeiou " * (1 + i % 3), rejected="tnshr " * (1 + i % 2), probability=0.8, weight=1.0, source="annotation",
        )
        for i in range(24)
    ]  # fmt: skip
    return base_models.prepare("tiny", parent), write_snapshot(parent, rows, [], [], {}, {}).folder


def write_run(folder, world, **config):
    folder.mkdir(exist_ok=True)
    base, snapshot = world
    raw = {"base": str(base), "snapshot": str(snapshot), "baselines": False, "batch_pairs": 2, "epochs": 2} | config
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def last_error(capsys):
    return json.loads(capsys.readouterr().err.splitlines()[-1])


def test_a_run_finishes_once(tmp_path, world, capsys):
    folder = write_run(tmp_path / "run", world)
    assert program.main(["reward", str(folder)]) == 0
    assert capsys.readouterr().out.strip().endswith("is done.")
    assert (folder / "result.json").is_file()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert program.main(["reward", str(folder)]) == 0
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_users_mistake_is_one_json_line_and_exit_2(tmp_path, world, capsys):
    assert program.main(["reward", str(tmp_path / "nowhere")]) == 2
    assert last_error(capsys)["code"] == "not_found"
    folder = write_run(tmp_path / "run", world, epoch=3)
    assert program.main(["reward", str(folder)]) == 2
    error = last_error(capsys)
    assert error["code"] == "config_error"
    assert "did you mean 'epochs'" in error["message"]
    assert program.main(["rewards", str(folder)]) == 2
    assert "usage" in last_error(capsys)["message"]


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_program_is_known(tmp_path, capsys, name):
    assert program.main([name, str(tmp_path / "nowhere")]) == 2
    assert last_error(capsys)["code"] == "not_found"


@pytest.mark.parametrize(
    ("name", "changes", "made"),
    [
        (
            "grpo",
            {"steps": 1, "sampling": {"prompts": "preferences", "prompts_per_step": 2, "max_new_tokens": 4}},
            "checkpoint/manifest.json",
        ),
        ("best_of", {"snapshot": "", "inputs": "prompts.jsonl", "n": 2, "max_new_tokens": 4}, "best.jsonl"),
    ],
)
def test_programs_that_sample_run(tmp_path, world, capsys, monkeypatch, name, changes, made):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    base, snapshot = world
    short = {"kind": "length", "name": "short", "high": 2}
    raw = {"base": str(base), "snapshot": str(snapshot), "reward": [short]} | changes
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    assert program.main([name, str(folder)]) == 0
    assert capsys.readouterr().out.strip().endswith("is done.")
    assert json.loads((folder / "result.json").read_text())["program"] == name
    assert (folder / made).is_file()


def test_a_full_disk_is_told_and_a_bug_is_not_hidden(tmp_path, world, capsys, monkeypatch):
    from plaudit.learn import reward

    folder = write_run(tmp_path / "run", world)

    def fail(number):
        def train(*_):
            raise OSError(number, os.strerror(number), "metrics.jsonl")

        return train

    monkeypatch.setattr(reward, "train", fail(errno.ENOSPC))
    assert program.main(["reward", str(folder)]) == 2
    assert last_error(capsys)["code"] == "training_stopped"
    monkeypatch.setattr(reward, "train", fail(errno.EACCES))
    with pytest.raises(PermissionError):
        program.main(["reward", str(folder)])


def test_prepare_prints_the_folder(tmp_path, capsys):
    assert program.main(["prepare", "tiny", str(tmp_path)]) == 0
    assert (tmp_path / capsys.readouterr().out.strip().split("/")[-1] / "config.json").is_file()


def test_a_changed_config_is_refused_once_training_began(tmp_path, world, capsys):
    folder = write_run(tmp_path / "run", world)
    (folder / "state").mkdir()
    (folder / "config.resolved.json").write_text("{}")
    assert program.main(["reward", str(folder)]) == 2
    assert "changed after the run had started" in last_error(capsys)["message"]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path, world):
    """kill -9 as soon as the metrics show some progress, three times; the Checkpoint is the uninterrupted one's, bit for bit."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}

    def command(folder):
        return [sys.executable, "-m", "plaudit.learn", "reward", str(folder)]

    compute = {"threads": 2, "dtype": "float32"}
    whole = write_run(tmp_path / "whole", world, epochs=8, compute=compute)
    subprocess.run(command(whole), check=True, env=environment, capture_output=True)
    cut = write_run(tmp_path / "cut", world, epochs=8, compute=compute)
    for target in (1, 20, 40):
        process = subprocess.Popen(command(cut), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(read_jsonl(cut / "metrics.jsonl")) < target:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (cut / "checkpoint" / "manifest.json").exists()
    done = subprocess.run(command(cut), check=True, env=environment, capture_output=True, text=True)
    assert "is done" in done.stdout
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (cut / "checkpoint" / name).read_bytes() == (whole / "checkpoint" / name).read_bytes()
    rows = [[(r["step"], r["phase"], r.get("loss")) for r in read_jsonl(f / "metrics.jsonl")] for f in (whole, cut)]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_disk_that_is_full_from_any_write_on_costs_nothing(tmp_path, world, capsys, monkeypatch):
    """Every fsync of a run in turn is the one after which nothing can be written; the sentence, no half Checkpoint, and with space again
    the uninterrupted one's bytes."""
    options = {"compute": {"threads": 1, "dtype": "float32", "save_every": 4}, "validation": None}
    fsync, left = os.fsync, [10**9]

    def limited(number):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, "fsync", limited)
    whole = write_run(tmp_path / "whole", world, **options)
    assert program.main(["reward", str(whole)]) == 0
    n = 10**9 - left[0]
    assert n > 10
    for room in range(1, n):
        folder = write_run(tmp_path / f"room-{room}", world, **options)
        left[0] = room
        assert program.main(["reward", str(folder)]) == 2
        assert "disk is full" in last_error(capsys)["message"]
        assert not list(folder.glob("**/.*.tmp"))
        left[0] = 10**9
        assert program.main(["reward", str(folder)]) == 0
        mine, theirs = (json.loads((f / "checkpoint" / "manifest.json").read_text())["files"] for f in (folder, whole))
        assert mine == theirs  # by sha256


@pytest.mark.parametrize(("name", "config"), [("dpo", {}), ("sft", {"source": "chosen"})])
def test_the_offline_programs_run_by_name(tmp_path, world, name, config):
    folder = write_run(tmp_path / "run", world)
    base, snapshot = world
    raw = {"base": str(base), "snapshot": str(snapshot), "first_layer": 3} | config
    (folder / "config.json").write_text(json.dumps(raw))
    assert program.main([name, str(folder)]) == 0
    assert json.loads((folder / "result.json").read_text())["program"] == name
    assert json.loads((folder / "checkpoint" / "manifest.json").read_text())["body"]["checkpoint_kind"] == "policy"
