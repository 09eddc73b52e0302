"""Pilots: an experiment among chosen users first, with what it may cost and when it ends.

Who is admitted is decided before anybody is assigned, by who they are and by what the application declares of them, so both arms are chosen
alike. Named users are kept as hashes only, for an erasure does not reach the rules of an experiment. What it costs is counted from the tokens
of the candidate's answers at the prices given.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from plaudit.domain import Json
from plaudit.errors import BadInput
from plaudit.stats.assignment import matches, segment


def named(actors: Iterable[str]) -> frozenset[str]:
    """What `Pilot.users` holds of these users."""
    return frozenset(hashlib.sha256(f"pilot\x1f{actor}".encode()).hexdigest() for actor in actors)


@dataclass(frozen=True)
class Pilot:
    """Whom it admits: whoever is of one of the segments, or `named`. Without either it admits everybody. Prices are per million tokens."""

    segments: tuple[str, ...] = ()
    users: frozenset[str] = frozenset()
    ends_at: datetime | None = None
    cap: float | None = None  # money, in the unit of the prices
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        amounts = (self.prompt_price, self.completion_price, 0.0 if self.cap is None else self.cap)
        if not all(math.isfinite(amount) and amount >= 0 for amount in amounts):
            raise BadInput(
                f"A pilot's cap and prices are {self.cap}, {amounts[0]} and {amounts[1]}; give amounts >= 0."
            )
        if self.cap is not None and not (self.prompt_price or self.completion_price):
            raise BadInput("A pilot with a cap needs a price per million prompt or completion tokens.")

    def admits(self, actor: str, attributes: Mapping[str, Any]) -> bool:
        if not self.segments and not self.users:
            return True
        return bool(self.users & named([actor])) or any(matches(one, attributes) for one in self.segments)

    def spent(self, n_prompt_tokens: int, n_completion_tokens: int) -> float:
        return (n_prompt_tokens * self.prompt_price + n_completion_tokens * self.completion_price) / 1e6

    def over(self, spent: float, now: datetime) -> str:
        """Why it ends now; empty while it goes on."""
        if self.cap is not None and spent >= self.cap:
            return f"the pilot has cost {spent:.4g} of {self.cap:.4g}"
        if self.ends_at is not None and now >= self.ends_at:
            return f"the pilot was to end at {self.ends_at:%Y-%m-%d %H:%M} UTC"
        return ""


def to_json(pilot: Pilot | None) -> Json:
    """As an Experiment keeps it; {} for none."""
    if pilot is None:
        return {}
    return {
        "segments": [segment(one) for one in pilot.segments],
        "users": sorted(pilot.users),
        "ends_at": pilot.ends_at.isoformat() if pilot.ends_at else None,
        "cap": pilot.cap,
        "prompt_price": pilot.prompt_price,
        "completion_price": pilot.completion_price,
    }


def from_json(kept: Json) -> Pilot | None:
    if not kept:
        return None
    ends_at = datetime.fromisoformat(kept["ends_at"]) if kept["ends_at"] else None
    chosen = {"segments": tuple(kept["segments"]), "users": frozenset(kept["users"]), "ends_at": ends_at}
    return Pilot(**{**kept, **chosen})
