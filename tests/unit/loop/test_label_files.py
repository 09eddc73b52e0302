from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from plaudit.errors import BadInput
from plaudit.loop.label_files import aggregate_file, agreement_file

N_ITEMS, N_WORKERS, LAZY = 400, 24, 5


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> Path:
    """labels.csv, truth.csv, gold.csv: five workers click whatever stands first, the others are right with .6 to .9; items
    40 to 99 are gold. Workers of group `b` hold the opposite on the first 40 items."""
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, N_ITEMS)
    skill = rng.uniform(0.6, 0.9, N_WORKERS)
    lines = ["item,worker,label,position,seconds,group"]
    for item in range(N_ITEMS):
        for worker in rng.permutation(N_WORKERS)[:6].tolist():
            held = truth[item] ^ (item < 40 and worker % 2)
            first = int(rng.integers(0, 2))
            label = held if rng.random() < skill[worker] else 1 - held
            label = first if worker < LAZY else label
            place = "left" if label == first else "right"
            lines.append(f"i{item},w{worker},{'AB'[label]},{place},{1 + worker},{'ab'[worker % 2]}")
    folder = tmp_path_factory.mktemp("crowd")
    (folder / "labels.csv").write_text("\n".join(lines))
    known = [f"i{item},{'AB'[truth[item]]}" for item in range(N_ITEMS)]
    (folder / "truth.csv").write_text("\n".join(["item,truth", *known, "nowhere,A"]))
    (folder / "gold.csv").write_text("\n".join(["item,truth", *known[40:100], "elsewhere,B"]))
    return folder


def test_truth_measures_and_gold_is_left_out_of_it(crowd) -> None:
    report = aggregate_file(crowd / "labels.csv", truth=crowd / "truth.csv", gold=crowd / "gold.csv", method="one-coin")
    assert (report.method, report.n_items, report.n_workers, report.n_gold) == ("one-coin", N_ITEMS, N_WORKERS, 60)
    found = report.accuracy
    assert found is not None
    assert (found.method.n, found.n_gold, found.n_without_votes) == (N_ITEMS - 60, 60, 1)
    assert found.gain is not None
    assert found.gain.mean == pytest.approx(found.method.mean - found.majority.mean, abs=1e-12)
    assert found.method.mean > found.majority.mean
    assert any("1 gold items have no vote" in note for note in report.read.notes)
    # The truth is for measuring: without it the same posteriors come out.
    again = aggregate_file(crowd / "labels.csv", gold=crowd / "gold.csv", method="one-coin")
    assert again.workers == report.workers
    assert again.accuracy is None


def test_the_lazy_stand_out_and_nobody_else(crowd) -> None:
    report = aggregate_file(crowd / "labels.csv", method="one-coin")
    lazy = {f"w{code}" for code in range(LAZY)}
    assert {row.worker for row in report.workers if row.left_bias.low > 0.5} == lazy
    assert {row.worker for row in report.workers if row.left_fraction.low > 0.75} == lazy
    assert {row.worker for row in report.workers[:LAZY]} == lazy  # the least reliable come first
    assert {row.worker: row.median_seconds for row in report.workers}["w7"] == 8.0


def test_gold_accuracy_of_a_worker_is_counted_on_gold_alone(crowd) -> None:
    report = aggregate_file(crowd / "labels.csv", gold=crowd / "gold.csv")
    truth = dict(line.split(",") for line in (crowd / "gold.csv").read_text().splitlines()[1:])
    rows = [line.split(",") for line in (crowd / "labels.csv").read_text().splitlines()[1:]]
    cast = [(row[0], row[2]) for row in rows if row[1] == "w9" and row[0] in truth]
    (found,) = [row.gold_accuracy for row in report.workers if row.worker == "w9"]
    assert found.n == len(cast)
    assert found.mean == pytest.approx(np.mean([truth[item] == label for item, label in cast]))


