"""Two gateways and a console, each a process with a home of its own, on one PostgreSQL: no acknowledged row is lost, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from plaudit.domain import Completion, Feedback, Interaction, Response, utc_now
from plaudit.loop import govern, release
from plaudit.store.database import Store, open_store
from plaudit.store.spool import Spool

pytestmark = pytest.mark.slow
N_CLIENTS = 6


@contextmanager
def service(home: Path, role: str, store_url: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    told = {"ROLE": role, "STORE_URL": store_url, "STORE_PATIENCE_S": "0.2", "FEEDBACK_KEYS": f"a:{'5' * 64}"}
    environment = {**os.environ, **{f"PLAUDIT_{name}": value for name, value in told.items()}}
    command = [sys.executable, "-m", "plaudit.cli", "service", "--home", str(home), "--port", str(port)]
    home.mkdir()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(30)


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def status(url: str) -> str:
    try:
        return str(httpx.get(url + "/readyz").json()["status"])
    except httpx.TransportError:
        return "silent"


class Crowd:
    """Clients that chat at the gateway of their number, and leave a thumb at the other one while there are two."""

    def __init__(self, urls: list[str], key: str) -> None:
        self.urls = urls
        self.chats: dict[str, list[str]] = {url: [] for url in urls}
        self.feedback: list[str] = []
        self.failures: dict[str, list[str]] = {url: [] for url in urls}
        self.quiet = threading.Event()  # no feedback: it needs the store
        self._headers = {"authorization": f"Bearer {key}"}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._talk, args=(number,)) for number in range(N_CLIENTS)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, n_more: int, url: str) -> None:
        wanted = len(self.chats[url]) + n_more
        wait_until(lambda: len(self.chats[url]) >= wanted or bool(self.failures[url]), "the chats stand still")

    def _talk(self, number: int) -> None:
        mine, other = self.urls[number % 2], self.urls[1 - number % 2]
        turn = 0
        with httpx.Client(headers=self._headers, timeout=60) as client:
            while not self._stop.is_set():
                turn += 1
                said = [{"role": "user", "content": f"{number} {turn}"}]
                body = {"model": "plaudit", "messages": said, "user": f"user-{number}"}
                try:
                    answer = client.post(mine + "/v1/chat/completions", json=body)
                except httpx.TransportError as error:
                    self.failures[mine].append(repr(error))
                    return
                if answer.status_code != 200:
                    self.failures[mine].append(answer.text)
                    return
                id = str(answer.json()["id"])
                self.chats[mine].append(id)
                if not self.quiet.is_set():
                    thumb = {"interaction_id": id, "kind": "thumb", "value": True}
                    try:
                        given = client.post(other + "/v1/feedback", json=thumb)
                    except httpx.TransportError:
                        continue
                    if given.status_code == 201:
                        self.feedback.append(str(given.json()["id"]))


def test_two_gateways_and_a_console_share_a_database(postgres, postgres_url: str, tmp_path: Path) -> None:
    store = open_store(postgres_url)
    project = govern.ensure_project(store, utc_now())
    release.register_base(store, project.id, "fake-1", "fake:", utc_now())
    key = govern.create_key(store, project.id, "app", ["application"], now=utc_now())[1]
    operator = govern.create_key(store, project.id, "ops", ["operator"], now=utc_now())[1]
    with ExitStack() as stack:
        first, doomed = stack.enter_context(service(tmp_path / "a", "gateway,feedback", postgres_url))
        second, _ = stack.enter_context(service(tmp_path / "b", "gateway,feedback", postgres_url))
        console, _ = stack.enter_context(service(tmp_path / "c", "console", postgres_url))
        for url in (first, second, console):
            wait_until(lambda url=url: status(url) == "ready", "a service did not start")
        assert httpx.get(first + "/sign-in").status_code == 404  # people sign in at the console alone
        assert httpx.get(console + "/sign-in").status_code == 200
        crowd = stack.enter_context(Crowd([first, second], key))
        for url in (first, second):
            crowd.wait_for(20, url)

        crowd.quiet.set()
        name = postgres_url.partition("?")[0].rpartition("/")[2]
        postgres.ask(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        postgres.ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        for url in (first, second):
            wait_until(lambda url=url: status(url) == "spooling", "nobody noticed that the database is away")
            crowd.wait_for(20, url)
        postgres.ask(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        for url in (first, second):
            wait_until(lambda url=url: status(url) == "ready", "the store did not come back")
        assert crowd.failures == {first: [], second: []}
        crowd.quiet.clear()

        headers = {"authorization": f"Bearer {operator}"}
        erased = httpx.post(console + "/v1/erasure", json={"user": "user-0"}, headers=headers, timeout=60)
        assert erased.status_code in (200, 201), erased.text
        crowd.wait_for(20, first)
        os.kill(doomed.pid, signal.SIGKILL)
        crowd.wait_for(20, second)
        crowd.__exit__()
        assert crowd.failures[second] == []
        assert len(crowd.feedback) >= 40
    Spool(tmp_path / "a" / "spool").replay(store)  # as the dead one's next start does
    check(store, crowd)
    store.close()


def check(store: Store, crowd: Crowd) -> None:
    chats = {id for ids in crowd.chats.values() for id in ids}
    assert chats <= {row.id for row in store.find(Interaction)}
    assert chats <= {row.id for row in store.find(Completion)}
    assert chats <= {row.interaction_id for row in store.find(Response)}
    rows = store.find(Feedback)
    assert set(crowd.feedback) <= {row.id for row in rows}
    gone = [row for row in store.find(Interaction) if row.erasure_id is not None]
    assert gone
    assert not any("user-0" in json.dumps([row.actor, row.conversation_id]) for row in gone)
