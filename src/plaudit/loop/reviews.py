"""Reviews: an expert looks again at what annotators dispute, and at a random share of the rest, blind to names.

`quality.settle` asks for them; a lead can too (`ask`). What an expert decides holds in the aggregation: `annotate.aggregate` reads it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from plaudit.domain import (
    OVERALL,
    Annotation,
    Comparison,
    ComparisonKind,
    ComparisonState,
    Guideline,
    Json,
    Purpose,
    Response,
    Review,
    ReviewKind,
    Verdict,
)
from plaudit.errors import BadInput, Conflict, Forbidden, NotFound
from plaudit.loop import body as fields
from plaudit.loop import govern, quality
from plaudit.loop.quality import Rules
from plaudit.store.database import Store

# What went wrong, where an expert decides against most annotators.
ERROR_CLASSES = (
    "none",
    "misread the question",
    "missed a wrong fact",
    "missed harm",
    "taste",
    "length or style",
    "the guideline is unclear",
)
MAX_NOTE_CHARS = 2_000
DECISIONS = (Verdict.PREFER, Verdict.TIE, Verdict.BOTH_BAD)
DECISION_FIELDS = ("verdict", "choice", "confidence", "error_class", "note")
QUESTION_FIELDS, QUESTION_ACTS = ("comparison_id", "act"), ("keep", "drop", "expert")


@dataclass(frozen=True)
class BlindVote:
    """One annotator's answer without their name. `column`: 1, 2, ..; of no one in particular."""

    column: int
    verdict: Verdict
    choice: str | None
    strength: int | None
    seconds: float
    reasons: tuple[str, ...]
    note: str | None


@dataclass(frozen=True)
class Case:
    """What an expert sees. `responses` in a random order of the expert's own."""

    review: Review
    comparison: Comparison
    responses: tuple[Response, ...]
    guideline: Guideline | None
    votes: tuple[BlindVote, ...]


def ask(store: Store, project_id: str, comparison_id: str, by: str, now: datetime) -> Review:
    """Send a closed training Comparison to an expert. Raises NotFound, BadInput."""
    with store.write() as tx:
        comparison = tx.first(Comparison, id=comparison_id, project_id=project_id)
        if comparison is None:
            raise NotFound(f"There is no Comparison {comparison_id!r} in this project.")
        if comparison.purpose is not Purpose.TRAINING or comparison.state is not ComparisonState.CLOSED:
            raise BadInput(
                f"Comparison {comparison_id} is {comparison.state} {comparison.purpose}; experts see closed training ones."
            )
        if comparison.kind is not ComparisonKind.PAIRWISE:
            raise BadInput(f"Comparison {comparison_id} is a {comparison.kind}; experts look at pairwise ones.")
        govern.audit(tx, project_id, by, "lead", "review.ask", comparison_id, {}, {}, now)
        return quality.ask_expert(tx, comparison, ReviewKind.DISPUTE, quality.posterior(tx, comparison), now)


def act(store: Store, project_id: str, by: str, body: Any, rules: Rules, now: datetime) -> Json:
    """What a lead does with a question, as a body: {comparison_id, act}: keep or drop a flagged one, send a disputed one to an expert. Answers
    {comparison_id, state, review_id}. Raises BadInput, NotFound, Conflict (not flagged)."""
    body = fields.checked(body, "The act", QUESTION_FIELDS)
    id, wanted = fields.needed(body, "comparison_id", max_chars=200), fields.one_of(body, "act", QUESTION_ACTS)
    if wanted == "expert":
        review = ask(store, project_id, id, by, now)
        return {"comparison_id": id, "state": str(ComparisonState.CLOSED), "review_id": review.id}
    found = quality.resolve_flag(store, project_id, id, wanted == "keep", by, rules, now)
    return {"comparison_id": id, "state": str(found.state), "review_id": None}


def waiting(store: Store, project_id: str, expert_id: str) -> list[Review]:
    """Undecided ones, disputes first; nobody reviews what they have answered themselves."""
    with store.read() as tx:
        found = tx.find(Review, project_id=project_id, decided_at=None)
        ids = [one.comparison_id for one in found]
        own = {
            one.comparison_id for one in (tx.find(Annotation, annotator_id=expert_id, comparison_id=ids) if ids else [])
        }
    return sorted(
        (one for one in found if one.comparison_id not in own), key=lambda one: (one.kind != ReviewKind.DISPUTE, one.id)
    )


