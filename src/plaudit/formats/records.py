"""What every format is read into and written from: one person's judgement about the answers to one conversation.

ranked     two or more responses with ranks; equal ranks are a tie
labelled   one response and a thumb
approved   one response that a person wrote or approved, neither ranked nor labelled
skipped    nobody judged it; readers reject those, so no Record is one
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from plaudit.domain import Message

_PSEUDONYM = re.compile(r"w-[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class Record:
    id: str  # of the item: several people's judgements of one item share it
    messages: tuple[Message, ...]  # the prompt, at least one
    responses: tuple[str, ...]
    ranks: tuple[int, ...] | None = None  # 1 is best; as long as responses
    label: bool | None = None
    both_bad: bool = False
    probability: float | None = None  # that the better one is better, .5..1
    weight: float | None = None  # effective number of votes
    margin: float | None = None  # in score units
    confidence: float | None = None  # as the source states it, in its own scale
    criterion: str = ""
    annotator: str = ""  # a pseudonym; see `pseudonym`
    order: tuple[int, ...] | None = None  # indices of responses as they were shown, first is left
    seconds: float | None = None
    comment: str = ""
    models: tuple[str, ...] = ()  # that wrote the responses
    created_at: str = ""  # ISO 8601, as the source says it
    meta: Mapping[str, str] = field(default_factory=dict)  # passed through

    def __post_init__(self) -> None:
        """Raises ValueError with the reason why this is no usable judgement."""
        if not any(str(one.get("content", "")).strip() for one in self.messages):
            raise ValueError("the prompt is empty")
        if not self.responses or not all(text.strip() for text in self.responses):
            raise ValueError("an answer is empty")
        if self.ranks is not None and len(self.ranks) != len(self.responses):
            raise ValueError(f"there are {len(self.responses)} answers and {len(self.ranks)} ranks")
        if self.ranks is not None and len(self.responses) < 2:
            raise ValueError("one answer alone cannot be ranked")
        if len(self.responses) > 1 and self.ranks is None:
            raise ValueError("the answers are not judged")
        if len(set(self.responses)) < len(self.responses):
            raise ValueError("two answers are the same text")

    @property
    def is_pair(self) -> bool:
        """Two responses, one better than the other: what a chosen/rejected row holds."""
        return len(self.responses) == 2 and self.ranks is not None and self.ranks[0] != self.ranks[1]

    @property
    def chosen_first(self) -> tuple[int, int]:
        """(index of the better, index of the worse) of a pair."""
        assert self.ranks is not None
        return (0, 1) if self.ranks[0] < self.ranks[1] else (1, 0)


@dataclass
class LossReport:
    """What a format could not hold: whole records by reason, and fields of records that were written, both counted."""

    n_records: int = 0
    n_written: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "n_records": self.n_records,
            "n_written": self.n_written,
            "dropped": dict(sorted(self.dropped.items())),
            "lost": dict(sorted(self.lost.items())),
        }


_DEFAULTS: dict[str, Any] = {
    spec.name: spec.default if spec.default is not MISSING else {}
    for spec in fields(Record)
    if spec.name not in ("id", "messages", "responses", "ranks", "label", "both_bad")
}


def forget(record: Record, held: Iterable[str], report: LossReport) -> Record:
    """The record without the optional fields that a format does not hold, each counted in `report.lost` where it said something."""
    kept = set(held)
    gone = [name for name, default in _DEFAULTS.items() if name not in kept and getattr(record, name) != default]
    report.lost.update(gone)
    return replace(record, **{name: _DEFAULTS[name] for name in gone}) if gone else record


def pairs(record: Record, report: LossReport) -> Iterator[Record]:
    """A ranked record as pairs; ties and records that are not ranked are dropped, counted."""
    if record.both_bad:
        report.dropped["both answers were called bad"] += 1
        return
    if record.ranks is None:
        report.dropped["it is labelled, not ranked" if record.label is not None else "it is not ranked"] += 1
        return
    for one in twos(record):
        if one.is_pair:
            yield one
        else:
            report.dropped["a tie"] += 1


def twos(record: Record) -> Iterator[Record]:
    """A ranked record as questions about two answers, ties among them; what was shown first of the two stays so."""
    assert record.ranks is not None
    if len(record.responses) == 2:
        yield record
        return
    for one in range(len(record.responses)):
        for two in range(one + 1, len(record.responses)):
            yield replace(
                record,
                id=f"{record.id}/{one}-{two}",
                responses=(record.responses[one], record.responses[two]),
                ranks=_places(record.ranks[one], record.ranks[two]),
                models=(record.models[one], record.models[two]) if record.models else (),
                order=None
                if record.order is None
                else ((0, 1) if record.order.index(one) < record.order.index(two) else (1, 0)),
            )


def _places(one: int, two: int) -> tuple[int, int]:
    return (1, 1) if one == two else (1, 2) if one < two else (2, 1)


def pseudonym(worker: object, salt: str) -> str:
    """A stable name for a worker of somebody else's system that does not tell who it is: HMAC-SHA256 under the salt.

    Nobody stays nobody, and what is a pseudonym of ours already stays what it is.
    """
    text = "" if worker is None else str(worker)
    if _PSEUDONYM.fullmatch(text):
        return text
    return "w-" + hmac.new(salt.encode(), text.encode(), hashlib.sha256).hexdigest()[:16] if text else ""


def text_of(value: Any, what: str) -> str:
    """A text field that must be there. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is no text")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    return value


def messages_of(value: Any, what: str = "the prompt") -> tuple[Message, ...]:
    """A prompt given as a text (one user message) or as a list of {"role", "content"}. Raises ValueError."""
    if isinstance(value, str):
        return ({"role": "user", "content": text_of(value, what)},)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{what} is neither a text nor a list of messages")
    for one in value:
        if not isinstance(one, dict) or not isinstance(one.get("role"), str) or not isinstance(one.get("content"), str):
            raise ValueError('a message needs "role" and "content", both texts')
    return tuple({"role": one["role"], "content": one["content"]} for one in value)


def number_of(value: Any, what: str) -> float | None:
    """A number, also one written as text; None where there is none. Raises ValueError."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        raise ValueError(f"{what} is {value!r}, not a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is {value!r}, not a number") from None