def test_files_are_written_and_one_run_is_the_next_ones_history(crowd, tmp_path) -> None:
    first = aggregate_file(crowd / "labels.csv", gold=crowd / "gold.csv", method="dawid-skene", out=tmp_path / "out")
    assert {Path(path).name for path in first.written} == {
        f"{name}.{form}" for name in ("posteriors", "annotators", "confusion") for form in ("csv", "parquet")
    }
    table = pq.read_table(tmp_path / "out" / "posteriors.parquet")
    assert table.column_names == ["item", "label", "probability", "p_A", "p_B", "effective_votes", "n_votes", "is_gold"]
    rows = {row["item"]: row for row in table.to_pylist()}
    assert len(rows) == N_ITEMS
    assert all(row["p_A"] + row["p_B"] == pytest.approx(1) for row in rows.values())
    assert all(row["probability"] == row[f"p_{row['label']}"] for row in rows.values())
    assert rows["i50"]["is_gold"]
    assert rows["i50"]["probability"] == 1.0
    assert pacsv.read_csv(tmp_path / "out" / "posteriors.csv").num_rows == N_ITEMS
    counts = pq.read_table(tmp_path / "out" / "confusion.parquet").to_pylist()
    assert sum(row["n"] for row in counts) == pytest.approx(first.n_votes)
    # Ten items alone say little of w20; with the history of the whole file it is known well.
    few = (crowd / "labels.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join([few[0], *few[-60:]]))
    path = tmp_path / "few.csv"
    history = tmp_path / "out" / "confusion.csv"
    width = {}
    for name, past in (("without", None), ("with", history)):
        report = aggregate_file(path, history=past, method="dawid-skene")
        (width[name],) = [row.reliability.high - row.reliability.low for row in report.workers if row.worker == "w20"]
    assert width["with"] < width["without"] / 2


def test_without_order_seconds_or_gold_the_columns_are_there_and_empty(tmp_path) -> None:
    (tmp_path / "l.csv").write_text("item,worker,label\n1,a,x\n1,b,x\n2,a,y\n2,b,x\n")
    report = aggregate_file(tmp_path / "l.csv", method="majority", out=tmp_path / "out")
    assert report.workers[0].left_fraction is None
    table = pq.read_table(tmp_path / "out" / "annotators.parquet")
    assert table["left_bias"].to_pylist() == [None, None]
    assert "probability" not in pq.read_table(tmp_path / "out" / "confusion.parquet").column_names


def test_a_truth_that_nobody_said_is_a_miss_for_every_method(tmp_path) -> None:
    (tmp_path / "l.csv").write_text("item,worker,label\n1,a,x\n1,b,x\n2,a,y\n2,b,y\n")
    (tmp_path / "t.csv").write_text("item,truth\n1,z\n2,y\n")
    found = aggregate_file(tmp_path / "l.csv", truth=tmp_path / "t.csv", method="majority").accuracy
    assert found is not None
    assert (found.method.mean, found.majority.mean) == (0.5, 0.5)
    # As gold the same file adds the label.
    assert aggregate_file(tmp_path / "l.csv", gold=tmp_path / "t.csv").labels == ("x", "y", "z")


@pytest.mark.parametrize(
    ("option", "rows", "said"),
    [
        ("truth", "9,x", "None of the 1 items in the truth file was labelled"),
        ("gold", "9,x", "None of the 1 gold items was labelled"),
    ],
)
def test_answers_about_other_items_get_a_sentence(tmp_path, option, rows, said) -> None:
    (tmp_path / "l.csv").write_text("item,worker,label\n1,a,x\n1,b,y\n")
    (tmp_path / "t.csv").write_text(f"item,truth\n{rows}\n")
    with pytest.raises(BadInput, match=said):
        aggregate_file(tmp_path / "l.csv", **{option: tmp_path / "t.csv"})


def test_truth_that_is_all_gold_gets_a_sentence(crowd) -> None:
    with pytest.raises(BadInput, match="all of those are gold"):
        aggregate_file(crowd / "labels.csv", truth=crowd / "gold.csv", gold=crowd / "gold.csv")


def test_agreement_holds_every_measure_and_where_groups_differ(crowd) -> None:
    report = agreement_file(crowd / "labels.csv")
    assert (report.n_items, report.n_workers, report.n_votes) == (N_ITEMS, N_WORKERS, 6 * N_ITEMS)
    assert set(report.alpha) == {"nominal"}
    assert report.symmetrised is not None
    assert set(report.symmetrised) == {"ac1", "fleiss", "alpha"}
    assert report.cohen_kappa is not None
    assert report.cohen_kappa.mean.mean == pytest.approx(report.fleiss.mean, abs=0.05)
    assert {report.cohen_kappa.pairs[0].first[0], report.cohen_kappa.pairs[0].second[0]} == {"w"}
    assert report.groups is not None
    assert report.groups.agreement.gap.low > 0
    planted = [int(one.item[1:]) < 40 for one in report.groups.disputed]
    assert np.mean(planted) > 0.25  # of all items a tenth are
    assert set(report.groups.disputed[0].votes) == {"a", "b"}
    assert report == agreement_file(crowd / "labels.csv")


def test_levels_where_labels_are_numbers_and_no_frame_beyond_two(tmp_path) -> None:
    rows = ["item,worker,label", *(f"{i},{w},{(i + w) % 3 + 1}" for i in range(30) for w in range(3))]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    report = agreement_file(tmp_path / "l.csv")
    assert set(report.alpha) == {"nominal", "ordinal", "interval"}
    assert report.symmetrised is None
    assert report.groups is None


def test_one_vote_an_item_has_no_agreement(tmp_path) -> None:
    (tmp_path / "l.csv").write_text("item,worker,label\n1,a,x\n2,b,y\n")
    with pytest.raises(BadInput, match="at least two such items"):
        agreement_file(tmp_path / "l.csv")
    assert any("No item has two votes" in note for note in aggregate_file(tmp_path / "l.csv").read.notes)
