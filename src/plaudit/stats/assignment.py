"""Which arm a user is in: a pure function of (salt, unit id), so that a gateway, the SDK and an analysis always agree.

A unit falls into one of 10,000 buckets. A ramp enrols equal candidate and control buckets out of the pool that nobody has touched:
candidates grow from bucket 0 upwards, controls from the last bucket downwards. So arms stay of equal size, whoever is in at 5 % is in
at 25 % in the same arm, and a user seen in both arms is an alarm, not a by-product of the ramp.

A salt is a layer: experiments of one salt deal users alike, those of two salts independently. A holdout is dealt by a salt of its own, so
that it is a fair sample of both arms. A segment is a set of conditions on what the application declares of a user.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plaudit.errors import BadInput

N_BUCKETS = 10_000
Arm = Literal["candidate", "control"]
Side = Literal["holdout", "released"]


@dataclass(frozen=True)
class Enrolment:
    """Number of buckets in each of the two arms; the rest is outside the experiment and gets the live release."""

    buckets_per_arm: int

    @property
    def fraction_per_arm(self) -> float:
        return self.buckets_per_arm / N_BUCKETS


def enrol(fraction_per_arm: float) -> Enrolment:
    """Enrolment of this share of users in *each* arm, 0..0.5, in steps of 1/10,000. Raises BadInput for any other share."""
    if not math.isfinite(fraction_per_arm) or not 0 <= fraction_per_arm <= 0.5:
        raise BadInput(
            f"fraction_per_arm is {fraction_per_arm}; two equal arms hold between 0 and 0.5 of the users each."
        )
    buckets = round(fraction_per_arm * N_BUCKETS)
    if abs(buckets - fraction_per_arm * N_BUCKETS) > 1e-6:
        raise BadInput(f"fraction_per_arm is {fraction_per_arm}; it must be a multiple of {1 / N_BUCKETS}.")
    return Enrolment(buckets)


def bucket(salt: str, unit_id: str) -> int:
    """0..9999: the first 8 bytes, big-endian, of sha256(salt, 0x1f, unit id) in UTF-8, modulo 10,000. Another salt shuffles anew."""
    digest = hashlib.sha256(f"{salt}\x1f{unit_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % N_BUCKETS


def arm_for(bucket: int, enrolment: Enrolment) -> Arm | None:
    """The arm of a bucket, or None where it is not enrolled."""
    if not 0 <= bucket < N_BUCKETS:
        raise BadInput(f"Bucket {bucket} does not exist; buckets run from 0 to {N_BUCKETS - 1}.")
    if bucket < enrolment.buckets_per_arm:
        return "candidate"
    if bucket >= N_BUCKETS - enrolment.buckets_per_arm:
        return "control"
    return None


def side_of(salt: str, unit_id: str, holdout: float) -> Side | None:
    """`holdout` for that share of all users (0..0.5), `released` for an equal share to compare them with, else None. Dealt by the salt with
    `/holdout` behind it."""
    arm = arm_for(bucket(f"{salt}/holdout", unit_id), enrol(holdout))
    return None if arm is None else "holdout" if arm == "candidate" else "released"


def segment(text: str) -> str:
    """`name=value,name=value` in its one form, sorted by name; empty is everybody. Raises BadInput for anything else."""
    if not text.strip():
        return ""
    found: dict[str, str] = {}
    for condition in text.split(","):
        name, equals, value = (part.strip() for part in condition.partition("="))
        if not name or not equals or not value or name in found:
            raise BadInput(f"{text!r} is no segment; write name=value, or several with commas, each name once.")
        found[name] = value
    return ",".join(f"{name}={found[name]}" for name in sorted(found))


def matches(segment: str, attributes: Mapping[str, Any]) -> bool:
    """Whether every condition of a segment holds: numbers and booleans are compared as JSON writes them."""
    for condition in segment.split(",") if segment else ():
        name, _, value = condition.partition("=")
        said = attributes.get(name)
        if said is None or value != (str(said).lower() if isinstance(said, bool) else str(said)):
            return False
    return True
