"""What goes to a cluster and comes back, without one: inputs by hash, a worker's folder, the courier, the run folder at the end."""

from __future__ import annotations

import json
import sys

import pytest

from plaudit import artifacts
from plaudit.errors import ConfigError, Corrupt
from plaudit.learn import cluster
from plaudit.learn.cluster import Courier, Store, Task


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "storage"))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A config that names a folder, a file and an own function."""
    (tmp_path / "base" / "sub").mkdir(parents=True)
    (tmp_path / "base" / "sub" / "weights").write_bytes(b"\x00\x01")
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "own_on_cluster.py").write_text("def f(*_): return []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return {
        "base": str(tmp_path / "base"),
        "reward": [{"kind": "function", "function": "own_on_cluster:f"}, {"checkpoints": [str(tmp_path / "pairs.jsonl")]}],
        "start": "",
        "lora": {"rank": 4},
    }  # fmt: skip


def test_a_worker_gets_the_same_bytes_under_paths_of_its_own(store, asked, tmp_path, monkeypatch):
    task = cluster.send_inputs(store, str(tmp_path / "storage"), "grpo", asked)
    assert str(tmp_path / "base") not in json.dumps(task.config)
    monkeypatch.setattr(sys, "path", [*sys.path])
    place = tmp_path / "worker"
    cluster.fetch(store, task, place, place / "run")
    config = json.loads((place / "run" / "config.json").read_text())
    assert config["base"].startswith(str(place))
    with open(f"{config['base']}/sub/weights", "rb") as file:
        assert file.read() == b"\x00\x01"
    with open(config["reward"][1]["checkpoints"][0]) as file:
        assert file.read() == "{}\n"
    assert (config["lora"], config["start"]) == ({"rank": 4}, "")
    (module,) = task.modules
    assert sys.path[0] == str(place / module)
    assert (place / module / "own_on_cluster.py").is_file()


def test_the_same_content_is_sent_once_and_is_the_same_run(store, asked, tmp_path):
    first = cluster.send_inputs(store, "s", "grpo", asked)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "storage").rglob("*.tar")}
    assert len(times) == 3
    (tmp_path / "base" / "sub" / "weights").write_bytes(b"\x00\x01")  # written anew, the same bytes
    assert cluster.send_inputs(store, "s", "grpo", asked) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "storage").rglob("*.tar")} == times
    (tmp_path / "base" / "sub" / "weights").write_bytes(b"\x00\x02")
    other = cluster.send_inputs(store, "s", "grpo", asked)
    assert other.run != first.run
    assert cluster.send_inputs(store, "s", "ppo", asked).run != other.run


def test_an_input_that_was_changed_is_refused(store, asked, tmp_path):
    task = cluster.send_inputs(store, "s", "grpo", asked)
    name = f"inputs/{next(iter(task.inputs))}.tar"
    store.put(name, store.get(name)[:-1] + b"x")
    with pytest.raises(Corrupt, match="was changed; delete it"):
        cluster.fetch(store, task, tmp_path / "worker", tmp_path / "worker" / "run")


def test_a_module_that_is_not_here_is_said_at_once(store, asked):
    asked["reward"][0]["function"] = "no_such_module_here:f"
    with pytest.raises(ConfigError, match="there is no module no_such_module_here"):
        cluster.send_inputs(store, "s", "grpo", asked)


def test_a_storage_that_nothing_opens_is_refused():
    with pytest.raises(ConfigError, match="--storage ftp://x cannot be opened"):
        Store("ftp://x")


def test_the_courier_sends_what_is_new_and_mirrors_what_a_next_attempt_needs(store, tmp_path):
    task, folder, sent = Task("grpo", {}, {}, (), "s", "r"), tmp_path / "run", []
    (folder / "state").mkdir(parents=True)
    courier = Courier(store, task, folder, lambda kind, value: sent.append((kind, value)))
    courier.look()
    assert sent == []
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    (folder / "progress.json").write_text('{"phase": "sample", "step": 0, "of": 0}')
    (folder / "state" / "1.pt").write_bytes(b"one")
    courier.look()
    assert sent == [("lines", '{"step": 1}\n'), ("note", {"phase": "sample", "step": 0, "of": 0})]
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (folder / "state" / "1.pt").rename(folder / "state" / "2.pt")
    courier.look()
    courier.look()
    assert sent[2:] == [("lines", '{"step": 2}\n')]
    assert store.names("runs/r") == ["metrics.jsonl", "state/2.pt"]
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')  # cut back by a run that goes on
    courier.look()
    assert sent[3:] == [("metrics", '{"step": 1}\n')]
    again = tmp_path / "again"
    cluster.fetch(store, task, tmp_path / "place", again)
    assert (again / "state" / "2.pt").read_bytes() == b"one"
    assert (again / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_checkpoint_comes_back_whole_or_not_at_all(store, tmp_path):
    task, made, home = Task("grpo", {}, {}, (), "s", "r"), tmp_path / "made", tmp_path / "home"
    home.mkdir()
    artifacts.new_folder(made, "checkpoint")
    artifacts.write_atomic(made / "checkpoint" / "card.md", "a card")
    artifacts.finish(made / "checkpoint", "checkpoint", {})
    artifacts.write_atomic(made / "result.json", "{}")
    artifacts.write_atomic(made / "state" / "1.pt", "s")
    artifacts.write_atomic(made / "config.json", "{there}")
    artifacts.write_atomic(home / "config.json", "{here}")
    for folder in (made, home):
        artifacts.write_atomic(folder / "metrics.jsonl", "{}\n")
    followed = (home / "metrics.jsonl").stat().st_ino

    def send():
        for path in (path for path in made.rglob("*") if path.is_file()):
            store.put(f"runs/r/{path.relative_to(made)}", path.read_bytes())

    send()
    store.put("runs/r/checkpoint/card.md", b"other")
    with pytest.raises(Corrupt):
        cluster.bring_back(store, task, home)
    assert not (home / "checkpoint").exists()
    send()
    cluster.bring_back(store, task, home)
    assert artifacts.verify(home / "checkpoint", "checkpoint")
    assert (home / "result.json").is_file()
    assert not (home / "state").exists()
    assert (home / "config.json").read_text() == "{here}"
    assert (home / "metrics.jsonl").stat().st_ino == followed  # who follows it has read it
    assert store.names("runs/r") == []


def test_without_ray_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'plaudit\[ray\]'"):
        cluster.train("local-ray", 2, str(tmp_path), "grpo", tmp_path)
