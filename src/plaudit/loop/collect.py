"""Collect: Interactions from the gateway or logged by an application, and what users said about them.

`begin_interaction` and `finish_interaction` are pure (the gateway's recorder stores what they return); `log_interaction` and
`record_feedback` validate a request's body and write it in one transaction.

Feedback rules: rows are only ever added. Thumb, rating, edit and choice have a natural key (interaction, response index, kind, actor):
an equal body replays the row that stands, another body supersedes it, a retraction is a row too. Comments and signals accumulate. An
idempotency key acts once, also where its write changed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from plaudit.artifacts import sha256_of
from plaudit.domain import (
    Assignment,
    Completion,
    CompletionStatus,
    Feedback,
    FeedbackKind,
    IdempotencyKey,
    Interaction,
    InteractionSource,
    Json,
    Message,
    Project,
    Release,
    Response,
    ResponseOrigin,
    ResponseText,
    TrainingUse,
    new_id,
)
from plaudit.errors import BadInput, Conflict, NotFound
from plaudit.loop import body as fields
from plaudit.loop.prompts import default_family
from plaudit.store import feedback as chains
from plaudit.store.database import Store, Transaction

MAX_TEXT_CHARS = 200_000
MAX_NAME_CHARS = 200
MAX_RESPONSES = 128

# The one field of each kind's value; `value` may also be given bare: {"kind": "thumb", "value": true}.
VALUE_FIELD: dict[FeedbackKind, str] = {
    FeedbackKind.THUMB: "up",
    FeedbackKind.RATING: "rating",
    FeedbackKind.EDIT: "text",
    FeedbackKind.CHOICE: "chosen",
    FeedbackKind.COMMENT: "text",
    FeedbackKind.SIGNAL: "name",
}
ACCUMULATES = frozenset({FeedbackKind.COMMENT, FeedbackKind.SIGNAL})


@dataclass(frozen=True)
class FeedbackResult:
    feedback: Feedback
    status: Literal["recorded", "superseded", "replayed"]


# --- interactions ------------------------------------------------------------------------------------------------------


def begin_interaction(
    project: Project,
    *,
    messages: Sequence[Message],
    actor: str | None,
    conversation_id: str | None,
    family: str | None,
    training_use: TrainingUse | None,
    attributes: Json,
    sampling: Json,
    assignment: Assignment | None,
    config_version: int,
    now: datetime,
) -> Interaction:
    """The stub that is durable before the first byte. Pure but for the id.

    Without a conversation id the interaction is a conversation of its own; without a consent the project's default holds.
    """
    id = new_id(Interaction)
    return Interaction(
        id=id,
        project_id=project.id,
        conversation_id=conversation_id or "cnv" + id.removeprefix("int"),
        turn=sum(message["role"] == "user" for message in messages),
        actor=actor,
        messages=tuple(messages),
        family=family or default_family(messages),
        prompt_sha256=sha256_of(list(messages)),
        source=InteractionSource.GATEWAY,
        release_id=assignment.release_id if assignment else None,
        served_release_id=assignment.release_id if assignment else None,
        experiment_id=assignment.experiment_id if assignment else None,
        arm=assignment.arm if assignment else None,
        stage=assignment.stage if assignment else None,
        assignment_probability=assignment.assignment_probability if assignment else None,
        sampling=sampling,
        training_use=training_use or project.training_use_default,
        attributes=attributes,
        config_version=config_version,
        created_at=now,
    )


def finish_interaction(
    interaction: Interaction,
    *,
    texts: Sequence[ResponseText],
    status: CompletionStatus,
    model: str,
    checkpoint_id: str | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    first_token_ms: float | None,
    latency_ms: float | None,
    error: str | None,
    now: datetime,
) -> tuple[Completion, tuple[Response, ...]]:
    """The end of an Interaction: its Completion and one Response per text, in order. Pure but for the ids."""
    completion = Completion(
        id=interaction.id,
        project_id=interaction.project_id,
        status=status,
        model=model,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        first_token_ms=first_token_ms,
        latency_ms=latency_ms,
        error=error,
        created_at=now,
    )
    logged = interaction.source is InteractionSource.LOGGED
    responses = tuple(
        Response(
            id=new_id(Response),
            project_id=interaction.project_id,
            interaction_id=interaction.id,
            idx=index,
            text=answer.text,
            finish_reason=answer.finish_reason,
            origin=ResponseOrigin.LOGGED if logged else ResponseOrigin.SERVED,
            model=model,
            checkpoint_id=checkpoint_id,
            logprob=answer.logprob,
            n_tokens=answer.n_tokens,
            created_at=now,
        )
        for index, answer in enumerate(texts)
    )
    return completion, responses


def log_interaction(
    store: Store, project_id: str, body: Any, now: datetime, assignment: Assignment | None = None
) -> Interaction:
    """Store a completion that the application made elsewhere: {messages, responses, user?, conversation_id?, family?, training_use?,
    attributes?, model?, release_id?}. `assignment` is what `GET /v1/assignment` told that user. Raises BadInput, NotFound (release)."""
    known = (
        "messages", "responses", "user", "conversation_id", "family", "training_use", "attributes", "model", "release_id",
    )  # fmt: skip
    body = fields.checked(body, "The interaction", known)
    messages = fields.messages(body)
    answers = body.get("responses")
    if (
        not isinstance(answers, list | tuple)
        or not 0 < len(answers) <= MAX_RESPONSES
        or not all(isinstance(answer, str) for answer in answers)
    ):
        raise BadInput(f"responses must be a list of 1 to {MAX_RESPONSES} strings: what the user was shown.")
    release_id = fields.text(body, "release_id", max_chars=MAX_NAME_CHARS)
    actor = fields.text(body, "user", max_chars=MAX_NAME_CHARS)
    conversation_id = fields.text(body, "conversation_id", max_chars=MAX_NAME_CHARS)
    family = fields.text(body, "family", max_chars=MAX_NAME_CHARS)
    model = fields.text(body, "model", max_chars=MAX_NAME_CHARS)
    attributes = fields.attributes(body)
    with store.write() as tx:
        project = tx.get(Project, project_id)
        training_use = fields.member(body, "training_use", TrainingUse, default=project.training_use_default)
        release = _release(tx, project_id, release_id) if release_id else None
        drafted = begin_interaction(
            project,
            messages=messages,
            actor=actor,
            conversation_id=conversation_id,
            family=family,
            training_use=training_use,
            attributes=attributes,
            sampling={},
            assignment=assignment,
            config_version=0,
            now=now,
        )
        interaction = _logged(drafted, release_id)
        completion, responses = finish_interaction(
            interaction,
            texts=[ResponseText(answer, None) for answer in answers],
            status=CompletionStatus.OK,
            model=model or (release.model if release else "unknown"),
            checkpoint_id=release.checkpoint_id if release else None,
            prompt_tokens=None,
            completion_tokens=None,
            first_token_ms=None,
            latency_ms=None,
            error=None,
            now=now,
        )
        tx.add(interaction, completion, *responses)
    return interaction


def _logged(drafted: Interaction, release_id: str | None) -> Interaction:
    """What answered is what the application says; what was assigned stays what we assigned."""
    assigned = drafted.release_id or release_id
    return replace(
        drafted, source=InteractionSource.LOGGED, release_id=assigned, served_release_id=release_id or assigned
    )


def _release(tx: Transaction, project_id: str, release_id: str) -> Release:
    release = tx.first(Release, id=release_id, project_id=project_id)
    if release is None:
        raise NotFound(f"There is no Release {release_id!r} in this project.")
    return release


# --- feedback ----------------------------------------------------------------------------------------------------------


def record_feedback(
    store: Store, project_id: str, body: Any, idempotency_key: str | None, now: datetime
) -> FeedbackResult:
    """Append one row: {interaction_id, kind, value, response_index?, user?, idempotency_key?, retract?}.

    The key may stand in the header or in the body. `user` defaults to the interaction's actor. Raises BadInput (malformed), NotFound
    (interaction, response index, nothing to retract), Conflict (the key was used for something else).
    """
    known = ("interaction_id", "kind", "value", "response_index", "user", "idempotency_key", "retract")
    body = fields.checked(body, "The feedback", known)
    key = fields.text(body, "idempotency_key", max_chars=MAX_NAME_CHARS)
    if key and idempotency_key and key != idempotency_key:
        raise BadInput("idempotency_key differs between header and body; send it once.")
    key = key or idempotency_key
    kind = fields.member(body, "kind", FeedbackKind)
    interaction_id = fields.needed(body, "interaction_id", max_chars=MAX_NAME_CHARS)
    index = fields.integer(body, "response_index", 0, MAX_RESPONSES - 1, default=0) or 0
    if kind is FeedbackKind.CHOICE and index:
        raise BadInput("response_index does not go with a choice; name the better answer in value.chosen.")
    user = fields.text(body, "user", max_chars=MAX_NAME_CHARS)
    retracted = bool(fields.flag(body, "retract", default=False))
    if retracted and kind in ACCUMULATES:
        raise BadInput(f"retract does not go with a {kind}; only thumb, rating, edit and choice can be taken back.")

    with store.write() as tx:
        interaction = chains.lock_interaction(tx, project_id, interaction_id)
        value = {} if retracted else _value(tx.get(Project, project_id), kind, body)
        _check_index(tx, interaction, kind, index if value.get("chosen") is None else value["chosen"])
        actor = user or interaction.actor
        content = {
            "interaction_id": interaction_id,
            "response_idx": index,
            "kind": kind,
            "value": value,
            "actor": actor,
            "retracted": retracted,
        }
        body_sha256 = sha256_of(content)
        seen = _remembered(tx, project_id, key, body_sha256)
        if seen is not None:
            return FeedbackResult(seen, "replayed")
        natural_key = None if kind in ACCUMULATES else f"{interaction_id}/{index}/{kind}/{actor or ''}"
        standing = chains.head(tx, natural_key) if natural_key else None
        if standing is not None and standing.body_sha256 == body_sha256:
            result = FeedbackResult(standing, "replayed")
        elif standing is None and retracted:
            raise NotFound(f"There is no {kind} of this user on {interaction_id} to retract.")
        else:
            row = Feedback(
                id=new_id(Feedback),
                project_id=project_id,
                natural_key=natural_key,
                supersedes=standing.id if standing else None,
                body_sha256=body_sha256,
                created_at=now,
                interaction_id=interaction_id,
                response_idx=index,
                kind=kind,
                value=value,
                actor=actor,
                retracted=retracted,
            )
            tx.add(row)
            result = FeedbackResult(row, "superseded" if standing else "recorded")
        if key:
            tx.add(
                IdempotencyKey(
                    id=_key_id(project_id, key),
                    project_id=project_id,
                    object_id=result.feedback.id,
                    body_sha256=body_sha256,
                    created_at=now,
                )
            )
        return result


def _value(project: Project, kind: FeedbackKind, body: fields.Body) -> Json:
    """The value in its one stored form. Raises BadInput naming the field."""
    name = VALUE_FIELD[kind]
    if "value" not in body:
        raise BadInput(f'value is missing; a {kind} needs {{"{name}": ...}}.')
    raw = body["value"]
    known = (name, "reasons") if kind is FeedbackKind.COMMENT else (name,)
    value = fields.checked(raw if isinstance(raw, dict) else {name: raw}, "value", known)
    match kind:
        case FeedbackKind.THUMB:
            up = fields.flag(value, name)
            if up is None:
                raise BadInput("value.up is missing; give true for a thumb up and false for a thumb down.")
            return {"up": up}
        case FeedbackKind.RATING:
            rating = fields.integer(value, name, project.rating_min, project.rating_max)
            if rating is None:
                raise BadInput(
                    f"value.rating is missing; give a whole number from {project.rating_min} to {project.rating_max}."
                )
            return {"rating": rating}
        case FeedbackKind.EDIT:
            return {"text": fields.needed(value, name, max_chars=MAX_TEXT_CHARS)}
        case FeedbackKind.CHOICE:
            return {"chosen": fields.integer(value, name, 0, MAX_RESPONSES - 1)}  # None: neither
        case FeedbackKind.COMMENT:
            reasons = value.get("reasons") or []
            if not isinstance(reasons, list) or len(reasons) > 20 or not all(isinstance(one, str) for one in reasons):
                raise BadInput("value.reasons must be a list of at most 20 strings.")
            words = fields.text(value, name, max_chars=MAX_TEXT_CHARS, default="")
            if not words and not reasons:
                raise BadInput("value.text is missing; give a text or at least one of value.reasons.")
            return {"text": words, "reasons": reasons}
        case FeedbackKind.SIGNAL:
            return {"name": fields.needed(value, name, max_chars=MAX_NAME_CHARS)}


def _check_index(tx: Transaction, interaction: Interaction, kind: FeedbackKind, index: int) -> None:
    """The index must name an answer that was shown, or, while answers are still being written, one that was asked for."""
    shown = chains.shown_responses(tx, interaction.id)
    if shown is None:
        n_asked = interaction.sampling.get("n")
        there = set(range(n_asked if isinstance(n_asked, int) else 1))
    else:
        there = {response.idx for response in shown}
    if index not in there:
        raise NotFound(f"Interaction {interaction.id} has no response with index {index}.")
    if kind is FeedbackKind.CHOICE and len(there) < 2:
        raise BadInput(
            f"kind is choice, but interaction {interaction.id} has one response; a choice needs two or more."
        )


def _key_id(project_id: str, key: str) -> str:
    return "idk_" + sha256_of([project_id, key])


def _remembered(tx: Transaction, project_id: str, key: str | None, body_sha256: str) -> Feedback | None:
    """What this key led to before, if it was used. Raises Conflict where it came with another body."""
    used = tx.first(IdempotencyKey, id=_key_id(project_id, key)) if key else None
    if used is None:
        return None
    if used.body_sha256 != body_sha256:
        raise Conflict(f"idempotency_key {key!r} was used before with another body; use a new key for a new act.")
    return tx.get(Feedback, used.object_id)
