"""outcomes, interactions, erase, quarantine, webhook and key rotate, as a person types them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from plaudit.cli.main import plaudit
from plaudit.domain import DEFAULT_PROJECT, Feedback, Interaction, SnapshotRecord
from plaudit.errors import Refused
from plaudit.store.database import open_store


def run(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(plaudit, [*arguments, "--home", str(home)])


def said(home: Path, *arguments: str) -> Any:
    return json.loads(run(home, *arguments, "--json").output.splitlines()[-1])


def test_a_log_comes_in_its_abuse_is_held_and_a_user_goes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    file = tmp_path / "log.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}], "responses": ["a"], "user": "bot", "feedback": [{"kind": "thumb", "value": True}]}
        for n in range(11)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[]\n")
    done = run(home, "interactions", "import", str(file))
    assert done.exit_code == 1
    assert "11 interactions recorded, 0 were there, 11 feedback recorded, 1 turned away" in done.output
    assert "line 12" in done.output
    again = said(home, "interactions", "import", str(file))
    assert (again["n_recorded"], again["n_replayed"], again["n_feedback"]) == (0, 11, 0)

    assert {one["signal"] for one in said(home, "quarantine", "suspects")["suspects"]} == {"burst", "clicks"}
    (held,) = said(home, "quarantine", "suspects", "--hold")["held"]
    assert "bot" in run(home, "quarantine", "list").output
    assert said(home, "quarantine", "suspects")["suspects"] == []
    assert "11 count again" in run(home, "quarantine", "lift", held).output
    assert said(home, "quarantine", "list")["quarantines"] == []
    added = said(home, "quarantine", "add", "--actor", "bot", "--reason", "a test")
    assert added["n_feedback"] == 11

    erased = said(home, "erase", "bot", "--purge")
    assert (erased["erased"]["interactions"], erased["compacted"]) == (11, True)
    store = open_store(f"sqlite:///{home / 'store.sqlite'}")
    assert (
        {one.actor for one in store.find(Interaction)} == {one.actor for one in store.find(Feedback)} == {erased["id"]}
    )
    store.close()
    assert b'"q1"' not in (home / "store.sqlite").read_bytes()


def test_outcomes_webhooks_and_keys(tmp_path: Path) -> None:
    home = tmp_path / "home"
    file = tmp_path / "paid.csv"
    file.write_text("user,name,value,at\nada,paid,3,2026-03-01T10:00:00Z\nada,paid,x,2026-03-01T10:00:00Z\n")
    done = run(home, "outcomes", "import", str(file))
    assert done.exit_code == 1
    assert "1 recorded, 0 were there, 1 turned away" in done.output
    assert "line 3: value is" in done.output

    made = said(home, "webhook", "add", "http://127.0.0.1:1/in", "--event", "feedback")
    assert made["events"] == ["feedback"]
    listed = run(home, "webhook", "list", "--json").output
    assert made["secret"] not in listed
    assert [one["id"] for one in json.loads(listed)["webhooks"]] == [made["id"]]
    assert run(home, "webhook", "remove", made["id"]).exit_code == 0
    assert "Nobody is told" in run(home, "webhook", "list").output

    assert run(home, "key", "rotate").exit_code == 0
    assert len(json.loads((home / "keys" / "feedback.json").read_text())) == 2


def test_nothing_is_trained_on_a_tainted_snapshot(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    store = open_store(f"sqlite:///{home / 'store.sqlite'}")
    now = datetime(2026, 3, 1, tzinfo=UTC)
    tainted = SnapshotRecord(
        id="snp_1", project_id=DEFAULT_PROJECT, folder="x", sha256="x", counts={}, lineage={}, tainted_at=now, created_at=now
    )  # fmt: skip
    store.add(tainted)
    store.close()
    refused = run(home, "train", "sft")
    assert isinstance(refused.exception, Refused)
    assert "snp_1 holds what was erased on 2026-03-01" in str(refused.exception)
