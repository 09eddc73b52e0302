"""Annotate, the lead's page and reviews over HTTP, as forms without JavaScript."""

from __future__ import annotations

import re
from typing import Any

import pytest

from plaudit.domain import (
    DEFAULT_PROJECT,
    Annotation,
    Comparison,
    ComparisonState,
    EvaluationItem,
    Guideline,
    Purpose,
    ResponseText,
    Review,
    ReviewKind,
    Standing,
    Verdict,
    new_id,
    utc_now,
)
from plaudit.errors import BadInput
from plaudit.loop import annotate as stage
from plaudit.loop import planning, quality
from plaudit.web.pages import annotation_tables
from plaudit.web.pages.annotate import plain_text, read_answer

HOSTILE = "<script>alert(1)</script> ![spy](https://evil.example/x.png) **bold**"


def questions(console, n: int = 2, overlap: int = 1, batch: str = "b") -> list[Comparison]:
    """Training Comparisons, as if made of traffic."""
    items = [
        EvaluationItem(
            messages=(
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": f"Question {i} of {batch}? {HOSTILE}"},
            ),
            family=f"{batch} {i}",
            first=ResponseText(f"First {i}. {HOSTILE}"),
            second=ResponseText(f"Second {i}."),
            first_checkpoint_id=None,
            second_checkpoint_id=None,
            first_model="secret-model",
        )
        for i in range(n)
    ]
    made = planning.plan_evaluation(console.store, DEFAULT_PROJECT, items, batch=batch, overlap=overlap, now=utc_now())
    return [console.store.change(Comparison, one.id, purpose=Purpose.TRAINING) for one in made]


def hidden(text: str) -> str:
    found = re.search(r'name="lease_id" value="([^"]+)"', text)
    assert found, text
    return found[1]


def scale(text: str) -> list[str]:
    return re.findall(r'name="verdict" value="([^"]+)"', text)


def test_an_answer_is_a_form_and_the_next_question_follows(console) -> None:
    stage.write_guideline(console.store, DEFAULT_PROJECT, "Prefer *kind* answers.", utc_now())
    made = questions(console)
    ann = console.person("Ann", "annotator")
    assert ann.get("/").headers["location"] == "/annotate"
    text = ann.get("/annotate").text
    assert "Guideline, version 1" in text
    assert "Prefer <em>kind</em>" in text
    assert "1 earlier message" in text
    points = scale(text)
    assert len(points) == 8
    assert (points[3], points[7]) == ("tie", "both_bad")
    form = {"lease_id": hidden(text), "act": "answer", "verdict": points[0], "reason-0": "yes", "note": " why "}
    sent = ann.post("/annotate", form)
    assert (sent.status_code, sent.headers["location"]) == (303, "/annotate")
    (given,) = console.store.find(Annotation)
    first = given.order[0]
    assert (given.verdict, given.choice, given.strength) == (Verdict.PREFER, first, 3)
    assert (given.reasons, given.note, given.seconds < 60) == (("more correct",), "why", True)
    assert {one.id for one in console.store.find(Comparison, state=ComparisonState.CLOSED)} == {given.comparison_id}
    assert given.comparison_id in {one.id for one in made}
    next_text = ann.get("/annotate").text
    assert hidden(next_text) != form["lease_id"]
    assert "1 answered" in next_text


def test_nothing_of_a_model_is_shown_and_nothing_it_says_runs(console) -> None:
    questions(console, 1)
    text = console.person("Ann", "annotator").get("/annotate").text
    assert "secret-model" not in text
    assert "<script>alert" not in text
    assert "<img" not in text.replace('<img src="/static/', "")
    assert "<strong>bold</strong>" in text


