"""Ratings, criteria, assignments, and files in and out, over HTTP as forms without JavaScript."""

from __future__ import annotations

import io
import json
import re

import pyarrow as pa
from pyarrow import parquet

from plaudit.domain import (
    DEFAULT_PROJECT,
    Annotation,
    Comparison,
    ComparisonKind,
    Response,
    Standing,
    TrainingUse,
    Verdict,
    utc_now,
)
from plaudit.formats import questions as rows
from plaudit.loop import annotate, quality, questions

from .test_annotate_page import answered, hidden, scale
from .test_annotate_page import questions as asked

ROW = {"prompt": "Why is the sky blue?", "responses": ["Scattering.", "Paint."]}


def make(console, tmp_path, *given: dict, **form) -> list[Comparison]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    how = questions.Form(**{"batch": "own", "overlap": 1, **form})
    questions.ask(console.store, DEFAULT_PROJECT, rows.read(file), how, training_use=TrainingUse.ALLOWED, now=utc_now())
    return console.store.find(Comparison, batch="own")


def test_one_answer_is_rated_with_its_criteria(console, tmp_path) -> None:
    make(console, tmp_path, ROW, kind=ComparisonKind.RATING, criteria=("tone",))
    ann = console.person("Ann", "annotator")
    text = ann.get("/annotate").text
    assert "How good is this answer?" in text
    assert "Both bad" not in text
    assert scale(text) == [f"rate:{n}" for n in range(1, 6)]
    assert re.findall(r'name="criterion:tone" value="([^"]*)"', text) == ["1", "2", "3", "4", "5", ""]
    form = {
        "lease_id": hidden(text),
        "act": "answer",
        "verdict": "rate:4",
        "criterion:tone": "2",
        "edit": "Rayleigh.",
        "reason-6": "yes",
    }
    refused = ann.post("/annotate", {**form, "verdict": "rate:9"})
    assert (refused.status_code, "from 1 to 5" in refused.text) == (422, True)
    assert ann.post("/annotate", form).status_code == 303
    given = {one.criterion: one for one in console.store.find(Annotation)}
    assert {name: (one.verdict, one.rating) for name, one in given.items()} == {
        "overall": (Verdict.RATE, 4),
        "tone": (Verdict.RATE, 2),
    }
    assert (given["overall"].edit, given["overall"].reasons) == ("Rayleigh.", ("tone",))
    lea = console.person("Lea", "lead")
    criteria = lea.get("/annotation?as=json&table=criteria").json()["criteria"]
    assert [(row["criterion"], row["mean_rating"]) for row in criteria] == [("overall", 4.0), ("tone", 2.0)]
    (rated,) = lea.get("/annotation?as=json&table=ratings").json()["ratings"]
    assert (rated["mean"], rated["question"]) == (4.0, ROW["prompt"])


def test_a_pair_is_compared_by_criterion_in_the_order_shown(console, tmp_path) -> None:
    make(console, tmp_path, ROW, criteria=("accuracy", "tone"))
    ann = console.person("Ann", "annotator")
    text = ann.get("/annotate").text
    first, tie, second, none = re.findall(r'name="criterion:accuracy" value="([^"]*)"', text)
    points = scale(text)
    assert (points[0], tie, points[6], none) == (f"{first}:3", "tie", f"{second}:3", "")
    ann.post(
        "/annotate", {"lease_id": hidden(text), "verdict": "tie", "criterion:accuracy": second, "criterion:tone": ""}
    )
    given = {one.criterion: (one.verdict, one.choice) for one in console.store.find(Annotation)}
    assert given == {"overall": (Verdict.TIE, None), "accuracy": (Verdict.PREFER, second)}


def test_a_lead_assigns_and_takes_back(console) -> None:
    asked(console, 1, batch="work")
    lea = console.person("Lea", "lead")
    console.person("Ann", "annotator")
    ann = console.named("Ann").id
    assert 'value="batch:work"' in lea.get("/annotation").text
    form = {"person": ann, "work": "batch:work"}
    assert lea.post("/annotation/annotator", {**form, "act": "assign"}).status_code == 303
    (row,) = lea.get("/annotation?as=json&table=assignments").json()["assignments"]
    assert (row["name"], row["what"], row["of"]) == ("Ann", "assigned batch", "work")
    refused = lea.post("/annotation/annotator", {"person": ann, "work": "domain:law", "act": "assign"})
    assert (refused.status_code, "not qualified" in refused.text) == (422, True)
    assert lea.post("/annotation/annotator", {**form, "act": "unassign"}).status_code == 303
    assert console.store.find(Standing)[0].batches == ()


def test_the_lead_sees_what_is_left(console) -> None:
    answered(console, "aab", 3)
    asked(console, 2, overlap=3, batch="waits")
    lea = console.person("Lea", "lead")
    (day,) = lea.get("/annotation?as=json&table=days").json()["days"]
    assert (day["left"], day["answered"], day["asked"]) == (6, 3, 9)
    text = lea.get("/annotation").text
    assert "6 answers are left: 2 days at 3 a day" in text
    assert text.count('<svg class="curve"') == 2


