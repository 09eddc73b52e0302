"""Every noun of Plaudit: frozen dataclasses, enums, transition tables, ids. Standard library only.

The dataclasses are also the rows of the store: `store/schema.py` derives one table from each class in `NOUNS`, and every row carries
`project_id`. Tuples and dicts hold JSON-able values. The vocabulary (what each word means, and what it is not called) is in
`docs/vocabulary.md`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from plaudit.errors import Conflict

Message = dict[str, Any]  # {"role": "user", "content": "..."}
Json = dict[str, Any]

DEFAULT_PROJECT = "prj_default"
OVERALL = "overall"  # the criterion of an answer as a whole, always asked


# --- enums -------------------------------------------------------------------------------------------------------------


class TrainingUse(StrEnum):
    """Consent: only `allowed` rows ever enter a Snapshot."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNKNOWN = "unknown"


class Role(StrEnum):
    APPLICATION = "application"
    ANNOTATOR = "annotator"
    EXPERT = "expert"
    LEAD = "lead"
    APPROVER = "approver"
    OPERATOR = "operator"
    ADMIN = "admin"


class InteractionSource(StrEnum):
    GATEWAY = "gateway"
    LOGGED = "logged"


class CompletionStatus(StrEnum):
    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"


class ResponseOrigin(StrEnum):
    SERVED = "served"  # a user saw it
    SAMPLED = "sampled"  # drawn for a Comparison, nobody was served with it
    LOGGED = "logged"  # the application made it elsewhere
    EDITED = "edited"  # a person wrote it over a response
    EVALUATED = "evaluated"  # an answer to a held-out prompt; never trained on
    REDACTED = "redacted"  # a copy for annotators, without the personal data of the one that a user saw


class FeedbackKind(StrEnum):
    THUMB = "thumb"  # {"up": bool}
    RATING = "rating"  # {"rating": int}
    EDIT = "edit"  # {"text": str}
    CHOICE = "choice"  # {"chosen": response index, or None for neither}
    COMMENT = "comment"  # {"text": str, "reasons": [str]}
    SIGNAL = "signal"  # {"name": str}; weak evidence


class LicenceOf(StrEnum):
    IMPORT = "import"  # a batch of other people's judgements
    MODEL = "model"  # what wrote answers, where it is none of ours


class ErasureReason(StrEnum):
    USER = "user"  # somebody asked for it
    AGE = "age"  # the setting `retention_days`


class ComparisonKind(StrEnum):
    PAIRWISE = "pairwise"
    RATING = "rating"
    RANKING = "ranking"


class Purpose(StrEnum):
    TRAINING = "training"
    EVALUATION = "evaluation"  # a Snapshot refuses it
    GOLD = "gold"  # its answer is known: it judges annotators, and nothing is trained on it


class ComparisonState(StrEnum):
    OPEN = "open"
    CLOSED = "closed"  # has the votes it needs
    FLAGGED = "flagged"  # an annotator says that something is wrong with it; the lead decides
    CANCELLED = "cancelled"


class Verdict(StrEnum):
    PREFER = "prefer"
    TIE = "tie"
    BOTH_BAD = "both_bad"  # never becomes a training pair
    RATE = "rate"  # a single response, on the project's scale
    SKIP = "skip"


class ReviewKind(StrEnum):
    DISPUTE = "dispute"  # annotators do not agree
    AUDIT = "audit"  # drawn at random


class LeaseState(StrEnum):
    LIVE = "live"
    ANSWERED = "answered"
    RELEASED = "released"


class PreferenceSource(StrEnum):
    ANNOTATION = "annotation"
    EDIT = "edit"
    CHOICE = "choice"
    IMPORT = "import"


class RunState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class CheckpointKind(StrEnum):
    POLICY = "policy"
    REWARD = "reward"
    VALUE = "value"


class GateVerdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"


class ReleaseState(StrEnum):
    CANDIDATE = "candidate"
    SHADOW = "shadow"
    CANARY = "canary"
    LIVE = "live"
    RETIRED = "retired"
    ROLLED_BACK = "rolled_back"