def look(store: Store, project_id: str, expert_id: str, review_id: str) -> Case:
    """Raises NotFound, Forbidden (answered it themselves)."""
    with store.read() as tx:
        review = tx.first(Review, id=review_id, project_id=project_id)
        if review is None:
            raise NotFound(f"There is no Review {review_id!r} in this project.")
        comparison = tx.get(Comparison, review.comparison_id)
        given = tx.find(Annotation, comparison_id=comparison.id, criterion=OVERALL)
        responses = {one.id: one for one in tx.find(Response, id=comparison.response_ids)}
        guidelines = tx.find(Guideline, project_id=project_id, order="version", descending=True, limit=1)
    if any(one.annotator_id == expert_id for one in given):
        raise Forbidden("You have answered this question yourself; another expert reviews it.")
    draw = random.Random(hashlib.sha256(f"{review_id}/{expert_id}".encode()).digest())
    order = list(comparison.response_ids)
    draw.shuffle(order)
    return Case(
        review=review,
        comparison=comparison,
        responses=tuple(responses[id] for id in order),
        guideline=guidelines[0] if guidelines else None,
        votes=_blinded(given, draw),
    )


def _blinded(given: Sequence[Annotation], draw: random.Random) -> tuple[BlindVote, ...]:
    shuffled = list(given)
    draw.shuffle(shuffled)
    return tuple(
        BlindVote(column, one.verdict, one.choice, one.strength, one.seconds, one.reasons, one.note)
        for column, one in enumerate(shuffled, start=1)
    )


def decide(
    store: Store,
    project_id: str,
    expert_id: str,
    review_id: str,
    *,
    verdict: Verdict,
    choice: str | None,
    confidence: int,
    error_class: str,
    note: str | None,
    now: datetime,
) -> Review:
    """An expert's word, once. Raises NotFound, Forbidden, BadInput, Conflict (decided already)."""
    case = look(store, project_id, expert_id, review_id)
    if verdict not in DECISIONS:
        raise BadInput(f"verdict is {verdict}; decide between the two, or leave the review to another expert.")
    if (choice is None) == (verdict is Verdict.PREFER) or choice not in (None, *case.comparison.response_ids):
        raise BadInput(f"choice is {choice!r} with verdict {verdict}; name one of the two responses with prefer only.")
    if not 1 <= confidence <= 3:
        raise BadInput(f"confidence is {confidence}; give 1 (guess), 2 or 3 (certain).")
    if error_class not in ERROR_CLASSES:
        raise BadInput(f"error_class is {error_class!r}; give one of: {', '.join(ERROR_CLASSES)}.")
    if note is not None and len(note) > MAX_NOTE_CHARS:
        raise BadInput(f"The note has {len(note)} characters; give at most {MAX_NOTE_CHARS}.")
    with store.write() as tx:
        if tx.get(Review, review_id).decided_at is not None:
            raise Conflict(f"Review {review_id} is decided already.")
        return tx.change(
            Review,
            review_id,
            {"decided_at": None},
            expert_id=expert_id,
            verdict=verdict,
            choice=choice,
            confidence=confidence,
            error_class=error_class,
            note=note,
            decided_at=now,
        )


def decide_by(store: Store, project_id: str, expert_id: str, review_id: str, body: Any, now: datetime) -> Review:
    """`decide` as a body: {verdict, choice?, confidence, error_class?, note?}. Raises as that does."""
    body = fields.checked(body, "The decision", DECISION_FIELDS)
    confidence = fields.integer(body, "confidence", 1, 3)
    if confidence is None:
        raise BadInput("confidence is missing; give 1 (guess), 2 or 3 (certain).")
    return decide(
        store,
        project_id,
        expert_id,
        review_id,
        verdict=Verdict(fields.one_of(body, "verdict", DECISIONS)),
        choice=fields.text(body, "choice", max_chars=200),
        confidence=confidence,
        error_class=fields.text(body, "error_class", max_chars=100, default="none") or "none",
        note=fields.text(body, "note", max_chars=MAX_NOTE_CHARS),
        now=now,
    )
