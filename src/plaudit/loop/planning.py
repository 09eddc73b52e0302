"""Plan: Comparisons for annotators to answer, from what users were shown, further samples, or the two answers of an evaluation.

plan_comparisons and plan_ratings ask about answers that may be trained on, plan_evaluation about a candidate's and a champion's. What is
planned is lent and answered in annotate.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from plaudit.artifacts import sha256_of
from plaudit.domain import (
    OVERALL,
    Comparison,
    ComparisonKind,
    ComparisonState,
    Completion,
    CompletionStatus,
    EvaluationItem,
    Interaction,
    Purpose,
    Response,
    ResponseOrigin,
    ResponseText,
    TrainingUse,
    new_id,
)
from plaudit.errors import BadInput, Conflict
from plaudit.loop.asking import Asking, screen, screen_item
from plaudit.store.database import Store, Transaction
from plaudit.store.feedback import shown_responses

FORBIDDEN = "terms of the upstream forbid training"
AS_IT_IS = Asking()
MAX_CRITERIA, MAX_CRITERION_CHARS = 12, 60


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
    criteria, made, skipped, found = _begun(overlap, criteria)
    with store.write() as tx:
        for interaction, shown, free_idx in _askable(tx, project_id, interactions, batch, asking, skipped):
            samples = extra.get(interaction.id, ())
            if asking.forbids(model) or not samples:
                skipped[FORBIDDEN if asking.forbids(model) else "no further sample"] += 1
                continue
            seen, next_idx = {shown.text.strip()}, free_idx
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
                    criteria=criteria,
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
    criteria, made, skipped, found = _begun(overlap, criteria)
    with store.write() as tx:
        for interaction, shown, next_idx in _askable(tx, project_id, interactions, batch, asking, skipped):
            read = screen(asking, interaction.messages, (shown.text,))
            found.update(read.found)
            if read.dropped:
                skipped[f"personal data ({read.dropped})"] += 1
                continue
            response = _as_read(tx, shown, read.answers[0], next_idx, now)
            comparison = Comparison(
                id=new_id(Comparison),
                project_id=project_id,
                interaction_id=interaction.id,
                kind=ComparisonKind.RATING,
                purpose=Purpose.TRAINING,
                messages=read.messages,
                family=interaction.family,
                response_ids=(response.id,),
                overlap=overlap,
                batch=batch,
                criteria=criteria,
                created_at=now,
            )
            tx.add(comparison)
            made.append(comparison)
    return Plan(tuple(made), dict(skipped), dict(found))


def _begun(
    overlap: int, criteria: Sequence[str]
) -> tuple[tuple[str, ...], list[Comparison], Counter[str], Counter[str]]:
    """What a plan of training questions starts from: the checked criteria, and of its `Plan` comparisons, skipped and found, still empty.
    Raises BadInput."""
    _check_overlap(overlap)
    return check_criteria(criteria), [], Counter(), Counter()


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
    tx: Transaction,
    project_id: str,
    interactions: Sequence[Interaction],
    batch: str,
    asking: Asking,
    skipped: Counter[str],
) -> Iterator[tuple[Interaction, Response, int]]:
    """Each interaction that may be asked about, with the answer its user was shown and the next free idx; the others are counted in `skipped`."""
    present = {one.interaction_id for one in tx.find(Comparison, project_id=project_id, batch=batch)}
    for interaction in interactions:
        if interaction.training_use is not TrainingUse.ALLOWED:
            skipped["consent is not allowed"] += 1
        elif interaction.id in present:
            skipped["already in this batch"] += 1
        elif tx.first(Completion, id=interaction.id, status=CompletionStatus.OK) is None:
            skipped["no finished answer"] += 1
        elif not (shown := [one for one in shown_responses(tx, interaction.id) or [] if one.text.strip()]):
            skipped["empty answer"] += 1
        elif asking.forbids(shown[0].model):
            skipped[FORBIDDEN] += 1
        else:
            yield interaction, shown[0], 1 + max(one.idx for one in tx.find(Response, interaction_id=interaction.id))


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
