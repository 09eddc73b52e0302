"""`plaudit experiment analyse | simulate | aa`: what they print, and that the first needs no home."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from plaudit.cli.experiment import experiment
from plaudit.errors import BadInput, NotFound


def run(*words: str) -> Result:
    return CliRunner().invoke(experiment, words)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(8)
    lines = ["user,arm,at,down,rating"]
    for i in range(800):
        worse = i % 2
        lines.append(
            f"u{i},{'new' if worse else 'old'},{i},{int(rng.random() < 0.1 + 0.25 * worse)},{rng.normal():.3f}"
        )
    path = tmp_path / "a.csv"
    path.write_text("\n".join([*lines, "u1,new,never,1,1"]))
    return path


def test_analyse_prints_every_look_and_the_decision(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_HOME", str(file.parent / "home"))
    done = run(
        "analyse",
        str(file),
        "--control",
        "old",
        "--metric",
        "down:guardrail:down",
        "--metric",
        "rating:goal:up",
        "--looks",
        "4",
    )
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line[:6] for line in lines if line.startswith("look ")] == [f"look {i}" for i in range(1, 5)]
    assert any(line.startswith("    guardrail first_down: e = ") for line in lines)
    assert "line 802 left out: at is 'never'; give an ISO 8601 time or seconds since 1970" in lines
    assert lines[-1].startswith("new against old: roll_back at look ")
    assert not (file.parent / "home").exists()


def test_analyse_as_json_carries_every_option(file: Path) -> None:
    options = [
        "--alpha",
        "0.1",
        "--min-users",
        "150",
        "--planned-users",
        "500",
        "--winsorise",
        "0",
        "--margin",
        "rating=0.5",
    ]
    done = run(
        "analyse",
        str(file),
        "--control",
        "old",
        "--metric",
        "rating:goal:up",
        "--metric",
        "down:monitor:down",
        *options,
        "--json",
    )
    found = json.loads(done.output.splitlines()[-1])
    assert found["plan"] == {
        "alpha": 0.1,
        "min_users": 150,
        "planned_users": 500,
        "winsorise": 0.0,
        "max_double_fraction": 0.01,
    }
    assert [(m["name"], m["role"], m["margin"]) for m in found["looks"][-1]["metrics"]] == [
        ("rating", "goal", 0.5),
        ("down", "monitor", 0.0),
    ]
    assert found["decision"]["verdict"] == "promote"
    everywhere = run(
        "analyse", str(file), "--control", "old", "--metric", "rating:goal:up", "--margin", "0.25", "--json"
    )
    assert json.loads(everywhere.output.splitlines()[-1])["looks"][0]["metrics"][0]["margin"] == 0.25


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metric", "down:guard:down"], "write NAME:goal|guardrail|monitor:up|down"),
        (["--metric", "down"], "write NAME"),
        (["--metric", "down:goal:down", "--margin", "rating=1"], "'rating', which is no metric"),
        (["--metric", "down:goal:down", "--margin", "much"], "'much'; give a number"),
        (["--metric", "down:goal:down", "--looks", "often"], "give a number, hour, day or week"),
        (["--metric", "down:goal:down", "--looks", "0"], "look at least once"),
        (["--metric", "speed:goal:down"], "no metric 'speed'"),
    ],
)
def test_analyse_refuses_with_a_sentence(file: Path, words: list[str], said: str) -> None:
    done = run("analyse", str(file), "--control", "old", *words)
    assert isinstance(done.exception, BadInput)
    assert said in str(done.exception)


def test_a_name_may_hold_colons(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,arm,at,p:95\n" + "\n".join(f"u{i},{'ab'[i % 2]},{i},{i % 7}" for i in range(10)))
    assert "p:95 goal waiting" in run("analyse", str(path), "--control", "a", "--metric", "p:95:goal:down").output


def test_simulate_needs_no_traffic_where_it_is_given(tmp_path: Path) -> None:
    words = [
        "--users-per-day",
        "300",
        "--feedback-rate",
        "0.3",
        "--down-share",
        "0.4",
        "--harm",
        "3",
        "--runs",
        "3",
        "--max-users",
        "600",
    ]
    done = run("simulate", *words, "--home", str(tmp_path / "home"))
    assert done.exit_code == 0, done.output
    assert "harm (x 3): promote 0%" in done.output
    assert "a z-test read once needs" in done.output
    assert not (tmp_path / "home").exists()
    found = json.loads(run("simulate", *words, "--rule", "min_stage_users=30", "--json").output.splitlines()[-1])
    assert found["rules"]["min_stage_users"] == 30
    assert found["traffic"]["down_per_message"] == pytest.approx(0.12)


@pytest.mark.parametrize("command", ["simulate", "aa"])
def test_without_traffic_there_is_nothing_to_rehearse(command: str, tmp_path: Path) -> None:
    done = run(command, "--home", str(tmp_path))
    assert isinstance(done.exception, NotFound)
    assert "0 named users" in str(done.exception)
