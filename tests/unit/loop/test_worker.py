"""The worker's duties, one by one, and its loop: it guards while it labours, and stops when it is told to."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from plaudit import artifacts
from plaudit.domain import (
    Alert,
    Checkpoint,
    CheckpointKind,
    Interaction,
    Measurement,
    Project,
    Response,
    Run,
    RunState,
    new_id,
    utc_now,
)
from plaudit.loop import monitor, pipeline, release, train, worker
from plaudit.settings import Settings
from plaudit.store.database import Store

SCORE = """
import json, pathlib, sys, time
program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
config = json.loads((folder / "config.json").read_text())
(folder / "started").touch()
while config.get("hang"): time.sleep(0.05)
with open(folder / "scores.jsonl", "w") as out:
    for row in map(json.loads, open(config["inputs"])):
        line = {"id": row["id"], "index": 0, "n_tokens": 5, "score": float(len(row["response"]))}
        if "kl" in config["measures"] and row["by_policy"]: line["kl"] = 1.5
        out.write(json.dumps(line) + "\\n")
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "base.json").write_text(json.dumps({"spec": "tiny", "cache": "c", "folder": str(tmp_path / "base")}))
    return Settings(home=tmp_path, monitor_interval_s=0.0)


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "program.py"
    script.write_text(SCORE)
    return sys.executable, str(script)


def checkpoint(store: Store, project: Project, folder: Path, kind: CheckpointKind) -> Checkpoint:
    made = new_id(Checkpoint)
    path = artifacts.new_folder(folder, made)
    (path / "weights").write_text(made)
    manifest = artifacts.finish(path, "checkpoint", {})
    row = Checkpoint(
        id=made,
        project_id=project.id,
        kind=kind,
        folder=str(path),
        sha256=manifest.id,
        base="tiny",
        created_at=utc_now(),
    )
    store.add(row)
    return row


def talk(store: Store, chat: Callable[..., Interaction], n: int, at: datetime) -> None:
    for i in range(n):
        chat(question=f"q{i}", answers=("a" * (i + 1),), actor=f"u{i}", now=at)


def test_a_window_is_measured_when_it_holds_enough_or_is_old(
    store: Store, project: Project, chat: Callable[..., Interaction], now: datetime, settings: Settings
) -> None:
    def once(after: timedelta, force: bool = False) -> int:
        return len(worker.monitor_once(settings, store, project.id, "w", now + after, force))

    minute = timedelta(minutes=1)
    assert once(minute) == 0  # nothing has happened
    talk(store, chat, worker.WINDOW_INTERACTIONS - 1, now)
    assert once(minute) == 0
    talk(store, chat, 1, now)
    assert once(minute) > 0
    talk(store, chat, 1, now + 2 * minute)
    assert once(3 * minute) == 0
    assert once(3 * minute, force=True) > 0
    talk(store, chat, 1, now + 4 * minute)
    assert once(4 * minute + worker.WINDOW_MAX) > 0
    assert once(5 * minute + worker.WINDOW_MAX, force=True) == 0  # and none for nothing
    ends = sorted({(m.window_start, m.window_end) for m in store.find(Measurement)})
    assert all(first[1] == second[0] for first, second in pairwise(ends))


def test_traffic_is_scored_by_the_newest_reward_model_and_kl_only_for_our_own_policies(
    store: Store,
    project: Project,
    chat: Callable[..., Interaction],
    now: datetime,
    settings: Settings,
    program: tuple[str, ...],
    tmp_path: Path,
) -> None:
    talk(store, chat, 60, now)
    answers = monitor.sample_answers(store, project.id, now, now + timedelta(minutes=1), 64)

    def scores() -> dict[str, Any]:
        return dict(worker.score_answers(settings.home, store, project.id, answers, "w", program))

    assert scores() == {}  # no reward model yet
    checkpoint(store, project, tmp_path, CheckpointKind.REWARD)
    newest = checkpoint(store, project, tmp_path, CheckpointKind.REWARD)
    policy = checkpoint(store, project, tmp_path, CheckpointKind.POLICY)
    for answer in answers[:10]:
        store.change(Response, answer.response_id, checkpoint_id=policy.id)
    answers = monitor.sample_answers(store, project.id, now, now + timedelta(minutes=1), 64)
    found = scores()
    assert len(found) == 60
    assert sum("kl" in line for line in found.values()) == 10
    assert {a.response_id: float(len(a.text)) for a in answers} == {k: v["score"] for k, v in found.items()}
    runs = store.find(Run, step="score")
    assert {run.config["reward"] for run in runs} == {newest.folder}
    assert [run.config["measures"] for run in runs] == [["score", "kl"]]  # one process for base and policy
    rows = worker.monitor_once(settings, store, project.id, "w", now + timedelta(minutes=1), program=program)
    assert {"score_mean", "score_sd", "kl_mean"} <= {row.metric for row in rows}
    other = checkpoint(store, project, tmp_path, CheckpointKind.POLICY)
    for answer in answers[:5]:
        store.change(Response, answer.response_id, checkpoint_id=other.id)
    answers = monitor.sample_answers(store, project.id, now, now + timedelta(minutes=1), 64)
    assert len(scores()) == 60
    assert {run.config["policy"] for run in store.find(Run, step="score")} == {policy.folder, other.folder}


