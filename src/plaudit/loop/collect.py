"""Collect: Interactions from the gateway or logged by an application, and what users said about them.

`begin_interaction` and `finish_interaction` are pure (the gateway's recorder stores what they return); `log_interactions` and
`record_feedbacks` validate bodies and write what is right in one transaction: one body is a batch of one.

Feedback rules: rows are only ever added. Thumb, rating, edit and choice have a natural key (interaction, response index, kind, actor):
an equal body replays the row that stands, another body supersedes it, a retraction is a row too. Comments and signals accumulate. An
idempotency key acts once, also where its write changed nothing. A quarantined actor's rows are kept and count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

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
    Quarantine,
    Release,
    Response,
    ResponseOrigin,
    ResponseText,
    TrainingUse,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Forbidden, NotFound, PlauditError, Unavailable
from plaudit.loop import body as fields
from plaudit.loop import shapes, webhooks
from plaudit.loop.feedback_tokens import Claims, actor_sha256
from plaudit.loop.prompts import default_family
from plaudit.store import feedback as chains
from plaudit.store.database import Store, Transaction

T = TypeVar("T")
MAX_TEXT_CHARS = 200_000
MAX_NAME_CHARS = 200
MAX_RESPONSES = 128
MAX_BATCH = 1000
CLOCK_SKEW = timedelta(minutes=5)  # by which a sender's clock may be ahead of ours, or an act before what it is about

_NAME = shapes.text(MAX_NAME_CHARS)
INTERACTION = shapes.shape(
    {
        "messages": shapes.MESSAGES,
        "responses": shapes.texts(1, MAX_RESPONSES, said="What the user was shown."),
    },
    {
        "user": shapes.text(MAX_NAME_CHARS, "Pseudonym of the end user; without one it belongs to no experiment."),
        "conversation_id": _NAME,
        "family": shapes.text(MAX_NAME_CHARS, "Prompt family; default: hash of the last user text."),
        "training_use": shapes.one_of(TrainingUse, "Default: the project's."),
        "attributes": shapes.ATTRIBUTES,
        "model": _NAME,
        "release_id": shapes.text(MAX_NAME_CHARS, "What GET /v1/assignment said."),
        "at": shapes.MOMENT,
        "idempotency_key": shapes.text(MAX_NAME_CHARS, "One key acts once; may stand in the header Idempotency-Key."),
    },
)
FEEDBACK = shapes.shape(
    {"interaction_id": _NAME, "kind": shapes.one_of(FeedbackKind)},
    {
        "value": {},  # by kind: `value_shape`
        "response_index": shapes.whole(0, MAX_RESPONSES - 1, "Of several responses; default 0."),
        "user": shapes.text(MAX_NAME_CHARS, "Default: the Interaction's."),
        "idempotency_key": shapes.text(MAX_NAME_CHARS, "One key acts once; may stand in the header Idempotency-Key."),
        "retract": shapes.FLAG,
        "at": shapes.MOMENT,
    },
)
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
class Logged:
    interaction: Interaction
    replayed: bool


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
        system_sha256=_system_sha256(messages),
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


def _system_sha256(messages: Sequence[Message]) -> str | None:
    instructions = [message.get("content") for message in messages if message["role"] in ("system", "developer")]
    return sha256_of(instructions) if instructions else None


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
            tool_calls=answer.tool_calls,
            verdicts=answer.verdicts,
            created_at=now,
        )
        for index, answer in enumerate(texts)
    )
    return completion, responses


def log_interaction(
    store: Store, project_id: str, body: Any, now: datetime, assignment: Assignment | None = None
) -> Interaction:
    """One of `log_interactions`; raises what that returns."""
    (result,) = log_interactions(store, project_id, [body], now, [assignment])
    if isinstance(result, PlauditError):
        raise result
    return result.interaction


def log_interactions(
    store: Store,
    project_id: str,
    bodies: Sequence[Any],
    now: datetime,
    assignments: Sequence[Assignment | None] | None = None,
) -> list[Logged | PlauditError]:
    """Store completions that the application made elsewhere, each {messages, responses, user?, conversation_id?, family?, training_use?,
    attributes?, model?, release_id?, at?, idempotency_key?}; what is wrong with one (BadInput, NotFound, Conflict) is its result and
    hinders no other. `assignments` are what `GET /v1/assignment` told those users.
    """
    results: list[Logged | PlauditError] = []
    with store.write() as tx:
        project = tx.get(Project, project_id)
        for place, body in enumerate(bodies):
            try:
                results.append(_log(tx, project, body, now, assignments[place] if assignments else None))
            except PlauditError as error:
                results.append(error)
    return results


def _log(tx: Transaction, project: Project, body: Any, now: datetime, assignment: Assignment | None) -> Logged:
    said = shapes.read(body, "The interaction", INTERACTION)
    key, model, release_id = said["idempotency_key"], said["model"], said["release_id"]
    body_sha256 = sha256_of({name: value for name, value in body.items() if name != "idempotency_key"})
    at = _happened(said["at"], now)
    drafted = begin_interaction(
        project,
        messages=said["messages"],
        actor=said["user"],
        conversation_id=said["conversation_id"],
        family=said["family"],
        training_use=TrainingUse(said["training_use"]) if said["training_use"] else None,
        attributes=said["attributes"],
        sampling={},
        assignment=assignment,
        config_version=0,
        now=at,
    )
    seen = _used(tx, project.id, key, body_sha256)
    if seen is not None:
        return Logged(tx.get(Interaction, seen), replayed=True)
    release = _release(tx, project.id, release_id) if release_id else None
    interaction = _logged(drafted, release_id)
    completion, responses = finish_interaction(
        interaction,
        texts=[ResponseText(answer, None) for answer in said["responses"]],
        status=CompletionStatus.OK,
        model=model or (release.model if release else "unknown"),
        checkpoint_id=release.checkpoint_id if release else None,
        prompt_tokens=None,
        completion_tokens=None,
        first_token_ms=None,
        latency_ms=None,
        error=None,
        now=at,
    )
    tx.add(interaction, completion, *responses)
    if key:
        tx.add(_key(project.id, key, interaction.id, body_sha256, now))
    return Logged(interaction, replayed=False)


def _happened(at: datetime | None, now: datetime) -> datetime:
    """When the sender says it happened, which may be long ago but not in the future; now where it does not say."""
    if at is None:
        return now
    if at > now + CLOCK_SKEW:
        raise BadInput(
            f"at is {at.isoformat()}, which is in the future (our clock: {now.isoformat()}); correct the clock or leave `at` out."
        )
    return min(at, now)


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
    store: Store, project_id: str, body: Any, idempotency_key: str | None, now: datetime, token: Claims | None = None
) -> FeedbackResult:
    """One of `record_feedbacks`, whose key may also stand in a header; raises what that returns."""
    if idempotency_key is not None and isinstance(body, Mapping):
        if body.get("idempotency_key", idempotency_key) != idempotency_key:
            raise BadInput("idempotency_key differs between header and body; send it once.")
        body = {**body, "idempotency_key": idempotency_key}
    (result,) = record_feedbacks(store, project_id, [body], now, [token])
    if isinstance(result, PlauditError):
        raise result
    return result


@dataclass(frozen=True)
class _Act:
    """One feedback as it was sent, checked as far as that goes without what is stored."""

    interaction_id: str
    kind: FeedbackKind
    index: int
    value: Json
    user: str | None
    retracted: bool
    key: str | None
    at: datetime


def record_feedbacks(
    store: Store,
    project_id: str,
    bodies: Sequence[Any],
    now: datetime,
    tokens: Sequence[Claims | None] | None = None,
    arriving: bool = False,
) -> list[FeedbackResult | PlauditError]:
    """Append a row for each of {interaction_id, kind, value, response_index?, user?, idempotency_key?, retract?, at?}, in their order.

    What is wrong with one is its result and hinders no other: BadInput (malformed), NotFound (interaction, response index, nothing to
    retract), Conflict (the key was used for something else), Forbidden (not what its token, if `tokens` are given, is for), Unavailable (the
    interaction is not here yet: `arriving` says that some are still on their way, a token proves that its own exists). `user` defaults to the
    interaction's actor. All is read at the beginning and written at the end: the cost of a batch is that of its rows.
    """
    with store.write(beside_others=True) as tx:
        project = tx.get(Project, project_id)
        acts = [_attempt(_read_feedback, project, body, now) for body in bodies]
        sound = [act for act in acts if isinstance(act, _Act)]
        about = chains.lock_interactions(tx, project_id, {act.interaction_id for act in sound})
        keys = [
            (one.interaction_id, _natural_key(one, about[one.interaction_id]))
            for one in sound
            if one.interaction_id in about
        ]
        chain = _Chains(
            project=project,
            now=now,
            interactions=about,
            arriving=arriving,
            heads=chains.heads(tx, {(id, key) for id, key in keys if key}),
            used=chains.used_keys(tx, {_key_id(project_id, act.key) for act in sound if act.key}),
            quarantines=tx.find(Quarantine, project_id=project_id, lifted_at=None),
        )
        chain.known = {row.id: row for row in tx.find(Feedback, id=[one.object_id for one in chain.used.values()])}
        results = [
            _attempt(chain.append, act, token) if isinstance(act, _Act) else act
            for act, token in zip(acts, tokens or [None] * len(acts), strict=True)
        ]
        tx.add(*chain.rows, *chain.keys)
        if chain.rows:
            webhooks.announce(tx, project_id, "feedback", [(row.interaction_id, row.id) for row in chain.rows], now)
    return results


def _attempt(act: Callable[..., T], *arguments: Any) -> T | PlauditError:
    try:
        return act(*arguments)
    except PlauditError as error:
        return error


def _read_feedback(project: Project, body: Any, now: datetime) -> _Act:
    said = shapes.read(body, "The feedback", FEEDBACK)
    kind, index, retracted = FeedbackKind(said["kind"]), said["response_index"] or 0, bool(said["retract"])
    if kind is FeedbackKind.CHOICE and index:
        raise BadInput("response_index does not go with a choice; name the better answer in value.chosen.")
    if retracted and kind in ACCUMULATES:
        raise BadInput(f"retract does not go with a {kind}; only thumb, rating, edit and choice can be taken back.")
    return _Act(
        interaction_id=said["interaction_id"],
        kind=kind,
        index=index,
        value={} if retracted else _value(project, kind, body),
        user=said["user"],
        retracted=retracted,
        key=said["idempotency_key"],
        at=_happened(said["at"], now),
    )


@dataclass
class _Chains:
    """What stands, and what a batch adds to it as it goes: a later act of the batch finds the earlier ones."""

    project: Project
    now: datetime
    interactions: dict[str, chains.Spoken]
    arriving: bool
    heads: dict[str, Feedback]  # by natural key
    used: dict[str, IdempotencyKey]  # by id
    quarantines: Sequence[Quarantine]
    known: dict[str, Feedback] = field(default_factory=dict)  # what the used keys led to
    rows: list[Feedback] = field(default_factory=list)
    keys: list[IdempotencyKey] = field(default_factory=list)

    def append(self, act: _Act, token: Claims | None) -> FeedbackResult:
        if token is not None:
            _check_token(token, act)
        about = self.interactions.get(act.interaction_id)
        if about is None and (self.arriving or token is not None):
            raise Unavailable(
                f"Interaction {act.interaction_id!r} is not in the store yet; send this again in a moment."
            )
        if about is None or about.erased:
            why = "was erased" if about else "is not in this project"
            raise NotFound(f"Interaction {act.interaction_id!r} {why}.")
        if token is not None and actor_sha256(self.project.id, about.actor) != token.actor_sha256:
            raise Forbidden("This feedback token is for another user; take the one that came with the answer.")
        if act.at < about.created_at - CLOCK_SKEW:
            raise BadInput(
                f"at is {act.at.isoformat()}, before the interaction began ({about.created_at.isoformat()})."
            )
        _check_index(about, act)
        actor = act.user or about.actor
        content = {
            "interaction_id": act.interaction_id,
            "response_idx": act.index,
            "kind": act.kind,
            "value": act.value,
            "actor": actor,
            "retracted": act.retracted,
        }
        body_sha256 = sha256_of(content)
        seen = self._seen(act.key, body_sha256)
        if seen is not None:
            return FeedbackResult(seen, "replayed")
        natural_key = _natural_key(act, about)
        standing = self.heads.get(natural_key) if natural_key else None
        if standing is not None and standing.body_sha256 == body_sha256:
            result = FeedbackResult(standing, "replayed")
        elif standing is None and act.retracted:
            raise NotFound(f"There is no {act.kind} of this user on {act.interaction_id} to retract.")
        else:
            row = Feedback(
                id=new_id(Feedback),
                project_id=self.project.id,
                natural_key=natural_key,
                supersedes=standing.id if standing else None,
                quarantine_id=self._held_by(act.interaction_id, actor),
                body_sha256=body_sha256,
                created_at=max(act.at, about.created_at),
                interaction_id=act.interaction_id,
                response_idx=act.index,
                kind=act.kind,
                value=act.value,
                actor=actor,
                retracted=act.retracted,
            )
            self.rows.append(row)
            if natural_key:
                self.heads[natural_key] = row
            result = FeedbackResult(row, "superseded" if standing else "recorded")
        if act.key:
            key = _key(self.project.id, act.key, result.feedback.id, body_sha256, self.now)
            self.keys.append(key)
            self.used[key.id] = key
            self.known[result.feedback.id] = result.feedback
        return result

    def _seen(self, key: str | None, body_sha256: str) -> Feedback | None:
        used = self.used.get(_key_id(self.project.id, key)) if key else None
        if used is None:
            return None
        if used.body_sha256 != body_sha256 or used.object_id not in self.known:
            raise _other_body(str(key))
        return self.known[used.object_id]

    def _held_by(self, interaction_id: str, actor: str | None) -> str | None:
        for one in self.quarantines:
            if one.actor in (None, actor) and one.interaction_id in (None, interaction_id):
                return one.id
        return None


def _natural_key(act: _Act, about: chains.Spoken) -> str | None:
    """What makes a later act the same act again or another one in its place; None for kinds that accumulate."""
    if act.kind in ACCUMULATES:
        return None
    return f"{act.interaction_id}/{act.index}/{act.kind}/{act.user or about.actor or ''}"


def _check_token(token: Claims, act: _Act) -> None:
    if act.interaction_id != token.interaction_id:
        raise Forbidden(f"This feedback token is for {token.interaction_id}, not for {act.interaction_id}.")
    if act.kind not in token.kinds:
        raise Forbidden(f"This feedback token is not for a {act.kind}; it allows: {', '.join(sorted(token.kinds))}.")
    if act.user is not None:
        raise Forbidden("A feedback token speaks for its own user; leave `user` out.")


def value_shape(kind: FeedbackKind, rating_min: int, rating_max: int) -> shapes.Shape:
    """What a kind's value may be, on a project's scale of ratings."""
    match kind:
        case FeedbackKind.THUMB:
            return shapes.shape({"up": shapes.FLAG})
        case FeedbackKind.RATING:
            return shapes.shape({"rating": shapes.whole(rating_min, rating_max, "On the project's scale.")})
        case FeedbackKind.EDIT:
            return shapes.shape({"text": shapes.text(MAX_TEXT_CHARS, "The answer as it should have been.")})
        case FeedbackKind.CHOICE:
            best = shapes.whole(0, MAX_RESPONSES - 1, "Index of the better response; null: neither.")
            return shapes.shape({}, {"chosen": best})
        case FeedbackKind.COMMENT:
            return shapes.shape({}, {"text": shapes.text(MAX_TEXT_CHARS), "reasons": shapes.texts(0, 20)})
        case FeedbackKind.SIGNAL:
            seconds = shapes.real(0, 86_400, "How long, of a dwell.")
            consent = {**shapes.FLAG, "description": "Whether the user agreed to be observed."}
            return shapes.shape({"name": _NAME}, {"seconds": seconds, "consent": consent})


def _value(project: Project, kind: FeedbackKind, body: fields.Body) -> Json:
    """The value in its one stored form. Raises BadInput naming the field."""
    name = VALUE_FIELD[kind]
    if "value" not in body:
        raise BadInput(f'value is missing; a {kind} needs {{"{name}": ...}}.')
    raw = body["value"]
    shape = value_shape(kind, project.rating_min, project.rating_max)
    value = shapes.read(raw if isinstance(raw, dict) else {name: raw}, "value", shape)
    if kind is FeedbackKind.COMMENT:
        if not value["text"] and not value["reasons"]:
            raise BadInput("value.text is missing; give a text or at least one of value.reasons.")
        return {"text": value["text"] or "", "reasons": list(value["reasons"] or ())}
    if kind is FeedbackKind.SIGNAL:
        return {part: said for part, said in value.items() if said is not None}
    return value


def _check_index(about: chains.Spoken, act: _Act) -> None:
    """The index must name an answer that was shown, or, while answers are still being written, one that was asked for."""
    index = act.index if act.value.get("chosen") is None else act.value["chosen"]
    there = about.indices
    if there is None:
        n_asked = about.sampling.get("n")
        there = frozenset(range(n_asked if isinstance(n_asked, int) else 1))
    if index not in there:
        raise NotFound(f"Interaction {about.id} has no response with index {index}.")
    if act.kind is FeedbackKind.CHOICE and len(there) < 2:
        raise BadInput(f"kind is choice, but interaction {about.id} has one response; a choice needs two or more.")


# --- idempotency keys ----------------------------------------------------------------------------------------------------


def _key_id(project_id: str, key: str) -> str:
    return "idk_" + sha256_of([project_id, key])


def _key(project_id: str, key: str, object_id: str, body_sha256: str, now: datetime) -> IdempotencyKey:
    return IdempotencyKey(
        id=_key_id(project_id, key),
        project_id=project_id,
        object_id=object_id,
        body_sha256=body_sha256,
        created_at=now,
    )


def _used(tx: Transaction, project_id: str, key: str | None, body_sha256: str) -> str | None:
    """The id of what this key led to before, if it was used. Raises Conflict where it came with another body."""
    used = tx.first(IdempotencyKey, id=_key_id(project_id, key)) if key else None
    if used is None:
        return None
    if used.body_sha256 != body_sha256:
        raise _other_body(str(key))
    return used.object_id


def _other_body(key: str) -> Conflict:
    return Conflict(f"idempotency_key {key!r} was used before with another body; use a new key for a new act.")
