"""`kill -9` loses no acknowledged row: a crowd writes down every id it was given, then looks for it in the store."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx

from plaudit.domain import Completion, Feedback, Interaction, Response, utc_now
from plaudit.loop import govern, release
from plaudit.store.database import open_store

N_CLIENTS, N_ROUNDS, ACKNOWLEDGED = 8, 2, 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def crowd(url: str, key: str, chats: list[str], feedback: list[str], stop: threading.Event) -> list[threading.Thread]:
    """Clients that chat (every second one streams) and leave a thumb, until the service is gone."""

    def one(number: int) -> None:
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=10) as client:
            turn = 0
            while not stop.is_set():
                turn += 1
                body = {"model": "plaudit", "messages": [{"role": "user", "content": f"{number} {turn}"}]}
                try:
                    if number % 2:
                        text = client.post("/v1/chat/completions", json={**body, "stream": True}).text
                        if "[DONE]" not in text:
                            return
                        id = json.loads(text.split("\n\n")[0].removeprefix("data: "))["id"]
                    else:
                        id = client.post("/v1/chat/completions", json=body).json()["id"]
                    chats.append(id)
                    thumb = {"interaction_id": id, "kind": "thumb", "value": True}
                    feedback.append(client.post("/v1/feedback", json=thumb).json()["id"])
                except (httpx.TransportError, ValueError):
                    return

    threads = [threading.Thread(target=one, args=(number,)) for number in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    return threads


def test_a_killed_service_has_every_row_that_it_acknowledged(tmp_path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    project = govern.ensure_project(store, utc_now())
    release.register_base(store, project.id, "fake-1", "fake:", utc_now())
    _, key = govern.create_key(store, project.id, "app", ["application"], now=utc_now())
    chats: list[str] = []
    feedback: list[str] = []
    for _ in range(N_ROUNDS):
        port = free_port()
        command = [sys.executable, "-m", "plaudit.cli", "service", "--home", str(tmp_path), "--port", str(port)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        stop = threading.Event()
        threads: list[threading.Thread] = []
        try:
            wait_until_ready(url, process)
            before = len(chats)
            threads = crowd(url, key, chats, feedback, stop)
            while len(chats) < before + ACKNOWLEDGED:
                assert any(thread.is_alive() for thread in threads), "the crowd went home before the crash"
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
        finally:
            stop.set()
            process.kill()
            process.wait()
            for thread in threads:
                thread.join()
    assert len(chats) >= N_ROUNDS * ACKNOWLEDGED
    assert set(chats) <= {row.id for row in store.find(Interaction)}
    assert set(chats) <= {row.id for row in store.find(Completion)}
    assert set(chats) <= {row.interaction_id for row in store.find(Response)}
    assert set(feedback) <= {row.id for row in store.find(Feedback)}
    store.close()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the service ended at its start"
        assert time.monotonic() < deadline, "the service did not start"
        try:
            if httpx.get(url + "/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
