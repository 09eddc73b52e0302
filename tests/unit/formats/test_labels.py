from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plaudit.errors import BadInput, NotFound
from plaudit.formats import labels
from plaudit.formats.files import Rejected

ROWS = [("q1", "ann", "cat"), ("q1", "bob", "dog"), ("q2", "ann", "dog"), ("q2", "bob", "dog"), ("q3", "cyd", "cat")]


def write(tmp_path: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def as_csv(rows, header="item,worker,label", delimiter=",") -> str:
    return "\n".join([header.replace(",", delimiter), *(delimiter.join(map(str, row)) for row in rows)]) + "\n"


def as_jsonl(rows) -> str:
    return "".join(json.dumps(dict(zip(("item", "worker", "label"), row, strict=True))) + "\n" for row in rows)


def named(held) -> list[tuple[str, str, str]]:
    coded, votes = held.coded, held.coded.votes
    codes = zip(votes.item.tolist(), votes.worker.tolist(), votes.label.tolist(), strict=True)
    return [(coded.items[i], coded.workers[w], coded.labels[k]) for i, w, k in codes]


def test_every_form_of_a_file_gives_the_same_votes(tmp_path) -> None:
    table = pa.table(dict(zip(("item", "worker", "label"), zip(*ROWS, strict=True), strict=True)))
    pq.write_table(table, tmp_path / "labels.parquet")
    paths = [
        write(tmp_path, as_csv(ROWS)),
        write(tmp_path, b"\xef\xbb\xbf" + as_csv(ROWS).replace("\n", "\r\n").encode(), "windows.csv"),
        write(tmp_path, gzip.compress(as_csv(ROWS).encode()), "labels.csv.gz"),
        write(tmp_path, as_csv(ROWS, delimiter="\t"), "labels.tsv"),
        write(tmp_path, as_jsonl(ROWS), "labels.jsonl"),
        tmp_path / "labels.parquet",
        write(tmp_path, as_csv([(k, i, w) for i, w, k in ROWS], " Label,ITEM,worker"), "order.csv"),
    ]
    for path in paths:
        held = labels.read_labels(path)
        assert named(held) == ROWS
        assert (held.rejected, held.n_repeats, held.n_rows) == ((), 0, 5)
        assert held.coded.labels == ("cat", "dog")


def test_bad_rows_are_named_by_line_and_reason_and_the_good_ones_go_in(tmp_path) -> None:
    text = (
        "item,worker,label,seconds\n"
        "q1,ann,cat,3\n"
        '"q1\n(second try)",bob,dog,4\n'  # one row, lines 3 and 4
        ",bob,dog,4\n"
        "\n"
        "q2,ann,,1\n"
        "q2,bob\n"
        "q3,bob,dog,soon\n"
        "q3,bob,dog,1,2,3\n"
        "q2,bob,dog,\n"
    )
    held = labels.read_labels(write(tmp_path, text))
    assert named(held) == [("q1", "ann", "cat"), ("q1\n(second try)", "bob", "dog"), ("q2", "bob", "dog")]
    assert held.rejected == (
        Rejected("labels.csv", 5, "item is empty"),
        Rejected("labels.csv", 7, "label is empty"),
        Rejected("labels.csv", 8, "it has 2 columns and the header 4"),
        Rejected("labels.csv", 9, "seconds is 'soon', not a number of seconds"),
        Rejected("labels.csv", 10, "it has 6 columns and the header 4"),
    )
    assert held.n_rows == 8
    assert held.seconds is not None
    np.testing.assert_array_equal(held.seconds, [3, 4, np.nan])
    assert labels.by_reason(held.rejected)["seconds is ..., not a number of seconds"] == 1


def test_bad_lines_of_json(tmp_path) -> None:
    text = (
        as_jsonl(ROWS)
        + '\n{"item": 1\n[1, 2]\n{"item": [1], "worker": "a", "label": "cat"}\n{"item": 9, "worker": null, "label": 1}\n'
    )
    held = labels.read_labels(write(tmp_path, text, "labels.jsonl"))
    assert named(held) == ROWS
    assert [row.line for row in held.rejected] == [7, 8, 9, 10]
    assert [row.reason for row in held.rejected][1:] == ["it is not a JSON object", "item is a list", "worker is empty"]


def test_a_worker_who_labels_an_item_again_has_changed_their_mind(tmp_path) -> None:
    path = write(tmp_path, as_csv([*ROWS, ("q1", "ann", "dog"), ("q1", "ann", "cat"), ("q1", "ann", "dog")]))
    held = labels.read_labels(path)
    assert sorted(named(held)) == sorted([("q1", "ann", "dog"), *ROWS[1:]])
    assert held.n_repeats == 3
    assert any("3 rows" in note and "the last one counts" in note for note in held.notes)
    everything = labels.read_labels(path, keep_repeats=True)
    assert (len(everything.coded.votes.item), everything.n_repeats) == (8, 0)


def test_numbers_sort_as_numbers_and_a_whole_float_is_its_integer(tmp_path) -> None:
    held = labels.read_labels(write(tmp_path, as_csv([(1, "a", "10.0"), (1, "b", 9), (2, "a", 10), (2, "b", -1.5)])))
    assert held.coded.labels == ("-1.5", "9", "10")
    assert held.values == (-1.5, 9, 10)
    assert labels.read_labels(write(tmp_path, as_csv(ROWS))).values is None
    table = pa.table({"item": [1, 1, 2, 2], "worker": [1, 2, 1, 2], "label": [1.0, float("nan"), 0.0, None]})
    pq.write_table(table, tmp_path / "floats.parquet")
    with pytest.raises(BadInput, match="one worker"):  # worker 2 gave a NaN and a null
        labels.read_labels(tmp_path / "floats.parquet")


def test_unknown_columns_are_named_and_missing_ones_too(tmp_path) -> None:
    held = labels.read_labels(write(tmp_path, as_csv([(*row, 1, 2) for row in ROWS], "item,worker,label,colour,size")))
    assert any("colour, size" in note for note in held.notes)
    with pytest.raises(BadInput, match="no column worker and no column label; it has item, annotator"):
        labels.read_labels(write(tmp_path, as_csv([(1, 2)], "item,annotator")))


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "a.csv", "is empty"),
        ("item,worker,label\n", "a.csv", "no vote that can be read"),
        ("item,worker,label\n,a,b\n", "a.csv", "a.csv, line 2: item is empty"),
        ("item,worker,label\n1,a,x\n1,b,x\n", "a.csv", "All 2 votes of a.csv say 'x'"),
        ("item,worker,label\n1,a,x\n2,a,y\n", "a.csv", "one worker, 'a'"),
        ("item,worker,label\n1,a,\xe9\n".encode("latin-1"), "a.csv", "a.csv, line 2 is not UTF-8"),
        ("item,item,label\n1,2,3\n", "a.csv", "names a column twice"),
        ("item,Item ,label\n1,2,3\n", "a.csv", "names a column twice"),
        ("item,worker,label\n", "a.xlsx", "extension"),
        (b"\x1f\x8b\x08\x00", "a.csv.gz", "a.csv.gz is damaged"),
        (b"PAR1", "a.parquet", "cannot be read as a table"),
        ("{", "a.jsonl", "a.jsonl, line 1: it is not JSON"),
    ],
)
def test_files_without_votes_get_a_sentence(tmp_path, text, name, said) -> None:
    with pytest.raises(BadInput) as raised:
        labels.read_labels(write(tmp_path, text, name))
    assert said in str(raised.value)


