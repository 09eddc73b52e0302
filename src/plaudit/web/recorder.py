"""Durable rows for an asynchronous gateway: one writer thread, many requests to a commit.

`submit` returns at once; its future ends when the rows are on disk. While one commit waits for the disk the next batch gathers, so the
cost of an fsync is shared by all requests of that moment. Rows of one `submit` are written together or not at all.

With a spool the store is never the product's outage. Where a commit fails or takes longer than `patience_s`, what waits goes to the spool
(a second thread, an fsynced file) and is acknowledged; so does all that follows, in order, until the writer has brought the whole spool
into the store. A commit that ends late after all has then been written twice: ids are the keys, the second time changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.errors import Corrupt, PlauditError, Unavailable
from plaudit.store.database import Store
from plaudit.store.spool import Change, Entry, Spool
from plaudit.web.metrics import Histogram

MAX_BATCH = 256
RETRY_S = 0.25  # between two attempts to bring the spool into the store
STOP_S = 5.0  # that a writer which hangs in the store is waited for at the end
AWAY = (Unavailable, Corrupt)
log = logging.getLogger("plaudit.web")


@dataclass(frozen=True)
class _Job:
    entry: Entry
    done: asyncio.Future[None]


Outcomes = list[tuple[_Job, Exception | None]]


class Recorder:
    """Use within one event loop: `start()`, `submit(...)`, `await stop()`."""

    def __init__(self, store: Store, spool: Spool | None = None, patience_s: float = 1.0) -> None:
        self._store = store
        self._spool = spool
        self._patience_s = patience_s
        self.commits = Histogram()  # how long each took; the writer's
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer = threading.Thread(target=self._write_on, name="recorder", daemon=True)
        self._spooler = threading.Thread(target=self._spool_on, name="spooler", daemon=True)
        # All below belongs to whoever holds the lock.
        self._lock = threading.Lock()
        self._for_writer = threading.Condition(self._lock)
        self._for_spooler = threading.Condition(self._lock)
        self._queue: deque[_Job] = deque()
        self._in_store: list[_Job] = []  # of the commit that is under way
        self._since = 0.0  # when it began
        self._down = False  # rows go to the spool
        self._spooling = False  # some are on their way there
        self._returning = False  # the last of the spool is on its way to the store: new rows wait
        self._stopping = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._spool is not None:
            self._down = self._spool.leftovers()  # first what a crash has left
            self._spooler.start()
        self._writer.start()

    @property
    def alive(self) -> bool:
        return self._writer.is_alive() and (self._spool is None or self._spooler.is_alive())

    @property
    def spooling(self) -> bool:
        """Whether the store is away and rows wait on the local disk."""
        return self._down

    @property
    def n_waiting(self) -> int:
        """Of what was submitted, how much no thread has taken up yet."""
        return len(self._queue)

    @property
    def serves_without_store(self) -> bool:
        return self._spool is not None

    def submit(self, *rows: Any, changes: Sequence[Change] = ()) -> asyncio.Future[None]:
        """A future that ends when `rows` are durable; it raises what the store raised. Nobody has to await it."""
        assert self._loop is not None
        done: asyncio.Future[None] = self._loop.create_future()
        done.add_done_callback(_heard)
        with self._lock:
            if not self._stopping and self.alive:
                self._queue.append(_Job(Entry(rows, tuple(changes)), done))
                (self._for_spooler if self._down else self._for_writer).notify()
                return done
        done.set_exception(Unavailable("The recorder has stopped; try again in a moment."))
        return done

    async def stop(self) -> None:
        """Write what was submitted, to the store or to the spool, then end the threads."""
        with self._lock:
            self._stopping = True
            self._for_writer.notify()
            self._for_spooler.notify()
        if self._spool is None:
            await asyncio.to_thread(self._writer.join)
            return
        await asyncio.to_thread(self._spooler.join)
        await asyncio.to_thread(self._writer.join, STOP_S)
        if self._writer.is_alive():
            log.warning("The store hangs; what was acknowledged is in the spool and is written at the next start.")
        else:
            self._spool.close()

    # --- the writer: the store's only user here ------------------------------------------------------------------------

    def _write_on(self) -> None:
        while True:
            with self._lock:
                self._for_writer.wait_for(lambda: self._queue or self._down or self._stopping)
                if not self._down:
                    if not self._queue:
                        self._for_spooler.notify()
                        return
                    batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
                    self._in_store, self._since = batch, time.monotonic()
                else:
                    batch = []
            if batch:
                self._settle(self._after_commit(self._write(batch)))
                continue
            self._catch_up()
            if self._pause():
                return

    def _after_commit(self, outcomes: Outcomes) -> Outcomes:
        """What can be said to the callers; what the store could not take goes on to the spool."""
        with self._lock:
            taken_over = self._down
            self._in_store = []
            if self._spool is None:
                return outcomes
            failed = [job for job, error in outcomes if isinstance(error, AWAY)]
            if failed and not taken_over:
                self._queue.extendleft(reversed(failed))
                self._go_down("it does not answer")
            return [(job, error) for job, error in outcomes if not isinstance(error, AWAY)]

    def _catch_up(self) -> None:
        """Bring the spool into the store; with the last of it new rows wait for a moment and then go to the store again."""
        assert self._spool is not None
        try:
            while self._spool.replay(self._store) >= MAX_BATCH:
                pass
            with self._lock:
                self._returning, self._since = True, time.monotonic()
                self._for_writer.wait_for(lambda: not self._spooling, timeout=self._patience_s)
                if self._spooling:
                    raise Unavailable("The spool's disk is slow.")
            self._spool.replay(self._store)
        except Exception as error:
            if not isinstance(error, AWAY):
                log.exception("The spool cannot be replayed now.")
            with self._lock:
                self._returning = False
                self._for_spooler.notify()
            return
        with self._lock:
            if self._returning:  # else the spooler has lost patience and goes on
                self._returning = self._down = False
                self._spool.clear()
                log.warning("The store is back and has all rows.")

    def _pause(self) -> bool:
        """Between two attempts. Whether to end: nothing comes any more and the store is still away."""
        with self._lock:
            if self._stopping and self._down:
                self._for_writer.wait_for(lambda: not self._spooling and not self._queue, timeout=self._patience_s)
                return True
            if self._down:
                self._for_writer.wait(RETRY_S)
            return False

    def _write(self, batch: list[_Job]) -> Outcomes:
        """All in one transaction; where that fails, one by one, so that one bad row fails alone."""
        try:
            self._commit(batch)
        except AWAY as error:
            return [(job, error) for job in batch]
        except Exception as error:
            if len(batch) == 1:
                if not isinstance(error, PlauditError):
                    log.exception("The recorder could not write a row.")
                return [(batch[0], error)]
            return [outcome for job in batch for outcome in self._write([job])]
        return [(job, None) for job in batch]

    def _commit(self, batch: list[_Job]) -> None:
        began = time.monotonic()
        with self._store.write(beside_others=True) as tx:
            tx.add(*(row for job in batch for row in job.entry.rows))
            for job in batch:
                for change in job.entry.changes:
                    tx.change(change.kind, change.id, **change.columns)
        self.commits.observe(time.monotonic() - began)

    # --- the spooler ---------------------------------------------------------------------------------------------------

    def _spool_on(self) -> None:
        assert self._spool is not None
        while True:
            with self._lock:
                self._for_spooler.wait_for(self._has_something, timeout=self._patience_s / 4)
                if (self._in_store or self._returning) and time.monotonic() - self._since > self._patience_s:
                    self._returning = False
                    self._go_down(f"a commit takes longer than {self._patience_s:g} s")
                batch = [*self._in_store, *self._queue] if self._down and not self._returning else []
                if batch:
                    self._in_store = []
                    self._queue.clear()
                    self._spooling = True
                elif self._stopping and not self._in_store and not self._queue:
                    self._for_writer.notify()
                    return
            if batch:
                outcomes = self._append(batch)
                with self._lock:
                    self._spooling = False
                    self._for_writer.notify()
                self._settle(outcomes)

    def _has_something(self) -> bool:
        if self._down and not self._returning:
            return bool(self._queue or self._in_store or self._stopping)
        return self._stopping and not self._in_store and not self._queue

    def _append(self, batch: list[_Job]) -> Outcomes:
        assert self._spool is not None
        try:
            self._spool.append([job.entry for job in batch])
        except OSError as error:
            log.exception("Neither the store nor the spool takes rows.")
            failure = Unavailable(f"Neither the store nor the spool can write ({error}); check the disk and try again.")
            return [(job, failure) for job in batch]
        return [(job, None) for job in batch]

    def _go_down(self, why: str) -> None:
        """Under the lock."""
        log.warning("The store is away (%s): rows wait in the spool, chats go on.", why)
        self._down = True
        self._for_spooler.notify()

    # --- the callers ---------------------------------------------------------------------------------------------------

    def _settle(self, outcomes: Outcomes) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_tell, outcomes)
        except RuntimeError:  # the event loop has closed: nobody waits any more, the rows are written
            log.info("Rows were written after the last request had ended.")


def _tell(outcomes: Outcomes) -> None:
    for job, error in outcomes:
        if job.done.done():  # its request was cancelled, or it is written twice
            continue
        if error is None:
            job.done.set_result(None)
        else:
            job.done.set_exception(error)


def _heard(done: asyncio.Future[None]) -> None:
    """Nobody may be waiting for it: look at the exception, so that asyncio does not complain of one never retrieved."""
    if not done.cancelled() and done.exception() is not None:
        log.warning("A record was not written: %s", done.exception())
