"""`plaudit up --role` as a process: only the wanted part runs, with nothing of the others, beside another part on the same home."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

SECONDS = 60
pytestmark = pytest.mark.slow


def command(home: Path, role: str, port: int) -> list[str]:
    options = [
        "--home",
        str(home),
        "--role",
        role,
        "--port",
        str(port),
        "--upstream",
        "fake:",
        "--model",
        "fake-1",
        "--json",
    ]
    return [sys.executable, "-m", "plaudit.cli", "up", *options]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def up(home: Path, role: str) -> Iterator[tuple[dict[str, Any], list[psutil.Process]]]:
    """(what it said when it was ready, its children); at the end it is asked to stop and does."""
    process = subprocess.Popen(
        command(home, role, free_port()), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        children = psutil.Process(process.pid).children()
        yield json.loads(line), children
        process.terminate()
        assert process.wait(SECONDS) == 0
        assert not [child for child in children if child.is_running()]
    finally:
        process.kill()
        process.communicate()


def status(said: dict[str, Any], path: str) -> int:
    return httpx.get(said["service"] + path, timeout=SECONDS, trust_env=False).status_code


def test_the_public_part_and_the_inner_one_share_a_home(tmp_path: Path) -> None:
    with up(tmp_path, "gateway,feedback") as (public, children):
        assert [child.cmdline()[3] for child in children] == ["service"]
        assert public["policy"] == "fake:"
        assert (status(public, "/v1/models"), status(public, "/v1/feedback")) == (401, 405)
        assert [status(public, path) for path in ("/sign-in", "/people", "/v1/annotation/progress")] == [404] * 3
        assert not (tmp_path / "keys" / "sign-in.link").exists()
        key = (tmp_path / "keys" / "admin.key").read_text()
        with up(tmp_path, "console,worker") as (inner, more):
            assert sorted(child.cmdline()[3] for child in more) == ["service", "worker"]
            assert "policy" not in inner
            assert (status(inner, "/sign-in"), status(inner, "/v1/models")) == (200, 404)
            assert (tmp_path / "keys" / "admin.key").read_text() == key
            again = subprocess.run(
                command(tmp_path, "worker", free_port()), capture_output=True, text=True, timeout=SECONDS, check=False
            )
            assert again.returncode == 2
            assert f"already runs on {tmp_path} as process {inner['pid']}" in again.stderr