def test_no_file(tmp_path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        labels.read_labels(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    "positions",
    [("left", "RIGHT", "right", "left", ""), (1, 2, 2, 1, ""), (0, 1, 1, 0, ""), ("cat", "cat", "cat", "dog", "")],
)
def test_positions_say_which_label_was_shown_first(tmp_path, positions) -> None:
    rows = [(*row, position) for row, position in zip(ROWS, positions, strict=True)]
    held = labels.read_labels(write(tmp_path, as_csv(rows, "item,worker,label,position")))
    assert held.place is not None
    assert held.place.tolist() == [0, 1, 1, 0, -1]
    first = held.coded.votes.first
    assert first is not None
    assert [held.coded.labels[code] for code in first[:4]] == ["cat", "cat", "cat", "dog"]
    assert any(note.startswith("position is read as") for note in held.notes)


def test_an_unreadable_position_is_rejected_and_few_of_them_are_no_order(tmp_path) -> None:
    rows = [(*row, p) for row, p in zip(ROWS, ("left", "right", "middle", "left", "left"), strict=True)]
    held = labels.read_labels(write(tmp_path, as_csv(rows, "item,worker,label,position")))
    assert [(row.line, "position is 'middle'" in row.reason) for row in held.rejected] == [(4, True)]
    sparse = [(*row, p) for row, p in zip(ROWS, ("left", "right", "", "", ""), strict=True)]
    held = labels.read_labels(write(tmp_path, as_csv(sparse, "item,worker,label,position")))
    assert held.coded.votes.first is None
    assert held.place is not None
    assert held.place.tolist() == [0, 1, -1, -1, -1]
    none = labels.read_labels(write(tmp_path, as_csv([(*row, "?") for row in ROWS], "item,worker,label,position")))
    assert (none.place, len(none.rejected)) == (None, 0)
    assert any("No position" in note for note in none.notes)


def test_a_tie_has_no_place_and_what_was_first_is_drawn_among_the_others(tmp_path) -> None:
    """400 ties without a place: cat and dog come first about equally often, tie never; a dog at the second place had the cat before it."""
    rows = [(i, w, "tie", "") for i in range(200) for w in "ab"]
    rows += [(i, w, "dog" if i % 2 else "cat", 2 if i % 2 else 1) for i in range(300) for w in "cd"]
    held = labels.read_labels(write(tmp_path, as_csv(rows, "item,worker,label,position")))
    cat, dog, tie = 0, 1, 2
    assert held.coded.labels == ("cat", "dog", "tie")
    votes = held.coded.votes
    assert votes.first is not None
    assert (votes.first[votes.label != tie] == cat).all()
    drawn = votes.first[votes.label == tie]
    assert set(drawn.tolist()) == {cat, dog}
    assert abs((drawn == cat).mean() - 0.5) < 0.1


def test_groups_are_codes_and_an_empty_one_is_unknown(tmp_path) -> None:
    rows = [(*row, group) for row, group in zip(ROWS, ("us", "eu", "us", "eu", ""), strict=True)]
    held = labels.read_labels(write(tmp_path, as_csv(rows, "item,worker,label,group")))
    assert held.groups == ("eu", "us")
    assert held.group is not None
    assert held.group.tolist() == [1, 0, 1, 0, -1]


def test_answers_and_their_contradictions(tmp_path) -> None:
    text = "item,truth\nq1,1.0\nq2,0\nq1,1\nq1,0\nq3,\n"
    answers = labels.read_answers(write(tmp_path, text, "gold.csv"))
    assert answers.by_item == {"q1": "1", "q2": "0"}
    assert [(row.line, row.reason) for row in answers.rejected] == [
        (5, "item 'q1' was '1' before and is '0' here"),
        (6, "truth is empty"),
    ]
    assert labels.read_answers(write(tmp_path, "item,label\nq1,cat\n", "gold.csv")).by_item == {"q1": "cat"}
    with pytest.raises(BadInput, match="no column truth"):
        labels.read_answers(write(tmp_path, "item,worth\nq1,cat\n", "gold.csv"))
    with pytest.raises(BadInput, match="no answer"):
        labels.read_answers(write(tmp_path, "item,truth\nq1,\n", "gold.csv"))


def test_history_adds_up_by_name(tmp_path) -> None:
    text = "worker,truth,label,n\nann,cat,cat,3\nann,cat,cat,1.5\nbob,dog,cat,2\nzed,cat,cat,9\nann,fox,cat,9\n"
    history = labels.read_history(write(tmp_path, text, "confusion.csv"), ["bob", "ann"], ["cat", "dog"])
    np.testing.assert_array_equal(history, [[[0, 0], [2, 0]], [[4.5, 0], [0, 0]]])
    with pytest.raises(BadInput, match="knows none"):
        labels.read_history(tmp_path / "confusion.csv", ["eve"], ["cat"])
    with pytest.raises(BadInput, match="n is 'many'"):
        labels.read_history(write(tmp_path, "worker,truth,label,n\na,b,c,many\n", "c.csv"), ["a"], ["b", "c"])