def test_skips_and_flags_need_a_reason_and_undo_brings_the_question_back(console, monkeypatch) -> None:
    questions(console, 2)
    ann = console.person("Ann", "annotator")
    lease = hidden(ann.get("/annotate").text)
    refused = ann.post("/annotate", {"lease_id": lease, "act": "skip"})
    assert (refused.status_code, "Say why" in refused.text) == (422, True)
    assert hidden(refused.text) == lease
    assert ann.post("/annotate", {"lease_id": lease, "act": "skip", "skip_reason": "too long"}).status_code == 303
    second = hidden(ann.get("/annotate").text)
    ann.post("/annotate", {"lease_id": second, "act": "flag", "flag_reason": "private data"})
    skip, flag = console.store.find(Annotation)
    assert [(one.flagged, one.reasons) for one in (skip, flag)] == [(False, ("too long",)), (True, ("private data",))]
    lea = console.person("Lea", "lead")
    assert "wait longest" not in lea.get("/annotation").text
    monkeypatch.setattr(annotation_tables, "SHOWN_FLAGS", 1)  # as many as are shown: there may be more
    assert "Flagged: the 1 that wait longest" in lea.get("/annotation").text
    assert "no open questions" not in ann.get("/annotate").text  # its own skip is open for others
    assert ann.post("/annotate/undo").headers["location"] == "/annotate"
    assert hidden(ann.get("/annotate").text) == second
    assert ann.post("/annotate/heartbeat", {"lease_id": second}).json() == {"left_s": 120.0}


def test_who_is_late_or_paused_or_has_nothing_to_do_is_told_why(console) -> None:
    ann = console.person("Ann", "annotator")
    assert "no open questions" in ann.get("/annotate").text
    questions(console, 1, overlap=1)
    lease = hidden(ann.get("/annotate").text)
    stage.release_lease(console.store, lease, console.named("Ann").id)
    bob = console.person("Bob", "annotator")
    other = hidden(bob.get("/annotate").text)
    late = ann.post("/annotate", {"lease_id": lease, "verdict": "tie"})
    assert (late.status_code, "given back" in late.text) == (410, True)
    assert "others hold the rest" in late.text
    quality.pause(console.store, DEFAULT_PROJECT, console.named("Bob").id, "Too fast.", "Lea", utc_now())
    assert "Too fast." in bob.get("/annotate").text
    assert bob.post("/annotate", {"lease_id": other, "verdict": "tie"}).status_code == 410


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ({"verdict": "res_1:2"}, {"verdict": "prefer", "choice": "res_1", "strength": 2, "reasons": []}),
        ({"verdict": "tie", "edit": "x"}, {"verdict": "tie", "choice": None, "reasons": []}),
        ({"verdict": "res_1:1", "edit": " x ", "seconds": "1e9"},
         {"verdict": "prefer", "choice": "res_1", "strength": 1, "reasons": [], "edit": "x", "seconds": 86400.0}),
    ],
)  # fmt: skip
def test_a_form_is_read_as_a_body(form: dict[str, str], body: dict[str, Any]) -> None:
    assert read_answer({"lease_id": "l", **form}) == {"lease_id": "l", **body}


def test_a_form_that_says_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="Nothing is chosen"):
        read_answer({"lease_id": "l"})
    with pytest.raises(BadInput, match="seconds"):
        read_answer({"lease_id": "l", "verdict": "tie", "seconds": "soon"})


