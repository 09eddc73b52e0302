"""Runs by key and lease, and the learn program as a subprocess (a small stand-in script: what is tested is what happens around it)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plaudit import artifacts
from plaudit.domain import Checkpoint, CheckpointKind, Run, RunState, utc_now
from plaudit.errors import ConfigError, Conflict, Corrupt, TrainingStopped
from plaudit.loop import train
from plaudit.store.database import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
P = "prj_default"

# What python -m plaudit.learn does, without torch: obeys config.json, counts its attempts, leaves the files of a run.
PROGRAM = """
import json, os, pathlib, sys, time
program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
config = json.loads((folder / "config.json").read_text())
with open(folder / "attempts", "a") as f: f.write(f"{os.getpid()}\\n")
for step in range(config.get("steps", 2)):
    with open(folder / "metrics.jsonl", "a") as f: f.write(json.dumps({"step": step + 1, "of": 2, "phase": "x", "seconds": 0.1}) + "\\n")
match config.get("act"):
    case "refuse": print(json.dumps({"code": "config_error", "message": "steps is -1; give at least 1."}), file=sys.stderr); sys.exit(2)
    case "crash": print("Traceback: boom", file=sys.stderr); sys.exit(1)
    case "crash once" if len((folder / "attempts").read_text().split()) == 1: os.kill(os.getpid(), 9)
    case "hang": time.sleep(600)
if program != "score":
    from plaudit import artifacts
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint" / "weights").write_text("w")
    artifacts.finish(folder / "checkpoint", "checkpoint", {"checkpoint_kind": "reward"})
    if config.get("act") == "damage": (folder / "checkpoint" / "weights").write_text("v")
(folder / "result.json").write_text(json.dumps({"accuracy": 0.7, "valid": {"log_loss": 0.6, "bins": [1]}, "curve": [1, 2]}))
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    return sys.executable, str(script)


def run(
    store: Store,
    tmp_path: Path,
    program: tuple[str, ...],
    step: str = "reward",
    key: str | None = "k" * 20,
    **config,
):
    seen: list[dict] = []
    made = train.run_training(
        store,
        P,
        step,
        config,
        {"snapshot_id": "snp_1", "parent_id": "ckp_0"},
        tmp_path / "runs",
        key,
        seen.append,
        NOW,
        turn=3,
        program=program,
    )
    return made, seen


def test_a_run_registers_its_checkpoint_and_reports_every_metric(
    store: Store, tmp_path: Path, program: tuple[str, ...]
) -> None:
    made, seen = run(store, tmp_path, program, base="/models/tiny")
    assert made.state == RunState.DONE
    assert made.turn == 3
    assert [row["step"] for row in seen] == [1, 2]
    checkpoint = store.get(Checkpoint, made.outputs["checkpoint_id"])
    assert checkpoint.kind == CheckpointKind.REWARD
    assert checkpoint.base == "/models/tiny"
    assert checkpoint.parent_id == "ckp_0"
    assert checkpoint.run_id == made.id
    assert checkpoint.metrics == {"accuracy": 0.7, "valid": {"log_loss": 0.6}}
    assert checkpoint.sha256 == json.loads((Path(checkpoint.folder) / "manifest.json").read_text())["id"]


def test_the_same_key_is_done_once(store: Store, tmp_path: Path, program: tuple[str, ...]) -> None:
    first, _ = run(store, tmp_path, program)
    again, seen = run(store, tmp_path, program)
    assert again == first
    assert seen == []
    assert store.count(Checkpoint) == 1
    other, _ = run(store, tmp_path, program, key=None, steps=1)
    assert other.id != first.id


def test_a_score_run_makes_no_checkpoint(store: Store, tmp_path: Path, program: tuple[str, ...]) -> None:
    made, _ = run(store, tmp_path, program, step="score")
    assert made.outputs["result"]["accuracy"] == 0.7
    assert store.count(Checkpoint) == 0


def test_the_programs_own_sentence_is_the_error(store: Store, tmp_path: Path, program: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="steps is -1; give at least 1"):
        run(store, tmp_path, program, act="refuse")
    failed = store.find(Run)[0]
    assert (failed.state, failed.error) == (RunState.FAILED, "steps is -1; give at least 1.")


def test_a_crash_names_the_log(store: Store, tmp_path: Path, program: tuple[str, ...]) -> None:
    with pytest.raises(TrainingStopped, match=r"exit code 1 \(Traceback: boom\).*stderr\.log"):
        run(store, tmp_path, program, act="crash")


def test_a_killed_program_goes_on_in_the_same_folder(store: Store, tmp_path: Path, program: tuple[str, ...]) -> None:
    with pytest.raises(TrainingStopped, match="SIGKILL"):
        run(store, tmp_path, program, act="crash once")
    made, _ = run(store, tmp_path, program, act="crash once")
    assert (made.state, made.attempt, made.error) == (RunState.DONE, 2, None)
    assert made.folder is not None
    assert len((Path(made.folder) / "attempts").read_text().split()) == 2
    assert store.count(Run) == 1


