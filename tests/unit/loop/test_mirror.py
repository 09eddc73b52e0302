"""The mirror against a real MLflow server, which is asked over HTTP what it holds; and against nobody, and somebody who never answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from plaudit import artifacts
from plaudit.cli.registry import registry as command
from plaudit.domain import Checkpoint, CheckpointKind, Project, Release, ReleaseState, Run, RunState, new_id
from plaudit.errors import BadInput, ConfigError, NotFound, Unavailable
from plaudit.loop import govern, mirror, registry, release, train, worker
from plaudit.loop.mirror import Wrote
from plaudit.loop.mlflow_server import MAX_METRICS, MlflowServer, key
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
N_LINES = 700  # two figures each: more than one request holds
START_S = 250.0


# --- a ledger ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, with_schema: Callable[[Path], str]) -> Iterator[Store]:
    opened = open_store(with_schema(tmp_path / "store.sqlite"))
    yield opened
    opened.close()


@pytest.fixture
def project(store: Store) -> Project:
    return govern.ensure_project(store, NOW)


def metrics(n: int, first: float = 0.0) -> str:
    line = {"of": N_LINES, "phase": "train", "seconds": 0.5}
    return "".join(
        json.dumps({**line, "step": i, "loss": first + i, "kl": {"k1": 0.5}}) + "\n" for i in range(1, n + 1)
    )


def add_run(store: Store, folder: Path, step: str, n_lines: int, state: RunState, **fields: Any) -> Run:
    config = {"seed": 3, "optimizer": {"learning_rate": 0.001}, "odd:name/../x": "y"}
    run = Run(
        id=new_id(Run),
        project_id="prj_default",
        step=step,
        key=train.run_key(step, config, {"of": folder.name}),
        turn=1,
        state=state,
        config=config,
        inputs={"of": folder.name},
        folder=str(folder / f"{step}-run"),
        attempt=1,
        created_at=NOW,
        **fields,
    )
    Path(str(run.folder)).mkdir(parents=True)
    (Path(str(run.folder)) / "metrics.jsonl").write_text(metrics(n_lines))
    store.add(run)
    return run


def add_checkpoint(store: Store, folder: Path, kind: CheckpointKind, n_lines: int = 3) -> Checkpoint:
    """As a finished Run leaves it."""
    outputs = {"result": {"valid": {"accuracy": 0.75}, "program": "x", "good": True}}
    run = add_run(
        store, folder, str(kind), n_lines, RunState.DONE, outputs=outputs, finished_at=NOW + timedelta(hours=1)
    )
    path = artifacts.new_folder(Path(str(run.folder)), "checkpoint")
    (path / "card.md").write_text(f"# A {kind}")
    (path / "weights.safetensors").write_text("w" * 50)
    (Path(str(run.folder)) / "config.resolved.json").write_text("{}")
    manifest = artifacts.finish(path, "checkpoint", {"checkpoint_kind": str(kind)})
    made = Checkpoint(
        id=new_id(Checkpoint),
        project_id="prj_default",
        kind=kind,
        folder=str(path),
        sha256=manifest.id,
        base="tiny",
        run_id=run.id,
        created_at=NOW,
    )
    store.add(made)
    return made


def offer(store: Store, made: Checkpoint, state: ReleaseState) -> Release:
    offered = release.create_candidate(store, "prj_default", made.id, f"model {made.id}", "fake:", NOW)
    return store.change(Release, offered.id, state=state)


# --- without MLflow ----------------------------------------------------------------------------------------------------


class Counted:
    """A stop event that is set after so many pauses."""

    def __init__(self, n: int) -> None:
        self.n, self.pauses = n, []

    def wait(self, pause: float) -> bool:
        self.pauses.append(pause)
        return len(self.pauses) > self.n


def test_an_mlflow_that_is_away_is_said_once_and_tried_after_longer_and_longer_pauses(
    store: Store, project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    settings = Settings(home=tmp_path, mlflow_url=f"http://ann:secret@127.0.0.1:{port}")
    stop = Counted(8)
    caplog.set_level("INFO", logger="plaudit.worker")
    worker._copy(settings, store, stop)  # type: ignore[arg-type]
    assert stop.pauses == [0, 30, 60, 120, 240, 480, 900, 900, 900]
    (said,) = caplog.messages
    assert "does not answer" in said
    assert "secret" not in said
    answers = iter([Unavailable("away"), [], ["run x: odd"], ["run x: odd"], []])

    def once(*_: Any) -> list[str]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    caplog.clear()
    monkeypatch.setattr(worker, "mirror_once", once)
    stop = Counted(5)
    worker._copy(settings, store, stop)  # type: ignore[arg-type]
    assert stop.pauses == [0, 30, 30, 30, 30, 30]
    assert [message.partition(" It")[0] for message in caplog.messages] == [
        "mlflow: away", "mlflow: up to date again", "mlflow: run x: odd", "mlflow: up to date again"
    ]  # fmt: skip


def test_an_mlflow_that_never_answers_holds_up_no_release_and_no_rollback(
    store: Store, project: Project, tmp_path: Path
) -> None:
    first = release.register_base(store, project.id, "base", "fake:", NOW)
    better = offer(store, add_checkpoint(store, tmp_path, CheckpointKind.POLICY), ReleaseState.CANARY)
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings(home=tmp_path, mlflow_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        working = threading.Thread(target=worker.run, args=(settings, store, stop), daemon=True)
        working.start()
        held, _ = silent.accept()  # the copyist's first question, which nobody answers
        with held:
            (copyist,) = [one for one in threading.enumerate() if one.name == "copyist"]
            with store.write() as tx:
                release._move(tx, first, ReleaseState.RETIRED, "Ann", "operator", "release.retire", "", NOW)
                release._move(tx, better, ReleaseState.LIVE, "Ann", "operator", "release.promote", "", NOW)
            assert release.live(store, project.id).id == better.id
            assert release.roll_back(store, project.id, "Ann", "worse", NOW).id == first.id
            assert copyist.is_alive(), "it is still waiting for its answer"
            stop.set()
            working.join(timeout=30)
            assert not working.is_alive(), "nor does the worker's end wait for it"
    copyist.join(timeout=30)


def test_the_command_without_an_address_or_an_answer(
    store: Store, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Any:
        return CliRunner().invoke(command, ["mirror", "--home", str(tmp_path)], catch_exceptions=False)

    with pytest.raises(ConfigError, match="mlflow_url is empty"):
        run()
    monkeypatch.setenv("PLAUDIT_MLFLOW_URL", "mlflow:5000")
    with pytest.raises(ConfigError, match="begins with http"):
        run()
    monkeypatch.setenv("PLAUDIT_MLFLOW_URL", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="does not answer"):
        run()


def test_names_that_mlflow_takes() -> None:
    """Its own rule: word characters, dashes, periods, spaces and slashes, and no way out of the folder."""
    assert [key("train", "kl"), key("a:b", "..", ""), key("x/y")] == ["train/kl", "a_b/_/_", "x_y"]
    assert len(key("x" * 999)) == 250


# --- with one ----------------------------------------------------------------------------------------------------------


@dataclass
class Mlflow:
    """`mlflow server` on a database of its own; killed and started again, it has the same address."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        # gunicorn: the app for uvicorn wants pandas and more, for routes that are not ours.
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination": str(self.folder / "files"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
            "--gunicorn-opts": "--threads 4",
        }
        said = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "HOME": str(self.folder),
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)],
                cwd=self.folder,
                env={**os.environ, **said},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5).text == "OK":
                    return
            assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.1)

    def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def get(self, path: str, /, **asked: Any) -> Any:
        return httpx.get(f"{self.url}/api/2.0/mlflow/{path}", params=asked, timeout=30).raise_for_status().json()

    def post(self, path: str, **asked: Any) -> Any:
        return httpx.post(f"{self.url}/api/2.0/mlflow/{path}", json=asked, timeout=30).raise_for_status().json()

    def runs(self, prefix: str) -> list[Any]:
        experiment = self.get("experiments/get-by-name", experiment_name=f"{prefix}-default")["experiment"]
        return self.post("runs/search", experiment_ids=[experiment["experiment_id"]]).get("runs", [])

    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        found = self.get("metrics/get-history", run_id=run_id, metric_key=name, max_results=25_000)["metrics"]
        return [(int(one["step"]), one["value"]) for one in found]

    def versions(self, model: str) -> dict[str, Any]:
        found = self.get("model-versions/search", filter=f"name='{model}'").get("model_versions", [])
        return {one["version"]: one for one in found}

    def aliases(self, model: str) -> dict[str, str]:
        found = self.get("registered-models/get", name=model)["registered_model"]
        return {one["alias"]: one["version"] for one in found.get("aliases", [])}


