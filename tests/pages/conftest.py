"""The console with people who are signed in: over HTTP without a network for quick tests, in Chromium for the others."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from plaudit.domain import DEFAULT_PROJECT, Person, Project, Run, RunState, new_id, utc_now
from plaudit.loop import govern, people
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store
from plaudit.web.app import create_app


@dataclass(frozen=True)
class Visitor:
    """A browser that asks for pages: it keeps cookies, follows no redirect, says where its forms come from."""

    client: httpx.Client

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def post(self, path: str, form: dict[str, str] | None = None, **headers: str) -> httpx.Response:
        return self.client.post(path, data=form or {}, headers={"sec-fetch-site": "same-origin"} | headers)


@dataclass(frozen=True)
class Console:
    """A running service, and the way behind its counter."""

    url: str
    home: Path
    store: Store
    opened: ExitStack

    def visitor(self) -> Visitor:
        client = httpx.Client(base_url=self.url, headers={"accept": "text/html"}, timeout=30, verify=False)
        return Visitor(self.opened.enter_context(client))

    def link(self, name: str, *roles: str, project_id: str = DEFAULT_PROJECT) -> str:
        """The secret of an invitation."""
        return people.invite(self.store, project_id, name, roles, utc_now())[2]

    def person(self, name: str, *roles: str, project_id: str = DEFAULT_PROJECT) -> Visitor:
        """Somebody who has signed in."""
        visitor = self.visitor()
        answer = visitor.post("/sign-in", {"invitation": self.link(name, *roles, project_id=project_id)})
        assert answer.status_code == 303, answer.text
        return visitor

    def named(self, name: str) -> Person:
        return people.find_person(self.store, DEFAULT_PROJECT, name)

    def project(self, id: str) -> str:
        """Another project in the same store."""
        self.store.add(Project(id=id, project_id=id, name=id, created_at=utc_now()))
        return id

    def run(self, step: str = "ppo", folder: Path | None = None, **fields: Any) -> Run:
        now = utc_now()
        given: dict[str, Any] = {"state": RunState.RUNNING, "started_at": now, "project_id": DEFAULT_PROJECT} | fields
        made = Run(
            id=new_id(Run),
            step=step,
            key=new_id(Run),
            turn=1,
            folder=str(folder) if folder else None,
            created_at=now,
            **given,
        )
        self.store.add(made)
        return made


def line(step: int, phase: str = "ppo", of: int = 10, **figures: float) -> str:
    """One line of metrics.jsonl."""
    return json.dumps({"step": step, "of": of, "phase": phase, "seconds": 0.5, **figures}) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The run folder of a ppo that is at its third step."""
    path = tmp_path / "run"
    path.mkdir()
    config = {"snapshot": "/s", "base": "/b", "reward": "/r", "steps": 10, "kl": {"coef": 0.4}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text(
        "".join(line(n, score=n / 10, kl=0.01 * n, n=8, eos_fraction=1.0) for n in (1, 2, 3))
    )
    return path


@pytest.fixture
def console(tmp_path: Path, with_schema: Callable[[Path], str]) -> Iterator[Console]:
    settings = Settings(home=tmp_path / "home")
    store = open_store(with_schema(settings.home / "store.sqlite"))
    govern.ensure_project(store, utc_now())
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(settings, store), log_level="critical", lifespan="on", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it had started"
        time.sleep(0.005)
    with ExitStack() as opened:
        yield Console(f"http://127.0.0.1:{listener.getsockname()[1]}", settings.home, store, opened)
    server.should_exit = True
    thread.join(timeout=20)
    listener.close()
    store.close()
    assert not thread.is_alive()
