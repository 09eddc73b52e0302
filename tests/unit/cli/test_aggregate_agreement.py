from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from plaudit.cli import main as cli
from plaudit.cli.main import plaudit

ROWS = [
    "item,worker,label,position,seconds,group",
    *(
        f"{i},{w},{'xy'[(i + (w == 3)) % 2]},{'left' if i % 2 else 'right'},{w},{'ab'[w % 2]}"
        for i in range(30)
        for w in range(4)
    ),
    "7,,x,left,1,a",
]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "labels.csv").write_text("\n".join(ROWS))
    (tmp_path / "truth.csv").write_text("\n".join(["item,truth", *(f"{i},{'xy'[i % 2]}" for i in range(30))]))
    return tmp_path


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(plaudit, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_aggregate_says_what_it_did(folder) -> None:
    said = run("aggregate", folder / "labels.csv", "--truth", folder / "truth.csv", "--out", folder / "out")
    assert "method: dawid-skene (default: 0 gold items are fewer than 20)" in said
    assert "accuracy on 30 items: dawid-skene 1.000" in said
    assert "majority 1.000" in said
    assert "labels.csv, line 122: worker is empty" in said
    assert "chose the first" in said
    assert str(folder / "out" / "posteriors.parquet") in said


def test_aggregate_json_is_one_object(folder) -> None:
    report = json.loads(run("aggregate", folder / "labels.csv", "--method", "majority", "--json"))
    assert (report["method"], report["n_votes"], report["read"]["n_rejected"]) == ("majority", 120, 1)
    assert report["accuracy"] is None
    assert report["workers"][0]["worker"] == "3"
    assert set(report["workers"][0]["reliability"]) == {"mean", "low", "high", "n"}


def test_agreement_shows_every_measure_with_its_interval(folder) -> None:
    said = run("agreement", folder / "labels.csv")
    for measure in (
        "raw agreement",
        "Gwet's AC1",
        "Fleiss' kappa",
        "alpha, nominal",
        "mean of pairs",
        "symmetrised frame",
    ):
        assert measure in said
    assert "groups a, b: agreement within" in said
    assert "1 rows were rejected" in said
    report = json.loads(run("agreement", folder / "labels.csv", "--json"))
    # Worker 3 contradicts three who are of one mind: 3 of 6 pairs of votes agree on every item.
    assert report["raw"]["mean"] == 0.5
    assert report["cohen_kappa"]["n_pairs"] == 6


@pytest.mark.parametrize("command", ["aggregate", "agreement"])
def test_a_file_that_holds_nothing_is_one_sentence(tmp_path, capsys, command) -> None:
    (tmp_path / "labels.csv").write_text("")
    with pytest.raises(SystemExit) as ended:
        cli.main([command, str(tmp_path / "labels.csv")])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "plaudit: labels.csv is empty; give at least a header and one row.\n"