class Decision(StrEnum):
    APPROVE = "approve"
    REFUSE = "refuse"


class ExperimentState(StrEnum):
    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    STOPPED = "stopped"


class AlertState(StrEnum):
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


# --- transitions -------------------------------------------------------------------------------------------------------

RELEASE_TRANSITIONS: Mapping[StrEnum, frozenset[StrEnum]] = {
    ReleaseState.CANDIDATE: frozenset(
        {ReleaseState.SHADOW, ReleaseState.CANARY, ReleaseState.LIVE, ReleaseState.RETIRED}
    ),
    ReleaseState.SHADOW: frozenset({ReleaseState.CANARY, ReleaseState.RETIRED, ReleaseState.ROLLED_BACK}),
    ReleaseState.CANARY: frozenset({ReleaseState.LIVE, ReleaseState.ROLLED_BACK, ReleaseState.RETIRED}),
    ReleaseState.LIVE: frozenset({ReleaseState.RETIRED, ReleaseState.ROLLED_BACK}),
    ReleaseState.RETIRED: frozenset({ReleaseState.LIVE}),  # the way back
    ReleaseState.ROLLED_BACK: frozenset(),
}
RUN_TRANSITIONS: Mapping[StrEnum, frozenset[StrEnum]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.CANCELLED}),
    RunState.RUNNING: frozenset(
        {RunState.RUNNING, RunState.DONE, RunState.FAILED, RunState.CANCELLED}
    ),  # taken over after a crash
    RunState.FAILED: frozenset({RunState.RUNNING}),
    RunState.DONE: frozenset(),
    RunState.CANCELLED: frozenset(),
}
COMPARISON_TRANSITIONS: Mapping[StrEnum, frozenset[StrEnum]] = {
    ComparisonState.OPEN: frozenset({ComparisonState.CLOSED, ComparisonState.FLAGGED, ComparisonState.CANCELLED}),
    ComparisonState.FLAGGED: frozenset({ComparisonState.OPEN, ComparisonState.CANCELLED}),
    ComparisonState.CLOSED: frozenset({ComparisonState.OPEN}),  # an extra vote is asked for
    ComparisonState.CANCELLED: frozenset(),
}
EXPERIMENT_TRANSITIONS: Mapping[StrEnum, frozenset[StrEnum]] = {
    ExperimentState.RUNNING: frozenset(
        {ExperimentState.PROMOTED, ExperimentState.ROLLED_BACK, ExperimentState.STOPPED}
    ),
    ExperimentState.PROMOTED: frozenset(),
    ExperimentState.ROLLED_BACK: frozenset(),
    ExperimentState.STOPPED: frozenset(),
}
ALERT_TRANSITIONS: Mapping[StrEnum, frozenset[StrEnum]] = {
    AlertState.PENDING: frozenset({AlertState.FIRING, AlertState.RESOLVED}),
    AlertState.FIRING: frozenset({AlertState.RESOLVED}),
    AlertState.RESOLVED: frozenset(),
}


def check_transition(table: Mapping[StrEnum, frozenset[StrEnum]], before: StrEnum, after: StrEnum, what: str) -> None:
    """Raise Conflict where `before -> after` is not in the table."""
    if after not in table[before]:
        allowed = ", ".join(sorted(table[before])) or "nothing: it is final"
        raise Conflict(f"{what} is {before} and cannot become {after}; from {before} it may become {allowed}.")


