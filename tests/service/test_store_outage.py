"""The feedback store is never the product's outage: chats go on while it is stopped, and no acknowledged row is lost."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from plaudit.domain import Completion, Interaction, Response, utc_now
from plaudit.errors import Unavailable
from plaudit.loop import govern, release
from plaudit.store.database import Store, open_store
from plaudit.store.spool import Spool
from plaudit.web.recorder import Recorder

PATIENCE_S = 0.2
LONG_S = 33.0  # SQLite itself waits 30 s for a lock
N_CLIENTS = 6


@contextmanager
def stopped(path: Path) -> Iterator[None]:
    """Nobody can write to the SQLite file: another process of the world holds its lock."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def chat(client: httpx.Client, words: str, stream: bool) -> str:
    """The id of a chat that came to its end."""
    body = {"model": "plaudit", "messages": [{"role": "user", "content": words}], "stream": stream}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    if not stream:
        return str(response.json()["id"])
    assert response.text.endswith("data: [DONE]\n\n"), response.text
    return str(json.loads(response.text.split("\n\n")[0].removeprefix("data: "))["id"])


class Crowd:
    """Clients that chat, every second one as a stream, until they are told to go home."""

    def __init__(self, url: str, key: str, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self.ids: list[str] = []
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._url, self._key = url, key
        self._threads = [threading.Thread(target=self._talk, args=(number,)) for number in range(N_CLIENTS)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, n_more: int) -> None:
        wanted = len(self.ids) + n_more
        deadline = time.monotonic() + 60
        while len(self.ids) < wanted and not self.failures:
            assert time.monotonic() < deadline, "the chats stand still"
            time.sleep(0.01)

    def _talk(self, number: int) -> None:
        headers = {"authorization": f"Bearer {self._key}"}
        try:
            with httpx.Client(base_url=self._url, headers=headers, timeout=30) as client:
                turn = 0
                while not self._stop.is_set():
                    turn += 1
                    self.ids.append(chat(client, f"{number} {turn}", stream=number % 2 == 0))
                    self._stop.wait(self._pause_s)
        except (httpx.TransportError, AssertionError) as failure:
            self.failures.append(failure)


def all_there(store: Store, ids: list[str]) -> bool:
    wanted = set(ids)
    return (
        wanted <= {row.id for row in store.find(Interaction)}
        and wanted <= {row.id for row in store.find(Completion)}
        and wanted <= {row.interaction_id for row in store.find(Response)}
    )


def wait_until_back(service) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(service.url + "/readyz").json()["status"] != "ready":
        assert time.monotonic() < deadline, "the store did not come back"
        time.sleep(0.02)


def test_a_store_that_is_locked_under_load_fails_no_chat_and_loses_no_row(start_service, tmp_path) -> None:
    service = start_service(store_patience_s=PATIENCE_S)
    with Crowd(service.url, service.key("application")) as crowd:
        crowd.wait_for(12)
        with stopped(tmp_path / "store.sqlite"):
            crowd.wait_for(30)
            during = httpx.get(service.url + "/readyz")
            assert (during.status_code, during.json()["status"]) == (200, "spooling")
            assert list((tmp_path / "spool").glob("*.jsonl"))
        wait_until_back(service)
        crowd.wait_for(12)
    assert crowd.failures == []
    assert all_there(service.store, crowd.ids)
    assert service.store.count(Response) == len(crowd.ids)  # each once
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.slow
def test_a_store_that_is_locked_for_longer_than_sqlite_waits_fails_no_chat_either(start_service, tmp_path) -> None:
    service = start_service(store_patience_s=PATIENCE_S)
    with Crowd(service.url, service.key("application"), pause_s=0.3) as crowd:
        crowd.wait_for(6)
        with stopped(tmp_path / "store.sqlite"):
            began = time.monotonic()
            while time.monotonic() < began + LONG_S and not crowd.failures:
                crowd.wait_for(6)
        wait_until_back(service)
        crowd.wait_for(6)
    assert crowd.failures == []
    assert all_there(service.store, crowd.ids)
    assert service.store.count(Response) == len(crowd.ids)


def test_a_store_that_cannot_even_be_read_fails_no_chat_of_a_known_key(start_service, monkeypatch) -> None:
    service = start_service(store_patience_s=PATIENCE_S)
    headers = {"authorization": f"Bearer {service.key('application')}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=30) as client:
        chat(client, "hello", stream=False)

        def gone(*_: object, **__: object) -> None:
            raise Unavailable("The store does not answer (gone).")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "_begin", gone)
            patch.setattr("plaudit.web.access.REMEMBERED_S", 0.0)
            ids = [chat(client, f"{number}", stream=number % 2 == 0) for number in range(6)]
            stranger = client.get("/v1/models", headers={"authorization": "Bearer plk_never_seen"})
            assert stranger.status_code == 503
        wait_until_back(service)
        assert all_there(service.store, ids)


def test_refuse_answers_503_and_lets_the_client_come_again(start_service, monkeypatch) -> None:
    service = start_service(on_store_failure="refuse")
    headers = {"authorization": f"Bearer {service.key('application')}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=30) as client:
        chat(client, "hello", stream=False)

        def locked(*_: object) -> None:
            raise Unavailable("The store does not answer (locked).")

        with monkeypatch.context() as patch:
            patch.setattr("plaudit.web.recorder.Recorder._commit", locked)
            refused = client.post(
                "/v1/chat/completions", json={"model": "plaudit", "messages": [{"role": "user", "content": "x"}]}
            )
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert chat(client, "again", stream=False)


def test_feedback_on_an_answer_that_is_still_in_the_spool_is_asked_for_again(
    start_service, monkeypatch, tmp_path
) -> None:
    service = start_service(store_patience_s=PATIENCE_S)
    headers = {"authorization": f"Bearer {service.key('application')}"}

    def away(*_: object) -> int:
        raise Unavailable("not yet")

    with httpx.Client(base_url=service.url, headers=headers, timeout=30) as client:
        body = {"model": "plaudit", "messages": [{"role": "user", "content": "x"}]}
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "replay", away)  # the store takes rows again, but has not yet those of the spool
            with stopped(tmp_path / "store.sqlite"):
                client.post("/v1/chat/completions", json=body)  # its commit is only late: it ends when the lock is gone
                answer = client.post("/v1/chat/completions", json=body)
            thumb = {"interaction_id": answer.json()["id"], "kind": "thumb", "value": {"up": True}}
            early = client.post("/v1/feedback", json=thumb)
            many = client.post("/v1/feedback/batch", json={"items": [thumb, thumb | {"kind": "no such"}]})
            token = {"authorization": f"Bearer {answer.headers['x-plaudit-feedback-token']}"}
            patch.setattr(Recorder, "spooling", False)  # as in another gateway, which knows nothing of this spool
            elsewhere = client.post("/v1/feedback", json=thumb, headers=token)
        wait_until_back(service)
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert elsewhere.status_code == 503
        assert [one["code"] for one in many.json()["results"]] == [503, 422]
        assert client.post("/v1/feedback", json=thumb).status_code == 201
        invented = thumb | {"interaction_id": "int_invented"}
        assert client.post("/v1/feedback", json=invented).status_code == 404


def test_where_neither_store_nor_spool_can_write_nothing_is_acknowledged(start_service, monkeypatch, tmp_path) -> None:
    service = start_service(store_patience_s=PATIENCE_S)
    headers = {"authorization": f"Bearer {service.key('application')}"}
    (tmp_path / "spool").write_text("a file where the folder should be")
    with stopped(tmp_path / "store.sqlite"):
        refused = httpx.post(
            service.url + "/v1/chat/completions",
            json={"model": "plaudit", "messages": [{"role": "user", "content": "x"}]},
            headers=headers,
            timeout=30,
        )
    assert refused.status_code == 503
    assert "spool" in refused.json()["error"]["message"]
    (tmp_path / "spool").unlink()
    wait_until_back(service)


@pytest.mark.slow
def test_a_service_that_is_killed_while_the_store_is_stopped_leaves_its_rows_to_the_next(tmp_path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    project = govern.ensure_project(store, utc_now())
    release.register_base(store, project.id, "fake-1", "fake:", utc_now())
    _, key = govern.create_key(store, project.id, "app", ["application"], now=utc_now())
    with started(tmp_path) as (process, url), Crowd(url, key) as crowd:
        crowd.wait_for(6)
        with stopped(tmp_path / "store.sqlite"):
            crowd.wait_for(30)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    acknowledged = list(crowd.ids)
    assert not all_there(store, acknowledged)
    with started(tmp_path):
        deadline = time.monotonic() + 60
        while not all_there(store, acknowledged):
            assert time.monotonic() < deadline, "the spool of the killed one was not replayed"
            time.sleep(0.05)
    store.close()


@contextmanager
def started(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    command = [sys.executable, "-m", "plaudit.cli", "service", "--home", str(home), "--port", str(port)]
    environment = {**os.environ, "PLAUDIT_STORE_PATIENCE_S": str(PATIENCE_S)}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, "the service ended at its start"
            assert time.monotonic() < deadline, "the service did not start"
            try:
                if httpx.get(url + "/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.wait()
