"""0012: of interactions that were there before, nobody has hashed the instructions."""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.domain import Interaction
from plaudit.store import migrate as migrations
from plaudit.store.database import open_store

BEFORE = """INSERT INTO interactions (id, project_id, conversation_id, turn, messages, family, prompt_sha256, source, sampling, training_use,
attributes, verdicts, config_version, created_at) VALUES ('int_1', 'p', 'cnv_1', 1, '[]', 'f', 's', 'logged', '{}', 'unknown', '{}', '[]', 0, 1)"""


def test_interactions_of_before_have_no_hash_of_their_instructions(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrations.migrate(connection, 11)
        connection.execute(sa.text(BEFORE))
    engine.dispose()
    store = open_store(url)
    found = store.get(Interaction, "int_1")
    assert (found.prompt_sha256, found.system_sha256) == ("s", None)
    store.close()