@pytest.fixture(scope="module")
def mlflow() -> Iterator[Mlflow]:
    quick = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # its schema is some 70 migrations
    with tempfile.TemporaryDirectory(prefix="plaudit-mlflow-", dir=quick) as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = Mlflow(Path(folder), port)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def tags(found: Any) -> dict[str, str]:
    return {one["key"]: one["value"] for one in found.get("tags", [])}


@pytest.mark.slow
def test_it_shows_runs_figures_versions_and_aliases_and_puts_back_what_was_changed(
    store: Store, project: Project, tmp_path: Path, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.register_base(store, project.id, "base", "fake:", NOW)
    reward = add_checkpoint(store, tmp_path / "a", CheckpointKind.REWARD)
    old = add_checkpoint(store, tmp_path / "b", CheckpointKind.POLICY)
    new = add_checkpoint(store, tmp_path / "c", CheckpointKind.POLICY)
    add_run(store, tmp_path / "d", "score", 1, RunState.DONE)  # left out
    challenger = offer(store, new, ReleaseState.CANARY)
    monkeypatch.setenv("PLAUDIT_MLFLOW_URL", mlflow.url)
    monkeypatch.setenv("PLAUDIT_MLFLOW_PREFIX", "one")

    def now() -> Any:
        done = CliRunner().invoke(command, ["mirror", "--json", "--home", str(tmp_path)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    wrote = now()
    assert (wrote["runs"], wrote["versions"], wrote["aliases"], wrote["problems"]) == (3, 3, 1, [])
    assert (wrote["metrics"], wrote["files"]) == (3 * (3 * 2 + 1), 3 * 3)
    assert mirror_to(mlflow, store, project, "one").nothing, "a second pass writes nothing"

    runs = {tags(one["data"])["plaudit.id"]: one for one in mlflow.runs("one")}
    assert set(runs) == {reward.run_id, old.run_id, new.run_id}
    shown = runs[str(new.run_id)]
    info, data = shown["info"], shown["data"]
    ledger = store.get(Run, str(new.run_id))
    assert (info["status"], info["run_name"]) == ("FINISHED", "policy 1")
    assert (info["start_time"], info["end_time"]) == (NOW.timestamp() * 1000, NOW.timestamp() * 1000 + 3_600_000)
    assert tags({"tags": data["params"]}) == {"seed": "3", "optimizer/learning_rate": "0.001", "odd_name_.._x": "y"}
    assert {one["key"]: one["value"] for one in data["metrics"]} == {"train/loss": 3, "train/kl/k1": 0.5, "result/valid/accuracy": 0.75}  # fmt: skip
    assert mlflow.history(info["run_id"], "train/loss") == [(1, 1), (2, 2), (3, 3)]
    said = tags(data)
    assert (said["plaudit.code_version"], said["plaudit.key"]) == (train.CODE_VERSION, ledger.key)
    assert said["plaudit.config_sha256"] == artifacts.sha256_of(ledger.config)
    files = mlflow.get("artifacts/list", run_id=info["run_id"], path="checkpoint")["files"]
    assert sorted(one["path"] for one in files) == ["checkpoint/card.md", "checkpoint/manifest.json"]
    card = httpx.get(
        f"{mlflow.url}/get-artifact", params={"run_id": info["run_id"], "path": "checkpoint/card.md"}, timeout=30
    )
    assert card.text == "# A policy"

    versions = mlflow.versions("one-default-policy")
    ours = {one.checkpoint.id: one for one in registry.versions(store, project.id)}
    by_id = {tags(one)["plaudit.id"]: one for one in versions.values()}
    assert {name: one["version"] for name, one in by_id.items()} == {old.id: "1", new.id: "2"}
    said = tags(by_id[new.id])
    assert (said["plaudit.sha256"], said["plaudit.version"]) == (new.sha256, ours[new.id].name)
    assert (said["plaudit.gate"], said["plaudit.releases"]) == ("not judged", f"{challenger.id} canary")
    assert [one["kind"] for one in json.loads(said["plaudit.lineage"])] == ["checkpoint", "run"]
    assert by_id[new.id]["source"] == f"runs:/{info['run_id']}/checkpoint"
    assert list(mlflow.versions("one-default-reward")) == ["1"]
    assert mlflow.aliases("one-default-policy") == {"challenger": "2"}, "the base model, which is live, has no version"

    # somebody has been at it by hand
    model = {"name": "one-default-policy"}
    mlflow.post("registered-models/alias", **model, alias="champion", version="1")
    mlflow.post("registered-models/alias", **model, alias="challenger", version="1")
    mlflow.post("registered-models/alias", **model, alias="mine", version="1")
    mlflow.post("model-versions/set-tag", **model, version="2", key="plaudit.gate", value="pass")
    mlflow.post("runs/delete", run_id=info["run_id"])
    gone = f"{mlflow.url}/api/2.0/mlflow/registered-models/delete"
    httpx.request("DELETE", gone, json={"name": "one-default-reward"}, timeout=30).raise_for_status()
    cut = f"{mlflow.url}/api/2.0/mlflow/model-versions/delete-tag"
    key = {**model, "version": "2", "key": "plaudit.lineage"}
    httpx.request("DELETE", cut, json=key, timeout=30).raise_for_status()
    wrote = mirror_to(mlflow, store, project, "one")
    assert (wrote.runs, wrote.versions, wrote.aliases, wrote.tags, wrote.problems) == (1, 1, 2, 2, ())
    assert tags(mlflow.versions("one-default-policy")["2"])["plaudit.lineage"] == said["plaudit.lineage"]
    assert mlflow.aliases("one-default-policy") == {"challenger": "2", "mine": "1"}
    assert tags(mlflow.versions("one-default-policy")["2"])["plaudit.gate"] == "not judged"
    assert len(mlflow.runs("one")) == 3

    # and the ledger moves on: what was challenged is champion
    with store.write() as tx:
        release._move(tx, release.live(store, project.id), ReleaseState.RETIRED, "Ann", "operator", "x", "", NOW)
        release._move(tx, challenger, ReleaseState.LIVE, "Ann", "operator", "release.promote", "", NOW)
    wrote = mirror_to(mlflow, store, project, "one")
    assert (wrote.aliases, wrote.tags) == (2, 1)
    assert mlflow.aliases("one-default-policy") == {"champion": "2", "mine": "1"}
    release.roll_back(store, project.id, "Ann", "worse", NOW)
    mirror_to(mlflow, store, project, "one")
    assert mlflow.aliases("one-default-policy") == {"mine": "1"}


def mirror_to(mlflow: Mlflow, store: Store, project: Project, prefix: str) -> Wrote:
    with MlflowServer(mlflow.url) as server:
        return mirror.mirror(store, project, server, prefix)


@pytest.mark.slow
def test_a_run_grows_while_it_runs_and_what_a_resume_cut_off_goes(
    store: Store, project: Project, tmp_path: Path, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(store, tmp_path, "ppo", 4, RunState.RUNNING)
    file = Path(str(run.folder)) / "metrics.jsonl"
    assert mirror_to(mlflow, store, project, "two") == Wrote(runs=1, metrics=8)
    file.write_text(metrics(6) + '{"step": 7, "half')
    assert mirror_to(mlflow, store, project, "two") == Wrote(metrics=4)
    with monkeypatch.context() as quiet:
        quiet.setattr(MlflowServer, "log", None)  # without news it is not even asked
        assert mirror_to(mlflow, store, project, "two").nothing
    (shown,) = mlflow.runs("two")
    assert shown["info"]["status"] == "RUNNING"
    assert mlflow.history(shown["info"]["run_id"], "train/loss") == [(i, i) for i in range(1, 7)]
    file.write_text(metrics(2) + metrics(5, first=10.0).split("\n", 2)[2])  # resumed after step 2
    store.change(Run, run.id, state=RunState.FAILED, attempt=2, error="No space left.", finished_at=NOW)
    assert mirror_to(mlflow, store, project, "two") == Wrote(runs=1, metrics=10)
    (again,) = mlflow.runs("two")
    assert again["info"]["status"] == "FAILED"
    assert tags(again["data"])["plaudit.error"] == "No space left."
    assert mlflow.history(again["info"]["run_id"], "train/loss") == [(1, 1), (2, 2), (3, 13), (4, 14), (5, 15)]
    assert mirror_to(mlflow, store, project, "two").nothing
    # Another worker had made the same run at once: one of them goes.
    twin = [{"key": "plaudit.id", "value": run.id}]
    mlflow.post("runs/create", experiment_id=again["info"]["experiment_id"], tags=twin)
    mirror_to(mlflow, store, project, "two")
    (left,) = mlflow.runs("two")
    assert len(mlflow.history(left["info"]["run_id"], "train/loss")) == 5


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_it_is_filled_up_without_doubles(
    store: Store, project: Project, tmp_path: Path, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = add_checkpoint(store, tmp_path / "a", CheckpointKind.REWARD, N_LINES)
    requests, log = [], MlflowServer.log

    def dies(self: MlflowServer, run_id: str, *given: Any, **more: Any) -> None:
        requests.append(run_id)
        if len(requests) == 3:  # its parameters and the first of its figures are there
            log(self, run_id, *given, **{**more, "tags": None})  # as if the answer, and the tag that counts, were lost
            mlflow.kill()
        log(self, run_id, *given, **more)

    assert 2 * N_LINES > MAX_METRICS
    monkeypatch.setattr(MlflowServer, "log", dies)
    with pytest.raises(Unavailable, match="does not answer"):
        mirror_to(mlflow, store, project, "three")
    monkeypatch.undo()
    mlflow.start()
    wrote = mirror_to(mlflow, store, project, "three")
    assert (wrote.runs, wrote.versions, wrote.problems) == (1, 1, ())
    assert wrote.metrics < 2 * N_LINES, "it goes on where it was"
    (shown,) = mlflow.runs("three")
    assert tags(shown["data"])["plaudit.id"] == made.run_id
    assert mlflow.history(shown["info"]["run_id"], "train/loss") == [(i, i) for i in range(1, N_LINES + 1)]
    assert mirror_to(mlflow, store, project, "three").nothing


@pytest.mark.slow
def test_one_run_that_cannot_be_shown_does_not_keep_the_others_back(
    store: Store, project: Project, tmp_path: Path, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = add_run(store, tmp_path / "a", "ppo", 1, RunState.RUNNING)
    file = Path(str(broken.folder)) / "metrics.jsonl"
    file.write_text("not json\n")
    add_checkpoint(store, tmp_path / "b", CheckpointKind.REWARD)
    monkeypatch.setattr(mirror, "SMALL_BYTES", len("# A reward"))  # the manifest does not fit
    wrote = mirror_to(mlflow, store, project, "four")
    (said,) = wrote.problems
    assert broken.id in said
    assert (wrote.runs, wrote.versions, wrote.files) == (1, 1, 2)
    file.write_text(metrics(1))
    assert mirror_to(mlflow, store, project, "four") == Wrote(runs=1, metrics=2), "tried again, with success"
    with MlflowServer(mlflow.url) as server:
        with pytest.raises(BadInput, match="artifacts-destination"):
            server.put_file("s3://bucket/1", "card.md", b"")
        with pytest.raises(NotFound, match="runs/log-batch with 404"):
            server.log("a" * 32, [{"key": "x", "value": 1.0, "timestamp": 0, "step": 0}])
