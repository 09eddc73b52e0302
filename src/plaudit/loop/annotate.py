"""Annotate: questions for annotators, lent one at a time, and the conclusions from their answers.

plan_comparisons / plan_evaluation make Comparisons; lend, heartbeat, release_lease and answer are the annotator's acts; aggregate turns
Annotations of training Comparisons into Preferences with a probability; evaluation_votes hands the verdicts of an evaluation to its
judge. A Comparison needs `overlap` distinct annotators: live leases and answers count, a skip does not. The order shown is random per
(comparison, annotator) and kept on the lease; an answer names a response id, never "left".
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

from plaudit.artifacts import sha256_of
from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonKind,
    ComparisonState,
    Completion,
    CompletionStatus,
    EvaluationItem,
    Guideline,
    Interaction,
    Lease,
    LeaseState,
    Preference,
    PreferenceSource,
    Purpose,
    Response,
    ResponseOrigin,
    ResponseText,
    Review,
    TrainingUse,
    Verdict,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Expired, NotFound
from plaudit.loop import answers, quality
from plaudit.loop import body as fields
from plaudit.loop.asking import Asking, screen, screen_item
from plaudit.loop.quality import DEFAULT_RULES, QUEUE, Rules
from plaudit.store import annotation as queue
from plaudit.store.database import Store, Transaction
from plaudit.store.feedback import shown_responses

if TYPE_CHECKING:  # numpy and scipy load when somebody aggregates, not when the service starts
    from plaudit.loop.conclusions import AggregateReport
    from plaudit.stats.aggregate import Method

OVERALL = "overall"
FORBIDDEN = "terms of the upstream forbid training"
AS_IT_IS = Asking()
MAX_CRITERIA, MAX_CRITERION_CHARS = 12, 60


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


# --- questions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What was asked, and why the rest was not: `skipped` counts by reason, `found` personal data by kind."""

    comparisons: tuple[Comparison, ...]
    skipped: Mapping[str, int]
    found: Mapping[str, int] = field(default_factory=dict)


def plan_comparisons(
    store: Store,
    project_id: str,
    interactions: Sequence[Interaction],
    extra: Mapping[str, Sequence[ResponseText]],
    *,
    model: str,
    checkpoint_id: str | None = None,
    batch: str,
    overlap: int = 3,
    reason: str = "random",
    criteria: Sequence[str] = (),
    asking: Asking = AS_IT_IS,
    now: datetime,
) -> Plan:
    """Training questions: the answer a user was shown against each further sample of the same policy, by interaction id in `extra`.

    `model` and `checkpoint_id` name the policy that drew the samples; `criteria` are judged one by one beside the whole. Only interactions
    whose consent is `allowed` and whose answer was finished are asked about; an interaction already in this batch is left alone, so a
    repeated call adds only what is missing. `asking`: what is never asked about, and what nobody is to read.
    """
    _check_overlap(overlap)
    criteria = check_criteria(criteria)
    skipped: Counter[str] = Counter()
    found: Counter[str] = Counter()
    made: list[Comparison] = []
    with store.write() as tx:
        present = {one.interaction_id for one in tx.find(Comparison, project_id=project_id, batch=batch)}
        for interaction in interactions:
            why, shown = _askable(tx, interaction, present, asking)
            samples = extra.get(interaction.id, ())
            if asking.forbids(model):
                why, shown = FORBIDDEN, None
            if shown is None or not samples:
                skipped[why or "no further sample"] += 1
                continue
            seen = {shown.text.strip()}
            next_idx = 1 + max(one.idx for one in tx.find(Response, interaction_id=interaction.id))
            for sample in samples:
                if sample.text.strip() in seen:
                    skipped["identical text"] += 1
                    continue
                seen.add(sample.text.strip())
                read = screen(asking, interaction.messages, (shown.text, sample.text))
                found.update(read.found)
                if read.dropped:
                    skipped[f"personal data ({read.dropped})"] += 1
                    continue
                if read.answers[0].strip() == read.answers[1].strip():
                    skipped["identical text"] += 1
                    continue
                left = _as_read(tx, shown, read.answers[0], next_idx, now)
                next_idx += left is not shown
                right = replace(sample, text=read.answers[1])
                response = _response(
                    project_id, interaction.id, next_idx, right, ResponseOrigin.SAMPLED, model, checkpoint_id, now
                )
                next_idx += 1
                comparison = Comparison(
                    id=new_id(Comparison),
                    project_id=project_id,
                    interaction_id=interaction.id,
                    purpose=Purpose.TRAINING,
                    messages=read.messages,
                    family=interaction.family,
                    response_ids=(left.id, response.id),
                    overlap=overlap,
                    reason=reason,
                    batch=batch,
                    criteria=tuple(criteria),
                    created_at=now,
                )
                tx.add(response, comparison)
                made.append(comparison)
    return Plan(tuple(made), dict(skipped), dict(found))


