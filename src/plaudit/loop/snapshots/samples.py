"""Some rows of a Snapshot for a person to read, and from one row back to the people who made it, by pseudonym, and to the guideline.

Of a folder only the table that is asked for is read, after its bytes were compared with the manifest.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from plaudit.artifacts import OPTIONAL, TABLES, THUMBS, read_manifest, sha256_file, sha256_of
from plaudit.domain import (
    Annotation,
    Comparison,
    Feedback,
    FeedbackKind,
    Guideline,
    Interaction,
    Json,
    Preference,
)
from plaudit.errors import Corrupt, NotFound
from plaudit.store.database import Store, Transaction

READABLE = (*TABLES, THUMBS)  # the tables whose rows have an id
_FEEDBACK = (FeedbackKind.EDIT, FeedbackKind.CHOICE, FeedbackKind.THUMB)


@dataclass(frozen=True)
class Said:
    """What one person said about a row. `who` is a pseudonym; `what` is in the words of the row: chosen, rejected, tie, edit, up ..."""

    who: str
    what: str
    at: datetime
    guideline_version: int | None = None
    seconds: float | None = None
    reasons: str = ""


@dataclass(frozen=True)
class Origin:
    """Where a row comes from. `user` is the pseudonym of who wrote the prompt; None for what no user of the application wrote, or was erased."""

    user: str | None
    asked_at: datetime | None
    consent: str | None
    interaction_id: str | None
    comparison_id: str | None
    method: str
    said: tuple[Said, ...]
    guidelines: tuple[Guideline, ...]


def id_column(table: str) -> str:
    """Of a table in READABLE."""
    return fields({**TABLES, **OPTIONAL}[table])[0].name


def sample(folder: Path, table: str, n: int, seed: int) -> list[Json]:
    """At most `n` rows drawn by `seed`, in their order; [] where the Snapshot has no such table. Raises NotFound, Corrupt."""
    with _opened(folder, table) as file:
        if file is None:
            return []
        total = file.metadata.num_rows
        wanted = sorted(random.Random(seed).sample(range(total), min(n, total)))
        ends = list(accumulate(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)))
        found = []
        for group in sorted({bisect_right(ends, place) for place in wanted}):
            start = ends[group - 1] if group else 0
            rows = file.read_row_group(group)
            here = [place - start for place in wanted if start <= place < ends[group]]
            found += [_row(raw) for raw in rows.take(here).to_pylist()]
        return found


def row(folder: Path, table: str, id: str) -> Json:
    """One row by its id. Raises NotFound, Corrupt."""
    with _opened(folder, table) as file:
        if file is not None:
            import pyarrow.compute as pc

            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=[id_column(table)]).column(0)
                place = pc.index(ids, id).as_py()
                if place >= 0:
                    return _row(file.read_row_group(group).slice(place, 1).to_pylist()[0])
    raise NotFound(f"The Snapshot {folder.name} has no row {id!r} in its table {table}.")


@contextmanager
def _opened(folder: Path, table: str) -> Iterator[Any]:
    """The table's file, None where the Snapshot has none. Raises NotFound (folder, table), Corrupt."""
    import pyarrow.parquet as pq

    if table not in READABLE:
        raise NotFound(f"{table!r} is no table of rows; there are: {', '.join(READABLE)}.")
    name, files = f"{table}.parquet", read_manifest(folder, "snapshot").files
    if name not in files:
        yield None
        return
    if not (folder / name).is_file() or sha256_file(folder / name) != files[name].sha256:
        raise Corrupt(f"{folder / name} is not what was frozen; restore the folder from a backup.")
    with pq.ParquetFile(folder / name) as file:
        yield file


def _row(raw: Json) -> Json:
    return {**raw, "messages": json.loads(raw["messages"])} if "messages" in raw else raw


# --- back to the people ------------------------------------------------------------------------------------------------


def pseudonym(project_id: str, kind: str, id: str) -> str:
    """The same for the same person within a project, and no key of the store; annotators have the one of votes.parquet."""
    return f"{kind}-{sha256_of([project_id, id])[:12]}"


