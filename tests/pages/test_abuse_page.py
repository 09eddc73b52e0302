"""Abuse as a page: signals with counts, who is held, and both buttons, over HTTP as forms without JavaScript."""

from __future__ import annotations

from datetime import timedelta

from plaudit.domain import DEFAULT_PROJECT, AuditEntry, Feedback, Quarantine, utc_now
from plaudit.loop import collect
from plaudit.stats.abuse import BURST_ACTS

SURE = {"sure": "yes", "reason": "Nobody reads that fast."}


def trolled(console) -> list[str]:
    """Interactions of a user who said more about them within seconds than anybody reads."""
    now, ids = utc_now(), []
    for number in range(BURST_ACTS + 1):
        body = {"messages": [{"role": "user", "content": f"q {number}"}], "responses": ["a"], "user": "<troll>"}
        ids.append(collect.log_interaction(console.store, DEFAULT_PROJECT, body, now - timedelta(hours=4)).id)
        said = {"interaction_id": ids[-1], "kind": "thumb", "value": False, "user": "<troll>"}
        at = now - timedelta(hours=3) + timedelta(seconds=2 * number)
        collect.record_feedback(console.store, DEFAULT_PROJECT, said, None, at)
    return ids


def test_suspects_are_held_and_given_back_with_a_reason(console) -> None:
    asked = trolled(console)
    leo, otto = console.person("Leo", "lead"), console.person("Otto", "operator")
    assert (leo.get("/abuse").status_code, leo.post("/abuse", SURE | {"user": "x"}).status_code) == (403, 403)
    assert "Nothing in the last 1 hours" in otto.get("/abuse?hours=1").text
    assert otto.get("/abuse?hours=2").status_code == 422
    counts = otto.get("/abuse?as=json").json()["signals"]
    assert [(row["signal"], row["n_suspects"], row["n_acts"]) for row in counts] == [
        ("burst", 1, BURST_ACTS + 1),
        ("clicks", 0, 0),
        ("repeats", 0, 0),
        ("brigade", 0, 0),
    ]
    (suspect,) = otto.get("/abuse?as=json&table=suspects").json()["suspects"]
    assert (suspect["actor"], suspect["interaction_id"], suspect["n"]) == ("<troll>", None, BURST_ACTS + 1)
    text = otto.get("/abuse").text
    assert '<option value="user:&lt;troll&gt;">user &lt;troll&gt; (burst)</option>' in text
    assert "Give back" not in text

    for form in (
        {"reason": "x", "user": "x"},
        {"sure": "yes", "user": "x"},
        SURE,
        SURE | {"suspect": "user:<troll>", "user": "x"},
        SURE | {"suspect": "everybody"},
    ):
        assert otto.post("/abuse", form).status_code == 422, form
    held = otto.post("/abuse", SURE | {"suspect": "user:<troll>"})
    assert (held.status_code, held.headers["location"]) == (303, "/abuse#quarantines-title")
    assert otto.post("/abuse", SURE | {"user": "<troll>"}).status_code == 409
    (row,) = otto.get("/abuse?as=json&table=quarantines").json()["quarantines"]
    assert (row["actor"], row["state"], row["n_feedback"], row["by"]) == ("<troll>", "held", BURST_ACTS + 1, "Otto")
    assert otto.get("/abuse?as=json").json()["signals"] == []
    assert {one.quarantine_id for one in console.store.find(Feedback)} == {row["id"]}

    eve = console.person("Eve", "admin", project_id=console.project("prj_other"))
    assert "troll" not in eve.get("/abuse").text
    for who in (eve, otto):
        assert who.post("/abuse/lift", {"quarantine": row["id"], "reason": "x"}).status_code == 422  # the box
    assert leo.post("/abuse/lift", SURE | {"quarantine": row["id"]}).status_code == 403
    assert eve.post("/abuse/lift", SURE | {"quarantine": row["id"]}).status_code == 404
    assert otto.post("/abuse/lift", SURE | {"quarantine": row["id"]}).status_code == 303
    (lifted,) = otto.get("/abuse?as=json&table=quarantines").json()["quarantines"]
    assert (lifted["state"], lifted["n_feedback"], lifted["lifted_at"] is None) == ("lifted", BURST_ACTS + 1, False)
    assert {one.quarantine_id for one in console.store.find(Feedback)} == {None}
    entries = [one for one in console.store.find(AuditEntry, order="seq") if one.object_id == row["id"]]
    assert [(one.actor, one.role, one.action, one.after["reason"]) for one in entries] == [
        ("Otto", "operator", "quarantine.add", SURE["reason"]),
        ("Otto", "operator", "quarantine.lift", SURE["reason"]),
    ]
    assert otto.post("/abuse", SURE | {"interaction": f" {asked[0]} "}).status_code == 303
    assert console.store.first(Quarantine).interaction_id == asked[0]
    assert otto.post("/abuse", SURE | {"interaction": "int_0"}).status_code == 404
