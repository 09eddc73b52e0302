"""What waits to be sent: a bounded queue and one thread that sends it in batches.

Nothing here raises or blocks, and the memory it takes has an end: what does not fit is dropped and counted. Order is kept, so that
feedback comes after the interaction that it is about and a retraction after its thumb. A batch that failed is sent again as it was, with
the idempotency keys in it, so nothing is recorded twice.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from plaudit.client.wire import FIRST_PAUSE_S, retry_after_s

INTERACTIONS, FEEDBACK = "/v1/interactions/batch", "/v1/feedback/batch"
MAX_BATCH = 500
MAX_BATCH_BYTES = 400_000  # below the service's max_body_bytes, 1 MB unless configured
MAX_ID_MAP = 10_000
LONGEST_PAUSE_S = 30.0
WARN_EVERY_S = 60.0
FINAL = (400, 404, 409, 413, 422)  # of one item: sending it again changes nothing
FINAL_OF_BATCH = (400, 413, 422)  # 401, 403 and 404 are a wrong key or address, which somebody may mend
log = logging.getLogger("plaudit.client")


@dataclass(frozen=True)
class _Item:
    path: str
    body: Mapping[str, Any]
    n_bytes: int


class Outbox:
    """`put` from any thread or event loop; `flush` waits until all of it was sent."""

    def __init__(
        self,
        connect: Callable[[], httpx.Client],
        *,
        max_items: int,
        max_bytes: int,
        interval_s: float,
        on_logged: Callable[[str, str | None], None],
    ) -> None:
        """`connect` opens the connection to the service, in each process anew. `interval_s`: how long a first item waits for others.
        `on_logged(id, token)`: what an interaction became."""
        self._connect = connect
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._interval_s = interval_s
        self._on_logged = on_logged
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._http = self._connect()
        self._waiting: deque[_Item] = deque()
        self._n_bytes = 0
        self._n_dropped = 0
        self._warned_at = 0.0
        self._ids: OrderedDict[str, str] = OrderedDict()  # idempotency key of an interaction -> its id
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._hurried = False
        self._closed = False

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_dropped(self) -> int:
        """What was lost since the start: no room, or refused by the service."""
        return self._n_dropped

    def put(self, path: str, body: Mapping[str, Any]) -> bool:
        """False where there is no room, or it is no JSON."""
        if self._pid != os.getpid():
            self._begin()  # after a fork: threads do not fork, and what waited is the parent's to send
        try:
            text = json.dumps(body)
        except (TypeError, ValueError, RecursionError) as error:
            self._drop(1, f"it is no JSON ({error})")
            return False
        item = _Item(path, json.loads(text), len(text))  # a copy: the host may go on changing its own
        with self._changed:
            room = len(self._waiting) < self._max_items and self._n_bytes + item.n_bytes <= self._max_bytes
            if room and not self._closed:
                self._waiting.append(item)
                self._n_bytes += item.n_bytes
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="plaudit-capture", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
                return True
        self._drop(1, "too much is waiting" if not room else "the capture is closed")
        return False

    def flush(self, timeout_s: float) -> bool:
        """Send what waits now; whether all of it was sent (or dropped) in this time."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._waiting, timeout_s)
            self._hurried = False
        return done

    def close(self, timeout_s: float) -> bool:
        """`flush`, then take nothing more; whether all was sent."""
        if self._pid != os.getpid():
            return True
        done = self.flush(timeout_s) if self._waiting else True
        with self._changed:
            self._closed = True
            self._drop(len(self._waiting), "the service did not take it before the end")
            self._waiting.clear()
            self._changed.notify_all()
        self._http.close()
        return done

    # --- the thread ---

    def _run(self) -> None:
        pause, failed = 0.0, 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._changed.wait_for(partial(self._ripe, pause), pause or self._interval_s)
                batch = self._next_batch()
            if not batch:
                continue
            try:
                n_done, pause = self._send(batch)
            except Exception as error:
                n_done, pause = 0, FIRST_PAUSE_S
                self._warn(f"Feedback waits: {type(error).__name__} from {self._http.base_url}.")
            failed = 0 if n_done else failed + 1
            pause = min(pause * 2 ** min(failed, 10), LONGEST_PAUSE_S) if pause else 0.0
            with self._changed:
                for _ in range(min(n_done, len(self._waiting))):
                    self._n_bytes -= self._waiting.popleft().n_bytes
                self._changed.notify_all()
                if pause and self._hurried:  # no spinning while somebody waits for the end
                    self._changed.wait_for(lambda: self._closed, min(pause, 0.2))

    def _ripe(self, pause: float) -> bool:
        return self._hurried or self._closed or (not pause and len(self._waiting) >= MAX_BATCH)

    def _next_batch(self) -> list[_Item]:
        """The oldest items that go to the same route, without taking them out."""
        batch: list[_Item] = []
        n_bytes = 0
        for item in self._waiting:
            n_bytes += item.n_bytes
            if batch and (item.path != batch[0].path or len(batch) == MAX_BATCH or n_bytes > MAX_BATCH_BYTES):
                break
            batch.append(item)
        return batch

    def _send(self, batch: Sequence[_Item]) -> tuple[int, float]:
        """How many of the first are settled, and seconds to wait before the rest (0: none)."""
        bodies = [self._with_id(item.body) for item in batch]
        answer = self._http.post(batch[0].path, json={"items": bodies})
        status = answer.status_code
        if status == 413 and len(batch) > 1:
            return self._send(batch[: len(batch) // 2])
        if status in FINAL_OF_BATCH:
            self._drop(len(batch), f"the service answered {status}: {answer.text[:200]}")
            return len(batch), 0.0
        if status != 207:
            self._warn(f"Feedback waits: {self._http.base_url} answered {status}.")
            return 0, retry_after_s(answer) if status in (429, 503) else FIRST_PAUSE_S
        results = answer.json()["results"]
        for place, (item, result) in enumerate(zip(batch, results, strict=True)):
            code = result["code"]
            if code in FINAL:
                self._drop(1, f"the service answered {code}: {str(result.get('error'))[:200]}")
            elif code not in (200, 201):
                return place, FIRST_PAUSE_S
            elif item.path == INTERACTIONS:
                self._learn(str(item.body["idempotency_key"]), result)
        return len(batch), 0.0

    def _learn(self, key: str, result: Mapping[str, Any]) -> None:
        self._ids[key] = result["id"]
        if len(self._ids) > MAX_ID_MAP:
            self._ids.popitem(last=False)
        self._on_logged(result["id"], result.get("feedback_token"))

    def _with_id(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Feedback about an interaction that we logged ourselves, by the id that the service gave it."""
        known = self._ids.get(str(body.get("interaction_id")))
        return {**body, "interaction_id": known} if known else body

    def _drop(self, n: int, why: str) -> None:
        self._n_dropped += n
        if n:
            self._warn(f"{n} lost: {why}.")

    def _warn(self, text: str) -> None:
        """Into the host's log, at most once a minute."""
        now = time.monotonic()
        if self._warned_at == 0.0 or now - self._warned_at > WARN_EVERY_S:
            self._warned_at = now
            log.warning(
                "%s (%d waiting, %d lost so far; said at most once a minute)", text, self.n_waiting, self._n_dropped
            )
