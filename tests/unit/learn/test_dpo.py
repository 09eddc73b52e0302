"""What `dpo` reads and refuses; training itself is in tests/learning/test_dpo_learning.py."""

import json

import pytest

from plaudit.artifacts import PreferenceRow, write_snapshot
from plaudit.errors import BadInput
from plaudit.learn import dpo
from plaudit.learn.configs import DPOConfig


def asked(text):
    return ({"role": "user", "content": text},)


def preference(i, split="train", criterion="overall", probability=0.8):
    return PreferenceRow(
        f"p{i}", f"c{i}", criterion, f"f{i}", split, asked(f"q{i}"), f"good {i}", f"bad {i}", probability, 2.0,
        "annotation", rejected_finished=False,
    )  # fmt: skip


@pytest.fixture
def snapshot(tmp_path):
    rows = [
        preference(0),
        preference(1, probability=0.5),
        preference(2, criterion="tone"),
        preference(3, split="valid"),
        preference(4, split="test"),
    ]
    return str(write_snapshot(tmp_path / "s", rows, [], [], {}, {}).folder)


def read(**config):
    rows, held_out, rejected = dpo.read_rows(DPOConfig(base="b", **config))
    return sorted(row.name for row in rows), sorted(row.name for row in held_out), rejected


def test_pairs_of_a_snapshot(snapshot):
    assert read(snapshot=snapshot) == (["p0", "p1", "p2"], ["p3", "p4"], [])
    assert read(snapshot=snapshot, criterion="tone")[0] == ["p2"]
    assert read(snapshot=snapshot, soft_labels=False)[0] == ["p0", "p2"]  # a tie has no majority
    for soft, expected in ((True, 0.8), (False, 1.0)):
        rows, _, _ = dpo.read_rows(DPOConfig(base="b", snapshot=snapshot, soft_labels=soft))
        row = next(row for row in rows if row.name == "p0")
        assert (row.probability, row.responses, row.finished) == (expected, ("good 0", "bad 0"), (True, False))


def test_kto_reads_both_sides_of_a_pair_and_thumbs(snapshot, tmp_path):
    file = tmp_path / "thumbs.jsonl"
    file.write_text(json.dumps({"prompt": "x", "completion": "y", "label": False, "id": "t"}) + "\nnonsense\n")
    config = DPOConfig(base="b", snapshot=snapshot, unpaired=str(file), loss="kto", valid_fraction=0.0)
    rows, _, rejected = dpo.read_rows(config)
    found = {row.name: (row.responses, row.finished, round(row.probability, 6)) for row in rows}
    assert found["p0 chosen"] == (("good 0",), (True,), 0.8)
    assert found["p0 rejected"] == (("bad 0",), (False,), 0.2)
    assert found["t"] == (("y",), (True,), 0.0)
    assert len(rows) == 7
    assert [(one.line, one.file) for one in rejected] == [(2, str(file))]


def test_pairs_of_files(tmp_path):
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    for file, n in ((train, 3), (valid, 2)):
        rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "id": f"{file.stem}{i}"} for i in range(n)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(preferences=str(train), valid_preferences=str(valid))[:2] == (
        ["train0", "train1", "train2"],
        ["valid0", "valid1"],
    )


def test_nothing_or_one_kind_is_refused(snapshot, tmp_path):
    with pytest.raises(BadInput, match="nothing to train on for the criterion 'length'"):
        read(snapshot=snapshot, criterion="length")
    file = tmp_path / "thumbs.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": "y", "label": True}) + "\n" for i in range(9)))
    with pytest.raises(BadInput, match="only liked answers"):
        read(unpaired=str(file), loss="kto")


def test_partners_answer_another_prompt():
    def row(i, prompt):
        return dpo.Row(f"r{i}", "f", asked(prompt), (f"a{i}",), (True,), 1.0, 1.0)

    rows = [row(i, f"q{i % 3}") for i in range(30)]
    out = dpo.partners(rows, rows, seed=0)
    assert all(other.messages != mine.messages for mine, other in zip(rows, out, strict=True))
    assert len({other.name for other in out}) > 15  # not one response for all
    assert dpo.partners(rows, rows, seed=0) == out != dpo.partners(rows, rows, seed=1)
    assert dpo.partners([row(99, "q1")], rows, seed=0)[0].messages != asked("q1")
    with pytest.raises(BadInput, match="to one prompt"):
        dpo.partners(rows, [row(i, "q0") for i in range(4)], seed=0)
