"""Annotation over HTTP, in the name of the key's Person. A model's name never crosses this door."""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Person, utc_now
from plaudit.loop import annotate, quality, reviews
from plaudit.loop.annotate import Loan
from plaudit.loop.reviews import Case
from plaudit.openai_protocol import Json
from plaudit.web.access import key_of, person_of
from plaudit.web.annotation_rules import rules_of
from plaudit.web.door import door_of, read_json
from plaudit.web.problems import json_response


async def lend(request: Request) -> Response:
    """POST /v1/annotation/lease: 200 the question, 204 where there is none."""
    door = door_of(request)
    project_id, person_id = key_of(request).project_id, person_of(request)
    rules = rules_of(door.settings)
    loan = await door.run(
        annotate.lend, door.store, project_id, person_id, door.settings.lease_s, utc_now(), None, rules
    )
    return Response(status_code=204) if loan is None else json_response(_shown(loan))


async def heartbeat(request: Request) -> Response:
    """POST /v1/annotation/lease/{lease_id}/heartbeat: the new end of the lease."""
    door = door_of(request)
    lease_id, person_id = request.path_params["lease_id"], person_of(request)
    lease = await door.run(annotate.heartbeat, door.store, lease_id, person_id, door.settings.lease_s, utc_now())
    return json_response({"lease_id": lease.id, "expires_at": lease.expires_at.isoformat()})


async def release(request: Request) -> Response:
    """POST /v1/annotation/lease/{lease_id}/release: given back unanswered."""
    door = door_of(request)
    await door.run(annotate.release_lease, door.store, request.path_params["lease_id"], person_of(request))
    return Response(status_code=204)


async def answer(request: Request) -> Response:
    """POST /v1/annotations: 201 recorded, 200 where this very answer was recorded before."""
    door = door_of(request)
    person_id = person_of(request)
    body = await read_json(request)
    rules = rules_of(door.settings)
    result = await door.run(annotate.answer, door.store, key_of(request).project_id, person_id, body, utc_now(), rules)
    said = {"id": result.annotation.id, "comparison_id": result.annotation.comparison_id}
    return json_response(said, 200 if result.replayed else 201)


async def undo(request: Request) -> Response:
    """POST /v1/annotation/undo: the last answer is taken back, and its question lent again."""
    door = door_of(request)
    project_id, person_id = key_of(request).project_id, person_of(request)
    lease = await door.run(annotate.undo, door.store, project_id, person_id, door.settings.lease_s, utc_now())
    return json_response({"lease_id": lease.id, "comparison_id": lease.comparison_id})


async def progress(request: Request) -> Response:
    """GET /v1/annotation/progress: one's own figures."""
    door = door_of(request)
    return json_response(
        await door.run(annotate.progress, door.store, key_of(request).project_id, person_of(request), utc_now())
    )


async def annotators(request: Request) -> Response:
    """GET /v1/annotation/annotators: who is paused, qualified and assigned."""
    door = door_of(request)
    found = await door.run(quality.annotators, door.store, key_of(request).project_id, utc_now())
    return json_response({"annotators": found})


async def change_annotator(request: Request) -> Response:
    """POST /v1/annotation/annotators: pause, resume, qualify a person, or assign work to them (`act`), in the name of the key's Person,
    or of the key where it is nobody's."""
    door, by = door_of(request), await _who(request)
    body = await read_json(request)
    return json_response(await door.run(quality.act, door.store, key_of(request).project_id, by, body, utc_now()))


async def gold(request: Request) -> Response:
    """GET /v1/annotation/gold: every question whose answer is known."""
    door = door_of(request)
    return json_response({"gold": await door.run(quality.gold_items, door.store, key_of(request).project_id)})


async def make_gold(request: Request) -> Response:
    """POST /v1/annotation/gold: 201, a training question's copy judges annotators from now on."""
    door, by = door_of(request), await _who(request)
    body = await read_json(request)
    made = await door.run(quality.add_gold, door.store, key_of(request).project_id, by, body, utc_now())
    return json_response(made, 201)


async def retire_gold(request: Request) -> Response:
    """POST /v1/annotation/gold/{gold_id}/retire: asked no more."""
    door, by, id = door_of(request), await _who(request), request.path_params["gold_id"]
    return json_response(await door.run(quality.retire, door.store, key_of(request).project_id, id, by, utc_now()))


async def change_question(request: Request) -> Response:
    """POST /v1/annotation/questions: keep or drop a flagged one, send a disputed one to an expert (`act`)."""
    door, by, rules = door_of(request), await _who(request), rules_of(door_of(request).settings)
    body = await read_json(request)
    project_id = key_of(request).project_id
    return json_response(await door.run(reviews.act, door.store, project_id, by, body, rules, utc_now()))


async def waiting_reviews(request: Request) -> Response:
    """GET /v1/annotation/reviews: what waits for this expert."""
    door = door_of(request)
    found = await door.run(reviews.waiting, door.store, key_of(request).project_id, person_of(request))
    rows = [{"id": one.id, "kind": one.kind, "created_at": one.created_at.isoformat()} for one in found]
    return json_response({"reviews": rows})


async def review(request: Request) -> Response:
    """GET /v1/annotation/reviews/{review_id}: question, answers and votes, without names."""
    door, id = door_of(request), request.path_params["review_id"]
    case = await door.run(reviews.look, door.store, key_of(request).project_id, person_of(request), id)
    return json_response(_case(case))


async def decide_review(request: Request) -> Response:
    """POST /v1/annotation/reviews/{review_id}: the expert's word, which holds in the aggregation."""
    door, id, person_id = door_of(request), request.path_params["review_id"], person_of(request)
    body = await read_json(request)
    project_id = key_of(request).project_id
    decided = await door.run(reviews.decide_by, door.store, project_id, person_id, id, body, utc_now())
    return json_response(
        {"id": decided.id, "comparison_id": decided.comparison_id, "verdict": decided.verdict, "choice": decided.choice}
    )


async def _who(request: Request) -> str:
    """The name of the key's Person, or of the key where it is nobody's."""
    door, key = door_of(request), key_of(request)
    return key.name if key.person_id is None else (await door.run(door.store.get, Person, key.person_id)).name


def _case(case: Case) -> Json:
    return {
        "id": case.review.id,
        "kind": case.review.kind,
        "comparison_id": case.comparison.id,
        "messages": list(case.comparison.messages),
        "responses": [{"id": one.id, "text": one.text} for one in case.responses],
        "guideline": {"version": case.guideline.version, "text": case.guideline.text} if case.guideline else None,
        "votes": [asdict(vote) for vote in case.votes],
        "decided": case.review.decided_at is not None,
    }


def _shown(loan: Loan) -> Json:
    return {
        "lease_id": loan.lease.id,
        "comparison_id": loan.comparison.id,
        "expires_at": loan.lease.expires_at.isoformat(),
        "kind": loan.comparison.kind,
        "criteria": list(loan.comparison.criteria),
        "scale": {"min": loan.scale[0], "max": loan.scale[1]} if loan.scale is not None else None,
        "messages": list(loan.comparison.messages),
        "guideline": {"version": loan.guideline.version, "text": loan.guideline.text} if loan.guideline else None,
        "responses": [{"id": response.id, "text": response.text} for response in loan.responses],
    }
