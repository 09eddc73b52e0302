"""Run folders as others find them: growing files, states, speed and time left."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from plaudit.artifacts import MANIFEST
from plaudit.errors import BadInput, NotFound
from plaudit.learn.configs import PROGRAMS, describe
from plaudit.loop import run_files

SFT = {"snapshot": "/s", "base": "/b"}


def folder(path: Path, config: Any = SFT, **files: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def line(step: int, phase: str = "train", **more: float) -> dict[str, Any]:
    return {"step": step, "of": 10, "phase": phase, "seconds": 2.0, **more}


def test_a_tail_gives_whole_lines_once_and_starts_over_with_a_new_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    tail = run_files.Tail(file)
    assert tail.new() == []
    file.write_text('{"a": 1}\n{"a": 2')
    assert tail.new() == [{"a": 1}]
    assert tail.new() == []
    with file.open("a") as grown:
        grown.write('2}\n{"a": 3}\n')
    assert tail.new() == [{"a": 22}, {"a": 3}]
    (tmp_path / "new").write_text('{"a": 4}\n')
    (tmp_path / "new").replace(file)  # as a program does that resumes
    assert tail.new() == [{"a": 4}]


def test_the_end_of_a_file_is_whole_lines_and_says_whether_there_is_more(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert run_files.recent(path, 100) == ([], False)
    lines = [json.dumps(line(step)) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + "\n" + '{"half')
    everything = path.stat().st_size
    assert run_files.recent(path, everything) == ([line(1), line(2), line(3)], False)
    assert run_files.recent(path, everything - 1) == ([line(2), line(3)], True)  # the first has lost its beginning
    assert run_files.recent(path, len(lines[2]) + 8) == ([line(3)], True)
    assert run_files.recent(path, 3) == ([], True)
    found = run_files.read(folder(tmp_path / "run", **{"metrics.jsonl": path.read_text()}), everything - 1)
    assert (found.lines, found.cut) == ((line(2), line(3)), True)


def test_a_step_that_comes_again_replaces_what_was_after_it() -> None:
    lines = [line(1), line(2, loss=5.0), line(3), line(3, "validate"), line(1), line(2, loss=7.0)]
    found = run_files.by_phase(lines)
    assert [(row["step"], row.get("loss")) for row in found["train"]] == [(1, None), (2, 7.0)]
    assert list(found) == ["train", "validate"]


def test_pace_by_closed_form() -> None:
    # 2 s a step and 6 pairs in it: 3 pairs a second; 10 - 4 steps are left, 2 s each.
    pace = run_files.pace([line(step, pairs=6, n=1) for step in (1, 2, 3, 4)])
    assert pace == run_files.Pace(4, 10, 3.0, "pairs", 12.0)
    # A phase that comes at every third step: 2 s for three of them.
    assert run_files.pace([line(3, "validate", n=8), line(6, "validate", n=8)]) == run_files.Pace(
        6, 10, 4.0, "rows", 4 / 6 * 4
    )
    # A line that gives its own speed is believed, weighted by its seconds: (10 * 2 + 40 * 2) / 4.
    assert run_files.pace([line(1, n=3, tokens_per_second=10), line(2, n=3, tokens_per_second=40)]).speed == 25.0
    assert run_files.pace([line(1)]) == run_files.Pace(1, 10, 0.0, "", 18.0)
    assert run_files.pace([]) == run_files.Pace(0, 0, 0.0, "", None)


def test_pace_forgets_what_is_long_ago() -> None:
    slow = [{**line(step, tokens=100), "of": 100, "seconds": 50.0} for step in range(1, 31)]
    quick = [{**line(step, tokens=100), "of": 100, "seconds": 1.0} for step in range(31, 31 + run_files.WINDOW)]
    assert run_files.pace(slow + quick) == run_files.Pace(50, 100, 100.0, "tokens", 50.0)


def test_curves_are_the_numbers() -> None:
    rows = [line(1, loss=0.7), {**line(2, loss=0.5), "stop": "budget", "ok": True, "phases": {"a": 1}}]
    assert run_files.curves(rows) == {"loss": [(1, 0.7), (2, 0.5)]}


def test_states(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", metrics__jsonl=json.dumps(line(1)) + "\n", progress__json='{"phase": "load"}')
    assert run_files.read(run).state == "stopped"
    assert run_files.read(run).note is None  # a note of a program that is gone
    held = os.open(run / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    working = run_files.read(run)
    assert (working.state, working.note, len(working.lines)) == ("running", {"phase": "load"}, 1)
    os.close(held)
    (run / "stderr.log").write_text('warning\n{"code": "bad_input", "message": "Too short."}\n\n')
    assert (run_files.read(run).state, run_files.read(run).error) == ("failed", "Too short.")
    (run / "stderr.log").write_text("Traceback\nValueError: x\n")
    assert (run_files.read(run).state, run_files.read(run).error) == ("stopped", "ValueError: x")
    (run / "result.json").write_text('{"program": "reward"}')
    assert run_files.read(run).state == "stopped"  # its Checkpoint comes after the result
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / MANIFEST).write_text("{}")
    done = run_files.read(run)
    assert (done.state, done.program, done.result) == ("done", "reward", {"program": "reward"})
    scored = folder(tmp_path / "scored", result__json='{"program": "score"}')
    assert run_files.read(scored).state == "done"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_resolved_config_tells_its_program(program: str, tmp_path: Path) -> None:
    """No two programs may have the same fields: this is how a run folder is known before it has a result."""
    names = {name for name, _, _ in describe(PROGRAMS[program]) if "." not in name}
    run = folder(tmp_path / "run", config__resolved__json=json.dumps(dict.fromkeys(names)))
    assert run_files.read(run).program == program


def test_folders_are_found_oldest_first(tmp_path: Path) -> None:
    for at, name in enumerate(("b", "a")):
        os.utime(folder(tmp_path / name) / "config.json", (at, at))
    (tmp_path / "other").mkdir()
    assert [path.name for path in run_files.find(tmp_path)] == ["b", "a"]
    with pytest.raises(NotFound, match="There is no folder"):
        run_files.find(tmp_path / "nowhere")


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no run folder: it has no config\.json"):
        run_files.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is not JSON"):
        run_files.read(tmp_path)
