from __future__ import annotations

import dataclasses
import typing
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from plaudit.domain import NOUNS, FeedbackKind
from plaudit.store.schema import TABLES, EnumText, JsonText, UtcTime

DIALECT = sqlite.dialect()


def test_every_noun_has_a_table_and_every_field_a_column() -> None:
    assert set(TABLES) == set(NOUNS)
    for kind, table in TABLES.items():
        assert [column.name for column in table.columns] == [field.name for field in dataclasses.fields(kind)]
        hints = typing.get_type_hints(kind)
        for column in table.columns:
            assert column.nullable == (type(None) in typing.get_args(hints[column.name])), f"{table.name}.{column.name}"


def test_every_row_carries_its_project() -> None:
    assert all("project_id" in table.c for table in TABLES.values())


def test_the_whole_schema_compiles_for_postgresql() -> None:
    for table in TABLES.values():
        assert "CREATE TABLE" in str(sa.schema.CreateTable(table).compile(dialect=postgresql.dialect()))
        for index in table.indexes:
            assert "CREATE" in str(sa.schema.CreateIndex(index).compile(dialect=postgresql.dialect()))


def test_rules_for_some_rows_only_are_so_on_every_database() -> None:
    partial = {
        index.name: [
            str(sa.schema.CreateIndex(index).compile(dialect=known.dialect())) for known in (postgresql, sqlite)
        ]
        for table in TABLES.values()
        for index in table.indexes
        if index.name in ("feedback_one_root", "release_one_live")
    }
    assert [said.split(" WHERE ")[1] for said in partial["feedback_one_root"]] == ["supersedes IS NULL"] * 2
    assert [said.split(" WHERE ")[1] for said in partial["release_one_live"]] == ["state = 'live'"] * 2


@settings(max_examples=50, deadline=None)
@given(
    st.datetimes(
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])
    )
)
def test_times_come_back_exact_in_utc_and_sort_as_they_should(moment: datetime) -> None:
    kind = UtcTime()
    stored = kind.process_bind_param(moment, DIALECT)
    back = kind.process_result_value(stored, DIALECT)
    assert stored is not None
    assert back == moment
    assert back.tzinfo is UTC
    if moment.astimezone(UTC) < datetime.max.replace(tzinfo=UTC) - timedelta(seconds=1):
        later = kind.process_bind_param(moment + timedelta(microseconds=1), DIALECT)
        assert later == stored + 1


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(TypeError):
        UtcTime().process_bind_param(datetime(2026, 1, 1), DIALECT)


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, list | dict))
)
def test_json_comes_back_with_lists_as_tuples_on_top(value: list[object] | dict[str, object]) -> None:
    kind = JsonText()
    back = kind.process_result_value(kind.process_bind_param(value, DIALECT), DIALECT)
    assert back == (tuple(value) if isinstance(value, list) else value)


def test_an_enum_is_stored_as_its_value_and_an_unknown_one_is_refused() -> None:
    kind = EnumText(FeedbackKind)
    assert kind.process_bind_param(FeedbackKind.THUMB, DIALECT) == "thumb"
    assert kind.process_result_value("thumb", DIALECT) is FeedbackKind.THUMB
    with pytest.raises(ValueError, match="applause"):
        kind.process_bind_param("applause", DIALECT)
