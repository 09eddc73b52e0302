"""Annotate: questions (planned in planning.py) lent to annotators one at a time, and the conclusions from their answers.

lend, heartbeat, release_lease, answer and undo are the annotator's acts; aggregate turns
Annotations of training Comparisons into Preferences with a probability; evaluation_votes hands the verdicts of an evaluation to its
judge. A Comparison needs `overlap` distinct annotators: live leases and answers count, a skip does not. The order shown is random per
(comparison, annotator) and kept on the lease; an answer names a response id, never "left".
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

from plaudit.domain import (
    OVERALL,
    Annotation,
    Comparison,
    ComparisonKind,
    ComparisonState,
    Guideline,
    Lease,
    LeaseState,
    Preference,
    PreferenceSource,
    Purpose,
    Response,
    Review,
    Verdict,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Expired, NotFound
from plaudit.loop import answers, quality
from plaudit.loop import body as fields
from plaudit.loop.quality import DEFAULT_RULES, QUEUE, Rules
from plaudit.store import annotation as queue
from plaudit.store.database import Store, Transaction

if TYPE_CHECKING:  # numpy and scipy load when somebody aggregates, not when the service starts
    from plaudit.loop.conclusions import AggregateReport
    from plaudit.stats.aggregate import Method


# --- guidelines --------------------------------------------------------------------------------------------------------


def write_guideline(store: Store, project_id: str, text: str, now: datetime) -> Guideline:
    """The next version of the project's instructions; the same text as the current version changes nothing."""
    if not text.strip():
        raise BadInput("The guideline is empty; say what makes one answer better than another.")
    with store.write() as tx:
        current = _guideline(tx, project_id)
        if current is not None and current.text == text:
            return current
        version = current.version + 1 if current else 1
        guideline = Guideline(id=new_id(Guideline), project_id=project_id, version=version, text=text, created_at=now)
        tx.add(guideline)
        return guideline


def _guideline(tx: Transaction, project_id: str) -> Guideline | None:
    newest = tx.find(Guideline, project_id=project_id, order="version", descending=True, limit=1)
    return newest[0] if newest else None


# --- lending -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loan:
    """What an annotator sees: `responses` in the order shown; `scale` (least, greatest) where one response is rated."""

    lease: Lease
    comparison: Comparison
    responses: tuple[Response, ...]
    guideline: Guideline | None
    scale: tuple[int, int] | None = None


def lend(
    store: Store,
    project_id: str,
    annotator_id: str,
    lease_s: float,
    now: datetime,
    purposes: Collection[Purpose] | None = None,
    rules: Rules = DEFAULT_RULES,
) -> Loan | None:
    """The next question for this annotator, theirs until `now + lease_s`; None where nothing needs them. Raises Forbidden (paused).

    Who already holds one gets the same again, with fresh time: a reload loses nothing and nobody hoards. Gold comes in between, by
    `quality.gold_turn`, unless `purposes` are named.
    """
    wanted = QUEUE if purposes is None else tuple(purposes)
    expires_at = now + timedelta(seconds=lease_s)
    with store.write(beside_others=True) as tx:
        queue.lock_annotator(tx, project_id, annotator_id)
        standing = quality.standing(tx, project_id, annotator_id)
        quality.check_standing(standing)
        held = queue.live_lease(tx, project_id, annotator_id, now)
        if held is not None:
            lease = tx.change(Lease, held.id, expires_at=expires_at)
            return _loan(tx, lease, tx.get(Comparison, lease.comparison_id))
        domains = quality.domains_of(standing, now)
        assigned = queue.Assigned(standing.batches, standing.domains) if standing is not None else queue.NOTHING
        comparison = queue.next_comparison(tx, project_id, annotator_id, wanted, now, domains, assigned)
        if purposes is None:
            work = comparison is not None
            gold = quality.gold_turn(tx, project_id, annotator_id, standing, rules, domains=domains, work_waits=work)
            comparison = gold or comparison
        if comparison is None:
            return None
        guideline = _guideline(tx, project_id)
        lease = Lease(
            id=new_id(Lease),
            project_id=project_id,
            comparison_id=comparison.id,
            annotator_id=annotator_id,
            order=shown_order(comparison, annotator_id),
            guideline_id=guideline.id if guideline else None,
            expires_at=expires_at,
            created_at=now,
        )
        tx.add(lease)
        return _loan(tx, lease, comparison)