def plan_ratings(
    store: Store,
    project_id: str,
    interactions: Sequence[Interaction],
    *,
    batch: str,
    overlap: int = 3,
    criteria: Sequence[str] = (),
    asking: Asking = AS_IT_IS,
    now: datetime,
) -> Plan:
    """Training questions about one response each: how good is what the user was shown, on the project's scale? Else as `plan_comparisons`."""
    _check_overlap(overlap)
    criteria = check_criteria(criteria)
    skipped: Counter[str] = Counter()
    found: Counter[str] = Counter()
    made: list[Comparison] = []
    with store.write() as tx:
        present = {one.interaction_id for one in tx.find(Comparison, project_id=project_id, batch=batch)}
        for interaction in interactions:
            why, shown = _askable(tx, interaction, present, asking)
            if shown is None:
                skipped[why or "empty answer"] += 1
                continue
            read = screen(asking, interaction.messages, (shown.text,))
            found.update(read.found)
            if read.dropped:
                skipped[f"personal data ({read.dropped})"] += 1
                continue
            next_idx = 1 + max(one.idx for one in tx.find(Response, interaction_id=interaction.id))
            shown = _as_read(tx, shown, read.answers[0], next_idx, now)
            comparison = Comparison(
                id=new_id(Comparison),
                project_id=project_id,
                interaction_id=interaction.id,
                kind=ComparisonKind.RATING,
                purpose=Purpose.TRAINING,
                messages=read.messages,
                family=interaction.family,
                response_ids=(shown.id,),
                overlap=overlap,
                batch=batch,
                criteria=tuple(criteria),
                created_at=now,
            )
            tx.add(comparison)
            made.append(comparison)
    return Plan(tuple(made), dict(skipped), dict(found))


def check_criteria(criteria: Sequence[str]) -> tuple[str, ...]:
    """The names without blanks around them. Raises BadInput."""
    names = tuple(name.strip() for name in criteria)
    plain = all(0 < len(name) <= MAX_CRITERION_CHARS and name.isprintable() for name in names)
    if not plain or len(names) > MAX_CRITERIA or len(set(names)) < len(names) or OVERALL in names:
        raise BadInput(
            f"The criteria are {', '.join(map(repr, names))}; give at most {MAX_CRITERIA} different names of 1 to {MAX_CRITERION_CHARS} "
            f"characters, none of them {OVERALL!r}, which is always asked."
        )
    return names


def _askable(
    tx: Transaction, interaction: Interaction, present: Collection[str | None], asking: Asking
) -> tuple[str | None, Response | None]:
    """(why it may not be asked about, None) or (None, the answer the user was shown)."""
    if interaction.training_use is not TrainingUse.ALLOWED:
        return "consent is not allowed", None
    if interaction.id in present:
        return "already in this batch", None
    completion = tx.first(Completion, id=interaction.id)
    if completion is None or completion.status is not CompletionStatus.OK:
        return "no finished answer", None
    shown = [one for one in shown_responses(tx, interaction.id) or [] if one.text.strip()]
    if shown and asking.forbids(shown[0].model):
        return FORBIDDEN, None
    return (None, shown[0]) if shown else ("empty answer", None)


