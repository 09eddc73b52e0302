"""Quality of annotation: gold, pausing, further votes where the answers are thin, and what an expert looks at again.

Below `annotate`, which calls `gold_turn` when it lends and `settle` and `judge` when somebody has answered. Nothing here is on by itself: gold is
there once somebody makes it, further votes and audits once `Rules` ask for them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from plaudit.domain import (
    COMPARISON_TRANSITIONS,
    OVERALL,
    Annotation,
    Comparison,
    ComparisonKind,
    ComparisonState,
    Json,
    Lease,
    LeaseState,
    Person,
    Preference,
    PreferenceSource,
    Purpose,
    Review,
    ReviewKind,
    Standing,
    Verdict,
    check_transition,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Forbidden, NotFound
from plaudit.loop import body as fields
from plaudit.loop import govern
from plaudit.store import annotation as queue
from plaudit.store import annotation_sums as sums
from plaudit.store.database import Store, Transaction

QUEUE = (Purpose.TRAINING, Purpose.EVALUATION)  # what the queue lends; gold comes in between by its own rule
ONBOARDING = 10  # gold questions that come first, where a project has that many
ONBOARDING_PASS = 0.7
# A pause needs the interval under the floor: of people who are right 90 times of 100 one in 400 is paused, of those who click at random 16
# of 17, and earlier nobody is judged.
FLOOR = 0.45
FLOOR_FROM = 20
RECENT = 50  # the newest gold answers, so that who drifts is seen
SURE = 0.9  # a posterior beyond this (or below 1 - this) asks for nobody else
PRIOR_RIGHT, PRIOR_WRONG = 4, 1  # of an annotator whose gold nobody has seen; as in stats.aggregate
UNENDING = 1_000_000  # the overlap of gold: it never closes
MAX_REASON_CHARS = 500


@dataclass(frozen=True)
class Rules:
    """How much care a project takes. `gold_fraction`: share of lent questions that are silent gold, where there is gold.

    `extra_votes`: at most so many beyond the overlap while the answers do not decide, then an expert. `audit_fraction`: share of closed
    training Comparisons that an expert looks at anyway. `pay`: money for an answer; `budget`: of the project, 0 without one: once spent, no further
    votes and audits.
    """

    gold_fraction: float = 0.07
    extra_votes: int = 0
    audit_fraction: float = 0.0
    pay: float = 0.0
    budget: float = 0.0


DEFAULT_RULES = Rules()


# --- who is lent questions ----------------------------------------------------------------------------------------------


def standing(tx: Transaction, project_id: str, person_id: str) -> Standing | None:
    return tx.first(Standing, project_id=project_id, person_id=person_id)


def check_standing(found: Standing | None) -> None:
    """Raises Forbidden for who is paused."""
    if found is not None and found.paused_at is not None:
        raise Forbidden(f"Your annotating is paused: {found.pause_reason} The lead of the project can resume it.")


def domains_of(found: Standing | None, now: datetime) -> list[str]:
    """What somebody is qualified for now."""
    if found is None:
        return []
    return sorted(d for d, until in found.qualifications.items() if datetime.fromisoformat(until) > now)


def pause(store: Store, project_id: str, person_id: str, reason: str, by: str, now: datetime) -> Standing:
    """Lend this Person nothing more, and take back what they hold. Who is paused stays so, with the first reason. Raises NotFound, BadInput."""
    if not reason.strip() or len(reason) > MAX_REASON_CHARS:
        raise BadInput(f"The reason has {len(reason)} characters; say in 1 to {MAX_REASON_CHARS} why.")
    with store.write() as tx:
        _person(tx, project_id, person_id)
        return _pause(tx, project_id, person_id, reason.strip(), by, now)


def _pause(tx: Transaction, project_id: str, person_id: str, reason: str, by: str, now: datetime) -> Standing:
    found = _standing(tx, project_id, person_id, now)
    if found.paused_at is not None:
        return found
    for lease in tx.find(Lease, project_id=project_id, annotator_id=person_id, state=LeaseState.LIVE):
        tx.change(Lease, lease.id, state=LeaseState.RELEASED)
    govern.audit(tx, project_id, by, "lead", "annotator.pause", person_id, {}, {"reason": reason}, now)
    return tx.change(Standing, found.id, paused_at=now, paused_by=by, pause_reason=reason)


def resume(store: Store, project_id: str, person_id: str, by: str, now: datetime) -> Standing:
    """Lend again; only gold answered from now on judges them. Raises NotFound, Conflict (not paused)."""
    with store.write() as tx:
        _person(tx, project_id, person_id)
        found = _standing(tx, project_id, person_id, now)
        if found.paused_at is None:
            raise Conflict("This annotator is not paused.")
        before = {"reason": found.pause_reason, "by": found.paused_by}
        govern.audit(tx, project_id, by, "lead", "annotator.resume", person_id, before, {}, now)
        return tx.change(Standing, found.id, paused_at=None, paused_by=None, pause_reason=None, gold_since=now)


def qualify(
    store: Store, project_id: str, person_id: str, domain: str, until: datetime | None, by: str, now: datetime
) -> Standing:
    """Lend this Person questions of a domain until a time; None ends it. Raises NotFound, BadInput."""
    if not domain.strip() or len(domain) > 200:
        raise BadInput(f"The domain is {domain!r}; give 1 to 200 characters.")
    with store.write() as tx:
        _person(tx, project_id, person_id)
        found = _standing(tx, project_id, person_id, now)
        kept = {name: end for name, end in found.qualifications.items() if name != domain.strip()}
        if until is not None:
            kept[domain.strip()] = until.isoformat()
        before, after = {"qualifications": found.qualifications}, {"qualifications": kept}
        govern.audit(tx, project_id, by, "lead", "annotator.qualify", person_id, before, after, now)
        return tx.change(Standing, found.id, qualifications=kept)


def assign(
    store: Store,
    project_id: str,
    person_id: str,
    *,
    batch: str | None = None,
    domain: str | None = None,
    end: bool = False,
    by: str,
    now: datetime,
) -> Standing:
    """Lend this Person the questions of a batch, or of a domain, before all others; `end` takes that back. Twice changes nothing.

    Others may still be lent them: what only some may answer is a domain that needs a qualification. Raises NotFound (the Person, the batch),
    BadInput (not one of batch and domain, or not qualified for the domain).
    """
    if (batch is None) == (domain is None):
        raise BadInput(f"batch is {batch!r} and domain is {domain!r}; give one of them.")
    with store.write() as tx:
        person = _person(tx, project_id, person_id)
        found = _standing(tx, project_id, person_id, now)
        if batch is not None and not end and tx.first(Comparison, project_id=project_id, batch=batch) is None:
            raise NotFound(f"There is no batch {batch!r} in this project.")
        if domain is not None and not end and domain not in domains_of(found, now):
            raise BadInput(f"{person.name} is not qualified for {domain!r}; qualify them for it first.")
        name, value, held = (
            ("batches", batch, found.batches) if batch is not None else ("domains", domain, found.domains)
        )
        after = tuple(one for one in held if one != value) + (() if end else (str(value),))
        if set(after) == set(held):
            return found
        govern.audit(
            tx, project_id, by, "lead", "annotator.assign", person_id, {name: list(held)}, {name: list(after)}, now
        )
        changes: dict[str, Any] = {name: after}
        return tx.change(Standing, found.id, **changes)


ACT_FIELDS = ("person", "act", "reason", "batch", "domain", "until")
ACTS = ("pause", "resume", "qualify", "assign", "unassign")


def act(store: Store, project_id: str, by: str, body: Any, now: datetime) -> Json:
    """What a lead does with an annotator, as a body: {person: a name or an id, act, reason | batch | domain and until}; their row of
    `annotators` follows. Raises BadInput, NotFound, Conflict (not paused)."""
    body = fields.checked(body, "The act", ACT_FIELDS)
    name, wanted = fields.needed(body, "person", max_chars=200), fields.needed(body, "act", max_chars=20)
    batch, domain = fields.text(body, "batch", max_chars=200), fields.text(body, "domain", max_chars=200)
    with store.read() as tx:
        person = tx.first(Person, project_id=project_id, name=name) or _person(tx, project_id, name)
    match wanted:
        case "pause":
            reason = fields.needed(body, "reason", max_chars=MAX_REASON_CHARS)
            pause(store, project_id, person.id, reason, by, now)
        case "resume":
            resume(store, project_id, person.id, by, now)
        case "qualify":
            qualify(store, project_id, person.id, domain or "", fields.moment(body, "until"), by, now)
        case "assign" | "unassign":
            end = wanted == "unassign"
            assign(store, project_id, person.id, batch=batch, domain=domain, end=end, by=by, now=now)
        case _:
            raise BadInput(f"act is {fields.shown(wanted)}; give one of: {', '.join(ACTS)}.")
    return next(row for row in annotators(store, project_id, now) if row["id"] == person.id)


def annotators(store: Store, project_id: str, now: datetime) -> list[Json]:
    """Everybody who was ever paused, qualified or assigned: id, name, paused (the reason, or None), qualified ({domain, until, ended}),
    batches, domains; by name."""
    with store.read() as tx:
        found = tx.find(Standing, project_id=project_id)
        names = queue.names(tx, [one.person_id for one in found])
    rows = [
        {
            "id": one.person_id,
            "name": names.get(one.person_id, one.person_id),
            "paused": one.pause_reason if one.paused_at is not None else None,
            "qualified": [
                {"domain": domain, "until": until, "ended": datetime.fromisoformat(until) <= now}
                for domain, until in sorted(one.qualifications.items())
            ],
            "batches": list(one.batches),
            "domains": list(one.domains),
        }
        for one in found
    ]
    return sorted(rows, key=lambda row: str(row["name"]))


def _standing(tx: Transaction, project_id: str, person_id: str, now: datetime) -> Standing:
    found = standing(tx, project_id, person_id)
    if found is None:
        found = Standing(id=new_id(Standing), project_id=project_id, person_id=person_id, created_at=now)
        tx.add(found)
    return found


def _person(tx: Transaction, project_id: str, person_id: str) -> Person:
    found = tx.first(Person, id=person_id, project_id=project_id)
    if found is None:
        raise NotFound(f"There is no Person {person_id!r} in this project.")
    return found


# --- gold -----------------------------------------------------------------------------------------------------------------


def make_gold(store: Store, project_id: str, comparison_id: str, choice: str, by: str, now: datetime) -> Comparison:
    """A copy of a training Comparison whose answer is known from now on: it judges annotators. Who answered the original is not asked, and an
    original that is not closed is asked no more.

    Raises NotFound, BadInput (no response of it, no training question, erased), Conflict (is gold already).
    """
    with store.write() as tx:
        source = tx.first(Comparison, id=comparison_id, project_id=project_id)
        if source is None:
            raise NotFound(f"There is no Comparison {comparison_id!r} in this project.")
        if source.purpose is not Purpose.TRAINING or not source.messages:
            erased = "" if source.messages else "erased "
            raise BadInput(
                f"Comparison {comparison_id} is {erased}{source.purpose}; gold is made of training ones that are there."
            )
        if source.kind is not ComparisonKind.PAIRWISE:
            raise BadInput(f"Comparison {comparison_id} is a {source.kind}; gold is made of pairwise ones.")
        if choice not in source.response_ids:
            raise BadInput(f"choice is {choice!r}; give one of: {', '.join(source.response_ids)}.")
        for known in tx.find(Comparison, project_id=project_id, purpose=Purpose.GOLD):
            if known.attributes.get("made_from") == comparison_id and known.state is not ComparisonState.CANCELLED:
                raise Conflict(f"Comparison {comparison_id} is gold already ({known.id}).")
        gold = Comparison(
            id=new_id(Comparison),
            project_id=project_id,
            interaction_id=source.interaction_id,
            purpose=Purpose.GOLD,
            messages=source.messages,
            family=source.family,
            response_ids=source.response_ids,
            overlap=UNENDING,
            reason="gold",
            batch="gold",
            domain=source.domain,
            criteria=source.criteria,  # or who is asked for none would know that it is gold
            gold_choice=choice,
            attributes={name: source.attributes[name] for name in ("warning",) if name in source.attributes}
            | {"made_from": comparison_id},
            created_at=now,
        )
        tx.add(gold)
        if source.state in (ComparisonState.OPEN, ComparisonState.FLAGGED):
            tx.change(Comparison, source.id, {"state": source.state}, state=ComparisonState.CANCELLED)
        govern.audit(tx, project_id, by, "lead", "gold.make", gold.id, {}, {"made_from": comparison_id}, now)
        return gold


def retire_gold(store: Store, project_id: str, comparison_id: str, by: str, now: datetime) -> Comparison:
    """Ask it no more; answers given stay counted. Raises NotFound."""
    with store.write() as tx:
        found = tx.first(Comparison, id=comparison_id, project_id=project_id, purpose=Purpose.GOLD)
        if found is None:
            raise NotFound(f"There is no gold {comparison_id!r} in this project.")
        if found.state is ComparisonState.CANCELLED:
            return found
        govern.audit(tx, project_id, by, "lead", "gold.retire", comparison_id, {}, {}, now)
        return tx.change(Comparison, comparison_id, state=ComparisonState.CANCELLED)


GOLD_FIELDS = ("comparison_id", "choice")


def add_gold(store: Store, project_id: str, by: str, body: Any, now: datetime) -> Json:
    """`make_gold` as a body: {comparison_id, choice}; its row of `gold_items` follows. Raises as that does."""
    body = fields.checked(body, "The gold", GOLD_FIELDS)
    id, choice = (fields.needed(body, name, max_chars=200) for name in GOLD_FIELDS)
    return _gold_row(make_gold(store, project_id, id, choice, by, now), (0, 0))


def gold_items(store: Store, project_id: str) -> list[Json]:
    """Every question whose answer is known, in the order in which they were made: id, made_from, choice, state (open or retired), n_right,
    n_answers."""
    with store.read() as tx:
        answers = sums.gold_answers(tx, project_id)
        return [_gold_row(one, answers.get(one.id, (0, 0))) for one in sums.gold(tx, project_id)]


def retire(store: Store, project_id: str, comparison_id: str, by: str, now: datetime) -> Json:
    """`retire_gold`; its row of `gold_items` follows. Raises NotFound."""
    found = retire_gold(store, project_id, comparison_id, by, now)
    with store.read() as tx:
        return _gold_row(found, sums.gold_answers(tx, project_id).get(found.id, (0, 0)))


def _gold_row(gold: Comparison, answers: tuple[int, int]) -> Json:
    return {
        "id": gold.id,
        "made_from": gold.attributes.get("made_from"),
        "choice": gold.gold_choice,
        "state": "retired" if gold.state is ComparisonState.CANCELLED else str(gold.state),
        "n_right": answers[0],
        "n_answers": answers[1],
    }


def gold_turn(
    tx: Transaction,
    project_id: str,
    annotator_id: str,
    found: Standing | None,
    rules: Rules,
    *,
    domains: Collection[str] = (),
    work_waits: bool,
) -> Comparison | None:
    """The gold question that it is time for, None where an ordinary one comes next; of a domain only for who is qualified for it (`domains`).

    The first ones where a project has enough of them, later a random share, drawn anew for each question and the same however often it is
    asked for; silent gold comes only in between work.
    """
    known = [
        one
        for one in queue.gold_of(tx, project_id, annotator_id)
        if one.verdict is not None or one.domain is None or one.domain in domains
    ]
    if not known:
        return None
    answered = [one for one in known if one.verdict is not None and not one.flagged]
    since = found.gold_since if found is not None else None
    counted = [one for one in answered if since is None or (one.answered_at is not None and one.answered_at >= since)]
    onboarding = len(known) >= ONBOARDING and len(counted) < ONBOARDING
    if not onboarding:
        n_given = tx.count(Annotation, project_id=project_id, annotator_id=annotator_id, criterion=OVERALL)
        if not work_waits or _draw(f"{annotator_id}/{n_given}") >= rules.gold_fraction:
            return None
    fresh = [one for one in known if one.verdict is None and one.state is ComparisonState.OPEN]
    sources = [one.made_from for one in fresh if one.made_from is not None]
    seen = {
        one.comparison_id
        for one in (tx.find(Annotation, annotator_id=annotator_id, comparison_id=sources) if sources else [])
    }
    fresh = [one for one in fresh if one.made_from not in seen]
    if not fresh:
        return None
    # In an order of their own for each annotator, so that nobody can tell others what comes first.
    chosen = min(fresh, key=lambda one: _draw(f"{annotator_id}/{one.comparison_id}"))
    return queue.lock_comparison(tx, chosen.comparison_id)


def _draw(name: str) -> float:
    """A number in [0, 1) that belongs to the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) / (1 << 56)