def shown_order(comparison: Comparison, annotator_id: str) -> tuple[str, ...]:
    """A random order of the response ids, the same whenever this annotator meets this Comparison."""
    seed = hashlib.sha256(f"{comparison.id}/{annotator_id}".encode()).digest()
    order = list(comparison.response_ids)
    random.Random(int.from_bytes(seed)).shuffle(order)
    return tuple(order)


def _loan(tx: Transaction, lease: Lease, comparison: Comparison) -> Loan:
    texts = {response.id: response for response in tx.find(Response, id=lease.order)}
    guideline = tx.get(Guideline, lease.guideline_id) if lease.guideline_id else None
    scale = answers.scale_of(tx, comparison.project_id) if comparison.kind is ComparisonKind.RATING else None
    return Loan(lease, comparison, tuple(texts[id] for id in lease.order), guideline, scale)


def heartbeat(store: Store, lease_id: str, annotator_id: str, lease_s: float, now: datetime) -> Lease:
    """More time. Raises NotFound (not this annotator's), Conflict (answered), Expired (given back, or expired and no place is left)."""
    with store.write(beside_others=True) as tx:
        lease = _own_lease(tx, lease_id, annotator_id)
        if lease.state is LeaseState.ANSWERED:
            raise Conflict(f"Lease {lease_id} is answered; ask for the next question.")
        _check_time(tx, lease, now)
        return tx.change(Lease, lease_id, expires_at=now + timedelta(seconds=lease_s))


def release_lease(store: Store, lease_id: str, annotator_id: str) -> Lease:
    """Give a question back unanswered; giving it back twice changes nothing. Raises NotFound, Conflict (answered)."""
    with store.write(beside_others=True) as tx:
        lease = _own_lease(tx, lease_id, annotator_id)
        if lease.state is LeaseState.ANSWERED:
            raise Conflict(f"Lease {lease_id} is answered and cannot be given back.")
        return tx.change(Lease, lease_id, state=LeaseState.RELEASED)


def _own_lease(tx: Transaction, lease_id: str, annotator_id: str) -> Lease:
    lease = tx.first(Lease, id=lease_id, annotator_id=annotator_id)
    if lease is None:
        raise NotFound(f"You hold no lease {lease_id!r}.")
    queue.lock_comparison(tx, lease.comparison_id)
    return tx.get(Lease, lease_id)  # again, now that nobody else can change it


def _check_time(tx: Transaction, lease: Lease, now: datetime) -> None:
    """An expired lease is still good while the Comparison has a place for its holder, or they hold it again by a later lease."""
    if lease.state is LeaseState.RELEASED:
        raise Expired(f"Lease {lease.id} was given back; ask for the next question.")
    if lease.expires_at > now:
        return
    held = queue.live_lease(tx, lease.project_id, lease.annotator_id, now)
    if held is not None and held.comparison_id == lease.comparison_id:
        return
    if not queue.needs(tx, lease.comparison_id, lease.annotator_id, now):
        raise Expired(
            f"Lease {lease.id} expired at {lease.expires_at:%H:%M:%S} UTC and others have answered meanwhile."
        )


# --- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnnotationResult:
    annotation: Annotation
    replayed: bool


