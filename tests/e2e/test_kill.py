"""kill -9 at random moments of the demo: the same command continues, repeats no finished step, loses nothing that was acknowledged."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TABLES = ("interactions", "completions", "feedback", "annotations", "comparisons", "approvals", "audit_entries")


def state(home: Path) -> tuple[dict[str, set[str]], dict[str, Any]]:
    """(ids of rows that were acknowledged, finished Runs with the moment at which they were finished)."""
    store = home / "store.sqlite"
    if not store.is_file():
        return {name: set() for name in TABLES}, {}
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=30) as connection:
        known = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        rows = {
            name: {row[0] for row in connection.execute(f"select id from {name}")} if name in known else set()
            for name in TABLES
        }
        done = "select id, attempt || ' ' || finished_at from runs where state = 'done'"
        return rows, dict(connection.execute(done).fetchall()) if "runs" in known else {}


def turn(home: Path, seed: int, luck: random.Random) -> dict[str, Any]:
    """The summary of a demo that was killed five times, when nothing was lost and nothing repeated."""
    command = [sys.executable, "-m", "plaudit.cli", "demo", "--tiny", "--seed", str(seed), "--home", str(home)]
    command.append("--json")
    rows, finished = state(home)
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(luck.uniform(6, 30))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        rows_now, finished_now = state(home)
        for name in TABLES:
            assert rows[name] <= rows_now[name], name
        assert finished.items() <= finished_now.items()
        rows, finished = rows_now, finished_now
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows_now, finished_now = state(home)
    for name in TABLES:
        assert rows[name] <= rows_now[name], name
    assert finished.items() <= finished_now.items()
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert len(summary["extra"]["steps"]) == 13
    with sqlite3.connect(home / "store.sqlite") as connection:
        verdicts = [row[0] for row in connection.execute("select gate from evaluations")]
        assert verdicts == [summary["gate"]]  # judged once, and the report says what the store holds
        twice = (
            "select actor, count(*) from interactions join completions using (id) "
            "where actor like 'user-%' and status = 'ok' group by actor having count(*) > 1"
        )
        assert connection.execute(twice).fetchall() == []  # nobody was asked again who had been answered
        votes = "select comparison_id, count(*) from annotations group by comparison_id having count(*) > 3"
        assert connection.execute(votes).fetchall() == []
    return summary


def test_killed_at_random_points_it_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    luck = random.Random(20261122)
    for seed in (3, 4, 5):  # a candidate that the gate refuses ends the turn before the release; another one gets there
        if turn(tmp_path / str(seed), seed, luck)["gate"] == "pass":
            return
    pytest.fail("The gate refused three candidates.")
