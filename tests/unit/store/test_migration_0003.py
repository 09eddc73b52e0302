"""Who was there before people could sign in."""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.domain import Invitation, Person
from plaudit.store import migrate as migrations
from plaudit.store.database import open_store


def test_a_person_of_before_has_no_role_and_no_link(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrations.migrate(connection, 2)
        connection.execute(
            sa.text("INSERT INTO people (id, project_id, name, created_at) VALUES ('per_1', 'p', 'Ann', 1)")
        )
    engine.dispose()
    store = open_store(url)
    (ann,) = store.find(Person)
    assert (ann.name, ann.roles, ann.generation, ann.removed_at) == ("Ann", (), 0, None)
    assert store.count(Invitation) == 0
    store.close()