def judge(tx: Transaction, project_id: str, annotator_id: str, now: datetime) -> None:
    """After an answer to gold: pause who failed the first ones, or whose interval has fallen under the floor.

    A skip of gold is a miss, else skipping would be the way around it; a flag does not count.
    """
    found = standing(tx, project_id, annotator_id)
    since = found.gold_since if found is not None else None
    given = [
        one
        for one in queue.gold_of(tx, project_id, annotator_id)
        if one.answered_at is not None and not one.flagged and (since is None or one.answered_at >= since)
    ]
    why = gold_fault([one.right for one in sorted(given, key=lambda one: str(one.answered_at))])
    if why is not None:
        _pause(tx, project_id, annotator_id, why, "gold", now)


def gold_fault(right: Sequence[bool]) -> str | None:
    """Why somebody who has answered gold like this, oldest first, is paused; None where they are not."""
    from plaudit.stats.intervals import wilson  # numpy loads with the first answer to gold, not when the service starts

    newest = right[-RECENT:]
    n, n_right = len(newest), sum(newest)
    if n == ONBOARDING and n_right < ONBOARDING_PASS * ONBOARDING:
        return f"{n_right} of the first {ONBOARDING} questions with a known answer were right, {ONBOARDING_PASS:.0%} are needed."
    if n >= FLOOR_FROM and wilson(n_right, n).low < FLOOR:
        return f"{n_right} of the last {n} questions with a known answer were right."
    return None


