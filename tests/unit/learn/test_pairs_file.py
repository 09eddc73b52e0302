"""Files of pairs: every form gives the same row, and what cannot be used is named by its line with the reason."""

import gzip
import json

import pytest

from plaudit.errors import BadInput, NotFound
from plaudit.formats import hh
from plaudit.learn import pairs_file

QUESTION = [{"role": "user", "content": "a?"}]
THREAD = [*QUESTION, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"}]
HH = "\n\nHuman: a?\n\nAssistant: b\n\nHuman: c?\n\nAssistant:"


def answer(text):
    return {"role": "assistant", "content": text}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "raw",
    [
        {"chosen": HH + " yes", "rejected": HH + " no"},
        {"prompt": HH, "chosen": " yes", "rejected": "no"},
        {"prompt": HH.removesuffix("\n\nAssistant:"), "chosen": "yes", "rejected": "no"},
        {"messages": THREAD, "chosen": "yes", "rejected": "no"},
        {"prompt": THREAD, "chosen": [answer("yes")], "rejected": [answer("no")]},
        {"chosen": [*THREAD, answer("yes")], "rejected": [*THREAD, answer("no")]},
    ],
)
def test_every_form_is_the_same_row(raw):
    row = pairs_file.read_row(raw, "line-1")
    assert list(row.messages) == THREAD
    assert (row.chosen, row.rejected) == ("yes", "no")
    assert (row.probability, row.weight, row.margin) == (1.0, 1.0, 0.0)
    assert row.preference_id == "line-1"


def test_a_plain_prompt_is_one_user_message_even_where_it_speaks_of_turns():
    row = pairs_file.read_row({"prompt": "Human: a?", "chosen": "x", "rejected": "y"}, "n")
    assert row.messages == ({"role": "user", "content": "Human: a?"},)


def test_neighbouring_turns_of_one_role_become_one_message():
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nHuman: d"
    assert [one["content"] for one in hh.read_transcript(text)] == ["a\n\nb", "c", "d"]
    with pytest.raises(ValueError, match="'System: x'"):
        hh.read_transcript("System: x" + text)


def test_optional_fields_are_read():
    raw = {
        "prompt": "q", "chosen": "x", "rejected": "y", "probability": 0.7, "weight": 3, "margin": -0.5, "criterion": "brief",
        "annotator": 17, "family": "f", "id": "r1", "chosen_finished": False, "category": "chat", "slice": {"topic": "tea"},
        "group": "new", "source": "lab",
    }  # fmt: skip
    row = pairs_file.read_row(raw, "line-1")
    assert (row.probability, row.weight, row.margin) == (0.7, 3.0, -0.5)
    assert (row.criterion, row.annotator, row.family, row.preference_id, row.source) == (
        "brief",
        "17",
        "f",
        "r1",
        "lab",
    )
    assert (row.chosen_finished, row.rejected_finished) == (False, True)
    assert row.slices == {"category": "chat", "group": "new", "topic": "tea"}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"chosen": HH + " yes", "rejected": HH.replace("c?", "d?") + " no"}, "prompts of chosen and rejected differ"),
        ({"chosen": [*THREAD, answer("yes")], "rejected": [*QUESTION, answer("no")]}, "differ"),
        ({"chosen": HH + "  ", "rejected": HH + " no"}, "chosen answer is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": "\n"}, "rejected answer is empty"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": " a"}, "same text"),
        ({"chosen": "a", "rejected": "b"}, "prompt is empty"),
        ({"prompt": "q", "chosen": "a"}, '"rejected"'),
        ({"prompt": "q", "chosen": "a", "rejected": [answer("b")]}, "both texts or both lists"),
        ({"chosen": THREAD, "rejected": [*THREAD, answer("b")]}, "assistant message"),
        ({"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": [answer("b")]}, '"content"'),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "probability": 1.5}, "between 0 and 1"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": -1}, "weight is -1"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": True}, "margin is True"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "chosen_finished": 1}, "true or false"),
        ([1], '"chosen"'),
    ],
)  # fmt: skip
def test_an_unusable_row_says_why(raw, reason):
    with pytest.raises(ValueError, match=reason):
        pairs_file.read_row(raw, "line-1")


