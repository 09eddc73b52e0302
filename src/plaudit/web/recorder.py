"""Durable rows for an asynchronous gateway: one writer thread, many requests to a commit.

`submit` returns at once; its future ends when the rows are on disk. While one commit waits for the disk the next batch gathers, so the
cost of an fsync is shared by all requests of that moment. Rows of one `submit` are written together or not at all.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.errors import PlauditError, Unavailable
from plaudit.store.database import Store

MAX_BATCH = 256
log = logging.getLogger("plaudit.web")


@dataclass(frozen=True)
class Change:
    """A correction of a row that was written before: which columns of which one."""

    kind: type
    id: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class _Job:
    rows: tuple[Any, ...]
    changes: tuple[Change, ...]
    done: asyncio.Future[None]


class Recorder:
    """Use within one event loop: `start()`, `submit(...)`, `await stop()`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, *rows: Any, changes: Sequence[Change] = ()) -> asyncio.Future[None]:
        """A future that ends when `rows` are durable; it raises what the store raised. Nobody has to await it."""
        assert self._loop is not None
        done: asyncio.Future[None] = self._loop.create_future()
        if self._stopping or not self.alive:
            done.set_exception(Unavailable("The recorder has stopped; try again in a moment."))
        else:
            self._jobs.put(_Job(rows, tuple(changes), done))
        done.add_done_callback(_heard)
        return done

    async def stop(self) -> None:
        """Write what was submitted, then end the thread."""
        self._stopping = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        going = True
        while going:
            first = self._jobs.get()
            batch = [first] if first is not None else []
            going = first is not None
            while going and len(batch) < MAX_BATCH:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    going = False
                else:
                    batch.append(job)
            if batch:
                self._finish(self._write(batch))

    def _write(self, batch: list[_Job]) -> list[tuple[_Job, Exception | None]]:
        """All in one transaction; where that fails, one by one, so that one bad row fails alone."""
        try:
            self._commit(batch)
        except Unavailable as error:
            return [(job, error) for job in batch]
        except Exception as error:
            if len(batch) == 1:
                if not isinstance(error, PlauditError):
                    log.exception("The recorder could not write a row.")
                return [(batch[0], error)]
            return [outcome for job in batch for outcome in self._write([job])]
        return [(job, None) for job in batch]

    def _commit(self, batch: list[_Job]) -> None:
        with self._store.write() as tx:
            tx.add(*(row for job in batch for row in job.rows))
            for job in batch:
                for change in job.changes:
                    tx.change(change.kind, change.id, **change.columns)

    def _finish(self, outcomes: list[tuple[_Job, Exception | None]]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_settle, outcomes)
        except RuntimeError:  # the event loop has closed: nobody waits any more, the rows are written
            log.info("Rows were written after the last request had ended.")


def _settle(outcomes: list[tuple[_Job, Exception | None]]) -> None:
    for job, error in outcomes:
        if job.done.done():  # its request was cancelled
            continue
        if error is None:
            job.done.set_result(None)
        else:
            job.done.set_exception(error)


def _heard(done: asyncio.Future[None]) -> None:
    """Nobody may be waiting for it: look at the exception, so that asyncio does not complain of one never retrieved."""
    if not done.cancelled() and done.exception() is not None:
        log.warning("A record was not written: %s", done.exception())
