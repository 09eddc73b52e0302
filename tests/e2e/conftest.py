"""One negative twin of the tiny demo: whatever makes the data worthless or the candidate no better, no gain is claimed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plaudit.demo_report import gained


@pytest.fixture
def claims_no_gain(tmp_path: Path) -> Callable[[str], None]:
    """Seeds 1 and 2; a third one where one of them claims a gain. The gate lets an equal candidate pass in 2.5 % of evaluations, and two of
    at most three (below 0.2 %) is no accident: such a gain would be claimed again and again."""

    def claims(twin: str, seed: int) -> bool:
        home = tmp_path / f"home-{seed}"
        command = [sys.executable, "-m", "plaudit.cli", "demo", "--tiny", "--twin", twin, "--seed", str(seed), "--json"]
        done = subprocess.run([*command, "--home", str(home)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout.splitlines()[-1])
        assert summary["extra"]["plan"]["twin"] == twin
        assert ("No gain is claimed" in (home / "report.html").read_text()) != gained(summary)
        print(twin, seed, summary["gate"], summary["win_rate"], summary["hidden_preference"]["difference"])
        return gained(summary)

    def run(twin: str) -> None:
        found = [claims(twin, 1), claims(twin, 2)]
        assert not all(found)
        assert not (any(found) and claims(twin, 3))

    return run
