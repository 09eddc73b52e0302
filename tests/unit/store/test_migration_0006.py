"""0006: keys that were made before their use was remembered were never used, as far as anyone knows."""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.domain import ApiKey
from plaudit.store import migrate as migrations
from plaudit.store.database import open_store

BEFORE = "INSERT INTO api_keys (id, project_id, name, roles, secret_sha256, created_at) VALUES ('key_1', 'p', 'k', '[\"admin\"]', 's', 1)"


def test_keys_of_before_have_no_last_use(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrations.migrate(connection, 5)
        connection.execute(sa.text(BEFORE))
    engine.dispose()
    store = open_store(url)
    key = store.get(ApiKey, "key_1")
    assert (key.roles, key.last_used_at) == (("admin",), None)
    store.close()