# --- the nouns ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Project:
    """One application with its own keys, guidelines, policies and releases. Its own id is its project_id."""

    id: str
    project_id: str
    name: str
    training_use_default: TrainingUse = TrainingUse.UNKNOWN
    rating_min: int = 1
    rating_max: int = 5
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Person:
    """Someone who acts in a project, by a key or signed in; `roles` are what they may do signed in."""

    id: str
    project_id: str
    name: str
    roles: tuple[str, ...] = ()
    generation: int = 0  # of the cookies that count; raised to sign out everywhere
    created_at: datetime
    removed_at: datetime | None = None  # may no longer act; what they did stays theirs


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """A link that signs one Person in, once. Only the hash of its secret is kept."""

    id: str
    project_id: str
    person_id: str
    secret_sha256: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A secret that carries roles. Only its hash is kept."""

    id: str
    project_id: str
    person_id: str | None = None
    name: str
    roles: tuple[str, ...]
    secret_sha256: str
    created_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None  # some seconds late: written in batches


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """The messages of one turn; durable before the first byte of the answer. `Completion` and `Response` rows follow at the end."""

    id: str
    project_id: str
    conversation_id: str
    turn: int
    actor: str | None  # pseudonymous end user; None belongs to no experiment
    messages: tuple[Message, ...]
    family: str  # prompt family: what must stay on one side of a split
    prompt_sha256: str
    system_sha256: str | None = None  # of its system and developer messages; None: there were none
    source: InteractionSource
    release_id: str | None  # assigned
    served_release_id: str | None  # what answered
    experiment_id: str | None = None
    arm: str | None = None  # candidate | control
    stage: int | None = None  # ramp stage in force
    assignment_probability: float | None = None  # of the candidate arm, among the enrolled, when this happened
    sampling: Json = field(default_factory=dict)
    training_use: TrainingUse = TrainingUse.UNKNOWN
    attributes: Json = field(default_factory=dict)  # declared by the application, allow-listed
    verdicts: tuple[Json, ...] = ()  # of the filters on the prompt: {"filter", "action", "n"}
    config_version: int = 0
    erasure_id: str | None = None  # set: a tombstone, whose content is gone
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The end of an Interaction; at most one. `id` is the interaction's id."""

    id: str
    project_id: str
    status: CompletionStatus
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_ms: float | None = None
    latency_ms: float | None = None
    error: str | None = None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Response:
    id: str
    project_id: str
    interaction_id: str | None  # None: an answer to an evaluation prompt
    idx: int
    text: str
    finish_reason: str | None
    origin: ResponseOrigin
    model: str
    checkpoint_id: str | None = None  # None: the base model, or a model that is not ours
    logprob: float | None = None  # sum over the response's tokens, nats
    n_tokens: int | None = None
    tool_calls: tuple[Json, ...] = ()  # as the model server sent them, joined where they came in pieces
    verdicts: tuple[Json, ...] = ()  # of the filters on this answer: {"filter", "action", "n"}
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What an end user said or did. Append-only: a later row with the same natural key supersedes, a retraction is a row."""

    id: str
    project_id: str
    interaction_id: str
    response_idx: int
    kind: FeedbackKind
    value: Json
    actor: str | None
    natural_key: (
        str | None
    )  # interaction, response index, kind, actor for thumb, rating, choice, edit; None accumulates
    supersedes: str | None = None
    retracted: bool = False
    quarantine_id: str | None = None  # the Quarantine that keeps it out of Snapshots and metrics
    body_sha256: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class IdempotencyKey:
    """A key that a client sent with a write, and what it led to. `id` is the hash of project and key: the same key acts once.

    A table of its own, because also a key whose write changed nothing must be remembered: else its late retry undoes what came between.
    """

    id: str
    project_id: str
    object_id: str
    body_sha256: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One value of a metric of the business (a purchase, a solved ticket) for one user at one time."""

    id: str
    project_id: str
    actor: str
    name: str
    value: float
    at: datetime
    key: str  # the sender's own, else a hash of actor, name, value and time: the same one is recorded once
    body_sha256: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Quarantine:
    """Why some feedback counts for nothing while it stands: whose, or on which Interaction. Lifting it gives the feedback back."""

    id: str
    project_id: str
    actor: str | None
    interaction_id: str | None
    reason: str
    by: str
    n_feedback: int
    created_at: datetime
    lifted_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """The removal of what one user said and was told, or of everything older than `until`; names what was built from it."""

    id: str
    project_id: str
    reason: ErasureReason
    actor_sha256: str | None  # of project and pseudonym, which is not kept; None for an erasure by age
    until: datetime  # what began before
    by: str
    counts: Json
    snapshot_ids: tuple[str, ...]
    checkpoint_ids: tuple[str, ...]
    created_at: datetime
    purge_at: datetime  # when tainted Snapshots and Checkpoints lose their content
    compacted_at: datetime | None = None  # when the store's file was rewritten without the freed bytes
    purged_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Somebody else's URL that is told of events."""

    id: str
    project_id: str
    url: str
    events: tuple[str, ...]
    secret: str  # what deliveries are signed with: needed in clear for every one
    created_at: datetime
    ended_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One event on its way to one Webhook; its body is read from `source_id` when it is sent."""

    id: str
    project_id: str
    webhook_id: str
    event: str
    object_id: str  # deliveries about one object keep their order
    source_id: str
    n_attempts: int = 0
    next_at: datetime
    error: str | None = None
    delivered_at: datetime | None = None
    given_up_at: datetime | None = None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Guideline:
    id: str
    project_id: str
    version: int
    text: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The question put to annotators: which of `response_ids` is better after `messages`?"""

    id: str
    project_id: str
    interaction_id: str | None
    kind: ComparisonKind = ComparisonKind.PAIRWISE
    purpose: Purpose
    messages: tuple[Message, ...]
    family: str
    response_ids: tuple[str, ...]
    overlap: int = 3
    priority: int = 0
    reason: str = "random"  # why this question was asked
    batch: str | None = None  # the plan or evaluation it belongs to
    domain: str | None = None  # only who is qualified for it is lent it
    gold_choice: str | None = None  # the right response id, where the purpose is gold
    criteria: tuple[str, ...] = ()  # what is judged one by one, beside the whole
    state: ComparisonState = ComparisonState.OPEN
    attributes: Json = field(default_factory=dict)
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A Comparison lent to one annotator until `expires_at`, in the order stored here."""

    id: str
    project_id: str
    comparison_id: str
    annotator_id: str
    order: tuple[str, ...]  # response ids as shown, first is left
    guideline_id: str | None = None  # the version that was shown
    state: LeaseState = LeaseState.LIVE
    expires_at: datetime
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One annotator's answer; one per (comparison, annotator, criterion)."""

    id: str
    project_id: str
    comparison_id: str
    annotator_id: str
    guideline_id: str | None
    criterion: str = OVERALL
    verdict: Verdict
    choice: str | None  # response id, never "left"
    strength: int | None = None  # 1..3
    order: tuple[str, ...]
    seconds: float
    reasons: tuple[str, ...] = ()
    note: str | None = None
    edit: str | None = None  # the chosen response as the annotator would have written it
    flagged: bool = False  # a skip that says: something is wrong with the question
    rating: int | None = None  # Project.rating_min..rating_max, with the verdict rate
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Whether a Person is lent questions, and those of which domains. Who has none is lent what needs no qualification."""

    id: str
    project_id: str
    person_id: str
    paused_at: datetime | None = None
    paused_by: str | None = None  # a Person's name, or gold
    pause_reason: str | None = None
    gold_since: datetime | None = None  # gold answered before does not count: they were resumed then
    qualifications: Json = field(default_factory=dict)  # domain -> ISO time when it ends
    batches: tuple[str, ...] = ()  # assigned to them: lent before everything else
    domains: tuple[str, ...] = ()  # the same by domain
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Review:
    """A closed Comparison that an expert looks at again, blind to names; undecided while `decided_at` is None."""

    id: str
    project_id: str
    comparison_id: str
    kind: ReviewKind
    probability: float | None = None  # that the first response is better, by the votes; None without a vote
    expert_id: str | None = None
    verdict: Verdict | None = None
    choice: str | None = None
    confidence: int | None = None  # 1..3
    error_class: str | None = None  # what went wrong, where most annotators erred
    note: str | None = None
    decided_at: datetime | None = None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Preference:
    """The conclusion from Annotations or Feedback, keyed by (comparison, criterion) or (interaction, source)."""

    id: str
    project_id: str
    comparison_id: str | None
    interaction_id: str | None
    criterion: str = OVERALL
    family: str
    chosen_response_id: str
    rejected_response_id: str
    probability: float  # that chosen beats rejected, .5..1
    weight: float  # effective number of votes
    n_votes: int
    source: PreferenceSource
    method: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What a person said of the rights in an import's data or in a model's answers. Append-only: of one name the newest holds."""

    id: str
    project_id: str
    subject: LicenceOf
    name: str  # of the import, or of the model
    licence: str  # an SPDX id or words of one's own; "unknown" where nobody knows
    terms: TrainingUse = TrainingUse.UNKNOWN  # whether its terms allow training on it
    by: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class SnapshotRecord:
    id: str
    project_id: str
    folder: str
    sha256: str
    counts: Json
    lineage: Json
    tainted_at: datetime | None = None  # it holds what has been erased since
    purged_at: datetime | None = None  # its rows are gone, its manifest stays
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a step. `key` hashes step, code version, config and inputs: the same key is done once."""

    id: str
    project_id: str
    step: str
    key: str
    turn: int
    state: RunState = RunState.QUEUED
    config: Json = field(default_factory=dict)
    inputs: Json = field(default_factory=dict)
    outputs: Json = field(default_factory=dict)
    folder: str | None = None
    owner: str | None = None
    lease_expires_at: datetime | None = None
    attempt: int = 0
    error: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    id: str
    project_id: str
    kind: CheckpointKind
    folder: str
    sha256: str
    base: str
    run_id: str | None = None
    parent_id: str | None = None
    metrics: Json = field(default_factory=dict)
    tainted_at: datetime | None = None  # it learned from what has been erased since
    purged_at: datetime | None = None  # its weights are gone, its manifest stays
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    id: str
    project_id: str
    checkpoint_id: str
    against_id: str | None  # None: the base model
    suite: str
    figures: Json
    gate: GateVerdict | None = None
    reasons: tuple[str, ...] = ()
    run_id: str | None = None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Release:
    """A policy offered to users: `model` at `upstream`. Without a checkpoint it is the base model."""

    id: str
    project_id: str
    checkpoint_id: str | None
    model: str
    upstream: str  # base URL of an OpenAI-compatible server
    state: ReleaseState = ReleaseState.CANDIDATE
    created_at: datetime
    state_at: datetime
    live_at: datetime | None = None  # when it last became live; without one it is no way back
    segment: str = ""  # whom it is for, such as "plan=pro" (`stats/assignment.py`); empty: everybody


@dataclass(frozen=True, kw_only=True)
class Approval:
    id: str
    project_id: str
    release_id: str
    stage: str  # canary | live
    person: str
    decision: Decision
    reason: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Random assignment of users to two Releases; stages, metrics and stopping rule are fixed before it starts."""

    id: str
    project_id: str
    candidate_id: str
    control_id: str
    salt: str
    stages: tuple[float, ...]  # share of all users in EACH arm, per ramp stage, e.g. (.1, .5)
    stage: int = 0
    stage_started_at: tuple[str, ...] = ()  # ISO times, one per stage begun
    rules: Json = field(default_factory=dict)  # metrics with role, direction, margin; alpha; minimum users
    state: ExperimentState = ExperimentState.RUNNING
    figures: Json = field(default_factory=dict)  # the last look
    created_at: datetime
    ended_at: datetime | None = None
    metrics: tuple[Json, ...] = ()  # declared besides thumbs: {"name", "role", "better", "margin"}
    pilot: Json = field(default_factory=dict)  # who may be enrolled, what it may cost, when it ends; empty: no pilot
    holdout: float = 0.0  # share of all users who keep the control's Release, also after promotion


