"""Import: other people's judgements become what our own would be: Interactions with their Responses, closed Comparisons with Annotations,
thumbs as Feedback. Aggregation and Snapshots then read them like everything else, so consent, agreement and weights mean the same.

Ids are hashes of what is imported, so importing a file again adds nothing, and two files about the same question meet in one Comparison.
Left out: answers that were only approved (nothing to compare them with; train `sft` on such a file itself).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from plaudit.artifacts import sha256_of
from plaudit.domain import (
    OVERALL,
    PREFIXES,
    Annotation,
    Comparison,
    ComparisonKind,
    ComparisonState,
    Feedback,
    FeedbackKind,
    Interaction,
    InteractionSource,
    Person,
    Purpose,
    Response,
    ResponseOrigin,
    TrainingUse,
    Verdict,
)
from plaudit.formats.files import Rejected
from plaudit.formats.records import Record, twos
from plaudit.loop.prompts import default_family
from plaudit.store.database import Store, Transaction

Row = TypeVar("Row", Person, Interaction, Response, Comparison, Annotation, Feedback)

BATCH = 500  # records of one transaction
MAX_REJECTED = 1000  # that a report names; all are counted
NOBODY = "import"
OTHERWISE = "this person has judged this question otherwise before"


@dataclass
class ImportReport:
    """What came of an import. `n_records` counts judgements read, `added` rows by kind, `known` what was there already."""

    n_records: int = 0
    n_rejected: int = 0
    added: Counter[str] = field(default_factory=Counter)
    rejected: list[Rejected] = field(default_factory=list)  # the first MAX_REJECTED
    reasons: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "n_records": self.n_records,
            "n_rejected": self.n_rejected,
            "added": dict(self.added),
            "reasons": dict(self.reasons),
            "rejected": [asdict(one) for one in self.rejected],
        }

    def reject(self, one: Rejected) -> None:
        self.n_rejected += 1
        self.reasons[one.reason.split(" (")[0]] += 1
        if len(self.rejected) < MAX_REJECTED:
            self.rejected.append(one)


def take_in(
    store: Store,
    project_id: str,
    found: Iterable[Record | Rejected],
    *,
    name: str,
    training_use: TrainingUse,
    now: datetime,
    progress: Callable[[int], None] = lambda _: None,
) -> ImportReport:
    """Store every judgement of `found` (what a reader yields) under the batch `name`. Rows that cannot be used are in the report.

    Each transaction is whole: an import that is interrupted goes on where it was when it is started again.
    """
    report = ImportReport()
    rest = iter(found)
    while some := list(islice(rest, BATCH)):
        rows = _Rows(project_id, name, training_use, now, report)
        for one in some:
            if isinstance(one, Rejected):
                report.reject(one)
            else:
                report.n_records += 1
                rows.take(one)
        with store.write() as tx:
            rows.write(tx)
        progress(report.n_records)
    return report


class _Rows:
    """Rows of one transaction, each once, by id."""

    def __init__(
        self, project_id: str, name: str, training_use: TrainingUse, now: datetime, report: ImportReport
    ) -> None:
        self._common: dict[str, Any] = {"project_id": project_id, "created_at": now}
        self._name = name
        self._training_use = training_use
        self._report = report
        self._rows: dict[type, dict[str, Any]] = {}

    def take(self, record: Record) -> None:
        if record.ranks is not None:
            self._judged(record)
        elif record.label is not None:
            self._thumb(record)
        else:
            self._refuse(record.id, "an approved answer alone is compared with nothing; train sft on the file itself")

    def write(self, tx: Transaction) -> None:
        kind: Any
        for kind in (Person, Interaction, Response, Comparison, Annotation, Feedback):
            rows = self._rows.get(kind, {})
            ids = list(rows)
            known = {one.id: one for at in range(0, len(ids), BATCH) for one in tx.find(kind, id=ids[at : at + BATCH])}
            for id, one in known.items():
                row = rows.pop(id)
                if isinstance(one, Annotation) and (one.verdict, one.choice) != (row.verdict, row.choice):
                    self._refuse(row.comparison_id, OTHERWISE)
            tx.add(*rows.values())
            self._report.added[kind.__name__] += len(rows)

    def _judged(self, record: Record) -> None:
        interaction = self._interaction(record)
        for one in twos(record):
            responses = [self._response(interaction, one, index) for index in range(2)]
            who = self._person(one.annotator)
            # Nobody's judgements are one each; a person's meet others' of the same question
            key = (interaction.id, *sorted(row.id for row in responses), "" if one.annotator else one.id)
            comparison = self._add(
                Comparison(
                    id=self._id(Comparison, *key),
                    **self._common,
                    interaction_id=interaction.id,
                    kind=ComparisonKind.PAIRWISE,
                    purpose=Purpose.TRAINING,
                    messages=interaction.messages,
                    family=interaction.family,
                    response_ids=tuple(sorted(row.id for row in responses)),
                    overlap=1,
                    reason="import",
                    batch=self._name,
                    state=ComparisonState.CLOSED,
                    attributes=dict(one.meta),
                )
            )
            verdict, choice = _verdict(one, responses)
            annotation = Annotation(
                id=self._id(Annotation, comparison.id, who.id, one.criterion),
                **self._common,
                comparison_id=comparison.id,
                annotator_id=who.id,
                guideline_id=None,
                criterion=one.criterion or OVERALL,
                verdict=verdict,
                choice=choice,
                order=tuple(responses[index].id for index in one.order or (0, 1)),
                seconds=one.seconds or 0.0,
            )
            earlier = self._rows.get(Annotation, {}).get(annotation.id)
            if earlier is not None and (earlier.verdict, earlier.choice) != (annotation.verdict, annotation.choice):
                self._refuse(one.id, OTHERWISE)
                continue
            self._add(annotation)

    def _thumb(self, record: Record) -> None:
        interaction = self._interaction(record)
        self._response(interaction, record, 0, shown=True)
        actor = record.annotator or f"{NOBODY}:{self._name}"
        natural = sha256_of([interaction.id, 0, FeedbackKind.THUMB, actor])
        value = {"up": bool(record.label)}
        self._add(
            Feedback(
                id=self._id(Feedback, natural),
                **self._common,
                interaction_id=interaction.id,
                response_idx=0,
                kind=FeedbackKind.THUMB,
                value=value,
                actor=actor,
                natural_key=natural,
                body_sha256=sha256_of(value),
            )
        )

    def _interaction(self, record: Record) -> Interaction:
        """One for each prompt; a thumb's answer was shown alone, so it has one of its own."""
        alone = record.responses[0] if record.label is not None else ""
        id = self._id(Interaction, list(record.messages), alone)
        known = self._rows.get(Interaction, {}).get(id)
        if known is not None:
            assert isinstance(known, Interaction)
            return known
        return self._add(
            Interaction(
                id=id,
                **self._common,
                conversation_id="cnv" + id.removeprefix(PREFIXES[Interaction]),
                turn=sum(message["role"] == "user" for message in record.messages),
                actor=None,
                messages=record.messages,
                family=default_family(record.messages),
                prompt_sha256=sha256_of(list(record.messages)),
                source=InteractionSource.LOGGED,
                release_id=None,
                served_release_id=None,
                training_use=self._training_use,
                attributes={"import": self._name},
            )
        )

    def _response(self, interaction: Interaction, record: Record, index: int, shown: bool = False) -> Response:
        text = record.responses[index]
        return self._add(
            Response(
                id=self._id(Response, interaction.id, text),
                **self._common,
                interaction_id=interaction.id,
                idx=index,
                text=text,
                finish_reason="stop",
                origin=ResponseOrigin.LOGGED if shown else ResponseOrigin.SAMPLED,
                model=record.models[index] if record.models and record.models[index] else NOBODY,
            )
        )

    def _person(self, annotator: str) -> Person:
        name = annotator or f"{NOBODY}:{self._name}"
        return self._add(Person(id=self._id(Person, name), **self._common, name=name))

    def _refuse(self, what: str, reason: str) -> None:
        self._report.n_records -= 1
        self._report.reject(Rejected(self._name, 0, f"{reason} ({what})"))

    def _add(self, row: Row) -> Row:
        found: Row = self._rows.setdefault(type(row), {}).setdefault(row.id, row)
        return found

    def _id(self, kind: type, *parts: Any) -> str:
        """A hash of what the row is about, in the form of our ids; it sorts before all that were made here."""
        digest = hashlib.sha256(sha256_of([self._common["project_id"], *parts]).encode()).hexdigest()
        return f"{PREFIXES[kind]}_0{digest[:20]}"


def _verdict(record: Record, responses: Sequence[Response]) -> tuple[Verdict, str | None]:
    if record.both_bad:
        return Verdict.BOTH_BAD, None
    if not record.is_pair:
        return Verdict.TIE, None
    return Verdict.PREFER, responses[record.chosen_first[0]].id
