"""0004: rows that were written before there were filters have no verdicts and no tool calls, and can be read."""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.domain import Interaction, Response
from plaudit.store import migrate as migrations
from plaudit.store.database import open_store

BEFORE = (
    "INSERT INTO interactions (id, project_id, conversation_id, turn, messages, family, prompt_sha256, source, sampling, training_use, "
    "attributes, config_version, created_at) VALUES ('int_1', 'p', 'c', 1, '[]', 'f', 's', 'gateway', '{}', 'allowed', '{}', 0, 1)",
    "INSERT INTO responses (id, project_id, interaction_id, idx, text, origin, model, created_at) "
    "VALUES ('res_1', 'p', 'int_1', 0, 'hello', 'served', 'm', 1)",
)


def test_rows_of_before_have_empty_verdicts_and_tool_calls(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrations.migrate(connection, 3)
        for statement in BEFORE:
            connection.execute(sa.text(statement))
    engine.dispose()
    store = open_store(url)
    assert store.get(Interaction, "int_1").verdicts == ()
    response = store.get(Response, "res_1")
    assert (response.text, response.tool_calls, response.verdicts) == ("hello", (), ())
    store.close()