@dataclass(frozen=True, kw_only=True)
class ShadowAnswer:
    """What a Release in state shadow made of a live request: figures only, no text. Nobody was shown it, no metric counts it."""

    id: str
    project_id: str
    release_id: str
    interaction_id: str  # the live turn that was copied
    status: CompletionStatus
    latency_ms: float
    n_chars: int
    n_tokens: int | None = None
    refused: bool = False
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Measurement:
    id: str
    project_id: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    labels: Json = field(default_factory=dict)
    window_start: datetime
    window_end: datetime
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class ResponseScore:
    """What a reward Checkpoint gave a served answer that a monitor drew. `id` is the response's id."""

    id: str
    project_id: str
    checkpoint_id: str
    value: float
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Alert:
    id: str
    project_id: str
    rule: str
    state: AlertState
    severity: str  # warning | critical
    blocking: bool  # holds retraining while it fires
    value: float
    threshold: float
    message: str
    opened_at: datetime
    resolved_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One link of the hash chain: who did what to which object, as which role."""

    id: str
    project_id: str
    seq: int
    actor: str
    role: str
    action: str
    object_id: str
    before: Json
    after: Json
    previous_sha256: str
    sha256: str
    created_at: datetime


@dataclass(frozen=True)
class Assignment:
    """Which Release answers one user's turn, and as what; not stored by itself, its fields go into the Interaction."""

    release_id: str
    experiment_id: str | None = None
    arm: str | None = None  # candidate | control
    stage: int | None = None
    assignment_probability: float | None = None  # of the candidate arm, among the enrolled