# --- closing --------------------------------------------------------------------------------------------------------------


def settle(tx: Transaction, comparison: Comparison, rules: Rules, now: datetime) -> None:
    """Close an open Comparison that has its answers; where they do not decide, ask for one more, and at the end for an expert."""
    if comparison.state is not ComparisonState.OPEN or queue.n_answers(tx, comparison.id) < comparison.overlap:
        return
    first = _first_overlap(comparison)
    probability = posterior(tx, comparison) if comparison.purpose is Purpose.TRAINING else None
    thin = probability is not None and 1 - SURE < probability < SURE
    n_more = comparison.overlap - first
    affordable = rules.budget <= 0 or spent(tx, comparison.project_id, rules) < rules.budget
    if thin and n_more < rules.extra_votes and affordable:
        attributes = {**comparison.attributes, "first_overlap": first}
        tx.change(
            Comparison,
            comparison.id,
            {"state": ComparisonState.OPEN},
            overlap=comparison.overlap + 1,
            attributes=attributes,
        )
        return
    check_transition(COMPARISON_TRANSITIONS, comparison.state, ComparisonState.CLOSED, f"Comparison {comparison.id}")
    tx.change(Comparison, comparison.id, {"state": comparison.state}, state=ComparisonState.CLOSED)
    if comparison.purpose is not Purpose.TRAINING or comparison.kind is not ComparisonKind.PAIRWISE:
        return
    if thin and rules.extra_votes:
        ask_expert(tx, comparison, ReviewKind.DISPUTE, probability, now)
    elif affordable and _draw(f"audit/{comparison.id}") < rules.audit_fraction:
        ask_expert(tx, comparison, ReviewKind.AUDIT, probability, now)


