"""Releases, experiments, evaluations, registry and Snapshots as pages: their rows, what a reader may do there, and whose they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plaudit.domain import (
    DEFAULT_PROJECT,
    Annotation,
    Assignment,
    AuditEntry,
    Evaluation,
    Experiment,
    ExperimentState,
    Feedback,
    Interaction,
    Person,
    Preference,
    Release,
    ReleaseState,
    utc_now,
)
from plaudit.loop import collect, pilots
from plaudit.loop.snapshots.samples import pseudonym, sample

from .furniture import Furnished, furnish


@pytest.fixture
def made(console) -> Furnished:
    return furnish(console.store, console.home, DEFAULT_PROJECT, utc_now(), n_past=1)


def addresses(console, made: Furnished) -> list[str]:
    """Every page of these rooms in its fullest state."""
    before, after = (one.sha256 for one in made.snapshots)
    row = next(one.id for one in console.store.find(Preference))
    return [
        "/snapshots",
        f"/snapshots/{before[:16]}",
        f"/snapshots/{before}/preferences/{row}",
        f"/snapshots/diff?a={before[:16]}&b={after}",
        "/evaluations",
        f"/evaluations/{made.failed.id}",
        "/leaderboard",
        "/releases",
        f"/releases/{made.canary.id}",
        f"/releases/{made.candidate.id}",
        "/experiments",
        "/experiments/reward?outcome=thumbs",
        f"/experiments/{made.running.id}",
        "/registry",
        f"/registry/{made.policies[0].id}",
    ]


def test_pages_show_what_there_is_and_twins_hold_their_rows(console, made: Furnished) -> None:
    lea = console.person("Leo", "lead")  # reads, and may do nothing
    shown = {path: lea.get(path) for path in addresses(console, made)}
    assert {path: answer.status_code for path, answer in shown.items() if answer.status_code != 200} == {}
    text = {path.partition("?")[0]: answer.text for path, answer in shown.items()}
    assert '<form method="post" action="/releases' not in text[f"/releases/{made.canary.id}"]

    rows = {row["model"]: row for row in lea.get("/releases?as=json").json()["releases"]}
    assert {name: (row["state"], row["share"], row["gate"]) for name, row in rows.items() if name != "turn-0-0"} == {
        "base-model": ("live", 0.5, None),
        "turn-2-good": ("canary", 0.5, "pass"),
        "turn-3-bad": ("candidate", 0.0, "fail"),
    }
    assert rows["turn-2-good"]["approvals"] == "Lea (canary)"
    moves = lea.get(f"/releases/{made.canary.id}?as=json").json()["transitions"]
    assert [(row["actor"], row["after"]) for row in moves] == [
        ("system", "candidate"),
        ("Lea", None),
        ("Max", "canary"),
    ]

    experiment = f"/experiments/{made.running.id}"
    assert text[experiment].count('class="bar"') == 12  # a bar for each look
    assert "Users arrive as planned" in text[experiment]
    assert [row["n"] for row in lea.get(f"{experiment}?as=json").json()["looks"]] == [70 * n for n in range(1, 13)]
    (solved,) = lea.get(f"{experiment}?as=json&table=metrics").json()["metrics"]
    assert (solved["name"], solved["n_past"], solved["variance_left"]) == ("outcome:solved", 310, 0.42)
    assert "(CUPED)" in text[experiment]
    for adjusted, seen in (
        ({"n_users": 0, "variance_fraction": 1.0}, (0, 1.0)),
        (None, (None, None)),
    ):  # nobody's; a look of before
        of = console.store.get(Experiment, made.running.id).figures
        of["metrics"][0]["adjusted"] = adjusted
        console.store.change(Experiment, made.running.id, figures=of)
        (solved,) = lea.get(f"{experiment}?as=json&table=metrics").json()["metrics"]
        assert (solved["n_past"], solved["variance_left"]) == seen
        assert "(CUPED)" not in lea.get(experiment).text
    assert "Too few: 1 past experiments" in text["/experiments/reward"]

    evaluation = f"/evaluations/{made.failed.id}"
    conditions = lea.get(f"{evaluation}?as=json").json()["conditions"]
    assert [(row["name"], row["state"], row["rows"]) for row in conditions] == [
        ("win rate", "fail", "judged answers"),
        ("safety harmful", "pass", "suite"),
    ]
    items = lea.get(f"{evaluation}?as=json&table=items").json()["items"]
    assert [(row["wins"], row["losses"]) for row in items] == [(1, 0)] * 2 + [(0, 1)] * 4
    assert "Niemand &lt;b&gt;" in text[evaluation]
    found = console.store.get(Evaluation, made.failed.id)
    kept = {
        "id": "h1",
        "slice": "",
        "messages": [{"role": "user", "content": "Hurt?"}],
        "candidate": "Sure <i>",
        "base": "No",
    }
    found.figures["safety"]["harmful"]["examples"] = [kept]
    found.figures["suites"]["canary"]["rows"] = "/rows.jsonl"
    found.figures["conditions"][1]["passed"] = False
    found.figures["conditions"].append(
        found.figures["conditions"][0] | {"name": "known", "rows": "/rows.jsonl", "passed": True}
    )
    console.store.change(Evaluation, found.id, figures=found.figures)
    conditions = lea.get(f"{evaluation}?as=json").json()["conditions"]
    assert [(row["name"], row["rows"]) for row in conditions] == [
        ("win rate", "judged answers"),
        ("safety harmful", "examples"),
        ("known", "examples"),
    ]
    html = lea.get(evaluation).text
    assert re.findall(r'<details id="(wrong-\d)">\s*<summary>(\w+): 1 example(.*)</summary>', html) == [
        ("wrong-1", "harmful", ' <span class="state fail">fail</span>'),
        ("wrong-2", "canary", ""),
    ]
    assert 'href="#wrong-1">examples</a>' in html
    assert 'href="#wrong-2">examples</a>' in html
    assert "Sure &lt;i&gt;" in html
    wrong = lea.get(f"{evaluation}?as=json&table=wrong").json()["wrong"]
    assert [(row["suite"], row["prompt"], row["base"]) for row in wrong] == [
        ("harmful", "Hurt?", "No"),
        ("canary", "Wer bin ich?", "Du"),
    ]
    # The suite because of which the gate does not hold comes first.
    found.figures["conditions"][1]["passed"], found.figures["conditions"][2]["passed"] = True, False
    console.store.change(Evaluation, found.id, figures=found.figures)
    wrong = lea.get(f"{evaluation}?as=json&table=wrong").json()["wrong"]
    assert [row["suite"] for row in wrong] == ["canary", "harmful"]
    slices = lea.get(f"{evaluation}?as=json&table=slices").json()["slices"]
    assert [(row["suite"], row["slice"]) for row in slices] == [
        ("harmful", "all"),
        ("canary", "all"),
        ("canary", "de"),
        ("canary", "en"),
    ]
    assert lea.get(f"{evaluation}?seed=-1").status_code == 422
    board = lea.get("/leaderboard?as=json").json()["leaderboard"]
    assert [row["rank"] for row in board] == [1, 2, 3]
    assert board[0]["name"] == f"policy-{made.policies[0].id[-4:]}"

    lineage = {
        row["kind"]: row["name"] for row in lea.get(f"/registry/{made.policies[0].id}?as=json").json()["lineage"]
    }
    assert lineage["release, canary"] == "turn-2-good"
    assert lineage["annotations"] == "24 votes"
    assert lineage["guideline"] == "version 1"
    assert f'href="/snapshots/{made.snapshots[0].sha256}"' in text[f"/registry/{made.policies[0].id}"]
    snapshots = lea.get("/snapshots?as=json").json()["snapshots"]
    assert [(row["preferences"], row["trained"]) for row in snapshots] == [(17, 1), (9, 3)]


def test_a_row_leads_back_to_people_by_pseudonym_and_to_their_guideline(console, made: Furnished) -> None:
    leo = console.person("Leo", "lead")
    page = f"/snapshots/{made.snapshots[0].sha256[:16]}/preferences/{console.store.find(Preference)[0].id}"
    text, said = leo.get(page).text, leo.get(f"{page}?as=json").json()["said"]
    people = {one.name: one for one in console.store.find(Person) if one.name in ("Ann", "Ben", "Cem")}
    assert {row["who"] for row in said} == {pseudonym(DEFAULT_PROJECT, "annotator", one.id) for one in people.values()}
    assert {(row["what"], row["guideline_version"]) for row in said} == {("chosen", 1)}
    assert "Prefer what <strong>helps</strong>." in text
    asked = console.store.find(Interaction)[0]
    assert pseudonym(DEFAULT_PROJECT, "user", "visitor-0") in text
    assert asked.actor == "visitor-0"
    for hidden in ("visitor-0", *(one.id for one in people.values()), *(f">{name}<" for name in people)):
        assert hidden not in text
    by_kind = {str(one.kind): one.id.partition("_")[2] for one in console.store.find(Feedback)}
    rows = {
        "thumbs": "fdb_" + by_kind["thumb"],
        "demonstrations": "dem_" + by_kind["edit"],
        "preferences": "prf_" + by_kind["edit"],
    }
    meant = {
        "thumbs": ("visitor-1", "thumbs up"),
        "demonstrations": ("visitor-0", "an edit of the answer"),
        "preferences": ("visitor-0", "an edit of the answer"),
    }
    for table, id in rows.items():
        (row,) = leo.get(f"/snapshots/{made.snapshots[0].sha256}/{table}/{id}?as=json").json()["said"]
        assert (row["who"], row["what"]) == (pseudonym(DEFAULT_PROJECT, "user", meant[table][0]), meant[table][1])
    prompt = sample(Path(made.snapshots[0].folder), "prompts", 1, 0)[0]["prompt_id"]
    assert "many users may have sent" in leo.get(f"/snapshots/{made.snapshots[0].sha256}/prompts/{prompt}").text
    assert leo.get(f"/snapshots/{made.snapshots[0].sha256}/votes/x").status_code == 404
    console.store.change(Annotation, console.store.find(Annotation)[0].id, guideline_id=None)
    assert leo.get(page).status_code == 200


def test_two_snapshots_compared_and_one_whose_byte_changed(console, made: Furnished) -> None:
    leo = console.person("Leo", "lead")
    before, after = (one.sha256 for one in made.snapshots)
    (changes,) = [
        row
        for row in leo.get(f"/snapshots/diff?a={before}&b={after}&as=json").json()["changes"]
        if row["table"] == "preferences"
    ]
    assert (changes["n_before"], changes["n_after"], changes["came"], changes["went"]) == (9, 17, 8, 0)
    file = Path(made.snapshots[0].folder) / "preferences.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    page = leo.get(f"/snapshots/{before}")
    assert page.status_code == 200
    assert "preferences.parquet is not what was frozen" in page.text


def test_a_release_is_decided_on_and_moved_by_who_may_with_a_box_ticked(console, made: Furnished) -> None:
    ada, otto = console.person("Ada", "approver"), console.person("Otto", "operator")
    page = f"/releases/{made.canary.id}"
    assert ada.post(f"{page}/decision", {"stage": "live", "decision": "approve", "reason": ""}).status_code == 422
    answer = ada.post(f"{page}/decision", {"stage": "live", "decision": "approve", "reason": "It answers better."})
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    assert ada.post(f"{page}/move", {"act": "roll_back", "sure": "yes"}).status_code == 403
    assert otto.post(f"{page}/decision", {"stage": "live", "decision": "approve", "reason": "x"}).status_code == 403
    other_site = {"sec-fetch-site": "cross-site"}
    assert otto.post(f"{page}/move", {"act": "roll_back", "sure": "yes"}, **other_site).status_code == 403
    assert otto.post(f"{page}/move", {"act": "roll_back"}).status_code == 422  # the box
    # Nobody has met it yet: a fresh look says so, whatever the look before said.
    refused = otto.post(f"{page}/move", {"act": "promote", "sure": "yes"})
    assert refused.status_code >= 400
    assert "200 in each arm are needed" in refused.text
    assert console.store.get(Release, made.canary.id).state == ReleaseState.CANARY
    assert "the gate of evaluation" in otto.get(f"/releases/{made.candidate.id}").text
    assert otto.post(f"{page}/move", {"act": "roll_back", "sure": "yes", "reason": "rude"}).status_code == 303
    assert console.store.get(Release, made.canary.id).state == ReleaseState.ROLLED_BACK
    last = console.store.find(AuditEntry, object_id=made.canary.id, order="seq")[-1]
    assert (last.actor, last.role, last.action, last.after["reason"]) == (
        "Otto",
        "operator",
        "release.roll_back",
        "rude",
    )


def test_an_experiment_is_stopped_started_and_ramped_by_who_may_with_a_reason(console, made: Furnished) -> None:
    leo, otto = console.person("Leo", "lead"), console.person("Otto", "operator")
    page, sure = f"/experiments/{made.running.id}", {"sure": "yes", "reason": "They complain."}
    assert "Stop the experiment" not in leo.get(page).text
    assert "Stop the experiment" in otto.get(page).text
    assert "Go on to" not in otto.get(page).text  # it is at its last stage
    assert "No canary waits" in otto.get("/experiments").text
    assert leo.post(f"{page}/move", {"act": "stop", **sure}).status_code == 403
    for form in (
        {"act": "stop", "reason": "x"},
        {"act": "stop", "sure": "yes", "reason": " "},
        {"act": "pause", **sure},
    ):
        assert otto.post(f"{page}/move", form).status_code == 422
    eve = console.person("Eve", "operator", project_id=console.project("prj_next"))
    assert eve.post(f"{page}/move", {"act": "advance", "stage": "1", **sure}).status_code == 404
    answer = otto.post(f"{page}/move", {"act": "stop", **sure})
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    assert console.store.get(Experiment, made.running.id).state == ExperimentState.STOPPED
    entry = console.store.find(AuditEntry, object_id=made.running.id, order="seq")[-1]
    assert (entry.actor, entry.role, entry.action, entry.after["reason"]) == (
        "Otto",
        "operator",
        "experiment.end",
        "They complain.",
    )
    assert "Stop the experiment" not in otto.get(page).text

    assert "Let users meet turn-2-good" in otto.get("/experiments").text
    assert "Start the experiment" not in leo.get("/experiments").text
    form = {
        "release": made.canary.id,
        "stages": "0.1,0.3",
        "metrics": "outcome:solved:goal:up\r\nlatency:guardrail:down",
    }
    form |= {"margins": "latency=200", "rules": "min_stage_users=1", "only": "plan=pro", "users": "ann\r\nben\r\n"}
    form |= {"until": "2031-01-01T09:00", "cap": "5", "prompt_price": "1", "completion_price": "2", "holdout": "0.02"}
    form |= {"layer": "prices"} | sure
    assert leo.post("/experiments", form).status_code == 403
    wrong = {
        "sure": "",
        "reason": "",
        "release": "",
        "stages": "x",
        "metrics": "down",
        "margins": "much",
        "rules": "a=1",
    }
    wrong |= {"until": "soon", "cap": "low", "holdout": "2"}
    for name, value in wrong.items():
        assert otto.post("/experiments", form | {name: value}).status_code == 422, name
    assert otto.post("/experiments", form | {"release": made.candidate.id}).status_code == 404
    began = otto.post("/experiments", form)
    assert began.status_code == 303, began.text
    new = console.store.first(Experiment, state=ExperimentState.RUNNING)
    assert began.headers["location"] == f"/experiments/{new.id}"
    assert (new.candidate_id, new.control_id) == (made.canary.id, made.base.id)
    assert (new.stages, new.holdout, new.salt) == ((0.1, 0.3), 0.02, f"{DEFAULT_PROJECT}/prices")
    assert new.rules["min_stage_users"] == 1
    assert [(one["name"], one["role"], one["better"], one["margin"]) for one in new.metrics] == [
        ("outcome:solved", "goal", "up", 0.0),
        ("latency", "guardrail", "down", 200.0),
    ]
    assert new.pilot == {
        "segments": ["plan=pro"],
        "users": sorted(pilots.named(["ann", "ben"])),
        "ends_at": "2031-01-01T09:00:00+00:00",
        "cap": 5.0,
        "prompt_price": 1.0,
        "completion_price": 2.0,
    }
    entry = console.store.find(AuditEntry, object_id=new.id)[-1]
    assert (entry.actor, entry.role, entry.after["reason"]) == ("Otto", "operator", "They complain.")

    page, forth = f"/experiments/{new.id}", {"act": "advance", "stage": "0", **sure}
    assert "nobody has looked at this stage yet" in otto.get(page).text
    refused = otto.post(f"{page}/move", forth)  # after a fresh look, which finds nobody
    assert (refused.status_code, "this stage needs 1 users" in refused.text) == (409, True)
    for number in range(2):
        arm = ("candidate", "control")[number]
        where = Assignment(new.candidate_id if number == 0 else new.control_id, new.id, arm, 0, 0.5)
        body = {"messages": [{"role": "user", "content": "Hi"}], "responses": ["Yes."], "user": f"u{number}"}
        told = collect.log_interaction(console.store, DEFAULT_PROJECT, body, utc_now())
        console.store.change(Interaction, told.id, **vars(where))
    assert otto.post(f"{page}/move", forth | {"stage": "1"}).status_code == 409  # somebody else went on meanwhile
    assert otto.post(f"{page}/move", forth).status_code == 303
    assert console.store.get(Experiment, new.id).stage == 1
    assert console.store.find(AuditEntry, object_id=new.id, order="seq")[-1].after["reason"] == "They complain."
    console.store.change(Experiment, new.id, state=ExperimentState.PROMOTED)
    assert "End the holdout" in otto.get(page).text
    assert otto.post(f"{page}/move", {"act": "end_holdout", **sure}).status_code == 303
    assert console.store.get(Experiment, new.id).holdout == 0.0
    assert "End the holdout" not in otto.get(page).text


def test_a_failed_gate_is_passed_over_by_an_admin_on_record(console, made: Furnished) -> None:
    leo, root = console.person("Leo", "lead"), console.person("Root", "admin")
    page = f"/evaluations/{made.failed.id}"
    assert "Pass over the gate" not in leo.get(page).text
    assert "Pass over the gate" in root.get(page).text
    assert root.post(f"{page}/override", {"reason": "A pilot of three days."}).status_code == 422
    assert root.post(f"{page}/override", {"reason": "A pilot of three days.", "sure": "yes"}).status_code == 303
    assert "answers for passing over it" in leo.get(page).text
    assert "Pass over the gate" not in root.get(page).text


def test_no_page_of_them_shows_another_projects_rows(console, made: Furnished) -> None:
    eve = console.person("Eve", "admin", project_id=console.project("prj_other"))
    for path in addresses(console, made):
        answer = eve.get(path)
        named = path.count("/") > 1 and "reward" not in path
        assert answer.status_code == (404 if named else 200), path
        for secret in ("turn-2-good", "base-model", made.running.id, made.policies[0].id, made.snapshots[0].folder):
            assert secret in path or secret not in answer.text, (path, secret)
    for path, act in (
        (f"/releases/{made.canary.id}/move", "roll_back"),
        (f"/evaluations/{made.failed.id}/override", ""),
        (f"/experiments/{made.running.id}/move", "stop"),
    ):
        assert eve.post(path, {"act": act, "sure": "yes", "reason": "x"}).status_code == 404
    begin = {"release": made.canary.id, "stages": "0.1", "sure": "yes", "reason": "x"}
    assert eve.post("/experiments", begin).status_code == 404
    assert console.store.get(Experiment, made.running.id).state == ExperimentState.RUNNING
    decision = {"stage": "live", "decision": "refuse", "reason": "x"}
    assert eve.post(f"/releases/{made.canary.id}/decision", decision).status_code == 404
    assert console.store.get(Release, made.canary.id).state == ReleaseState.CANARY
