"""Files of prompts and responses: every way to write a row, and why a row is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plaudit.errors import BadInput, NotFound
from plaudit.formats.files import Rejected
from plaudit.formats.questions import Asked, read

PAIR = {"prompt": "Why?", "responses": ["Because.", "No."]}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_in_every_form(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]
    whole = {**PAIR, "models": ["a", "b"], "domain": "law", "family": "f", "priority": "3", "warning": "blood"}
    rows = list(read(written(
        tmp_path / "rows.jsonl", PAIR, {"messages": talk, "response": "Because.", "model": "m"}, whole
    )))  # fmt: skip
    assert all(isinstance(one, Asked) for one in rows)
    plain, alone, full = rows
    assert (plain.messages, plain.responses, plain.models) == (
        ({"role": "user", "content": "Why?"},),
        ("Because.", "No."),
        (),
    )  # type: ignore[union-attr]
    assert (alone.messages, alone.responses, alone.models) == (tuple(talk), ("Because.",), ("m",))  # type: ignore[union-attr]
    assert (full.models, full.domain, full.family, full.priority, full.warning) == (("a", "b"), "law", "f", 3, "blood")  # type: ignore[union-attr]


def test_a_table_has_columns_of_responses_or_a_list_in_a_cell(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(
        'prompt,response_1,response_2,response_10\n"Why,\nnow?",Because.,No.,Later.\nHow?,So.,,\n', "utf-8-sig"
    )
    assert [(one.messages[0]["content"], one.responses) for one in read(file)] == [  # type: ignore[union-attr]
        ("Why,\nnow?", ("Because.", "No.", "Later.")),
        ("How?", ("So.",)),
    ]
    cell = tmp_path / "cell.tsv"
    cell.write_text('prompt\tresponses\nWhy?\t"[""A."", ""B.""]"\n[x] is?\tno list\n')
    good, bad = read(cell)
    assert good.responses == ("A.", "B.")  # type: ignore[union-attr]
    assert isinstance(bad, Rejected)
    wide = tmp_path / "wide.csv"
    wide.write_text("prompt,response\nWhy?,So.,and more\nHow?,So.\n")
    bad, good = read(wide)
    assert isinstance(bad, Rejected)
    assert (bad.line, bad.reason) == (2, "it has more cells than the header")
    assert isinstance(good, Asked)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"responses": ["a"]}, "the prompt is neither"),
        ({"prompt": "Why?"}, 'it needs "responses"'),
        ({"prompt": "Why?", "responses": []}, 'it needs "responses"'),
        ({"prompt": "Why?", "responses": [f"{n}" for n in range(21)]}, "a list of 1 to 20 texts"),
        ({"prompt": "Why?", "responses": ["a", " a "]}, "the same text"),
        ({"prompt": "Why?", "responses": ["a", " "]}, "a response is empty"),
        ({**PAIR, "models": ["a"]}, "there are 2 responses and models"),
        ({**PAIR, "priority": "high"}, "priority is 'high'"),
        ({**PAIR, "domain": "x" * 201}, "domain has more"),
        (3, "it is no object"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_the_next_goes_in(tmp_path: Path, row: object, why: str) -> None:
    bad, good = read(written(tmp_path / "rows.jsonl", row, PAIR))
    assert isinstance(bad, Rejected)
    assert (bad.line, why in bad.reason) == (1, True), bad.reason
    assert isinstance(good, Asked)


def test_what_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(BadInput, match="no Parquet file"):
        list(read(tmp_path / "rows.parquet"))
    (tmp_path / "rows.csv").write_bytes(b"prompt,response\n\xff,x\n")
    with pytest.raises(BadInput, match="cannot be read as a table"):
        list(read(tmp_path / "rows.csv"))
    with pytest.raises(NotFound):
        list(read(tmp_path / "none.jsonl"))
