"""`plaudit train --out` and `plaudit score`: what is handed to the program, and one whole way on the tiny base."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from plaudit import artifacts
from plaudit.cli import score as score_module
from plaudit.cli import train as train_module
from plaudit.cli.runs import runs
from plaudit.cli.score import score
from plaudit.cli.train import train
from plaudit.errors import BadInput, ConfigError, NotFound, PlauditError
from plaudit.learn.configs import PROGRAMS, from_dict
from plaudit.loop import programs


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What would have been run: (program, config, folder). The base is taken as prepared."""
    seen: list[Any] = []

    def alone(name: str, config: Any, folder: Path, *_: Any, **__: Any) -> Any:
        from_dict(PROGRAMS[name], config)
        seen.append((name, config, folder))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.jsonl").write_text('{"id": 1, "index": 0, "score": 0.123456}\n')
        return {"program": name, "accuracy": 0.75}

    monkeypatch.setattr(programs, "alone", alone)

    def prepare(spec: str, _: Path) -> Path:
        (tmp_path / "a base was prepared").touch()
        return Path("/cache") / spec

    for module in (train_module, score_module):
        monkeypatch.setattr(module, "prepare_base", prepare)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLAUDIT_BASE", raising=False)
    return seen


def good(command: click.Command, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(command: click.Command, *arguments: str) -> PlauditError:
    error = CliRunner().invoke(command, list(arguments)).exception
    assert isinstance(error, PlauditError), error
    return error


def test_every_program_has_a_command_with_the_options_of_its_fields() -> None:
    assert set(train.commands) == {*PROGRAMS, "list"} - {"score"}
    options = {name: {p.name for p in command.params} for name, command in train.commands.items()}
    assert "preferences" in options["reward"]
    assert "reward" not in options["reward"]
    assert "reward" in options["ppo"]
    assert "preferences" not in options["ppo"]
    assert all(train.commands[name].help for name in options)


def test_options_become_a_config(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").touch()
    (tmp_path / "more.toml").write_text('epochs = 2\nbatch_pairs = 4\ncriterion = "x"\nseed = 1\n')
    more = ("--set", "epochs=3", "--set", "optimizer.beta1=.5", "--seed", "7", "--base", "tiny", "--json")
    text = good(train, "reward", "--preferences", "pairs.jsonl", "--out", "rm", "--config", "more.toml", *more)
    assert json.loads(text) == {"program": "reward", "accuracy": 0.75}
    ((name, config, folder),) = asked
    assert (name, folder) == ("reward", tmp_path / "rm")
    assert config == {
        "preferences": str(tmp_path / "pairs.jsonl"),  # the run goes on wherever the command is given again
        "base": "/cache/tiny",
        "epochs": 3,
        "batch_pairs": 4,
        "criterion": "x",
        "seed": 7,
        "optimizer": {"beta1": 0.5},
    }


def test_the_base_is_the_settings_unless_the_config_has_one(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "snap").mkdir()
    good(train, "sft", "--snapshot", "snap", "--out", "a")
    good(train, "sft", "--snapshot", "snap", "--out", "b", "--set", "base=/mine")
    assert [config["base"] for _, config, _ in asked] == ["/cache/smollm2", "/mine"]


def test_a_run_that_goes_on_keeps_its_base(asked: list[Any], tmp_path: Path) -> None:
    """Asking for the base's folder loads torch; a run that was started with the same one knows it."""
    (tmp_path / "snap").mkdir()
    for name in ("base", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "prepared.json").write_text(json.dumps({"spec": "tiny"}))
    (tmp_path / "out" / "config.json").write_text(json.dumps({"base": str(tmp_path / "base")}))
    for spec in ("tiny", "smollm2"):
        good(train, "sft", "--snapshot", "snap", "--out", "out", "--base", spec)
    assert [config["base"] for _, config, _ in asked] == [str(tmp_path / "base"), "/cache/smollm2"]


def test_a_reward_is_a_run_folder_a_checkpoint_or_what_the_config_takes(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "snap").mkdir()
    (tmp_path / "rm" / "checkpoint").mkdir(parents=True)
    for said in ("rm", "rm/checkpoint", "mine.rewards:polite"):
        good(train, "grpo", "--snapshot", "snap", "--reward", said, "--out", "out")
    made = str(tmp_path / "rm" / "checkpoint")
    assert [config["reward"] for _, config, _ in asked] == [made, made, "mine.rewards:polite"]


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (("--preferences", "none.jsonl", "--out", "x"), NotFound, "There is no file or folder 'none.jsonl'"),
        (("--snapshot", ".", "--out", "x", "--set", "epoch=2"), ConfigError, "did you mean 'epochs'"),
        (("--snapshot", ".", "--out", "x", "--set", "epochs"), BadInput, "write it as name=value"),
        (("--snapshot", ".", "--out", "x", "--config", "none.json"), BadInput, "There is no file 'none.json'"),
        (("--out", "x"), ConfigError, "snapshot is '' and preferences is ''"),
        (("--snapshot", ".", "--out", "x", "--queue"), BadInput, "--queue is for a home's worker"),
        (("--preferences", "none.jsonl"), BadInput, "--preferences none.jsonl needs --out DIR"),
        (("--base", "tiny"), BadInput, "--base tiny needs --out DIR"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    asked: list[Any], tmp_path: Path, arguments: tuple[str, ...], kind: type, says: str
) -> None:
    error = refused(train, "reward", *arguments)
    assert isinstance(error, kind)
    assert says in str(error)
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def reward_run(tmp_path: Path, kind: str = "reward", base: str | None = None) -> Path:
    """A finished run folder as `score` reads it."""
    made = artifacts.new_folder(tmp_path / "rm", "checkpoint")
    artifacts.finish(made, "checkpoint", {"checkpoint_kind": kind, "base": {"spec": "tiny"}})
    (tmp_path / "rm" / "config.json").write_text(json.dumps({"base": base or "/gone"}))
    return tmp_path / "rm"


def test_score_takes_a_run_or_its_checkpoint_on_the_base_it_was_trained_on(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    run = reward_run(tmp_path)
    good(score, "rm", "in.jsonl")
    good(score, "rm/checkpoint", "in.jsonl", "--base", "/other", "--set", "max_prompt_tokens=9")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tokenizer.json").touch()
    (run / "config.json").write_text(json.dumps({"base": str(tmp_path / "mine")}))
    good(score, "rm", "in.jsonl")
    good(score, "rm/checkpoint", "in.jsonl")
    assert [config["base"] for _, config, _ in asked] == ["/cache/tiny", "/other", *[str(tmp_path / "mine")] * 2]
    assert {config["reward"] for _, config, _ in asked} == {str(run / "checkpoint")}
    assert {config["inputs"] for _, config, _ in asked} == {str(tmp_path / "in.jsonl")}
    assert asked[1][1]["max_prompt_tokens"] == 9


def test_scores_are_shown_kept_or_handed_to_a_machine(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    reward_run(tmp_path)
    line = {"id": 1, "index": 0, "score": 0.123456}
    assert "0.1235" in good(score, "rm", "in.jsonl")
    found = json.loads(good(score, "rm", "in.jsonl", "--json"))
    assert found == {"program": "score", "accuracy": 0.75, "scores": [line]}
    assert not asked[-1][2].exists()  # a temporary folder
    assert "scores" not in json.loads(good(score, "rm", "in.jsonl", "--json", "--out", "kept"))
    assert json.loads((tmp_path / "kept" / "scores.jsonl").read_text()) == line


def test_what_cannot_be_scored(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    assert "no folder 'rm'" in str(refused(score, "rm", "in.jsonl"))
    reward_run(tmp_path, kind="policy")
    assert "is a policy Checkpoint; only a reward model gives scores" in str(refused(score, "rm", "in.jsonl"))
    assert "no file 'none.jsonl'" in str(refused(score, "rm", "none.jsonl"))
    (tmp_path / "empty").mkdir()
    assert isinstance(refused(score, "empty", "in.jsonl"), NotFound)
    assert asked == []


@pytest.mark.slow
def test_pairs_in_a_file_become_a_reward_model_that_is_tried_on_them(tmp_path: Path) -> None:
    """The whole way on the tiny base: killed once, continued by the same command, scored, shown."""
    rows = [
        {"prompt": f"say {i}", "chosen": "aeiou " * (1 + i % 3), "rejected": "tnshr " * (1 + i % 2), "category": "ab"[i % 2]}
        for i in range(60)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, environment = tmp_path / "rm", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "plaudit.cli", "train", "reward", "--preferences", "pairs.jsonl", "--base", "tiny"]
    command += ["--out", "rm", "--set", "epochs=4", "--set", "batch_pairs=4", "--set", "compute.threads=1"]
    command += ["--set", "validation=null", "--set", "baselines=false", "--json"]
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    metrics = out / "metrics.jsonl"
    while first.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") > 3):
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (out / "checkpoint" / "manifest.json").exists()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((out / "result.json").read_text())
    assert result["valid"]["accuracy"]["mean"] > 0.9
    steps = [row["step"] for row in map(json.loads, metrics.read_text().splitlines()) if row["phase"] == "train"]
    assert steps == sorted(set(steps))

    tried = json.loads(good(score, str(out), str(tmp_path / "pairs.jsonl"), "--json"))
    assert tried["program"] == "score"
    assert tried["accuracy"]["mean"] > 0.9
    again = subprocess.run(command[:-1], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "is already finished; nothing to do" in again.stdout
    shown = good(runs, "show", str(out))
    for part in ("reward", "done", "epochs = 4", "pairs/s", "valid.accuracy"):
        assert part in shown