def origin(store: Store, project_id: str, table: str, id: str) -> Origin:
    """Of a row by its id. What was erased since is missing from it. Raises NotFound where the store knows nothing of the row, as of a prompt:
    many users may have sent the same one."""
    suffix = id.partition("_")[2]
    with store.read() as tx:
        if table == "preferences":
            return _of_preference(tx, project_id, id)
        feedback = tx.first(Feedback, id="fdb_" + suffix, project_id=project_id)
        if feedback is not None:
            asked = tx.first(Interaction, id=feedback.interaction_id, project_id=project_id)
            return _of_interaction(tx, project_id, asked, str(feedback.kind), feedback.id)
        annotation = tx.first(Annotation, id="ann_" + suffix, project_id=project_id)
        if annotation is not None:
            return _of_comparison(tx, project_id, annotation.comparison_id, "annotation, edit", [annotation], {})
    raise NotFound(f"The store knows nothing of where the row {id!r} comes from.")


def _of_preference(tx: Transaction, project_id: str, id: str) -> Origin:
    found = tx.first(Preference, id=id, project_id=project_id)
    if found is None:
        raise NotFound(f"The store knows nothing of the row {id!r} any more.")
    method = f"{found.source}, {found.method}"
    if found.comparison_id is None:
        asked = tx.first(Interaction, id=found.interaction_id, project_id=project_id) if found.interaction_id else None
        return _of_interaction(tx, project_id, asked, method, "fdb_" + id.partition("_")[2])
    given = tx.find(Annotation, project_id=project_id, comparison_id=found.comparison_id, criterion=found.criterion)
    names = {found.chosen_response_id: "chosen", found.rejected_response_id: "rejected"}
    return _of_comparison(tx, project_id, found.comparison_id, method, given, names)


def _of_comparison(
    tx: Transaction,
    project_id: str,
    comparison_id: str,
    method: str,
    given: Sequence[Annotation],
    names: Mapping[str, str],
) -> Origin:
    """What annotators said of it; `names`: response id -> its name in the row."""
    comparison = tx.first(Comparison, id=comparison_id, project_id=project_id)
    asked = None
    if comparison is not None and comparison.interaction_id is not None:
        asked = tx.first(Interaction, id=comparison.interaction_id, project_id=project_id)
    shown = sorted({one.guideline_id for one in given if one.guideline_id is not None})
    guidelines = tx.find(Guideline, project_id=project_id, id=shown, order="version") if shown else []
    versions = {one.id: one.version for one in guidelines}
    said = tuple(
        Said(
            who=pseudonym(project_id, "annotator", one.annotator_id),
            what=names.get(one.choice or "", str(one.verdict)),
            at=one.created_at,
            guideline_version=versions.get(one.guideline_id or ""),
            seconds=one.seconds,
            reasons=", ".join(one.reasons),
        )
        for one in given
    )
    return Origin(*_asked(project_id, asked), comparison_id, method, said, tuple(guidelines))


def _of_interaction(
    tx: Transaction, project_id: str, asked: Interaction | None, method: str, feedback_id: str
) -> Origin:
    """What its user said of it: the feedback that is named, or, where one feedback made several rows, all of it."""
    all_of_it = tx.find(Feedback, project_id=project_id, interaction_id=asked.id) if asked else []
    given = [one for one in all_of_it if one.kind in _FEEDBACK]
    named = [one for one in given if one.id == feedback_id] or given
    said = tuple(
        Said(
            who=pseudonym(project_id, "user", one.actor) if one.actor else "a user without a name",
            what=_meant(one),
            at=one.created_at,
        )
        for one in named
    )
    return Origin(*_asked(project_id, asked), None, method, said, ())


def _asked(project_id: str, asked: Interaction | None) -> tuple[str | None, datetime | None, str | None, str | None]:
    if asked is None or asked.erasure_id is not None:
        return None, None, None, asked.id if asked else None
    user = pseudonym(project_id, "user", asked.actor) if asked.actor else None
    return user, asked.created_at, str(asked.training_use), asked.id


def _meant(one: Feedback) -> str:
    if one.kind is FeedbackKind.THUMB:
        return "thumbs up" if one.value.get("up") else "thumbs down"
    return "an edit of the answer" if one.kind is FeedbackKind.EDIT else "chose this answer"
