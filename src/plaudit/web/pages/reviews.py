"""Reviews: what experts decide again, blind to names."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Json, Verdict, utc_now
from plaudit.errors import BadInput
from plaudit.loop import reviews
from plaudit.loop.reviews import ERROR_CLASSES, BlindVote
from plaudit.web.door import door_of
from plaudit.web.pages import markdown
from plaudit.web.pages.annotate import LETTERS, talk_of
from plaudit.web.pages.forms import read_form
from plaudit.web.pages.shell import Column, Table, answer, go
from plaudit.web.sign_in import signed_in

WAITING = (
    Column("id", "Review", "brief", "/reviews/{id}"),
    Column("kind", "Why", "brief"),
    Column("created_at", "Since", "moment"),
)
VOTES = (
    Column("annotator", "Annotator", "brief"),
    Column("verdict", "Says", "brief"),
    Column("strength", "Strength", "number"),
    Column("seconds", "Took", "duration"),
    Column("reasons", "Because", "words"),
    Column("note", "Note", "words"),
)


async def waiting(request: Request) -> Response:
    """GET /reviews."""
    door, me = door_of(request), signed_in(request)
    found = await door.run(reviews.waiting, door.store, me.project_id, me.id)
    rows = [{"id": one.id, "kind": str(one.kind), "created_at": one.created_at} for one in found]
    empty = "Nothing waits for an expert: disputes come where annotators do not agree, audits at random."
    return answer(request, "reviews.html", [Table("reviews", "Waiting", WAITING, rows, empty)])


async def review(request: Request) -> Response:
    """GET /reviews/{review_id}."""
    door, me = door_of(request), signed_in(request)
    case = await door.run(reviews.look, door.store, me.project_id, me.id, request.path_params["review_id"])
    letters = {one.id: letter for letter, one in zip(LETTERS, case.responses, strict=False)}
    p = case.review.probability
    first = letters[case.comparison.response_ids[0]]
    return answer(
        request,
        "review.html",
        [Table("votes", "What annotators said", VOTES, [_row(vote, letters) for vote in case.votes], "No votes.")],
        case=case,
        cards=[
            {"letter": letters[one.id], "id": one.id, "text": markdown.render(one.text, top=4)}
            for one in case.responses
        ],
        talk=talk_of(case.comparison.messages),
        chance=None if p is None else p if first == "A" else 1 - p,
        guideline=markdown.render(case.guideline.text) if case.guideline is not None else "",
        error_classes=ERROR_CLASSES,
    )


async def decide(request: Request) -> Response:
    """POST /reviews/{review_id}."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    said, confidence = form.get("verdict", ""), form.get("confidence", "")
    if not said or confidence not in ("1", "2", "3"):
        raise BadInput("Say which answer is better and how sure you are.")
    verdict = Verdict(said) if said in ("tie", "both_bad") else Verdict.PREFER
    await door.run(
        lambda: reviews.decide(
            door.store,
            me.project_id,
            me.id,
            request.path_params["review_id"],
            verdict=verdict,
            choice=said if verdict is Verdict.PREFER else None,
            confidence=int(confidence),
            error_class=form.get("error_class", "none"),
            note=form.get("note", "").strip() or None,
            now=utc_now(),
        )
    )
    return go("/reviews")


def _row(vote: BlindVote, letters: dict[str, str]) -> Json:
    words = {Verdict.TIE: "equal", Verdict.BOTH_BAD: "both bad", Verdict.SKIP: "skipped"}
    return {
        "annotator": str(vote.column),
        "verdict": letters[vote.choice] if vote.choice else words[vote.verdict],
        "strength": vote.strength,
        "seconds": vote.seconds,
        "reasons": ", ".join(vote.reasons),
        "note": vote.note,
    }
