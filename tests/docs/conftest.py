"""How tests read the pages: headings, tables, code blocks; and a service for what the pages let a reader run."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from plaudit.domain import utc_now
from plaudit.loop import govern, release
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store
from plaudit.web.app import create_app

ROOT = Path(__file__).parents[2]
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path
    text: str

    @property
    def prose(self) -> str:
        """Without its code blocks, whose `#` are no headings."""
        return _BLOCK.sub("", self.text)

    def headings(self) -> list[str]:
        return [match[2] for match in _HEADING.finditer(self.prose)]

    def section(self, heading: str) -> Page:
        """From this heading to the next one of its level or above."""
        found = list(_HEADING.finditer(self.prose))
        at = next(i for i, match in enumerate(found) if match[2] == heading)
        end = next((m.start() for m in found[at + 1 :] if len(m[1]) <= len(found[at][1])), len(self.prose))
        return Page(self.path, self.prose[found[at].end() : end])

    def rows(self) -> list[list[str]]:
        """The cells of every table row below a table's head."""
        lines = [line.strip() for line in self.text.splitlines()]
        inside = [line for line in lines if line.startswith("|")]
        heads = {inside[i - 1] for i, line in enumerate(inside) if set(line) <= set("|-")}
        cells = (
            re.split(r"(?<!\\)\|", line)[1:-1] for line in inside if line not in heads and not set(line) <= set("|-")
        )
        return [[cell.strip() for cell in row] for row in cells]

    def names(self, column: int = 0) -> list[str]:
        """Every `code` in one column of the tables."""
        return [name for row in self.rows() for name in _CODE.findall(row[column])]

    def blocks(self, language: str) -> list[str]:
        return [body for said, body in _BLOCK.findall(self.text) if said == language]


def all_pages() -> list[Page]:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [Page(path, path.read_text()) for path in files]


def code_in(cell: str) -> list[str]:
    return _CODE.findall(cell)


@pytest.fixture(scope="session")
def pages() -> dict[str, Page]:
    """Every page of docs/ by its path there, and README.md."""
    docs = ROOT / "docs"
    return {str(p.path.relative_to(docs) if docs in p.path.parents else p.path.name): p for p in all_pages()}


@dataclass(frozen=True)
class Running:
    """A service in a thread of this process, with the Fake upstream, over the store of a home."""

    url: str
    home: Path
    store: Store
    project_id: str

    def key(self, role: str, person: str | None = None) -> str:
        return govern.create_key(self.store, self.project_id, role, [role], person, now=utc_now())[1]


@pytest.fixture
def service(tmp_path: Path, with_schema: Callable[[Path], str]) -> Iterator[Running]:
    settings = Settings(home=tmp_path)
    store = open_store(with_schema(tmp_path / "store.sqlite"))
    project = govern.ensure_project(store, utc_now())
    release.register_base(store, project.id, "fake-1", "fake:", utc_now())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(settings, store), log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it had started"
        time.sleep(0.005)
    yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path, store, project.id)
    server.should_exit = True
    thread.join(timeout=20)
    listener.close()
    store.close()
    assert not thread.is_alive()
