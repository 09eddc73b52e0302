"""plaudit annotate create, qualify, assign, annotators: from a file to who is lent it first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plaudit.cli.annotate import annotate
from plaudit.domain import DEFAULT_PROJECT, utc_now
from plaudit.errors import BadInput
from plaudit.loop import annotate as stage
from plaudit.loop import govern
from plaudit.settings import load
from plaudit.store.database import open_store


def run(home: Path, *words: str) -> str:
    result = CliRunner().invoke(annotate, [*words, "--home", str(home)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def last(output: str) -> dict[str, Any]:
    return dict(json.loads(output.strip().splitlines()[-1]))


def test_from_a_file_to_who_is_lent_it_first(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,response_1,response_2\nWhy?,Because.,No.\nHow?,,\n")
    home = tmp_path / "home"
    with pytest.raises(BadInput, match="only what may be trained on"):
        run(home, "create", str(file))
    said = run(home, "create", str(file), "--training-use", "allowed", "--domain", "law", "--criterion", "tone")
    assert "1 questions wait in batch rows.csv, each for 3 annotators; 0 were there, 1 rows rejected." in said
    assert "rows.csv line 3: it needs" in said
    store = open_store(load(home).database_url)
    ann = govern.person(store, DEFAULT_PROJECT, "ann", utc_now()).id
    assert stage.lend(store, DEFAULT_PROJECT, ann, 60, utc_now()) is None
    run(home, "qualify", "ann", "law", "--days", "9")
    row = last(run(home, "assign", "ann", "--domain", "law", "--json"))
    assert (row["domains"], row["qualified"][0]["domain"]) == (["law"], "law")
    loan = stage.lend(store, DEFAULT_PROJECT, ann, 60, utc_now())
    assert loan is not None
    assert loan.comparison.criteria == ("tone",)
    assert "domain law" in run(home, "annotators")
    assert "assigned nothing" in run(home, "assign", "ann", "--domain", "law", "--end")
    store.close()
