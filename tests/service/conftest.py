"""The service on a real port in a thread of the test, over a store of its own; upstreams are Fakes or small scripted servers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette

from plaudit.domain import DEFAULT_PROJECT, Project, utc_now
from plaudit.loop import govern, release
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store
from plaudit.web.app import create_app


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The base URL of an ASGI app that is served while the block runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it had started"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
        assert not thread.is_alive()


@dataclass(frozen=True)
class Service:
    """A running service and the way behind its counter."""

    url: str
    store: Store
    project: Project
    settings: Settings
    app: Starlette

    def key(self, *roles: str, person: str | None = None) -> str:
        name = f"{'-'.join(roles)}-{person}"
        return govern.create_key(self.store, self.project.id, name, roles, person, now=utc_now())[1]

    def stored(self, kind: type, at_least: int = 1, **equals: Any) -> list[Any]:
        """Rows, waited for up to a minute: the end of a request that its client left is recorded behind its back."""
        deadline = time.monotonic() + 60
        while len(found := self.store.find(kind, **equals)) < at_least:
            assert time.monotonic() < deadline, f"no {at_least} rows of {kind.__name__}, only {found}"
            time.sleep(0.01)
        return found


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serves ASGI apps (scripted upstreams) and gives their base URLs."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(running(app))


StartService = Callable[..., Service]


@pytest.fixture
def start_service(tmp_path: Path, with_schema: Callable[[Path], str]) -> Iterator[StartService]:
    """Starts a service whose live release is at `upstream`; call it at most once a test."""

    def start(upstream: str = "fake:", model: str = "fake-1", **settings: Any) -> Service:
        chosen = Settings(home=tmp_path, **settings)
        if not settings.get("store_url"):
            with_schema(tmp_path / "store.sqlite")
        store = open_store(chosen.database_url)
        project = govern.ensure_project(store, utc_now())
        assert project.id == DEFAULT_PROJECT
        if upstream:
            release.register_base(store, project.id, model, upstream, utc_now())
        app = create_app(chosen, store)
        stack.callback(store.close)
        url = stack.enter_context(running(app))
        return Service(url, store, project, chosen, app)

    with ExitStack() as stack:
        yield start
