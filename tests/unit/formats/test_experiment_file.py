"""Files in every form, bad rows by line, and the report that docs/experiments.md describes."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plaudit.errors import BadInput, NotFound
from plaudit.formats import experiment_file
from plaudit.stats.looks import Metric, Plan, Rows, Totals

HEAD = "user,arm,at,stage,assignment_probability,down,rating,pre_rating"
LINES = [
    "u1,old,2026-01-01T00:00:00Z,first,0.25,0,4.5,3",
    "u2,new,2026-01-01T02:00:00+01:00,first,0.25,1,,",
    "u1,old,1767229200,second,0.5,true,2,3",
    "u3,new,2026-01-02,second,0.5,0,nan,1.5",
]


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def check(read: experiment_file.ExperimentFile) -> None:
    data = read.data
    assert isinstance(data, Rows)
    start = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert (data.at - start).tolist() == [0, 3600, 3600, 86400]
    assert data.user.tolist() == [0, 1, 0, 2]
    assert data.in_candidate.tolist() == [False, True, False, True]
    assert [read.stages[i] for i in data.stage] == ["first", "first", "second", "second"]
    assert data.probability.tolist() == [0.25, 0.25, 0.5, 0.5]
    assert data.values["down"].tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(data.values["rating"], [4.5, np.nan, 2, np.nan])
    np.testing.assert_array_equal(data.before["rating"], [3, np.nan, 3, 1.5])
    assert set(data.before) == {"rating"}
    assert (read.control, read.candidate, read.n_rows, read.rejected) == ("old", "new", 4, ())


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "semicolons.csv", "bom.csv", "crlf.csv"])
def test_separated_values(tmp_path: Path, name: str) -> None:
    text = "\n".join([HEAD, *LINES]) + "\n"
    text = text.replace(",", "\t" if name == "a.tsv" else ";" if name == "semicolons.csv" else ",")
    text = "\ufeff" + text if name == "bom.csv" else text.replace("\n", "\r\n") if name == "crlf.csv" else text
    check(experiment_file.read(write(tmp_path / name, text), "old", ["down", "rating"]))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_records(tmp_path: Path, name: str) -> None:
    records = []
    for line in LINES:
        user, arm, at, stage, probability, down, rating, before = line.split(",")
        record = {"user": user, "arm": arm, "at": at, "stage": stage, "assignment_probability": float(probability)}
        record["down"] = {"0": 0.0, "1": 1.0, "true": 1.0}[down]
        records.append(record | {"rating": float(rating or "nan"), "pre_rating": float(before or "nan")})
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        plain = [
            {key: value for key, value in record.items() if value == value} for record in records
        ]  # JSON has no NaN
        write(path, json.dumps(plain) if name == "a.json" else "\n".join(map(json.dumps, plain)))
    check(experiment_file.read(path, "old", ["down", "rating"]))


def test_rows_are_put_in_order_of_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,arm,at,x\nlate,a,30,1\nearly,b,10,2\nmiddle,a,20,3\n")
    data = experiment_file.read(path, "a", ["x"], share=0.2).data
    assert isinstance(data, Rows)
    assert data.values["x"].tolist() == [2, 3, 1]
    assert data.in_candidate.tolist() == [True, False, False]
    assert data.probability.tolist() == [0.2] * 3


BAD = {
    "u9,old,yesterday,,,1": "at is 'yesterday'; give an ISO 8601 time or seconds since 1970",
    "u9,old,1767225600000,,,1": "at is 1767225600000; give seconds since 1970, not milliseconds",
    "u9,old,,,,1": "at is empty",
    ",old,1,,,1": "user is empty",
    "u9,,1,,,1": "arm is empty",
    "u9,old,1,,1.5,1": "assignment_probability is 1.5; it must lie between 0 and 1, both excluded",
    "u9,old,1,,,many": "x is 'many', which is no number",
    "u9,old,1,,,inf": "x is 'inf', which is not finite",
    "u9,old,1": "it has 3 columns and the head 6",
    "u9,old,1,,,1,7": "it has 7 columns and the head 6",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_row_is_left_out_with_its_line_and_reason(tmp_path: Path, line: str) -> None:
    text = f"user,arm,at,stage,assignment_probability,x\nu1,old,1,,,1\n\n{line}\nu2,new,2,,,2\n"
    read = experiment_file.read(write(tmp_path / "a.csv", text), "old", ["x"])
    assert [(one.line, one.reason) for one in read.rejected] == [(4, BAD[line])]
    assert read.n_rows == 2


def test_bytes_that_are_no_text_cost_their_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"user,arm,at,x\nu1,old,1,1\nu\xff,old,2,2\nu\x003,old,3,3\nu4,new,4,4\n")
    read = experiment_file.read(path, "old", ["x"])
    assert [(one.line, one.reason) for one in read.rejected] == [(3, "it is not UTF-8"), (4, "it is not UTF-8")]
    lines = tmp_path / "a.jsonl"
    odd = [{"user": 3, "arm": "old", "at": 1, "x": 10**400}, {"user": [], "arm": "old", "at": {}, "x": 1}]
    good = [{"user": i, "arm": arm, "at": 1, "x": 1} for i, arm in enumerate(("old", "new"))]
    texts = [json.dumps(good[0]), "{broken", "[1]", *map(json.dumps, odd), json.dumps(good[1])]
    lines.write_text("\n".join(texts))
    read = experiment_file.read(lines, "old", ["x"])
    assert sorted(one.line for one in read.rejected) == [2, 3, 4, 5]
    assert read.n_rows == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no row"),
        ("user,arm,at,x\n", "has no row"),
        ("user,arm,at,x\nu1,old,never,1\n", "no usable row"),
        ("user,arm,x\nu1,old,1\n", "no column 'at'"),
        ("user,arm,at,y\nu1,old,1,1\nu2,new,1,1\n", "no metric 'x'"),
        ("user,arm,at,x\nu1,a,1,1\nu2,b,1,1\n", "Control 'old' is no arm in .*; its arms are a, b"),
        ("user,arm,at,x\nu1,old,1,1\n", "one arm"),
        ("user,arm,at,x\nu1,old,1,1\nu2,b,1,1\nu3,c,1,1\n", r"3 arms \(b, c, old\)"),
        ("user,arm,at,x,x\nu1,old,1,1,1\n", "'x' twice"),
    ],
)
def test_files_that_cannot_be_analysed_say_why(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        experiment_file.read(write(tmp_path / "a.csv", text), "old", ["x"])


def test_files_that_are_none(tmp_path: Path) -> None:
    for name in ("none.csv", "none.jsonl", "none.parquet"):
        with pytest.raises(NotFound, match="does not exist"):
            experiment_file.read(tmp_path / name, "old", ["x"])
    with pytest.raises(BadInput, match="Parquet"):
        experiment_file.read(write(tmp_path / "a.parquet", "user,arm,at"), "old", ["x"])
    with pytest.raises(BadInput, match="share is 1"):
        experiment_file.read(tmp_path / "none.csv", "old", ["x"], share=1.0)


def test_totals(tmp_path: Path) -> None:
    text = (
        "at,arm,n,mean,variance\n1,old,10,2.5,1\n1,new,12,3,2\n2,old,ten,1,1\n2,old,4.5,1,1\n2,old,5,1,-1\n2,old,5,,1\n"
    )
    read = experiment_file.read(write(tmp_path / "a.csv", text), "old", ["x"], cumulative=True)
    assert isinstance(read.data, Totals)
    assert (read.data.n.tolist(), read.data.mean.tolist(), read.data.cumulative) == ([10, 12], [2.5, 3.0], True)
    assert read.data.metric == ["x", "x"]
    assert [one.line for one in read.rejected] == [4, 5, 6, 7]
    with pytest.raises(BadInput, match="tells of one metric"):
        experiment_file.read(tmp_path / "a.csv", "old", ["x", "y"])
    named = "metric," + text.splitlines()[0] + "\nx,1,old,10,2.5,1\ny,1,new,12,3,2\n"
    two = experiment_file.read(write(tmp_path / "b.csv", named), "old", ["x", "y"]).data
    assert isinstance(two, Totals)
    assert two.metric == ["x", "y"]
    with pytest.raises(BadInput, match="--cumulative is for rows"):
        experiment_file.read(write(tmp_path / "c.csv", "user,arm,at,x\nu,old,1,1\n"), "old", ["x"], cumulative=True)


def experiment(tmp_path: Path, n: int = 900) -> experiment_file.ExperimentFile:
    rng = np.random.default_rng(7)
    lines = ["user,arm,at,down,size,rating"]
    for i in range(n):
        arm = "new" if i % 2 else "old"
        lines.append(f"u{i},{arm},{i * 1000},{int(rng.random() < 0.1)},3,{rng.normal() + 0.7 * (i % 2):.3f}")
    return experiment_file.read(write(tmp_path / "a.csv", "\n".join([*lines, "x,old,never,1,1,1"])), "old", METRICS)


METRICS = ["down", "size", "rating"]
WANTED = [Metric("down", "guardrail", "down"), Metric("size", "monitor", "up"), Metric("rating", "goal", "up")]


def test_the_report_ends_with_the_first_look_that_is_not_a_hold(tmp_path: Path) -> None:
    found = experiment_file.report(experiment(tmp_path), WANTED, Plan(), 9)
    verdicts = [look["verdict"] for look in found["looks"]]
    assert found["decision"] == {"verdict": "promote", "look": verdicts.index("promote") + 1, "of": 9}
    assert verdicts[0] == "hold"
    assert found["looks"][0]["at"] == "1970-01-02T03:30:00+00:00"
    assert found["notes"] == ["size is one value for everybody: nothing can be compared"]
    assert (found["n_rejected"], found["rejected"][0]["line"]) == (1, 902)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    days = experiment_file.report(experiment(tmp_path), WANTED, Plan(min_users=50), "day")
    assert len(days["looks"]) == 11
    assert "below 200 users" in days["notes"][1]


def test_unequal_arms_are_noted(tmp_path: Path) -> None:
    lines = ["at,arm,n,mean,variance", *(f"{t},old,900,0.1,0.5\n{t},new,300,0.3,0.5" for t in (1, 2, 3))]
    path = write(tmp_path / "a.csv", "\n".join(lines))
    read = experiment_file.read(path, "old", ["x"], share=0.25)
    found = experiment_file.report(read, [Metric("x", "goal", "up")], Plan(), None)
    assert len(found["looks"]) == 3
    assert "not of equal size" in found["notes"][0]
    assert [
        look["number"] for look in experiment_file.report(read, [Metric("x", "goal", "up")], Plan(), 2)["looks"]
    ] == [1, 2]


def test_the_json_is_what_the_page_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "experiments.md").read_text()

    def keys(heading: str) -> list[str]:
        part = page.partition(heading)[2].partition("\n#")[0]
        return [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")]

    found = experiment_file.report(experiment(tmp_path), WANTED, Plan(), 3)
    assert keys("## The JSON") == list(found)
    assert keys("### A look") == list(found["looks"][0])
    assert keys("### A metric") == list(found["looks"][0]["metrics"][0])
    assert all(f"`{name}`" in page for name in asdict(Plan()))
