"""A learn program in a folder of its own, by a small stand-in script; what a Run of the store adds is in test_train.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plaudit.errors import ConfigError, Conflict, PlauditError, TrainingStopped
from plaudit.loop import programs

# Leaves what python -m plaudit.learn leaves. It dies at its first attempt where epochs is 7.
PROGRAM = """
import json, os, pathlib, sys, time
program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
config = json.loads((folder / "config.json").read_text())
attempts = folder / "attempts"
with open(attempts, "a") as f: f.write("x")
(folder / "progress.json").write_text(json.dumps({"phase": "load", "step": 0, "of": 0}))
if config["criterion"] == "quick": sys.exit(0)
while not (folder / "seen").exists(): time.sleep(0.01)  # until the note was handed on
with open(folder / "metrics.jsonl", "w") as f: f.write(json.dumps({"step": 1, "of": 1, "phase": "train", "seconds": 1, "pairs": 2}) + "\\n")
if config["epochs"] == 7 and attempts.read_text() == "x": os.kill(os.getpid(), 9)
if config["epochs"] == 8:
    print(json.dumps({"code": "bad_input", "message": "Nothing to train on."}), file=sys.stderr)
    sys.exit(2)
(folder / "result.json").write_text(json.dumps({"program": program, "accuracy": 0.5}))
(folder / "checkpoint").mkdir()
(folder / "checkpoint" / "manifest.json").write_text("{}")
"""
CONFIG = {"snapshot": "/s", "base": "/b"}


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    return sys.executable, str(script)


def run(program: tuple[str, ...], folder: Path, name: str = "reward", **config: Any) -> tuple[Any, list[Any]]:
    told: list[Any] = []

    def note(said: Any) -> None:
        told.append(said["phase"])
        (folder / "seen").touch()

    result = programs.alone(name, CONFIG | config, folder, told.append, note, program=program)
    return result, told


def test_a_run_tells_what_it_does_and_is_done_once(tmp_path: Path, program: tuple[str, ...]) -> None:
    result, told = run(program, tmp_path / "run")
    assert result == {"program": "reward", "accuracy": 0.5}
    assert told == ["load", {"step": 1, "of": 1, "phase": "train", "seconds": 1, "pairs": 2}]
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (written["snapshot"], written["epochs"], written["optimizer"]["beta1"]) == ("/s", 1, 0.9)  # all of it
    again, told = run(program, tmp_path / "run", epochs=1)  # the default, said
    assert (again, told) == (result, [])
    assert (tmp_path / "run" / "attempts").read_text() == "x"


def test_a_killed_run_goes_on(tmp_path: Path, program: tuple[str, ...]) -> None:
    with pytest.raises(TrainingStopped, match=r"SIGKILL.*run it again to resume"):
        run(program, tmp_path / "run", epochs=7)
    result, _ = run(program, tmp_path / "run", epochs=7)
    assert result["accuracy"] == 0.5
    assert (tmp_path / "run" / "attempts").read_text() == "xx"


def test_the_programs_own_sentence_is_the_error(tmp_path: Path, program: tuple[str, ...]) -> None:
    with pytest.raises(PlauditError, match=r"^Nothing to train on\.$") as refused:
        run(program, tmp_path / "run", epochs=8)
    assert refused.value.code == "bad_input"


def test_a_folder_belongs_to_one_program_with_one_config(tmp_path: Path, program: tuple[str, ...]) -> None:
    run(program, tmp_path / "run", epochs=2)
    with pytest.raises(ConfigError, match="was started with epochs = 2, not 3"):
        run(program, tmp_path / "run", epochs=3)
    with pytest.raises(ConfigError, match="optimizer"):
        run(program, tmp_path / "run", epochs=2, optimizer={"beta1": 0.5})
    with pytest.raises(Conflict, match="holds a run of reward, not of sft"):
        run(program, tmp_path / "run", "sft")
    assert (tmp_path / "run" / "attempts").read_text() == "x"


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, program: tuple[str, ...]) -> None:
    with pytest.raises(Conflict, match="not empty and no run folder"):
        run(program, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_wrong_config_starts_nothing(tmp_path: Path, program: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        run(program, tmp_path / "run", epoch=1)
    assert not (tmp_path / "run").exists()


def test_a_program_that_leaves_no_result_is_told(tmp_path: Path, program: tuple[str, ...]) -> None:
    with pytest.raises(TrainingStopped, match=r"without a result\.json"):
        run(program, tmp_path / "run", criterion="quick")


# --- one process for many --------------------------------------------------------------------------------------------------

# Leaves what `python -m plaudit.learn stay` leaves, and who worked: its process and the n-th piece of work of it.
STAYS = """
import json, os, pathlib, sys
assert sys.argv[1:] == ["stay"]
for n, line in enumerate(sys.stdin):
    program, folder = json.loads(line)
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    if config["criterion"] == "dies": os.kill(os.getpid(), 9)
    (pathlib.Path(folder) / "metrics.jsonl").write_text(json.dumps({"step": 1, "of": 1, "phase": "train", "seconds": 1}) + "\\n")
    while config["criterion"] == "long": pass
    (pathlib.Path(folder) / "result.json").write_text(json.dumps({"pid": os.getpid(), "n": n}))
    (pathlib.Path(folder) / "checkpoint").mkdir()
    (pathlib.Path(folder) / "checkpoint" / "manifest.json").write_text("{}")
    print(0, flush=True)
