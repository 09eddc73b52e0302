"""`plaudit train --on`: what is started, and what is refused before anything is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plaudit.cli.train import train
from plaudit.errors import BadInput
from plaudit.loop import programs


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """The command of every run folder that would have been worked in."""
    seen: list[tuple[str, ...]] = []

    def alone(*_: Any, program: tuple[str, ...]) -> Any:
        seen.append(program)
        return {"program": "sft", "loss": 1.0, "n_train": 1, "curve": [], "seconds": 1.0, "phases": {}}

    monkeypatch.setattr(programs, "alone", alone)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snapshot").mkdir()
    return seen


def run(*arguments: str) -> Any:
    fixed = ["sft", "--home", "home", "--snapshot", "snapshot", "--set", "base=/base", "--json"]
    return CliRunner().invoke(train, [*fixed, *arguments])


def test_the_program_is_handed_to_the_cluster(started: list[tuple[str, ...]]) -> None:
    assert run("--out", "a").exit_code == 0
    asked = ["--on", "ray://head:10001", "--workers", "4", "--storage", "s3://bucket/x"]
    assert run("--out", "b", *asked).exit_code == 0
    assert run("--out", "c", "--on", "local-ray").exit_code == 0
    plain, far, near = started
    assert plain == programs.PROGRAM
    assert far == (*programs.PROGRAM, "on", "ray://head:10001", "4", "s3://bucket/x")
    assert near[:-1] == (*programs.PROGRAM, "on", "local-ray", "2")
    assert Path(near[-1]).is_absolute()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--on", "local-ray"], "--on local-ray needs --out"),
        (["--on", "ray://head:10001", "--out", "a"], "needs --storage"),
        (["--on", "head:10001", "--out", "a", "--storage", "s"], "--on head:10001 is no cluster"),
    ],
)
def test_what_no_cluster_can_do_is_refused(started: list[tuple[str, ...]], arguments: list[str], says: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, BadInput)
    assert says in error.message
    assert started == []
