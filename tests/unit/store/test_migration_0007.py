"""0007: questions and answers of before have no gold, no domain, no reasons and no flag."""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.domain import Annotation, Comparison
from plaudit.store import migrate as migrations
from plaudit.store.database import open_store

COMPARISON = (
    "INSERT INTO comparisons (id, project_id, kind, purpose, messages, family, response_ids, overlap, priority, reason, state, attributes, "
    "created_at) VALUES ('cmp_1', 'p', 'pairwise', 'training', '[]', 'f', '[\"res_1\",\"res_2\"]', 3, 0, 'random', 'open', '{}', 1)"
)
ANNOTATION = (
    'INSERT INTO annotations (id, project_id, comparison_id, annotator_id, criterion, verdict, choice, "order", seconds, created_at) '
    "VALUES ('ann_1', 'p', 'cmp_1', 'per_1', 'overall', 'skip', NULL, '[\"res_1\",\"res_2\"]', 2.5, 1)"
)


def test_what_was_asked_and_answered_before(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrations.migrate(connection, 6)
        connection.execute(sa.text(COMPARISON))
        connection.execute(sa.text(ANNOTATION))
    engine.dispose()
    store = open_store(url)
    question, given = store.get(Comparison, "cmp_1"), store.get(Annotation, "ann_1")
    assert (question.domain, question.gold_choice) == (None, None)
    assert (given.reasons, given.note, given.edit, given.flagged) == ((), None, None, False)
    store.close()
