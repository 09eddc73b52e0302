"""A run folder: half lines and repeated steps never survive a resume; figures are finite; the config is fixed once training started."""

import json

import pytest

from plaudit.errors import BadInput, ConfigError, NotFound, TrainingStopped
from plaudit.learn.configs import SFTConfig
from plaudit.learn.run_folder import Clock, RunFolder, read_config, read_jsonl


def test_resume_cuts_half_lines_and_later_steps(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        run.log(step, 5, "train", 0.1, loss=float(step))
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.resume_metrics(2)] == [1, 2]
    run.log(3, 5, "train", 0.1, loss=9.0)
    assert [(row["step"], row["loss"]) for row in read_jsonl(run.metrics)] == [(1, 1.0), (2, 2.0), (3, 9.0)]
    assert run.resume_metrics(0) == []
    assert read_jsonl(run.metrics) == []


def test_a_figure_that_is_not_finite_stops_the_run(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(TrainingStopped, match="loss is nan in step 2"):
        run.log(2, 5, "train", 0.1, loss=float("nan"))
    assert read_jsonl(run.metrics) == []


def test_config_is_read_resolved_and_then_fixed(tmp_path):
    with pytest.raises(NotFound, match=r"config\.json"):
        read_config(tmp_path, SFTConfig)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        read_config(tmp_path, SFTConfig)
    (tmp_path / "config.json").write_text('{"snapshot": "s", "base": "b"}')
    assert read_config(tmp_path, SFTConfig).epochs == 2
    assert json.loads((tmp_path / "config.resolved.json").read_text())["epochs"] == 2
    (tmp_path / "config.json").write_text('{"snapshot": "s", "base": "b", "epochs": 3}')
    assert read_config(tmp_path, SFTConfig).epochs == 3  # nothing was trained yet
    (tmp_path / "state").mkdir()
    (tmp_path / "config.json").write_text('{"snapshot": "s", "base": "b", "epochs": 4}')
    with pytest.raises(ConfigError, match="changed after the run had started"):
        read_config(tmp_path, SFTConfig)


def test_finished_is_the_manifest(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoint.mkdir()
    (run.checkpoint / "adapter_model.safetensors").write_bytes(b"")
    assert not run.finished
    (run.checkpoint / "manifest.json").write_text("{}")
    assert run.finished


def test_what_is_being_done_is_said_as_it_begins(tmp_path):
    run = RunFolder(tmp_path)
    clock = Clock(run)
    with clock.phase("trunk"):
        assert json.loads(run.progress.read_text()) == {"phase": "trunk", "step": 0, "of": 0}
        clock.tell("trunk")(3, 7)
        assert json.loads(run.progress.read_text()) == {"phase": "trunk", "step": 3, "of": 7}
    assert clock.seconds["trunk"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
    run.log(1, 2, "train", 0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_clock_adds_up_phases():
    clock = Clock()
    for _ in range(2):
        with clock.phase("work"):
            pass
    assert set(clock.seconds) == {"work"}
    assert 0 <= clock.seconds["work"] <= clock.total