def lefty(console) -> str:
    """Somebody who chose what was shown first sixteen times; their id."""
    asked(console, 16)
    console.link("Lefty <1>", "annotator")
    lefty, at = console.named("Lefty <1>").id, utc_now()
    while (loan := annotate.lend(console.store, DEFAULT_PROJECT, lefty, 60, at)) is not None:
        body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": loan.lease.order[0], "seconds": 20.0}
        annotate.answer(console.store, DEFAULT_PROJECT, lefty, body, at)
    return lefty


def test_who_may_not_be_reading_is_named_beside_the_leads_page(console) -> None:
    paused = lefty(console)
    lea, ann = console.person("Lea", "lead"), console.person("Ann", "annotator")
    assert 'href="/annotation/signs"' in lea.get("/annotation").text
    assert ann.get("/annotation/signs").status_code == 403
    signs = lea.get("/annotation/signs?as=json").json()["signs"]
    (sign,) = [row for row in signs if row["kind"] == "one side"]
    assert (sign["name"], sign["kind"], sign["n"], sign["state"]) == ("Lefty <1>", "one side", 16, "active")
    text = lea.get("/annotation/signs").text
    assert "Lefty &lt;1&gt;" in text
    assert f"{len(signs)} sign" in text
    assert "chose what was shown first in 100% of 16 answers" in text
    assert "No slice has enough decided audits" in text
    quality.pause(console.store, DEFAULT_PROJECT, paused, "A talk.", "Lea", utc_now())
    signs = lea.get("/annotation/signs?as=json").json()["signs"]
    assert {row["state"] for row in signs if row["name"] == "Lefty <1>"} == {"paused"}
    eve = console.person("Eve", "lead", project_id=console.project("prj_other"))
    assert "No annotator shows a sign" in eve.get("/annotation/signs").text


def upload(visitor, content: bytes, name: str, **form: str):
    return visitor.client.post(
        "/annotation/import", data=form, files={"file": (name, content)}, headers={"sec-fetch-site": "same-origin"}
    )


def test_questions_come_in_by_a_form_and_judgements_too(console) -> None:
    lea = console.person("Lea", "lead")
    table = pa.table({"prompt": ["Why?", "How?"], "response_1": ["Because.", "So."], "response_2": ["No.", " "]})
    packed = io.BytesIO()
    parquet.write_table(table, packed)
    refused = upload(lea, packed.getvalue(), "rows.parquet", format="questions", batch="own")
    assert (refused.status_code, "may be trained on" in refused.text) == (422, True)
    taken = upload(
        lea, packed.getvalue(), "rows.parquet", format="questions", batch="own", consent="yes", criteria="tone"
    )
    assert "1 questions wait now, 0 were there, 1 rows were left out" in taken.text
    assert "a response is empty" in taken.text
    (one,) = console.store.find(Comparison)
    assert (one.batch, one.criteria, one.messages) == ("own", ("tone",), ({"role": "user", "content": "Why?"},))
    assert {row.text for row in console.store.find(Response)} == {"Because.", "No."}
    pair = json.dumps({"prompt": "Who?", "chosen": "Me.", "rejected": "You."}).encode()
    assert "1 judgements were read" in upload(lea, pair, "pairs.jsonl", format="trl", consent="yes").text
    assert console.store.count(Annotation) == 1
    assert upload(lea, pair, "pairs.jsonl", format="zip").status_code == 422
    assert upload(lea, b"", "pairs.jsonl", format="trl").status_code == 422
    assert upload(console.person("Ann", "annotator"), pair, "pairs.jsonl", format="trl").status_code == 403


def test_a_snapshot_goes_out_in_another_tools_format(console, tmp_path) -> None:
    from plaudit.loop import snapshot

    make(console, tmp_path, ROW)
    ann = console.person("Ann", "annotator")
    text = ann.get("/annotate").text
    ann.post("/annotate", {"lease_id": hidden(text), "verdict": scale(text)[0]})
    annotate.aggregate(console.store, DEFAULT_PROJECT, now=utc_now())
    record, _ = snapshot.freeze(console.store, DEFAULT_PROJECT, tmp_path / "snapshots", now=utc_now())
    lea = console.person("Lea", "lead")
    assert record.sha256[:12] in lea.get("/annotation").text
    sent = lea.get(f"/annotation/export?format=trl&snapshot={record.id}")
    assert "attachment" in sent.headers["content-disposition"]
    (line,) = sent.text.splitlines()
    assert {json.loads(line)[side][0]["content"] for side in ("chosen", "rejected")} == set(ROW["responses"])
    assert "1 rows of" in lea.get(f"/annotation/export?format=hh&snapshot={record.id}&look=yes").text
    other = console.person("Eve", "lead", project_id=console.project("prj_other"))
    assert other.get(f"/annotation/export?format=trl&snapshot={record.id}").status_code == 404
