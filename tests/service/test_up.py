"""`plaudit up` as a process: addresses, one per home, children that come back and never stay behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

SECONDS = 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def command(home: Path, port: int) -> list[str]:
    options = ["--home", str(home), "--port", str(port), "--upstream", "fake:", "--model", "fake-1", "--json"]
    return [sys.executable, "-m", "plaudit.cli", "up", *options]


def until(true, what: str):
    deadline = time.monotonic() + SECONDS
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


@pytest.fixture
def up(tmp_path):
    """(home, the process, what it said when it was ready)."""
    home = tmp_path / "home"
    process = subprocess.Popen(command(home, free_port()), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    children = psutil.Process(process.pid).children(recursive=True)
    yield home, process, json.loads(line)
    process.kill()
    process.communicate()
    for child in children:
        if child.is_running():
            child.kill()


def chat(said: dict, secret: str) -> int:
    body = {"model": "plaudit", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {secret}"}
    try:
        return httpx.post(said["service"] + "/v1/chat/completions", json=body, headers=headers).status_code
    except httpx.TransportError:
        return 0


def test_it_serves_refuses_a_second_start_mends_a_fallen_child_and_stops_cleanly(up) -> None:
    home, process, said = up
    assert said["pid"] == process.pid
    key_file = Path(said["admin_key_file"])
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    secret = key_file.read_text().strip()
    assert chat(said, secret) == 200

    second = subprocess.run(command(home, free_port()), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert second.returncode == 2
    assert f"already runs on {home} as process {process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert chat(said, secret) == 200

    children = psutil.Process(process.pid).children()
    service = next(child for child in children if "service" in child.cmdline())
    service.send_signal(signal.SIGKILL)
    until(lambda: not service.is_running() or service.status() == psutil.STATUS_ZOMBIE, "the service did not die")
    until(lambda: chat(said, secret) == 200, "the service did not come back")

    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    assert not [child for child in children if child.is_running()]


def test_a_killed_parent_takes_its_children_along_and_the_home_is_free_again(up) -> None:
    home, process, said = up
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(_alive(child) for child in children), "children outlived their parent")
    secret = Path(said["admin_key_file"]).read_text().strip()
    port = int(said["service"].rpartition(":")[2])
    again = subprocess.Popen(command(home, port), stdout=subprocess.PIPE, text=True)
    try:
        assert again.stdout is not None
        assert json.loads(again.stdout.readline())["pid"] == again.pid
        assert chat(said, secret) == 200  # the same key, the same address
    finally:
        again.terminate()
        again.communicate(timeout=SECONDS)


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
