"""`plaudit runs` on folders and on the Runs of a home."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from plaudit.cli import runs as command
from plaudit.cli.runs import runs
from plaudit.domain import Run, new_id, utc_now
from plaudit.errors import NotFound, PlauditError
from plaudit.loop import govern, run_files
from plaudit.store.database import Store, open_store


def line(step: int, phase: str = "train", **more: float) -> str:
    return json.dumps({"step": step, "of": 4, "phase": phase, "seconds": 0.5, **more}) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"snapshot": "/s", "base": "/b", "epochs": 3, "lora": {"rank": 8}}))
    lines = [line(step, loss=1.0 / step, pairs=8) for step in (1, 2, 3, 4)] + [line(4, "validate", accuracy=0.75)]
    (path / "metrics.jsonl").write_text("".join(lines))
    (path / "result.json").write_text(json.dumps({"program": "reward", "valid": {"accuracy": 0.75}}))
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / "manifest.json").write_text("{}")
    return path


@pytest.fixture
def home(tmp_path: Path, with_schema: Callable[[Path], str]) -> Iterator[tuple[Path, Store, str]]:
    path = tmp_path / "home"
    path.mkdir()
    store = open_store(with_schema(path / "store.sqlite"))
    project = govern.ensure_project(store, utc_now())
    yield path, store, project.id
    store.close()


def good(*arguments: str) -> str:
    result = CliRunner().invoke(runs, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments: str) -> PlauditError:
    error = CliRunner().invoke(runs, list(arguments)).exception
    assert isinstance(error, PlauditError)
    return error


def test_show_says_what_was_changed_what_came_and_what_was_made(folder: Path) -> None:
    text = good("show", str(folder))
    for part in ("reward", "done", "epochs = 3", "lora.rank = 8", "train  4/4  16 pairs/s", "loss", "█▃▂▁"):
        assert part in text
    assert "0.25" in text
    assert "valid.accuracy" in text
    for name in ("batch_pairs", "lora.targets"):  # at their defaults
        assert name not in text


def test_show_draws_a_metric_in_every_phase_that_has_it(folder: Path) -> None:
    text = good("show", str(folder), "--metric", "accuracy")
    assert "validate accuracy 0.75" in text
    assert "loss" not in text
    assert "no metric 'los'; it has accuracy, loss, pairs" in str(refused("show", str(folder), "--metric", "los"))


def test_show_for_machines(folder: Path) -> None:
    found = json.loads(good("show", str(folder), "--json"))
    assert (found["program"], found["state"], found["result"]["valid"]) == ("reward", "done", {"accuracy": 0.75})
    assert found["last"]["train"] == json.loads(line(4, loss=0.25, pairs=8))


def test_a_run_of_the_home_is_named_by_its_id(folder: Path, home: tuple[Path, Store, str]) -> None:
    path, store, project = home
    made = [
        Run(id=new_id(Run), project_id=project, step="reward", key=key, turn=0, folder=place, created_at=utc_now())
        for key, place in (("a", str(folder)), ("b", None))
    ]
    store.add(*made)
    assert "epochs = 3" in good("show", made[0].id, "--home", str(path))
    assert "has no run folder" in str(refused("show", made[1].id, "--home", str(path)))
    assert isinstance(refused("show", "run_nothing", "--home", str(path)), NotFound)
    assert "no run folder" in str(refused("show", "somewhere"))
    listed = good("list", "--home", str(path))
    assert all(one.id in listed for one in made)


def test_list_of_a_folder(folder: Path) -> None:
    text = good("list", str(folder.parent))
    for part in ("reward", "done", "validate 4/4"):
        assert part in text


def test_watch_of_a_finished_run_ends_at_once_with_every_line(folder: Path) -> None:
    text = good("watch", str(folder))
    assert [row.split()[1] for row in text.splitlines()[:5]] == ["1/4", "2/4", "3/4", "4/4", "4/4"]
    assert text.splitlines()[0] == "train 1/4  loss 1  pairs 8  0.5 s"
    assert text.splitlines()[-1].endswith("done")


def test_watch_follows_until_the_program_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens between two looks is done in the pause between them: a line, then the program's death."""
    (folder / "checkpoint" / "manifest.json").unlink()
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    events = iter([lambda: append(folder, line(5, loss=0.125)), lambda: os.close(held)])
    monkeypatch.setattr(command.time, "sleep", lambda _: next(events)())
    text = good("watch", str(folder))
    assert text.count("train 1/4") == 1
    assert "train 5/4  loss 0.125" in text
    assert "stopped; the command that started it continues it" in text


def append(folder: Path, text: str) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)


def test_a_failed_run_says_why(folder: Path) -> None:
    (folder / "checkpoint" / "manifest.json").unlink()
    (folder / "stderr.log").write_text(json.dumps({"code": "training_stopped", "message": "loss is nan in step 4."}))
    assert "failed: loss is nan in step 4." in good("watch", str(folder))


def test_the_screen_of_a_working_run(folder: Path) -> None:
    (folder / "checkpoint" / "manifest.json").unlink()
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    (folder / "progress.json").write_text(json.dumps({"phase": "normalise", "step": 2, "of": 9}))
    console = command.Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(command._screen(run_files.read(folder), ()))
    console.file.close()
    os.close(held)
    text = console.export_text()
    for part in ("running", "normalise", "2/9", "16 pairs/s", "train loss 0.25", "validate accuracy 0.75"):
        assert part in text