def test_a_damaged_checkpoint_is_not_registered(store: Store, tmp_path: Path, program: tuple[str, ...]) -> None:
    with pytest.raises(Corrupt, match="weights"):
        run(store, tmp_path, program, act="damage")
    assert store.count(Checkpoint) == 0
    assert store.find(Run)[0].state == RunState.FAILED


def test_two_processes_cannot_take_one_run_and_a_dead_ones_is_taken_over(store: Store) -> None:
    first = train.claim(store, P, "reward", "key", {}, {}, "one", NOW)
    with pytest.raises(Conflict, match="is being done by one"):
        train.claim(store, P, "reward", "key", {}, {}, "two", NOW + timedelta(seconds=5))
    later = NOW + train.LEASE + timedelta(seconds=1)
    second = train.claim(store, P, "reward", "key", {}, {}, "two", later)
    assert (second.id, second.owner, second.attempt) == (first.id, "two", 2)
    for act in (
        lambda: train.renew(store, first, later),
        lambda: train.finish(store, first, {}, later),
        lambda: train.fail(store, first, "", later),
    ):
        with pytest.raises(Conflict):  # whoever lost the lease may not speak for the run any more
            act()
    train.give_back(store, first, later)
    assert store.get(Run, first.id) == second
    train.fail(store, second, "the disk is full", later)
    third = train.claim(store, P, "reward", "key", {}, {}, "two", later)
    assert (third.state, third.error, third.finished_at) == (
        RunState.RUNNING,
        None,
        None,
    )  # nothing of the failure is left
    train.give_back(store, third, later)
    assert train.claim(store, P, "reward", "key", {}, {}, "three", later).owner == "three"


def test_only_one_of_many_threads_gets_a_run(store: Store) -> None:
    won: list[str] = []

    def take(owner: str) -> None:
        with contextlib.suppress(Conflict):
            won.append(train.claim(store, P, "reward", "key", {}, {}, owner, NOW).owner or "")

    threads = [threading.Thread(target=take, args=(f"t{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.find(Run)[0].attempt == 1


def test_the_key_depends_on_step_config_inputs_and_code() -> None:
    keys = {
        train.run_key("ppo", {"a": 1}, {"b": 1}),
        train.run_key("sft", {"a": 1}, {"b": 1}),
        train.run_key("ppo", {"a": 2}, {"b": 1}),
        train.run_key("ppo", {"a": 1}, {"b": 2}),
        train.run_key("ppo", {"a": 1}, {"b": 1}, code_version="other"),
    }
    assert len(keys) == 5


def test_killing_the_caller_kills_the_program_and_the_next_caller_takes_over(
    store: Store, tmp_path: Path, program: tuple[str, ...]
) -> None:
    caller = f"""
import sys; from pathlib import Path; from datetime import datetime, UTC
from plaudit.loop import train; from plaudit.store.database import open_store
store, runs = open_store({store.url!r}), Path({str(tmp_path / "runs")!r})
train.run_training(store, {P!r}, "reward", {{"act": "hang"}}, {{}}, runs, "k" * 20, None, datetime.now(UTC), program={program!r})
"""
    process = subprocess.Popen([sys.executable, "-c", caller])
    attempts = tmp_path / "runs" / ("k" * 16) / "attempts"
    _wait(lambda: attempts.is_file() and attempts.read_text().strip() != "")
    process.send_signal(signal.SIGKILL)
    process.wait()
    pid = int(attempts.read_text())
    _wait(lambda: not _alive(pid))
    held = store.find(Run)[0]
    assert held.state == RunState.RUNNING
    later = datetime.now(UTC) + train.LEASE
    made = train.run_training(store, P, "reward", {}, {}, tmp_path / "runs", "k" * 20, None, later, program=program)
    assert (made.state, made.attempt) == (RunState.DONE, 2)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.is_file() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def _wait(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_a_changed_function_of_one_s_own_is_another_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is found as Python would find it, in a package too, and never imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "rules.py"
    file.write_text("raise SystemExit  # importing this would end the process\n")
    terms = [{"kind": "function", "name": "f", "function": "mine.rules:f"}, {"kind": "length", "name": "l", "high": 3}]
    found = train.with_sources({"reward": terms}, {"a": 1})
    assert found == {"a": 1, "functions": {"mine.rules:f": artifacts.sha256_file(file)}}
    runs = [train.enqueue(store, P, "ppo", {"reward": "mine.rules:f"}, {}, tmp_path, utc_now()) for _ in range(2)]
    assert runs[0] == runs[1]
    file.write_text("raise SystemExit  # changed\n")
    changed = train.enqueue(store, P, "ppo", {"reward": "mine.rules:f"}, {}, tmp_path, utc_now())
    assert changed.key != runs[0].key
    assert changed.inputs["functions"] == {"mine.rules:f": artifacts.sha256_file(file)}
    assert train.with_sources({"reward": "no_such.module:f"}, {}) == {"functions": {"no_such.module:f": ""}}
    assert train.with_sources({"reward": "/a/checkpoint"}, {"a": 1}) == {"a": 1}