def _first_overlap(comparison: Comparison) -> int:
    return int(comparison.attributes.get("first_overlap", comparison.overlap))


def posterior(tx: Transaction, comparison: Comparison) -> float | None:
    """P(the first response is better), each vote counted as right as its annotator is on gold; None where more than half see a tie or
    two bad ones, which another vote would not decide."""
    given = [
        one
        for one in tx.find(Annotation, comparison_id=comparison.id, criterion=OVERALL)
        if one.verdict is not Verdict.SKIP
    ]
    cast = [one for one in given if one.verdict is Verdict.PREFER]
    if not given or 2 * len(cast) < len(given) or len(comparison.response_ids) != 2:
        return None
    records = queue.gold_records(tx, comparison.project_id, [one.annotator_id for one in cast])
    return posterior_of(cast, comparison.response_ids[0], records)


def posterior_of(cast: Sequence[Annotation], first_response_id: str, records: Mapping[str, tuple[int, int]]) -> float:
    """The same from votes that prefer, and each annotator's (right, answered) gold."""
    log_odds = 0.0
    for one in cast:
        n_right, n = records.get(one.annotator_id, (0, 0))
        reliability = (PRIOR_RIGHT + n_right) / (PRIOR_RIGHT + PRIOR_WRONG + n)
        weight = math.log(reliability / (1 - reliability))
        log_odds += weight if one.choice == first_response_id else -weight
    return 1 / (1 + math.exp(-log_odds))


