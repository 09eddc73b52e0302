"""docs/aggregation.md names every column that is read and written, every JSON key and every method."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pyarrow.parquet as pq

from plaudit.formats import labels
from plaudit.loop import label_files
from plaudit.stats.aggregate import Method

from .conftest import Page, code_in


def keys(page: Page, command: str) -> list[str]:
    """The first column of the table headed by that command."""
    text = page.section("JSON").text
    rows = text[text.index(f"| key of `plaudit {command}`") :].split("\n\n")[0].splitlines()[2:]
    return [code_in(row)[0] for row in rows]


def test_columns_that_are_read(pages) -> None:
    assert pages["aggregation.md"].section("The label file").names() == [*labels.REQUIRED, *labels.OPTIONAL]


def test_methods(pages) -> None:
    assert set(pages["aggregation.md"].section("Methods").names()) == set(get_args(Method))


def test_columns_that_are_written(pages, tmp_path) -> None:
    (tmp_path / "labels.csv").write_text("item,worker,label\n1,a,x\n1,b,x\n2,a,y\n2,b,x\n")
    label_files.aggregate_file(tmp_path / "labels.csv", out=tmp_path)
    for table in ("posteriors", "annotators", "confusion"):
        shown = pages["aggregation.md"].section(table).names()
        held = pq.read_table(tmp_path / f"{table}.parquet").column_names
        plain = [name for name in held if not name.endswith(("_low", "_high")) and name not in ("p_x", "p_y")]
        assert [name for name in shown if name != "p_LABEL"] == plain


def test_keys_of_the_json(pages) -> None:
    for command, report in (("aggregate", label_files.AggregateFile), ("agreement", label_files.AgreementFile)):
        assert keys(pages["aggregation.md"], command) == [spec.name for spec in fields(report)]