def answer(
    store: Store, project_id: str, annotator_id: str, body: Any, now: datetime, rules: Rules = DEFAULT_RULES
) -> AnnotationResult:
    """Store one verdict: {lease_id, verdict, choice | rating, strength?, seconds, reasons?, note?, edit?, flagged?, criteria?}.

    Closes the Comparison that has its answers (`quality.settle`); a flagged training question waits for the lead. Raises BadInput
    (malformed), NotFound (not this annotator's lease), Expired, Conflict (answered before with another verdict).
    """
    body = fields.checked(body, "The annotation", answers.ANSWER_FIELDS)
    lease_id = fields.needed(body, "lease_id", max_chars=answers.MAX_ID_CHARS)
    read = answers.read_answer(body)
    with store.write(beside_others=True) as tx:
        queue.lock_annotator(tx, project_id, annotator_id)
        lease = _own_lease(tx, lease_id, annotator_id)
        if lease.project_id != project_id:
            raise NotFound(f"You hold no lease {lease_id!r}.")
        if read.choice is not None and read.choice not in lease.order:
            raise BadInput(
                f"choice is {read.choice!r}; give one of the response ids that were shown: {', '.join(lease.order)}."
            )
        comparison = tx.get(Comparison, lease.comparison_id)
        said = {OVERALL: read, **answers.read_criteria(body.get("criteria"), lease, comparison, read)}
        answers.check_kind(tx, comparison, said.values())
        known = tx.find(Annotation, comparison_id=lease.comparison_id, annotator_id=annotator_id)
        if known:
            before = {one.criterion: (one.verdict, one.choice, one.rating, one.strength, one.flagged) for one in known}
            now_said = {
                name: (one.verdict, one.choice, one.rating, one.strength, one.flagged) for name, one in said.items()
            }
            if before != now_said:
                raise Conflict(f"Comparison {lease.comparison_id} has your answer already, and it was another one.")
            return AnnotationResult(next(one for one in known if one.criterion == OVERALL), replayed=True)
        _check_time(tx, lease, now)
        rows = [
            Annotation(
                id=new_id(Annotation),
                project_id=project_id,
                comparison_id=lease.comparison_id,
                annotator_id=annotator_id,
                guideline_id=lease.guideline_id,
                criterion=criterion,
                order=lease.order,
                created_at=now,
                **asdict(one),
            )
            for criterion, one in said.items()
        ]
        tx.add(*rows)
        annotation = rows[0]
        for mine in tx.find(Lease, comparison_id=lease.comparison_id, annotator_id=annotator_id, state=LeaseState.LIVE):
            tx.change(Lease, mine.id, state=LeaseState.ANSWERED)
        if comparison.purpose is Purpose.GOLD:
            quality.judge(tx, project_id, annotator_id, now)
        if read.flagged and comparison.state is ComparisonState.OPEN and comparison.purpose is not Purpose.EVALUATION:
            tx.change(Comparison, comparison.id, {"state": comparison.state}, state=ComparisonState.FLAGGED)
        else:
            quality.settle(tx, comparison, rules, now)
    return AnnotationResult(annotation, replayed=False)


def undo(store: Store, project_id: str, annotator_id: str, lease_s: float, now: datetime) -> Lease:
    """Take back one's newest answer while its Comparison is open: it is lent again to them, and what they hold instead is given back.

    Raises NotFound (nothing answered), Conflict (others have closed it or taken a skipped place), Forbidden (paused).
    """
    with store.write(beside_others=True) as tx:
        queue.lock_annotator(tx, project_id, annotator_id)
        quality.check_standing(quality.standing(tx, project_id, annotator_id))
        last = tx.first(Annotation, project_id=project_id, annotator_id=annotator_id, criterion=OVERALL)
        if last is None:
            raise NotFound("There is no answer of yours to take back.")
        comparison = queue.lock_comparison(tx, last.comparison_id)
        if last.flagged and comparison.state is ComparisonState.FLAGGED:
            comparison = tx.change(Comparison, comparison.id, {"state": comparison.state}, state=ComparisonState.OPEN)
        if comparison.state is not ComparisonState.OPEN:
            raise Conflict("Your last answer cannot be taken back: its question is closed.")
        lease = tx.first(Lease, comparison_id=comparison.id, annotator_id=annotator_id, state=LeaseState.ANSWERED)
        if lease is None:
            raise NotFound("Your last answer was imported and cannot be taken back here.")
        queue.take_back(tx, comparison.id, annotator_id)
        if not queue.needs(tx, comparison.id, annotator_id, now):  # a skip gave its place away
            raise Conflict("Your last answer cannot be taken back: others have taken the question meanwhile.")
        for held in tx.find(Lease, project_id=project_id, annotator_id=annotator_id, state=LeaseState.LIVE):
            tx.change(Lease, held.id, state=LeaseState.RELEASED)
        return tx.change(Lease, lease.id, state=LeaseState.LIVE, expires_at=now + timedelta(seconds=lease_s))


def progress(
    store: Store, project_id: str, annotator_id: str, now: datetime, at_most: int = 1_000_000
) -> dict[str, Any]:
    """An annotator's own figures: answered, skipped, available (questions that still need them, counted up to `at_most`),
    median_seconds (None without answers)."""
    with store.read() as tx:
        mine = queue.own_answers(tx, project_id, annotator_id)
        domains = quality.domains_of(quality.standing(tx, project_id, annotator_id), now)
        available = queue.n_available(tx, project_id, annotator_id, QUEUE, now, domains, at_most)
        held = queue.live_lease(tx, project_id, annotator_id, now)
    answered = [seconds for verdict, seconds in mine if verdict is not Verdict.SKIP]
    return {
        "answered": len(answered),
        "skipped": len(mine) - len(answered),
        "available": available + (held is not None),
        "median_seconds": median(answered) if answered else None,
    }


