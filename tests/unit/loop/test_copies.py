"""Where copies of Snapshots are written down; what an erasure does by it is tested with it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from plaudit.loop import copies

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_a_copy_is_found_from_anywhere_and_each_place_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = Path("snapshots")
    (home / "snp").mkdir(parents=True)
    copies.of_file(home / "snp", "one", Path("out.jsonl"), NOW)
    copies.of_file(home / "snp", "two", Path("out.jsonl"), NOW)
    copies.of_folder(home / "snp", "one", "memory://there", NOW)
    assert [(one.snapshot, one.place, one.whole) for one in copies.remembered(tmp_path / "snapshots")] == [
        ("two", str(tmp_path / "out.jsonl"), False),
        ("one", "memory://there", True),
    ]


def test_a_snapshot_that_lies_where_nothing_can_be_written_is_no_homes(tmp_path: Path) -> None:
    copies.of_file(tmp_path / "gone" / "snp", "one", tmp_path / "out.jsonl", NOW)
    assert list(tmp_path.iterdir()) == []
    assert copies.remembered(tmp_path / "gone") == []
