"""Questions from people's own prompts and responses: a project that has no traffic yet, or one that only wants judgements.

Each row becomes an Interaction with its Responses, as if logged, and open Comparisons: one for each two responses, or one to rate each.
Interactions and Responses have ids that are hashes of what they say, and a question that a batch has already is not asked again: a file that
is read twice adds nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import combinations, islice
from typing import Any

from plaudit.artifacts import sha256_of
from plaudit.domain import (
    PREFIXES,
    Comparison,
    ComparisonKind,
    Interaction,
    InteractionSource,
    Purpose,
    Response,
    ResponseOrigin,
    TrainingUse,
    new_id,
)
from plaudit.errors import BadInput
from plaudit.formats.files import Rejected
from plaudit.formats.questions import Asked
from plaudit.loop.asking import Asking, Shown, screen
from plaudit.loop.planning import check_criteria
from plaudit.loop.prompts import default_family
from plaudit.store.database import Store, Transaction

ROWS = 500  # of one transaction
MAX_REJECTED = 1000  # that a report names; all are counted
NOBODY = "import"  # the model of an answer of which nobody says who wrote it


@dataclass(frozen=True)
class Form:
    """How the rows are asked. `kind` None: rate a response that stands alone, compare several. `domain`, `priority`: of rows without."""

    batch: str
    overlap: int = 3
    kind: ComparisonKind | None = None
    criteria: tuple[str, ...] = ()
    domain: str | None = None
    priority: int = 0
    asking: Asking = field(default_factory=Asking)


@dataclass
class Report:
    """`n_rows` read, `n_questions` asked, `n_known` that the batch had; `found` personal data by kind; the first of those left out."""

    n_rows: int = 0
    n_questions: int = 0
    n_known: int = 0
    n_rejected: int = 0
    found: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    rejected: list[Rejected] = field(default_factory=list)

    def reject(self, one: Rejected) -> None:
        self.n_rejected += 1
        self.reasons[one.reason] += 1
        if len(self.rejected) < MAX_REJECTED:
            self.rejected.append(one)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"found": dict(self.found), "reasons": dict(self.reasons)}


def ask(
    store: Store,
    project_id: str,
    found: Iterable[Asked | Rejected],
    form: Form,
    *,
    training_use: TrainingUse,
    now: datetime,
) -> Report:
    """Ask about every row of `found`. Raises BadInput (form; consent that is not `allowed`: nothing is asked that may not be learnt from)."""
    if training_use is not TrainingUse.ALLOWED:
        raise BadInput(
            f"The consent is {training_use}; only what may be trained on is asked about: say allowed if it is."
        )
    if not 1 <= form.overlap <= 25:
        raise BadInput(f"overlap is {form.overlap}; between 1 and 25 annotators can answer a comparison.")
    if form.kind is ComparisonKind.RANKING:
        raise BadInput("kind is ranking; choose pairwise or rating.")
    if not form.batch.strip() or len(form.batch) > 200:
        raise BadInput(f"The batch is {form.batch!r}; give a name of 1 to 200 characters.")
    criteria = check_criteria(form.criteria)
    report, rest = Report(), iter(found)
    while some := list(islice(rest, ROWS)):
        with store.write() as tx:
            known = _Known(tx, project_id, form.batch)
            for one in some:
                if isinstance(one, Rejected):
                    report.reject(one)
                    continue
                report.n_rows += 1
                _ask(tx, project_id, one, form, criteria, known, report, now)
    return report


class _Known:
    """What a transaction must not write twice."""

    def __init__(self, tx: Transaction, project_id: str, batch: str) -> None:
        self.tx = tx
        asked = tx.find(Comparison, project_id=project_id, batch=batch)
        self.questions = {(one.interaction_id, frozenset(one.response_ids)) for one in asked}

    def add(self, row: Interaction | Response) -> None:
        if self.tx.first(type(row), id=row.id) is None:
            self.tx.add(row)


def _ask(
    tx: Transaction,
    project_id: str,
    one: Asked,
    form: Form,
    criteria: Sequence[str],
    known: _Known,
    report: Report,
    now: datetime,
) -> None:
    kind = form.kind or (ComparisonKind.RATING if len(one.responses) == 1 else ComparisonKind.PAIRWISE)
    read = screen(form.asking, one.messages, one.responses)
    report.found.update(read.found)
    why = _against(one, kind, read, form.asking)
    if why:
        report.n_rows -= 1
        report.reject(Rejected(one.file, one.line, why))
        return
    interaction = _interaction(project_id, one, read, form.batch, now)
    known.add(interaction)
    models = one.models or (NOBODY,) * len(one.responses)
    responses = [
        _response(interaction, index, text, model or NOBODY, now)
        for index, (text, model) in enumerate(zip(read.answers, models, strict=True))
    ]
    for response in responses:
        known.add(response)
    sides = [(one,) for one in responses] if kind is ComparisonKind.RATING else list(combinations(responses, 2))
    for side in sides:
        ids = tuple(response.id for response in side)
        if (interaction.id, frozenset(ids)) in known.questions:
            report.n_known += 1
            continue
        known.questions.add((interaction.id, frozenset(ids)))
        comparison = Comparison(
            id=new_id(Comparison),
            project_id=project_id,
            interaction_id=interaction.id,
            kind=kind,
            purpose=Purpose.TRAINING,
            messages=read.messages,
            family=interaction.family,
            response_ids=ids,
            overlap=form.overlap,
            priority=one.priority or form.priority,
            reason="import",
            batch=form.batch,
            domain=one.domain or form.domain,
            criteria=tuple(criteria),
            attributes={"warning": one.warning} if one.warning else {},
            created_at=now,
        )
        tx.add(comparison)
        report.n_questions += 1


def _against(one: Asked, kind: ComparisonKind, read: Shown, asking: Asking) -> str:
    if read.dropped:
        return f"personal data ({read.dropped})"
    if any(asking.forbids(model) for model in one.models):
        return "terms of the upstream forbid training"
    if kind is ComparisonKind.PAIRWISE and len(one.responses) < 2:
        return "one response alone is compared with nothing; ask for a rating"
    return "" if len(set(read.answers)) == len(read.answers) else "two responses are the same text"


def _interaction(project_id: str, one: Asked, read: Shown, batch: str, now: datetime) -> Interaction:
    """One for each prompt."""
    messages = list(read.messages)
    id = _id(Interaction, project_id, messages)
    return Interaction(
        id=id,
        project_id=project_id,
        conversation_id="cnv" + id.removeprefix(PREFIXES[Interaction]),
        turn=sum(message["role"] == "user" for message in messages),
        actor=None,
        messages=read.messages,
        family=one.family or default_family(messages),
        prompt_sha256=sha256_of(messages),
        source=InteractionSource.LOGGED,
        release_id=None,
        served_release_id=None,
        training_use=TrainingUse.ALLOWED,
        attributes={"import": batch},
        created_at=now,
    )


def _response(interaction: Interaction, index: int, text: str, model: str, now: datetime) -> Response:
    return Response(
        id=_id(Response, interaction.project_id, [interaction.id, text]),
        project_id=interaction.project_id,
        interaction_id=interaction.id,
        idx=index,
        text=text,
        finish_reason="stop",
        origin=ResponseOrigin.SAMPLED,
        model=model,
        created_at=now,
    )


def _id(kind: type, project_id: str, what: Any) -> str:
    digest = hashlib.sha256(sha256_of([project_id, "question", what]).encode()).hexdigest()
    return f"{PREFIXES[kind]}_0{digest[:20]}"