def _as_read(tx: Transaction, shown: Response, text: str, idx: int, now: datetime) -> Response:
    """What annotators read in place of `shown`: itself, or a copy with this text."""
    if text == shown.text:
        return shown
    copy = replace(
        shown,
        id=new_id(Response),
        idx=idx,
        text=text,
        origin=ResponseOrigin.REDACTED,
        logprob=None,
        n_tokens=None,
        created_at=now,
    )
    tx.add(copy)
    return copy


def plan_evaluation(
    store: Store,
    project_id: str,
    items: Sequence[EvaluationItem],
    *,
    batch: str,
    overlap: int = 3,
    asking: Asking = AS_IT_IS,
    now: datetime,
) -> list[Comparison]:
    """Evaluation questions, one per item, in the items' order; a Snapshot refuses them and everything of their families.

    Equal texts are a tie that needs no annotator: that Comparison is closed at once. Called again with the same items it returns what is
    there. Raises Conflict where the batch holds other items.
    """
    _check_overlap(overlap)
    asked, items = items, [screen_item(asking, item) for item in items]
    with store.write() as tx:
        present = {one.attributes["item"]: one for one in tx.find(Comparison, project_id=project_id, batch=batch)}
        digests = [sha256_of(asdict(item)) for item in items]
        if present:
            if [present[index].attributes["sha256"] for index in sorted(present)] != digests:
                raise Conflict(
                    f"Batch {batch!r} was planned with other items; give this evaluation a batch of its own."
                )
            return [present[index] for index in sorted(present)]
        made = []
        for index, (item, digest) in enumerate(zip(items, digests, strict=True)):
            first = _response(
                project_id,
                None,
                0,
                item.first,
                ResponseOrigin.EVALUATED,
                item.first_model,
                item.first_checkpoint_id,
                now,
            )
            second = _response(
                project_id, None, 1, item.second, ResponseOrigin.EVALUATED, item.second_model, item.second_checkpoint_id, now
            )  # fmt: skip
            same = item.first.text.strip() == item.second.text.strip()
            comparison = Comparison(
                id=new_id(Comparison),
                project_id=project_id,
                interaction_id=None,
                purpose=Purpose.EVALUATION,
                messages=item.messages,
                family=item.family,
                response_ids=(first.id, second.id),
                overlap=overlap,
                reason="evaluation",
                batch=batch,
                state=ComparisonState.CLOSED if same else ComparisonState.OPEN,
                attributes={
                    "item": index,
                    "sha256": digest,
                    "identical": same,
                    # An erasure finds a prompt by its messages, which these no longer are.
                    **(
                        {"prompt_sha256": sha256_of(list(asked[index].messages))}
                        if asked[index].messages != item.messages
                        else {}
                    ),
                },
                created_at=now,
            )
            tx.add(first, second, comparison)
            made.append(comparison)
        return made


def _check_overlap(overlap: int) -> None:
    if not 1 <= overlap <= 25:
        raise BadInput(f"overlap is {overlap}; between 1 and 25 annotators can answer a comparison.")


def _response(
    project_id: str,
    interaction_id: str | None,
    idx: int,
    answer: ResponseText,
    origin: ResponseOrigin,
    model: str,
    checkpoint_id: str | None,
    now: datetime,
) -> Response:
    return Response(
        id=new_id(Response),
        project_id=project_id,
        interaction_id=interaction_id,
        idx=idx,
        text=answer.text,
        finish_reason=answer.finish_reason,
        origin=origin,
        model=model,
        checkpoint_id=checkpoint_id,
        logprob=answer.logprob,
        n_tokens=answer.n_tokens,
        created_at=now,
    )


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
            gold = quality.gold_turn(tx, project_id, annotator_id, standing, rules, work_waits=work)
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
