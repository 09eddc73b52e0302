"""Tables, derived from the dataclasses of `domain.py`: a field is a column. The deeds are the frozen SQL files in `migrations/`;
a test holds both to the same shape, on every database."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from plaudit import domain

metadata = sa.MetaData()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def moment(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND


class UtcTime(sa.TypeDecorator[datetime]):
    """Aware UTC datetime as microseconds since 1970: exact, sortable, the same on every database."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:  # noqa: ARG002
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else moment(value)


class PlainText(sa.TypeDecorator[str]):
    """Text without NUL, which PostgreSQL cannot hold and a model server may send: it becomes U+FFFD on every database."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else value.replace("\x00", "\ufffd")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        return value


class JsonText(sa.TypeDecorator[Any]):
    """JSON as text; tuples come back as tuples at the top level, and dicts as dicts."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:  # noqa: ARG002
        if value is None:
            return None
        decoded = json.loads(value)
        return tuple(decoded) if isinstance(decoded, list) else decoded


class EnumText(sa.TypeDecorator[StrEnum]):
    """A StrEnum as its value."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else str(self.kind(value))

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> StrEnum | None:  # noqa: ARG002
        return None if value is None else self.kind(value)


def _column_type(annotation: Any) -> tuple[sa.types.TypeEngine[Any], bool]:
    """(SQL type, nullable) of a dataclass field's annotation."""
    nullable = False
    if typing.get_origin(annotation) is types.UnionType:
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        nullable, annotation = True, inner[0]
    if typing.get_origin(annotation) in (tuple, dict):
        return JsonText(), nullable
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return EnumText(annotation), nullable
    plain: dict[Any, sa.types.TypeEngine[Any]] = {
        str: PlainText(),
        int: sa.BigInteger(),
        float: sa.Double(),
        bool: sa.Boolean(create_constraint=False),
        datetime: UtcTime(),
    }
    return plain[annotation], nullable


def _table(kind: type, name: str) -> sa.Table:
    hints = typing.get_type_hints(kind)
    columns = []
    for spec in fields(kind):
        sql_type, nullable = _column_type(hints[spec.name])
        columns.append(sa.Column(spec.name, sql_type, primary_key=spec.name == "id", nullable=nullable))
    return sa.Table(name, metadata, *columns)


_NAMES: Mapping[type, str] = {
    domain.Project: "projects",
    domain.Person: "people",
    domain.Invitation: "invitations",
    domain.ApiKey: "api_keys",
    domain.Interaction: "interactions",
    domain.Completion: "completions",
    domain.Response: "responses",
    domain.Feedback: "feedback",
    domain.IdempotencyKey: "idempotency_keys",
    domain.Outcome: "outcomes",
    domain.Quarantine: "quarantines",
    domain.Erasure: "erasures",
    domain.Webhook: "webhooks",
    domain.Delivery: "deliveries",
    domain.Guideline: "guidelines",
    domain.Comparison: "comparisons",
    domain.Lease: "leases",
    domain.Annotation: "annotations",
    domain.Standing: "standings",
    domain.Review: "reviews",
    domain.Preference: "preferences",
    domain.Licence: "licences",
    domain.SnapshotRecord: "snapshots",
    domain.Run: "runs",
    domain.Checkpoint: "checkpoints",
    domain.Evaluation: "evaluations",
    domain.Release: "releases",
    domain.Approval: "approvals",
    domain.Experiment: "experiments",
    domain.ShadowAnswer: "shadow_answers",
    domain.Measurement: "measurements",
    domain.ResponseScore: "response_scores",
    domain.Alert: "alerts",
    domain.AuditEntry: "audit_entries",
}
TABLES: Mapping[type, sa.Table] = {kind: _table(kind, name) for kind, name in _NAMES.items()}