def test_the_rest_of_a_file_goes_in_and_bad_lines_are_named(tmp_path):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "p.jsonl", good, "", "{", good | {"chosen": ""}, good)
    with path.open("ab") as file:
        file.write(b'{"prompt": "\xff"}\n')
    rows, rejected = pairs_file.read_pairs(path)
    assert [row.preference_id for row in rows] == ["line-1", "line-5"]
    assert [one.line for one in rejected] == [3, 4, 6]
    assert [one.reason.split(" (")[0] for one in rejected] == [
        "it is not JSON",
        "the chosen answer is empty",
        "it is not UTF-8",
    ]
    assert pairs_file.reasons(rejected)["it is not JSON"] == 1
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert pairs_file.read_pairs(packed)[0] == rows
    packed.write_bytes(gzip.compress(path.read_bytes())[:-9])
    with pytest.raises(BadInput, match="is damaged"):
        pairs_file.read_pairs(packed)


def test_a_file_without_a_usable_row_is_refused(tmp_path):
    with pytest.raises(NotFound, match=r"gone\.jsonl"):
        pairs_file.read_pairs(tmp_path / "gone.jsonl")
    with pytest.raises(BadInput, match="it is empty"):
        pairs_file.read_pairs(write(tmp_path / "empty.jsonl"))
    with pytest.raises(BadInput, match="line 1: the chosen answer is empty"):
        pairs_file.read_pairs(write(tmp_path / "bad.jsonl", {"prompt": "q", "chosen": "", "rejected": "b"}))


def many(tmp_path, n, name="p.jsonl", **extra):
    rows = [{"prompt": f"question {i % (n // 2)}", "chosen": f"a{i}", "rejected": "b", **extra} for i in range(n)]
    return write(tmp_path / name, *rows)


def test_families_never_part_and_never_move(tmp_path):
    path = many(tmp_path, 200)
    train, held_out, _ = pairs_file.read_split(str(path), valid_fraction=0.3)
    families = [{row.family for row in rows} for rows in (train, held_out)]
    assert not families[0] & families[1]
    assert len(train) + len(held_out) == 200
    assert 15 <= len(families[1]) <= 45  # 30 of 100 in the mean
    assert {row.split for row in held_out} == {"valid"}
    more, _, _ = pairs_file.read_split(str(many(tmp_path, 600)), valid_fraction=0.3)
    assert families[0] <= {row.family for row in more}


def test_later_turns_and_spacing_are_the_same_family():
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "What  is\nTEA?"}]
    assert pairs_file.family_of(asked) == pairs_file.family_of(
        [{"role": "user", "content": "what is tea?"}, *THREAD[1:]]
    )
    assert pairs_file.family_of(asked) != pairs_file.family_of(QUESTION)


def test_a_second_file_is_held_out_whole(tmp_path):
    one, two = many(tmp_path, 4), many(tmp_path, 6, "v.jsonl")
    train, held_out, rejected = pairs_file.read_split(str(one), str(two))
    assert (len(train), len(held_out), rejected) == (4, 6, [])
    assert {row.split for row in held_out} == {"valid"}


def test_a_split_without_one_side_is_refused(tmp_path):
    path = str(many(tmp_path, 6, family="one"))
    with pytest.raises(BadInput, match="nothing to be held out"):
        pairs_file.read_split(path, valid_fraction=0.01)
    with pytest.raises(BadInput, match="nothing to be trained on"):
        pairs_file.read_split(path, valid_fraction=0.999)
    assert len(pairs_file.read_split(path, valid_fraction=0)[0]) == 6


def test_files_of_pairs_are_told_from_files_of_answers(tmp_path):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert pairs_file.holds_pairs(write(tmp_path / "p", "{", good))
    assert not pairs_file.holds_pairs(write(tmp_path / "q", {"messages": [], "response": "x"}))
    assert not pairs_file.holds_pairs(write(tmp_path / "r"))
