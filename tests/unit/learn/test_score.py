"""Reading what is to be scored; the measures themselves are in tests/learning/test_score_measures.py."""

import json

import pytest

from plaudit.errors import BadInput, NotFound
from plaudit.learn import score


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1"),
        ('{"messages": []}', "responses"),
        ('{"messages": [], "responses": ["a"], "finished": []}', "finished"),
        ('{"messages": [], "responses": ["a", "b"], "by_policy": [true]}', "by_policy"),
        ('{"messages": [], "responses": [1]}', "texts"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    (tmp_path / "in.jsonl").write_text(line + "\n")
    with pytest.raises(BadInput, match=words):
        score.read_inputs(tmp_path / "in.jsonl")
    with pytest.raises(NotFound, match=r"gone\.jsonl"):
        score.read_inputs(tmp_path / "gone.jsonl")


def test_rows_are_filled_in(tmp_path):
    messages = [{"role": "user", "content": "a\u2028b"}]
    lines = [
        {"messages": messages, "response": "x"},
        {"id": "k", "messages": messages, "responses": ["y", "z"], "finished": False, "by_policy": [True, False]},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n")
    assert score.read_inputs(path) == [
        {"id": 1, "messages": messages, "responses": ["x"], "finished": [True], "by_policy": [True]},
        {
            "id": "k",
            "messages": messages,
            "responses": ["y", "z"],
            "finished": [False, False],
            "by_policy": [True, False],
        },
    ]