"""


@pytest.fixture
def resident(tmp_path: Path) -> Iterator[programs.Resident]:
    script = tmp_path / "stays.py"
    script.write_text(STAYS)
    made = programs.Resident((sys.executable, str(script)))
    yield made
    made.close()


def test_one_process_runs_many_programs_until_it_has_rested(tmp_path: Path, resident: programs.Resident) -> None:
    told: list[Any] = []
    ran = [programs.alone("reward", CONFIG, tmp_path / "run-0", told.append, program=resident)]
    resident.rest()  # not yet
    ran.append(programs.alone("reward", CONFIG, tmp_path / "run-1", told.append, program=resident))
    assert [one["n"] for one in ran] == [0, 1]
    assert ran[0]["pid"] == ran[1]["pid"] != os.getpid()
    assert [line["step"] for line in told] == [1, 1]
    resident.rest(idle_s=0.0)
    with pytest.raises(ProcessLookupError):
        os.kill(ran[0]["pid"], 0)
    after = programs.alone("reward", CONFIG, tmp_path / "after", None, program=resident)
    assert (after["n"], after["pid"] != ran[0]["pid"]) == (0, True)


def test_a_resident_that_died_is_told_and_replaced(tmp_path: Path, resident: programs.Resident) -> None:
    with pytest.raises(TrainingStopped, match=r"SIGKILL.*run it again to resume"):
        programs.alone("reward", CONFIG | {"criterion": "dies"}, tmp_path / "dead", None, program=resident)
    assert programs.alone("reward", CONFIG, tmp_path / "run", None, program=resident)["n"] == 0


def test_an_interrupted_program_of_a_resident_does_not_go_on(tmp_path: Path, resident: programs.Resident) -> None:
    def interrupt(line: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        programs.alone("reward", CONFIG | {"criterion": "long"}, tmp_path / "run", interrupt, program=resident)
    # its lock is free and nothing works there: the next one is another process, which gets the folder at once
    done = programs.alone("reward", CONFIG, tmp_path / "other", None, program=resident)
    assert done["n"] == 0


def test_learn_stays_and_every_folder_has_its_own_error(tmp_path: Path) -> None:
    """The real one: it refuses a config without a file, twice, from one process, each in the folder's own log."""
    resident = programs.Resident()
    config = {"base": "tiny", "inputs": str(tmp_path / "none.jsonl"), "measures": ["nll"]}
    pids = []
    for n in range(2):
        with pytest.raises(PlauditError, match=r"none\.jsonl does not exist") as refused:
            programs.alone("score", config, tmp_path / f"run-{n}", None, program=resident)
        assert refused.value.code == "not_found"
        assert resident._process is not None
        pids.append(resident._process.pid)
    (tmp_path / "run-1" / "checkpoint").mkdir()
    (tmp_path / "run-1" / "checkpoint" / "manifest.json").write_text("{}")
    assert (
        programs.launch(resident, "score", tmp_path / "run-1", None, None, lambda: None) == 0
    )  # says on stdout that it is finished
    resident.close()
    assert pids[0] == pids[1]