@dataclass(frozen=True)
class ResponseText:
    """One answer as a model gave it. `logprob` is the sum over its tokens, in nats."""

    text: str
    finish_reason: str | None = "stop"
    logprob: float | None = None
    n_tokens: int | None = None
    tool_calls: tuple[Json, ...] = ()
    verdicts: tuple[Json, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """Two answers to one held-out prompt, for annotators to judge: `first` is the candidate's, `second` the reference's."""

    messages: tuple[Message, ...]
    family: str
    first: ResponseText
    second: ResponseText
    first_checkpoint_id: str | None
    second_checkpoint_id: str | None  # None: the base model
    first_model: str = "candidate"
    second_model: str = "base"


PREFIXES: Mapping[type, str] = {
    Project: "prj",
    Person: "per",
    Invitation: "inv",
    ApiKey: "key",
    Interaction: "int",
    Completion: "int",
    Response: "res",
    Feedback: "fdb",
    IdempotencyKey: "idk",
    Outcome: "out",
    Quarantine: "qrt",
    Erasure: "ers",
    Webhook: "whk",
    Delivery: "dlv",
    Guideline: "gdl",
    Comparison: "cmp",
    Lease: "lse",
    Annotation: "ann",
    Standing: "stn",
    Review: "rvw",
    Preference: "prf",
    Licence: "lic",
    SnapshotRecord: "snp",
    Run: "run",
    Checkpoint: "ckp",
    Evaluation: "evl",
    Release: "rel",
    Approval: "apr",
    Experiment: "exp",
    ShadowAnswer: "shd",
    Measurement: "msr",
    ResponseScore: "res",
    Alert: "alr",
    AuditEntry: "aud",
}
NOUNS: tuple[type, ...] = tuple(PREFIXES)


# --- ids and time ------------------------------------------------------------------------------------------------------

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32, lower case: sorts as its value does
_last = 0
_lock = threading.Lock()


def _base32(value: int, length: int) -> str:
    return "".join(_ALPHABET[(value >> (5 * place)) & 31] for place in reversed(range(length)))


def new_id(kind: type) -> str:
    """`int_` + 11 characters of time (microseconds) + 10 random: sorts by time, and strictly increases within one process."""
    global _last  # noqa: PLW0603  the one clock of the process
    with _lock:
        _last = max(_last + 1, time.time_ns() // 1000)
        moment = _last
    return f"{PREFIXES[kind]}_{_base32(moment, 11)}{_base32(int.from_bytes(os.urandom(7)) >> 6, 10)}"


def utc_now() -> datetime:
    return datetime.now(UTC)
