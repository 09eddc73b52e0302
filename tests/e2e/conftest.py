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
def claims_no_gain(tmp_path: Path) -> Callable[[str, int], None]:
    def run(twin: str, seed: int) -> None:
        command = [sys.executable, "-m", "plaudit.cli", "demo", "--tiny", "--twin", twin, "--seed", str(seed), "--json"]
        done = subprocess.run([*command, "--home", str(tmp_path / "home")], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout.splitlines()[-1])
        assert summary["extra"]["plan"]["twin"] == twin
        assert not gained(summary), summary["hidden_preference"]
        assert "No gain is claimed" in (tmp_path / "home" / "report.html").read_text()

    return run
