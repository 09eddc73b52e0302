"""What is imitated; training itself is in tests/learning/test_sft_learning.py."""

import pytest

from plaudit.artifacts import DemonstrationRow, PreferenceRow, write_snapshot
from plaudit.learn import sft
from plaudit.learn.configs import SFTConfig

ASKED = ({"role": "user", "content": "hi"},)


@pytest.fixture
def snapshot(tmp_path):
    preferences = [
        PreferenceRow(f"p{i}", f"c{i}", "overall", "f", split, ASKED, f"good {text}", "bad", p, 1.0, "annotation")
        for i, (split, text, p) in enumerate(
            [("train", "a", 0.9), ("train", "a", 0.8), ("train", "tie", 0.5), ("valid", "b", 1.0)]
        )
    ]
    demonstrations = [DemonstrationRow("d0", "f", "train", ASKED, "shown", "edit")]
    return write_snapshot(tmp_path, preferences, demonstrations, [], {}, {}).folder


@pytest.mark.parametrize(
    ("source", "splits", "texts"),
    [
        ("demonstrations", ("train",), ["shown"]),
        ("demonstrations", ("valid", "test"), []),
        ("chosen", ("train",), ["good a"]),  # once, and no tie: it has no better side
        ("chosen", ("valid", "test"), ["good b"]),
        ("both", ("train",), ["good a", "shown"]),
    ],
)
def test_rows_of_each_source(snapshot, source, splits, texts):
    config = SFTConfig(snapshot=str(snapshot), base="b", source=source)
    assert sorted(text for _, text in sft.read_rows(config, splits)) == texts


def test_every_assistant_turn_is_a_row_with_what_came_before_it(tmp_path):
    turns = [
        ("system", "be kind"),
        ("user", "a?"),
        ("assistant", "A"),
        ("user", "b?"),
        ("assistant", " "),
        ("user", "c?"),
    ]
    messages = tuple({"role": role, "content": text} for role, text in turns)
    assert sft.turns_of(messages, "C") == [(messages[:2], "A"), (messages, "C")]
    greeting = ({"role": "assistant", "content": "hello"}, *ASKED)
    assert sft.turns_of(greeting, "x") == [(greeting, "x")]  # nothing was asked before it
    rows = [DemonstrationRow(f"d{i}", "f", "train", messages, text, "edit") for i, text in enumerate(("C", "D"))]
    folder = write_snapshot(tmp_path, [], rows, [], {}, {}).folder
    for option, texts in (("last", ["C", "D"]), ("all", ["A", "C", "D"])):  # the shared turn once
        config = SFTConfig(snapshot=str(folder), base="b", turns=option)
        assert sorted(text for _, text in sft.read_rows(config, ("train",))) == texts
