"""The drill: a backup of a service that is in use, brought into an empty home, and a service that goes on there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from plaudit.cli.main import plaudit
from plaudit.domain import Completion, Feedback, Interaction, Response
from plaudit.store.database import open_store

pytestmark = pytest.mark.slow


def test_a_service_goes_on_from_a_backup_that_was_taken_under_load(start_service, tmp_path_factory) -> None:
    running = start_service()
    headers = {"authorization": f"Bearer {running.key('application')}"}
    body = {"model": "plaudit", "messages": [{"role": "user", "content": "hello"}]}
    acknowledged: list[tuple[str, str]] = []
    stop = threading.Event()

    def talk() -> None:
        with httpx.Client(base_url=running.url, headers=headers, timeout=60) as client:
            while not stop.is_set():
                id = client.post("/v1/chat/completions", json=body).json()["id"]
                thumb = {"interaction_id": id, "kind": "thumb", "value": True}
                acknowledged.append((id, client.post("/v1/feedback", json=thumb).json()["id"]))

    folder = tmp_path_factory.mktemp("backups")
    file, home = folder / "b.tar", folder / "again"
    threads = [threading.Thread(target=talk) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(acknowledged) >= 20)
        before = list(acknowledged)
        made = CliRunner().invoke(plaudit, ["backup", str(file), "--home", str(running.settings.home)])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert made.exit_code == 0, made.output
    assert CliRunner().invoke(plaudit, ["restore", str(file), "--home", str(home)]).exit_code == 0
    store = open_store(f"sqlite:///{home / 'store.sqlite'}")
    chats = {id for id, _ in before}
    assert chats <= {row.id for row in store.find(Interaction)}
    assert chats <= {row.id for row in store.find(Completion)}
    assert chats <= {row.interaction_id for row in store.find(Response)}
    assert {id for _, id in before} <= {row.id for row in store.find(Feedback)}
    asked = store.count(Interaction)
    store.close()
    goes_on(home, headers, body, before[0][0])
    store = open_store(f"sqlite:///{home / 'store.sqlite'}")
    assert store.count(Interaction) == asked + 1
    store.close()


def goes_on(home: Path, headers: dict[str, str], body: dict[str, object], known: str) -> None:
    """A service on the home takes the old key, a chat, and another opinion on an old answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    command = [sys.executable, "-m", "plaudit.cli", "service", "--home", str(home), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:

            def ready() -> bool:
                assert process.poll() is None, "the service ended at its start"
                try:
                    return client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(ready)
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            thumb = {"interaction_id": known, "kind": "thumb", "value": False}
            assert client.post("/v1/feedback", json=thumb).json()["status"] == "superseded"
    finally:
        process.terminate()
        process.wait(30)


def wait_until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
