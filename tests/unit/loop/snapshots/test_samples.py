from __future__ import annotations

from pathlib import Path

import pytest

from plaudit import artifacts
from plaudit.artifacts import PreferenceRow, Snapshot, write_snapshot
from plaudit.errors import Corrupt, NotFound
from plaudit.loop.snapshots import samples


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    """Twenty-five rows in groups of ten."""
    monkeypatch.setattr(artifacts, "ROWS_PER_GROUP", 10)
    rows = [
        PreferenceRow(
            f"prf_{n:02}",
            f"cmp_{n}",
            "overall",
            "f",
            "train",
            ({"role": "user", "content": f"q{n}"},),
            f"good {n}",
            "bad",
            0.8,
            1.0,
            "annotation",
        )
        for n in range(25)
    ]
    return write_snapshot(tmp_path, rows, [], [], {}, {})


def test_samples_are_drawn_by_their_seed_from_every_group(frozen: Snapshot) -> None:
    drawn = samples.sample(frozen.folder, "preferences", 5, 3)
    assert drawn == samples.sample(frozen.folder, "preferences", 5, 3)
    assert len({one["preference_id"] for one in drawn}) == 5
    assert drawn != samples.sample(frozen.folder, "preferences", 5, 4)
    often = [
        one["preference_id"] for seed in range(40) for one in samples.sample(frozen.folder, "preferences", 5, seed)
    ]
    assert len(set(often)) == 25  # none is out of reach; one draw in 7,500 misses a row
    everything = samples.sample(frozen.folder, "preferences", 99, 0)
    known = {row.preference_id: row for row in frozen.preferences()}
    assert sorted(one["preference_id"] for one in everything) == sorted(known)
    assert all(one["messages"] == list(known[one["preference_id"]].messages) for one in everything)
    assert samples.sample(frozen.folder, "thumbs", 5, 0) == []


def test_a_row_is_found_in_the_last_group_too(frozen: Snapshot) -> None:
    for row in frozen.preferences():
        assert samples.row(frozen.folder, "preferences", row.preference_id)["chosen"] == row.chosen
    with pytest.raises(NotFound, match="no row 'prf_99'"):
        samples.row(frozen.folder, "preferences", "prf_99")
    with pytest.raises(NotFound, match="no table of rows"):
        samples.row(frozen.folder, "../manifest", "x")


def test_a_changed_byte_is_refused_with_its_file_named(frozen: Snapshot) -> None:
    file = frozen.folder / "preferences.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(Corrupt, match=r"preferences\.parquet is not what was frozen"):
        samples.sample(frozen.folder, "preferences", 1, 0)