def test_scoring_for_monitors_is_nobodys_wait() -> None:
    """By default it runs below everything else: what the program would see of its own priority."""
    command = [*worker.BACKGROUND[: -len(train.PROGRAM)], sys.executable, "-c", "import os; print(os.nice(0))"]
    lower = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(lower) == min(19, os.nice(0) + 10)
    for act in (worker.monitor_once, worker.score_answers):
        assert inspect.signature(act).parameters["program"].default == worker.BACKGROUND


def test_nothing_is_scored_while_something_trains(
    store: Store,
    project: Project,
    chat: Callable[..., Interaction],
    now: datetime,
    settings: Settings,
    program: tuple[str, ...],
    tmp_path: Path,
) -> None:
    checkpoint(store, project, tmp_path, CheckpointKind.REWARD)
    talk(store, chat, 5, now)
    answers = monitor.sample_answers(store, project.id, now, now + timedelta(minutes=1), 64)
    run = train.claim(store, project.id, "ppo", "key", {}, {}, "trainer", utc_now())
    assert worker.score_answers(settings.home, store, project.id, answers, "w", program) == {}
    store.change(Run, run.id, lease_expires_at=now)  # its process died
    assert len(worker.score_answers(settings.home, store, project.id, answers, "w", program)) == 5


def test_a_damaged_reward_model_is_not_loaded(
    store: Store,
    project: Project,
    chat: Callable[..., Interaction],
    now: datetime,
    settings: Settings,
    program: tuple[str, ...],
    tmp_path: Path,
) -> None:
    made = checkpoint(store, project, tmp_path, CheckpointKind.REWARD)
    talk(store, chat, 5, now)
    (Path(made.folder) / "weights").write_text("other")
    with pytest.raises(artifacts.Corrupt):
        worker.monitor_once(settings, store, project.id, "w", now + timedelta(minutes=1), force=True, program=program)


def queued(store: Store, project: Project, home: Path, **config: Any) -> Run:
    (home / "in.jsonl").write_text(json.dumps({"id": 1, "messages": [], "response": "abc"}) + "\n")
    full = {"inputs": str(home / "in.jsonl"), "measures": ["score"], **config}
    run = Run(
        id=new_id(Run),
        project_id=project.id,
        step="score",
        key=train.run_key("score", full, {}),
        turn=0,
        config=full,
        folder=str(home / "runs" / "queued"),
        created_at=utc_now(),
    )
    store.add(run)
    return run


def test_queued_runs_are_taken_in_order(
    store: Store, project: Project, settings: Settings, program: tuple[str, ...], tmp_path: Path
) -> None:
    first, second = queued(store, project, tmp_path, n=1), queued(store, project, tmp_path, n=2)
    for expected in (first, second):
        done = worker.take_queued(settings, store, project.id, "w", program=program)
        assert done is not None
        assert (done.id, done.state) == (expected.id, RunState.DONE)
    assert worker.take_queued(settings, store, project.id, "w", program=program) is None


def test_told_to_stop_it_ends_the_program_and_gives_the_run_back(
    store: Store, project: Project, settings: Settings, program: tuple[str, ...], tmp_path: Path
) -> None:
    run = queued(store, project, tmp_path, hang=True)
    stop = threading.Event()
    ended: list[BaseException] = []

    def labour() -> None:
        try:
            worker.take_queued(settings, store, project.id, "w", stop, program)
        except KeyboardInterrupt as error:
            ended.append(error)

    thread = threading.Thread(target=labour, daemon=True)
    thread.start()
    _wait((tmp_path / "runs" / "queued" / "started").exists)
    stop.set()
    thread.join(timeout=20)
    assert len(ended) == 1
    assert train.claim(store, project.id, "score", run.key, {}, {}, "next", utc_now()).owner == "next"


def test_the_loop_guards_measures_and_stops(
    store: Store,
    project: Project,
    chat: Callable[..., Interaction],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "GUARD_S", 0.01)
    monkeypatch.setattr(worker, "TICK_S", 0.01)
    guarded: list[str] = []
    monkeypatch.setattr(worker, "guard", lambda _, project_id: guarded.append(project_id))
    talk(store, chat, 60, utc_now() - timedelta(minutes=1))
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(settings, store, stop))
    thread.start()
    _wait(lambda: store.count(Measurement) > 0 and len(guarded) > 1)
    assert thread.is_alive()
    stop.set()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert set(guarded) == {project.id}


def test_a_duty_that_fails_does_not_end_the_others(caplog: pytest.LogCaptureFixture) -> None:
    worker._duty("guard", lambda: 1 / 0)
    assert "guard failed" in caplog.text


def test_the_guard_before_anything_is_live_does_nothing(store: Store, project: Project) -> None:
    assert worker.guard(store, project.id) is False
    release.register_base(store, project.id, "base", "fake:", utc_now())
    assert worker.guard(store, project.id) is False
    assert store.count(Alert) == 0
    assert pipeline.guard(store, project.id, utc_now()) is None


def _wait(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
