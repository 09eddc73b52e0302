from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from plaudit.artifacts import PreferenceRow, PromptRow, Snapshot, write_snapshot
from plaudit.loop.snapshots.card import bars, figures, known_gaps
from plaudit.loop.snapshots.diff import as_markdown, as_page, diff
from plaudit.loop.snapshots.pool import Candidate, Curation


def row(number: int, split: str = "train", chosen: str = "yes") -> PreferenceRow:
    messages = ({"role": "user", "content": f"q{number}"},)
    return PreferenceRow(f"prf_{number}", "c", "overall", "f", split, messages, chosen, "no", 0.9, 1.0, "annotation")


def snapshot(folder: Path, rows: list[PreferenceRow], seed: int = 0, **filters: int) -> Snapshot:
    prompts = [PromptRow("pmt_1", "f", "train", ({"role": "user", "content": "q"},))]
    return write_snapshot(folder, rows, [], prompts, {"seed": seed}, {"filters": filters})


def test_a_diff_counts_what_came_went_changed_and_moved(tmp_path: Path) -> None:
    before = snapshot(tmp_path, [row(0), row(1), row(2), row(3)], dup=3, gone=1)
    after = snapshot(tmp_path, [row(1, chosen="yes!"), row(2, "test"), row(3), row(4), row(5)], seed=1, dup=4, new=2)
    found = diff(before, after)
    table = found.tables["preferences"]
    assert (table.came, table.went, table.changed, table.moved) == (2, 1, 1, 1)
    assert table.examples == {"came": ["prf_4", "prf_5"], "went": ["prf_0"], "changed": ["prf_1"], "moved": ["prf_2"]}
    assert table.by_split == {"test": (0, 1), "train": (4, 4)}
    prompts = found.tables["prompts"]
    assert (prompts.came, prompts.went, prompts.changed, prompts.moved) == (0, 0, 0, 0)
    assert found.config == {"seed": (0, 1)}
    assert found.filters == {"dup": (3, 4), "gone": (1, 0), "new": (0, 2)}
    assert "thumbs" not in found.tables
    assert not found.equal
    said = as_markdown(found)
    assert "| came | 2 |" in said
    assert "seed: 0 before, 1 after" in said
    assert as_page(found).count("<svg") == 3


def test_a_snapshot_does_not_differ_from_itself(tmp_path: Path) -> None:
    one = snapshot(tmp_path, [row(0)])
    found = diff(one, one)
    assert found.equal
    assert (found.config, found.filters) == ({}, {})
    assert all(t.came == t.went == t.changed == t.moved == 0 for t in found.tables.values())


def candidate(**facts: object) -> Candidate:
    one = Candidate(id="a", family="f", source="annotation", method="annotation/x", weight=1.0, probability=0.83)
    for name, value in {"table": "preferences", "split": "train", "n_chars": 400, "actor": "ada", **facts}.items():
        setattr(one, name, value)
    return one


def test_figures_of_a_card() -> None:
    shown = figures(
        [
            candidate(),
            candidate(actor=None, slice="de", family="g"),
            candidate(table="prompts", n_chars=0, method="", source="", split="test"),
        ]
    )
    assert shown["sources"] == {"preferences: annotation/x": 2, "prompts: sent by users": 1}
    assert shown["chars"] == {"256 to 511 characters": 2}
    assert shown["probability"] == {"0.80 to 0.85": 2}
    assert shown["families"] == {"test": 1, "train": 2}
    assert shown["users"] == {"distinct users": 1, "rows of the busiest": 2}
    assert shown["slices"] == {"(none named)": 2, "de": 1}


def test_a_gap_is_named_only_where_it_is() -> None:
    body = {
        "lineage": {"guideline_versions": []},
        "by_split": {"preferences": {"train": 3, "valid": 0, "test": 0}},
        "found": {},
    }
    users = {"users": {"distinct users": 1, "rows of the busiest": 3}}
    bare = known_gaps(body, {"curation": Curation().to_json()}, users)
    assert len(bare) == 7
    full = Curation(near_duplicates=0.8, personal_data={"email": "drop"}, stratify_by="x", evaluation_fraction=0.1)
    body = {
        "lineage": {"guideline_versions": [1]},
        "by_split": {"preferences": {"train": 3, "valid": 1, "test": 0}},
        "found": {"contradictions": 2},
    }
    users = {"users": {"distinct users": 40, "rows of the busiest": 2}}
    (left,) = known_gaps(body, {"curation": full.to_json()}, users)
    assert "opposite" in left
    assert known_gaps(body, {"curation": replace(full, contradictions="drop").to_json()}, users) == []


def test_bars_are_one_picture_with_every_name_and_number() -> None:
    tree = ElementTree.fromstring(bars("a & b", [("<x>", 4), ("y", 2), ("z", 0)]))
    texts = [one.text for one in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["<x>", "4", "y", "2", "z", "0"]
    widths = [float(one.attrib["width"]) for one in tree.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths == pytest.approx([320, 160, 0])
