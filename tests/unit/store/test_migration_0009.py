"""0009: questions and answers of before have no criteria and no rating, and nobody is assigned anything."""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.domain import Annotation, Comparison, Standing
from plaudit.store import migrate as migrations
from plaudit.store.database import open_store

ROWS = (
    "INSERT INTO comparisons (id, project_id, kind, purpose, messages, family, response_ids, overlap, priority, reason, state, attributes, "
    "created_at) VALUES ('cmp_1', 'p', 'pairwise', 'training', '[]', 'f', '[\"res_1\",\"res_2\"]', 3, 0, 'random', 'open', '{}', 1)",
    'INSERT INTO annotations (id, project_id, comparison_id, annotator_id, criterion, verdict, choice, "order", seconds, created_at) '
    "VALUES ('ann_1', 'p', 'cmp_1', 'per_1', 'overall', 'tie', NULL, '[\"res_1\",\"res_2\"]', 2.5, 1)",
    "INSERT INTO standings (id, project_id, person_id, qualifications, created_at) VALUES ('stn_1', 'p', 'per_1', '{}', 1)",
)


def test_what_was_asked_answered_and_allowed_before(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrations.migrate(connection, 8)
        for row in ROWS:
            connection.execute(sa.text(row))
    engine.dispose()
    store = open_store(url)
    assert store.get(Comparison, "cmp_1").criteria == ()
    assert store.get(Annotation, "ann_1").rating is None
    standing = store.get(Standing, "stn_1")
    assert (standing.batches, standing.domains) == ((), ())
    store.close()