def test_messages_of_parts_are_words() -> None:
    assert plain_text({"content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}) == "a\n\n[image_url]"
    assert plain_text({"content": None}) == ""


# --- the lead -------------------------------------------------------------------------------------------------------------


def answered(console, choices: str, overlap: int, batch: str = "b") -> Comparison:
    (made,) = questions(console, 1, overlap, batch)
    for n, choice in enumerate(choices):
        who = f"Voter {n}"
        person = quality.govern.person(console.store, DEFAULT_PROJECT, who, utc_now())
        loan = stage.lend(console.store, DEFAULT_PROJECT, person.id, 60, utc_now())
        assert loan is not None
        body = {
            "lease_id": loan.lease.id,
            "verdict": "prefer",
            "choice": made.response_ids["ab".index(choice)],
            "seconds": 3,
        }
        stage.answer(console.store, DEFAULT_PROJECT, person.id, body, utc_now())
    return console.store.get(Comparison, made.id)


def test_the_lead_sees_the_story_and_its_twins(console) -> None:
    agreed, disputed = answered(console, "aaa", 3, "agreed"), answered(console, "aab", 3, "disputed")
    lea = console.person("Lea", "lead")
    page = lea.get("/annotation").text
    assert "Voter 1" in page
    annotators = lea.get("/annotation?as=json&table=annotators").json()["annotators"]
    assert [(row["n_answers"], row["agrees"]) for row in annotators] == [(2, 1.0), (2, 1.0), (2, 0.5)]
    (dispute,) = lea.get("/annotation?as=json&table=disputed").json()["disputed"]
    assert (dispute["id"], dispute["votes"], round(dispute["probability"], 3)) == (disputed.id, "2 : 1", 0.8)
    (week,) = lea.get("/annotation?as=json&table=agreement").json()["agreement"]
    assert (week["n_items"], round(week["raw"], 4)) == (2, round((1 + 1 / 3) / 2, 4))
    assert "text/csv" in lea.get("/annotation?as=csv&table=queue").headers["content-type"]
    value = f"{agreed.id}:{agreed.response_ids[0]}"
    assert value in page
    assert lea.post("/annotation/gold", {"act": "make", "item-0": value}).status_code == 303
    (gold,) = console.store.find(Comparison, purpose=Purpose.GOLD)
    assert gold.gold_choice == agreed.response_ids[0]
    assert value not in lea.get("/annotation").text
    assert lea.post("/annotation/gold", {"act": "retire", "gold": gold.id}).status_code == 303
    assert lea.post("/annotation/question", {"act": "expert", "comparison": disputed.id}).status_code == 303
    assert console.store.find(Review)[0].kind is ReviewKind.DISPUTE


def test_the_lead_writes_the_guideline_and_pauses(console) -> None:
    lea = console.person("Lea", "lead")
    console.person("Ann", "annotator")
    shown = lea.post("/annotation/guideline", {"text": f"Be **kind**. {HOSTILE}", "act": "preview"})
    assert "<strong>kind</strong>" in shown.text
    assert console.store.count(Guideline) == 0
    assert lea.post("/annotation/guideline", {"text": "Be kind.\r\nAlways.", "act": "save"}).status_code == 303
    assert console.store.find(Guideline)[0].text == "Be kind.\nAlways."
    ann = console.named("Ann").id
    for form in (
        {"act": "pause", "reason": "Break."},
        {"act": "resume"},
        {"act": "qualify", "domain": "law", "days": "30"},
    ):
        assert lea.post("/annotation/annotator", {"person": ann, **form}).status_code == 303
    (standing,) = console.store.find(Standing)
    assert (standing.paused_at, list(standing.qualifications)) == (None, ["law"])
    assert lea.post("/annotation/annotator", {"person": ann, "act": "promote"}).status_code == 422
    assert console.person("Ann2", "annotator").get("/annotation").status_code == 403


def test_an_expert_decides_blind_to_names(console) -> None:
    disputed = answered(console, "aab", 3)
    review = Review(
        id=new_id(Review), project_id=DEFAULT_PROJECT, comparison_id=disputed.id, kind=ReviewKind.DISPUTE,
        probability=0.8, created_at=utc_now(),
    )  # fmt: skip
    console.store.add(review)
    eva = console.person("Eva", "expert")
    assert review.id in eva.get("/reviews").text
    page = eva.get(f"/reviews/{review.id}").text
    assert "Voter" not in page
    assert "secret-model" not in page
    form = {"verdict": disputed.response_ids[1], "confidence": "3", "error_class": "taste", "note": ""}
    assert eva.post(f"/reviews/{review.id}", {**form, "confidence": ""}).status_code == 422
    assert eva.post(f"/reviews/{review.id}", form).headers["location"] == "/reviews"
    decided = console.store.get(Review, review.id)
    assert (decided.choice, decided.expert_id, decided.note) == (
        disputed.response_ids[1],
        console.named("Eva").id,
        None,
    )
    assert "Nothing waits" in eva.get("/reviews").text


def test_pages_of_annotation_stay_in_their_project(console) -> None:
    disputed = answered(console, "aab", 3)
    quality_review = Review(
        id=new_id(Review),
        project_id=DEFAULT_PROJECT,
        comparison_id=disputed.id,
        kind=ReviewKind.AUDIT,
        created_at=utc_now(),
    )
    console.store.add(quality_review)
    questions(console, 1, batch="waits")
    other = console.project("prj_other")
    eve = console.person("Eve", "admin", project_id=other)
    assert "no open questions" in eve.get("/annotate").text
    assert "Question" not in eve.get("/annotation?as=json&table=disputed").text
    assert eve.get(f"/reviews/{quality_review.id}").status_code == 404
    assert eve.post("/annotation/question", {"act": "expert", "comparison": disputed.id}).status_code == 404