# --- conclusions -------------------------------------------------------------------------------------------------------


def aggregate(
    store: Store, project_id: str, *, method: Method = "auto", batch: str | None = None, now: datetime
) -> AggregateReport:
    """Conclude Preferences from the Annotations of closed training Comparisons, upserted by (comparison, criterion).

    What gold and experts say is held fixed. An unchanged conclusion is not written again; a changed one keeps the time when it was first
    drawn. Raises BadInput (method).
    """
    from plaudit.loop.conclusions import conclude

    with store.read() as tx:
        votes = queue.votes(tx, project_id, Purpose.TRAINING, batch)
        gold = queue.gold_votes(tx, project_id) if votes else []
        reviews = tx.find(Review, project_id=project_id)
        gold_choices = {
            one.id: one.gold_choice for one in tx.find(Comparison, project_id=project_id, purpose=Purpose.GOLD)
        }
        names = queue.names(tx, {vote.annotation.annotator_id for vote in votes})
    worthless = {one.comparison_id for one in reviews if one.verdict is Verdict.BOTH_BAD}
    known = {one.comparison_id: one.choice for one in reviews if one.choice is not None}
    known |= {id: choice for id, choice in gold_choices.items() if choice is not None}
    voters = {vote.annotation.annotator_id for vote in votes}
    cast = [vote for vote in votes if vote.comparison_id not in worthless]
    cast += [vote for vote in gold if vote.annotation.annotator_id in voters]
    drawn, report = conclude(cast, names, method, project_id, now, known, gold_choices.keys())
    return replace(report, n_written=_upsert(store, project_id, drawn, worthless))


def _upsert(store: Store, project_id: str, drawn: Sequence[Preference], worthless: Collection[str]) -> int:
    """Returns how many were new or changed. What an expert found bad on both sides has no Preference any more."""
    with store.write() as tx:
        queue.drop_preferences(tx, worthless)
        found = tx.find(Preference, project_id=project_id, source=PreferenceSource.ANNOTATION)
        before = {(one.comparison_id, one.criterion): one for one in found}
        n_written = 0
        for preference in drawn:
            old = before.get((preference.comparison_id, preference.criterion))
            if old is None:
                tx.add(preference)
            elif replace(preference, id=old.id, created_at=old.created_at) != old:
                columns = asdict(preference)
                tx.change(Preference, old.id, **{k: v for k, v in columns.items() if k not in ("id", "created_at")})
            else:
                continue
            n_written += 1
        return n_written


# --- evaluations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemVotes:
    """Verdicts on one evaluation item, as seen from its first answer (the candidate's). `item` is its index in the plan."""

    item: int
    comparison_id: str
    family: str
    first_response_id: str
    second_response_id: str
    wins: int
    ties: int
    losses: int
    both_bad: int
    skips: int
    identical: bool  # equal texts: a tie that nobody was asked about
    closed: bool


def evaluation_votes(store: Store, project_id: str, batch: str) -> list[ItemVotes]:
    """The verdicts of an evaluation batch, in the items' order. Raises NotFound for an unknown batch."""
    with store.read() as tx:
        comparisons = tx.find(Comparison, project_id=project_id, batch=batch, purpose=Purpose.EVALUATION)
        given: dict[str, list[Annotation]] = defaultdict(list)
        for comparison in comparisons:
            given[comparison.id] = tx.find(Annotation, comparison_id=comparison.id)
    if not comparisons:
        raise NotFound(f"There is no evaluation batch {batch!r} in this project.")
    rows = []
    for comparison in comparisons:
        first, second = comparison.response_ids
        n = Counter(one.verdict for one in given[comparison.id])
        choices = Counter(one.choice for one in given[comparison.id])
        rows.append(
            ItemVotes(
                item=comparison.attributes["item"],
                comparison_id=comparison.id,
                family=comparison.family,
                first_response_id=first,
                second_response_id=second,
                wins=choices[first],
                ties=n[Verdict.TIE],
                losses=choices[second],
                both_bad=n[Verdict.BOTH_BAD],
                skips=n[Verdict.SKIP],
                identical=comparison.attributes["identical"],
                closed=comparison.state is ComparisonState.CLOSED,
            )
        )
    return sorted(rows, key=lambda row: row.item)