def ask_expert(
    tx: Transaction, comparison: Comparison, kind: ReviewKind, probability: float | None, now: datetime
) -> Review:
    """A Review, made where there is none yet."""
    found = tx.first(Review, comparison_id=comparison.id)
    if found is None:
        found = Review(
            id=new_id(Review),
            project_id=comparison.project_id,
            comparison_id=comparison.id,
            kind=kind,
            probability=probability,
            created_at=now,
        )
        tx.add(found)
    return found


def resolve_flag(
    store: Store, project_id: str, comparison_id: str, keep: bool, by: str, rules: Rules, now: datetime
) -> Comparison:
    """The lead's word on a flagged Comparison: ask on, or never again. Raises NotFound, Conflict (not flagged)."""
    with store.write() as tx:
        found = tx.first(Comparison, id=comparison_id, project_id=project_id)
        if found is None:
            raise NotFound(f"There is no Comparison {comparison_id!r} in this project.")
        if found.state is not ComparisonState.FLAGGED:
            raise Conflict(f"Comparison {comparison_id} is {found.state}, not flagged.")
        after = ComparisonState.OPEN if keep else ComparisonState.CANCELLED
        changed = tx.change(Comparison, comparison_id, {"state": found.state}, state=after)
        govern.audit(tx, project_id, by, "lead", "comparison.unflag", comparison_id, {}, {"state": str(after)}, now)
        settle(tx, changed, rules, now)
        return tx.get(Comparison, comparison_id)


# --- money ----------------------------------------------------------------------------------------------------------------


def spent(tx: Transaction, project_id: str, rules: Rules) -> float:
    """What the answers of a project have cost."""
    return rules.pay * queue.n_paid(tx, project_id) if rules.pay else 0.0


def cost(store: Store, project_id: str, rules: Rules) -> dict[str, float | int | None]:
    """n_answers, spent, budget (None without one), n_preferences, per_preference (None before the first)."""
    with store.read() as tx:
        n_answers = queue.n_paid(tx, project_id)
        n = tx.count(Preference, project_id=project_id, source=PreferenceSource.ANNOTATION)
    total = rules.pay * n_answers
    return {
        "n_answers": n_answers,
        "spent": total,
        "budget": rules.budget or None,
        "n_preferences": n,
        "per_preference": total / n if n else None,
    }


def names_of(store: Store, person_ids: Collection[str]) -> dict[str, str]:
    with store.read() as tx:
        return queue.names(tx, person_ids)
