"""0008 and 0011: releases of before are for everybody, experiments of before declare nothing, are no pilot and hold nobody out."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from plaudit.domain import Experiment, Release, ReleaseState, ResponseScore, ShadowAnswer
from plaudit.errors import Conflict
from plaudit.store import migrate as migrations
from plaudit.store.database import open_store

RELEASE = (
    "INSERT INTO releases (id, project_id, model, upstream, state, created_at, state_at) "
    "VALUES ('{0}', 'p', 'm', 'fake:', '{1}', 1, 1)"
)
EXPERIMENT = (
    "INSERT INTO experiments (id, project_id, candidate_id, control_id, salt, stages, stage, stage_started_at, rules, state, figures, "
    "created_at) VALUES ('exp_1', 'p', 'rel_2', 'rel_1', 's', '[0.5]', 0, '[]', '{}', 'running', '{}', 1)"
)


def test_what_was_released_and_tried_before(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrations.migrate(connection, 7)
        for statement in (RELEASE.format("rel_1", "live"), RELEASE.format("rel_2", "canary"), EXPERIMENT):
            connection.execute(sa.text(statement))
    engine.dispose()
    store = open_store(url)
    tried = store.get(Experiment, "exp_1")
    assert (tried.metrics, tried.pilot, tried.holdout) == ((), {}, 0.0)
    assert store.get(Release, "rel_1").segment == ""
    assert (store.count(ShadowAnswer), store.count(ResponseScore)) == (0, 0)
    with pytest.raises(Conflict):
        store.change(Release, "rel_2", state=ReleaseState.LIVE)
    store.change(Release, "rel_2", state=ReleaseState.LIVE, segment="plan=pro")  # a segment may have one of its own
    store.close()