# What a lookup needs, and what must never be there twice.
sa.Index(
    "interactions_by_conversation",
    TABLES[domain.Interaction].c.project_id,
    TABLES[domain.Interaction].c.conversation_id,
)
sa.Index("interactions_by_time", TABLES[domain.Interaction].c.project_id, TABLES[domain.Interaction].c.created_at)
sa.Index("completions_by_time", TABLES[domain.Completion].c.project_id, TABLES[domain.Completion].c.created_at)
sa.Index("interactions_by_experiment", TABLES[domain.Interaction].c.experiment_id, TABLES[domain.Interaction].c.actor)
sa.Index("interactions_by_actor", TABLES[domain.Interaction].c.project_id, TABLES[domain.Interaction].c.actor)
sa.Index("responses_by_interaction", TABLES[domain.Response].c.interaction_id, TABLES[domain.Response].c.idx)
sa.Index("feedback_by_interaction", TABLES[domain.Feedback].c.interaction_id, TABLES[domain.Feedback].c.natural_key)
sa.Index(
    "feedback_by_time",  # what is judged for signs of abuse stands in the index, so that no row is read for it
    TABLES[domain.Feedback].c.project_id,
    TABLES[domain.Feedback].c.created_at,
    TABLES[domain.Feedback].c.id,
    TABLES[domain.Feedback].c.actor,
    TABLES[domain.Feedback].c.interaction_id,
    TABLES[domain.Feedback].c.kind,
    TABLES[domain.Feedback].c.quarantine_id,
)
sa.Index("feedback_by_actor", TABLES[domain.Feedback].c.project_id, TABLES[domain.Feedback].c.actor)
sa.Index("feedback_by_quarantine", TABLES[domain.Feedback].c.quarantine_id)
sa.Index("feedback_supersedes_once", TABLES[domain.Feedback].c.supersedes, unique=True)
sa.Index(
    "feedback_one_root",  # one chain per natural key; rows that accumulate have none
    TABLES[domain.Feedback].c.natural_key,
    unique=True,
    sqlite_where=TABLES[domain.Feedback].c.supersedes.is_(None),
    postgresql_where=TABLES[domain.Feedback].c.supersedes.is_(None),
)
sa.Index("outcome_once", TABLES[domain.Outcome].c.project_id, TABLES[domain.Outcome].c.key, unique=True)
sa.Index(
    "outcomes_by_name",
    TABLES[domain.Outcome].c.project_id,
    TABLES[domain.Outcome].c.name,
    TABLES[domain.Outcome].c.actor,
    TABLES[domain.Outcome].c.at,
)
sa.Index(
    "erasures_to_purge",
    TABLES[domain.Erasure].c.project_id,
    TABLES[domain.Erasure].c.purged_at,
    TABLES[domain.Erasure].c.purge_at,
)
sa.Index(
    "deliveries_waiting",
    TABLES[domain.Delivery].c.webhook_id,
    TABLES[domain.Delivery].c.delivered_at,
    TABLES[domain.Delivery].c.given_up_at,
    TABLES[domain.Delivery].c.id,
)
sa.Index("guideline_version", TABLES[domain.Guideline].c.project_id, TABLES[domain.Guideline].c.version, unique=True)
sa.Index(
    "comparisons_to_lend",
    TABLES[domain.Comparison].c.project_id,
    TABLES[domain.Comparison].c.state,
    TABLES[domain.Comparison].c.priority.desc(),
    TABLES[domain.Comparison].c.id,
)
sa.Index("comparisons_by_batch", TABLES[domain.Comparison].c.project_id, TABLES[domain.Comparison].c.batch)
sa.Index(
    "comparisons_to_sum",  # what the lead's page counts, so that no conversation is read for it
    TABLES[domain.Comparison].c.project_id,
    TABLES[domain.Comparison].c.purpose,
    TABLES[domain.Comparison].c.state,
    TABLES[domain.Comparison].c.batch,
    TABLES[domain.Comparison].c.id,
    TABLES[domain.Comparison].c.overlap,
    TABLES[domain.Comparison].c.domain,
    TABLES[domain.Comparison].c.created_at,
)
sa.Index("comparisons_by_interaction", TABLES[domain.Comparison].c.interaction_id)
sa.Index(
    "comparisons_gold",
    TABLES[domain.Comparison].c.project_id,
    sqlite_where=TABLES[domain.Comparison].c.gold_choice.is_not(None),
    postgresql_where=TABLES[domain.Comparison].c.gold_choice.is_not(None),
)
sa.Index("standing_once", TABLES[domain.Standing].c.project_id, TABLES[domain.Standing].c.person_id, unique=True)
sa.Index("review_once", TABLES[domain.Review].c.comparison_id, unique=True)
sa.Index("reviews_waiting", TABLES[domain.Review].c.project_id, TABLES[domain.Review].c.decided_at)
sa.Index("leases_by_comparison", TABLES[domain.Lease].c.comparison_id, TABLES[domain.Lease].c.state)
sa.Index("leases_by_annotator", TABLES[domain.Lease].c.annotator_id, TABLES[domain.Lease].c.state)
sa.Index(
    "annotation_once",
    TABLES[domain.Annotation].c.comparison_id,
    TABLES[domain.Annotation].c.annotator_id,
    TABLES[domain.Annotation].c.criterion,
    unique=True,
)
sa.Index(
    "annotations_to_sum",  # what the lead's page counts stands in the index, so that it need not read the rows
    TABLES[domain.Annotation].c.project_id,
    TABLES[domain.Annotation].c.criterion,
    TABLES[domain.Annotation].c.comparison_id,
    TABLES[domain.Annotation].c.choice,
    TABLES[domain.Annotation].c.verdict,
    TABLES[domain.Annotation].c.annotator_id,
    TABLES[domain.Annotation].c.created_at,
)
sa.Index(
    "annotations_by_annotator",  # their seconds in order: a median without sorting
    TABLES[domain.Annotation].c.project_id,
    TABLES[domain.Annotation].c.annotator_id,
    TABLES[domain.Annotation].c.criterion,
    TABLES[domain.Annotation].c.seconds,
    TABLES[domain.Annotation].c.verdict,
)
sa.Index(
    "preference_once",
    TABLES[domain.Preference].c.comparison_id,
    TABLES[domain.Preference].c.criterion,
    unique=True,
)
sa.Index("preferences_by_project", TABLES[domain.Preference].c.project_id, TABLES[domain.Preference].c.created_at)
sa.Index("run_once", TABLES[domain.Run].c.project_id, TABLES[domain.Run].c.key, unique=True)
sa.Index("runs_by_state", TABLES[domain.Run].c.state, TABLES[domain.Run].c.id)
sa.Index(
    "measurements_by_metric",
    TABLES[domain.Measurement].c.project_id,
    TABLES[domain.Measurement].c.metric,
    TABLES[domain.Measurement].c.window_end,
)
sa.Index(
    "release_one_live",  # what users meet is never two things
    TABLES[domain.Release].c.project_id,
    TABLES[domain.Release].c.segment,
    unique=True,
    sqlite_where=TABLES[domain.Release].c.state == domain.ReleaseState.LIVE,
    postgresql_where=TABLES[domain.Release].c.state == domain.ReleaseState.LIVE,
)
sa.Index(
    "shadow_answers_by_release", TABLES[domain.ShadowAnswer].c.release_id, TABLES[domain.ShadowAnswer].c.created_at
)
sa.Index("api_key_secret", TABLES[domain.ApiKey].c.secret_sha256, unique=True)
sa.Index("invitation_secret", TABLES[domain.Invitation].c.secret_sha256, unique=True)
sa.Index("invitations_by_person", TABLES[domain.Invitation].c.person_id)
sa.Index("person_name", TABLES[domain.Person].c.project_id, TABLES[domain.Person].c.name, unique=True)
sa.Index("audit_chain", TABLES[domain.AuditEntry].c.project_id, TABLES[domain.AuditEntry].c.seq, unique=True)
