"""Single answers with a thumb: the forms that are read, and the reasons why a line is not."""

import gzip
import json

import pytest

from plaudit.errors import BadInput, NotFound
from plaudit.learn import thumbs_file
from plaudit.learn.thumbs_file import read_row, read_thumbs

ASKED = ({"role": "user", "content": "q"},)


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "q", "completion": "a", "label": True},
        {"messages": list(ASKED), "response": " a ", "label": True},
        {"prompt": list(ASKED), "completion": [{"role": "assistant", "content": "a"}], "label": True},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "completion": "a", "label": True},
    ],
)
def test_forms(raw):
    row = read_row(raw, "line-3")
    assert (row.messages, row.response, row.up, row.name) == (ASKED, "a", True, "line-3")
    assert (row.weight, row.finished) == (1.0, True)


def test_what_a_row_may_add():
    raw = {
        "prompt": "q",
        "completion": "a",
        "label": False,
        "weight": 2,
        "finished": False,
        "family": "f",
        "id": "int_1",
    }
    row = read_row(raw, "line-1")
    assert (row.up, row.weight, row.finished, row.family, row.name) == (False, 2.0, False, "f", "int_1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 1}, "true or false"),
        ({"label": None}, "true or false"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": 3}, "neither a text nor a list"),
        ({"completion": ""}, "completion is empty"),
        ({"completion": [{"role": "assistant", "content": "a"}] * 2}, "single message"),
        ({"weight": -1}, "weight is -1"),
        ({"finished": "no"}, "finished must be true or false"),
    ],
)
def test_a_wrong_row_says_why(change, reason):
    with pytest.raises(ValueError, match=reason):
        read_row({"prompt": "q", "completion": "a", "label": True} | change, "line-1")


def test_a_file_is_split_by_family_and_its_bad_lines_are_named(tmp_path):
    lines = [json.dumps({"prompt": f"q {i % 50}", "completion": "a", "label": i % 2 == 0}) for i in range(200)]
    file = tmp_path / "thumbs.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(["not json", *lines]).encode()))
    rows, rejected = read_thumbs(file, valid_fraction=0.3)
    assert len(rows) == 200
    assert [(one.line, "not JSON" in one.reason) for one in rejected] == [(1, True)]
    sides = {split: {row.family for row in rows if row.split == split} for split in ("train", "valid")}
    assert not sides["train"] & sides["valid"]
    assert 5 <= len(sides["valid"]) <= 25
    assert {row.split for row in read_thumbs(file, 0.0)[0]} == {"train"}


def test_nothing_usable_is_a_sentence(tmp_path):
    file = tmp_path / "thumbs.jsonl"
    with pytest.raises(NotFound):
        thumbs_file.read_thumbs(file, 0.1)
    file.write_text('{"prompt": "q"}\n')
    with pytest.raises(BadInput, match=r"no usable row \(1 rejected; line 1: it needs"):
        read_thumbs(file, 0.1)
