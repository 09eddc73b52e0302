"""Negative twins on the tiny model: whatever makes the data worthless or the candidate no better, no gain is claimed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit.demo_report import gained
from plaudit.demo_steps.plan import TWINS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("twin", list(TWINS))
def test_twin_claims_no_gain(twin: str, seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "plaudit.cli", "demo", "--tiny", "--twin", twin, "--seed", str(seed), "--json"]
    done = subprocess.run([*command, "--home", str(tmp_path / "home")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["extra"]["plan"]["twin"] == twin
    assert not gained(summary), summary["hidden_preference"]
    assert "No gain is claimed" in (tmp_path / "home" / "report.html").read_text()
