"""How fast one key and one end user may go: a token bucket each, in the memory of this process (several services each count their own).

A bucket holds `rate * burst_s` requests and fills at `rate` a second. All that is kept of it is when it would be full again (the generic
cell rate algorithm; ITU-T I.371), so an untouched bucket costs nothing and may be forgotten.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from plaudit.errors import RateLimited
from plaudit.loop.feedback_tokens import Claims, actor_sha256
from plaudit.settings import Settings

MAX_BUCKETS = 100_000  # beyond that the one that was asked longest ago is forgotten


class Buckets:
    """One bucket for each name."""

    def __init__(self, rate: float, burst_s: float) -> None:
        """`rate` in requests a second, above 0."""
        self._interval_s = 1.0 / rate
        self._tolerance_s = max(1.0, rate * burst_s) * self._interval_s - self._interval_s
        self._full_at: dict[str, float] = {}  # the one that was asked last is last

    def take(self, name: str, now: float) -> float:
        """0 where a request was taken out of the bucket, else the seconds until there is one; `now` in seconds of a clock that never goes back."""
        full_at = max(now, self._full_at.pop(name, now))
        wait_s = full_at - now - self._tolerance_s
        self._full_at[name] = full_at if wait_s > 0 else full_at + self._interval_s
        if len(self._full_at) > MAX_BUCKETS:
            del self._full_at[next(iter(self._full_at))]
        return max(0.0, wait_s)


class Limits:
    """The limits of the settings; a rate of 0 is none."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = _buckets(settings.rate_per_key, settings.rate_burst_s)
        self._actors = _buckets(settings.rate_per_actor, settings.rate_burst_s)
        self._clock = clock

    def key(self, key_id: str) -> None:
        """A request with this API key. Raises RateLimited."""
        self._take(self._keys, key_id, "This API key", "rate_per_key")

    def actor(self, project_id: str, actor: str | None) -> None:
        """A chat, or feedback, of this end user; nobody named is not limited. Raises RateLimited."""
        hashed = actor_sha256(project_id, actor)
        if hashed is not None:
            self._take(self._actors, hashed, "This user", "rate_per_actor")

    def token(self, claims: Claims) -> None:
        """Feedback by token: its end user's; of nobody's, the answer itself is what is limited. Raises RateLimited."""
        self._take(self._actors, claims.actor_sha256 or claims.interaction_id, "This user", "rate_per_actor")

    def _take(self, buckets: Buckets | None, name: str, who: str, setting: str) -> None:
        wait_s = buckets.take(name, self._clock()) if buckets is not None else 0.0
        if wait_s > 0:
            text = f"{who} sends more than its limit ({setting}); send this again in {wait_s:.1f} s."
            raise RateLimited(text, math.ceil(wait_s))


def _buckets(rate: float, burst_s: float) -> Buckets | None:
    return Buckets(rate, burst_s) if rate > 0 else None
