"""What an annotator says, as it comes in a body: a verdict about the whole, and beside it one for each criterion. Nothing is stored here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from plaudit.domain import Comparison, ComparisonKind, Lease, Project, Verdict
from plaudit.errors import BadInput
from plaudit.loop import body as fields
from plaudit.store.database import Transaction

MAX_ID_CHARS = 200
MAX_SECONDS = 86_400.0
MAX_NOTE_CHARS, MAX_EDIT_CHARS, MAX_REASONS = 2_000, 20_000, 20
MAX_RATING = 1_000_000  # no scale is larger
ANSWER_FIELDS = (
    "lease_id", "verdict", "choice", "rating", "strength", "seconds", "reasons", "note", "edit", "flagged", "criteria"
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A body that was read; of a criterion: what `criteria` says of it."""

    verdict: Verdict
    choice: str | None
    rating: int | None
    strength: int | None
    seconds: float
    reasons: tuple[str, ...]
    note: str | None
    edit: str | None
    flagged: bool


def read_answer(body: fields.Body) -> Answer:
    """Raises BadInput."""
    verdict = fields.member(body, "verdict", Verdict)
    read = Answer(
        verdict=verdict,
        choice=fields.text(body, "choice", max_chars=MAX_ID_CHARS),
        rating=fields.integer(body, "rating", -MAX_RATING, MAX_RATING),
        strength=fields.integer(body, "strength", 1, 3),
        seconds=fields.number(body, "seconds", 0.0, MAX_SECONDS),
        reasons=_read_reasons(body.get("reasons")),
        note=fields.text(body, "note", max_chars=MAX_NOTE_CHARS),
        edit=fields.text(body, "edit", max_chars=MAX_EDIT_CHARS),
        flagged=bool(fields.flag(body, "flagged", default=False)),
    )
    if (read.choice is None) == (verdict is Verdict.PREFER):
        raise BadInput(
            f"choice is {read.choice!r} with verdict {verdict}; name a response id with prefer, and only with it."
        )
    if (read.rating is None) == (verdict is Verdict.RATE):
        raise BadInput(f"rating is {read.rating!r} with verdict {verdict}; give a number with rate, and only with it.")
    for name, needs in (
        ("strength", (Verdict.PREFER,)),
        ("edit", (Verdict.PREFER, Verdict.RATE)),
        ("flagged", (Verdict.SKIP,)),
        ("criteria", (Verdict.PREFER, Verdict.TIE, Verdict.BOTH_BAD, Verdict.RATE)),
    ):
        if (getattr(read, name, None) or body.get(name)) and verdict not in needs:
            raise BadInput(f"{name} is given with verdict {verdict}; it goes with {' or '.join(needs)} only.")
    return read


def read_criteria(value: Any, lease: Lease, comparison: Comparison, whole: Answer) -> dict[str, Answer]:
    """What is said of each criterion: {name: a response id, "tie" or a rating}; one left out or null is left open. Raises BadInput."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"criteria is {fields.shown(value)}; give an object of criterion and verdict.")
    said = {}
    for name, given in value.items():
        if name not in comparison.criteria:
            asked = ", ".join(comparison.criteria) or "none"
            raise BadInput(f"criteria names {fields.shown(name)}; this question asks for: {asked}.")
        plain = replace(whole, choice=None, rating=None, strength=None, reasons=(), note=None, edit=None)
        if given is None:
            continue
        if comparison.kind is ComparisonKind.RATING:
            if isinstance(given, bool) or not isinstance(given, int):
                raise BadInput(f"criteria: {name} is {fields.shown(given)}; give a whole number.")
            said[name] = replace(plain, verdict=Verdict.RATE, rating=given)
        elif given == "tie":
            said[name] = replace(plain, verdict=Verdict.TIE)
        elif given in lease.order:
            said[name] = replace(plain, verdict=Verdict.PREFER, choice=given)
        else:
            raise BadInput(f"criteria: {name} is {fields.shown(given)}; give tie or one of: {', '.join(lease.order)}.")
    return said


def check_kind(tx: Transaction, comparison: Comparison, answers: Collection[Answer]) -> None:
    """Raises BadInput where one response is compared, two are rated, or a rating is off the project's scale."""
    rated = comparison.kind is ComparisonKind.RATING
    low, high = scale_of(tx, comparison.project_id)
    for one in answers:
        if one.verdict is not Verdict.SKIP and rated != (one.verdict is Verdict.RATE):
            wanted = "rate, with a rating" if rated else "prefer, tie or both_bad"
            raise BadInput(f"verdict is {one.verdict} and the question is {comparison.kind}; say {wanted}, or skip.")
        if one.rating is not None and not low <= one.rating <= high:
            raise BadInput(f"rating is {one.rating}; the scale of this project goes from {low} to {high}.")


def _read_reasons(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    plain = isinstance(value, list | tuple) and all(isinstance(one, str) and 0 < len(one) <= 100 for one in value)
    if not plain or len(value) > MAX_REASONS:
        raise BadInput(f"reasons is no list of at most {MAX_REASONS} strings of 1 to 100 characters.")
    return tuple(dict.fromkeys(value))


def scale_of(tx: Transaction, project_id: str) -> tuple[int, int]:
    """The least and the greatest rating of a project."""
    project = tx.get(Project, project_id)
    return project.rating_min, project.rating_max
