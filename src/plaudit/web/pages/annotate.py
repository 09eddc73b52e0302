"""Annotate: one question at a time, lent to who is signed in: which of two is better, or how good is one; and so for each criterion. Works as
plain forms; `annotate.js` adds keys, drafts and the timer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from plaudit.domain import Comparison, ComparisonState, Json, Lease, Message, Person, utc_now
from plaudit.errors import BadInput, Conflict, Expired, Forbidden, NotFound, PlauditError
from plaudit.loop import annotate
from plaudit.loop.annotate import Loan
from plaudit.loop.answers import MAX_SECONDS
from plaudit.loop.quality import QUEUE, Rules
from plaudit.settings import Settings
from plaudit.store.database import Store
from plaudit.web.annotation_rules import rules_of
from plaudit.web.door import door_of
from plaudit.web.pages import markdown, shell
from plaudit.web.pages.forms import read_form
from plaudit.web.problems import STATUS
from plaudit.web.sign_in import signed_in

LETTERS = "ABCDEFGH"
# Strength by place on the scale, from the first answer to the second; None: a tie.
SCALE = (
    ("3", "by far"),
    ("2", "clearly"),
    ("1", "slightly"),
)
REASONS = (
    "more correct", "more helpful", "follows the instructions", "safer", "clearer", "better length", "better tone"
)  # fmt: skip
RATING_REASONS = ("correctness", "helpfulness", "instructions", "safety", "clarity", "length", "tone")
SKIP_REASONS = ("I cannot judge it", "I lack the knowledge", "a language I do not read", "too long", "it upsets me")
FLAG_REASONS = ("private data", "harmful or illegal", "broken text", "no real question", "seen before")
COUNTED = 200  # waiting questions; beyond, the page says 200+
MOST_POINTS = 11  # of a rating as buttons; a longer scale is a field for a number
CRITERION = "criterion:"  # before its name, in the form
PAIR_KEYS = (
    ("A, B", "A or B is clearly better"), ("E", "equal"), ("1 to 7", "a point of the scale; 4 is equal"), ("X", "both bad")
)  # fmt: skip


@dataclass(frozen=True)
class Desk:
    """What one annotator sees: a question, or why there is none."""

    loan: Loan | None
    paused: str
    n_open: int
    progress: Json
    lease_s: float


def desk_of(store: Store, me: Person, settings: Settings, rules: Rules, now: datetime) -> Desk:
    paused, loan = "", None
    try:
        loan = annotate.lend(store, me.project_id, me.id, settings.lease_s, now, rules=rules)
    except Forbidden as error:
        paused = error.message
    progress = annotate.progress(store, me.project_id, me.id, now, COUNTED)
    n_open = 0
    if loan is None:
        n_open = store.count(Comparison, project_id=me.project_id, state=ComparisonState.OPEN, purpose=QUEUE)
    return Desk(loan, paused, n_open, progress, settings.lease_s)


async def question(request: Request) -> Response:
    """GET /annotate."""
    return await _page(request)


async def answer(request: Request) -> Response:
    """POST /annotate: a verdict, a skip or a flag (`act`), then the next question."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    rules, now = rules_of(door.settings), utc_now()
    try:
        body = read_answer(form)
        if "seconds" not in body:
            body["seconds"] = await door.run(_seconds_since, door.store, form.get("lease_id", ""), me.id, now)
        await door.run(annotate.answer, door.store, me.project_id, me.id, body, now, rules)
    except (BadInput, Conflict, Expired, NotFound) as error:
        return await _page(request, error)
    return shell.go("/annotate")


async def undo(request: Request) -> Response:
    """POST /annotate/undo: the last answer is taken back and its question shown again."""
    door, me = door_of(request), signed_in(request)
    try:
        await door.run(annotate.undo, door.store, me.project_id, me.id, door.settings.lease_s, utc_now())
    except (Conflict, NotFound) as error:
        return await _page(request, error)
    return shell.go("/annotate")


async def heartbeat(request: Request) -> Response:
    """POST /annotate/heartbeat: more time for the question that is open; JSON, for the script."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    await door.run(annotate.heartbeat, door.store, form.get("lease_id", ""), me.id, door.settings.lease_s, utc_now())
    return JSONResponse({"left_s": door.settings.lease_s}, headers={"cache-control": "no-store"})


def read_answer(form: Mapping[str, str]) -> dict[str, Any]:
    """A form as the body of an answer. Raises BadInput where nothing is chosen."""
    body: dict[str, Any] = {"lease_id": form.get("lease_id", ""), "choice": None}
    act = form.get("act", "answer")
    if act in ("skip", "flag"):
        reason = form.get(f"{act}_reason", "")
        if not reason:
            raise BadInput(f"Say why you {act} this question, then send it again.")
        body |= {"verdict": "skip", "flagged": act == "flag", "reasons": [reason]}
    else:
        said, _, strength = form.get("verdict", "").partition(":")
        match said:
            case "":
                raise BadInput("Nothing is chosen; say which answer is better, or that neither is.")
            case "tie" | "both_bad":
                body["verdict"] = said
            case "rate":
                body |= {"verdict": "rate", "rating": _whole(strength or form.get("rating", ""))}
            case _:
                body |= {"verdict": "prefer", "choice": said, "strength": int(strength) if strength in "123" else None}
        reasons = RATING_REASONS if body["verdict"] == "rate" else REASONS
        body["reasons"] = [name for index, name in enumerate(reasons) if form.get(f"reason-{index}")]
        edit = form.get("edit", "").strip()
        if edit and body["verdict"] in ("prefer", "rate"):
            body["edit"] = edit
        given = {name.removeprefix(CRITERION): value for name, value in form.items() if name.startswith(CRITERION)}
        criteria = {name: _criterion(value, body["verdict"]) for name, value in given.items() if value}
        if criteria:
            body["criteria"] = criteria
    if form.get("note", "").strip():
        body["note"] = form["note"].strip()
    try:
        if form.get("seconds"):
            body["seconds"] = min(max(float(form["seconds"]), 0.0), MAX_SECONDS)
    except ValueError as error:
        raise BadInput(f"seconds is {form['seconds']!r}; give a number.") from error
    return body


def _criterion(value: str, verdict: str) -> str | int:
    return _whole(value) if verdict == "rate" else value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise BadInput(f"The rating is {text!r}; give a whole number.") from error


def _seconds_since(store: Store, lease_id: str, person_id: str, now: datetime) -> float:
    """Since the question was lent: the time of an annotator without JavaScript."""
    lease = store.first(Lease, id=lease_id, annotator_id=person_id)
    return min((now - lease.created_at).total_seconds(), MAX_SECONDS) if lease is not None else 0.0


async def _page(request: Request, error: PlauditError | None = None) -> Response:
    door, me, now = door_of(request), signed_in(request), utc_now()
    desk = await door.run(desk_of, door.store, me, door.settings, rules_of(door.settings), now)
    loan = desk.loan
    return shell.page(
        request,
        "annotate.html",
        STATUS.get(error.code, 422) if error is not None else 200,
        desk=desk,
        loan=loan,
        me=me,
        error=error.message if error is not None else "",
        cards=cards_of(loan) if loan is not None else [],
        choices=choices_of(loan) if loan is not None else [],
        criteria=criteria_of(loan) if loan is not None else [],
        rated=loan is not None and loan.scale is not None,
        keys=keys_of(loan) if loan is not None else [],
        talk=talk_of(loan.comparison.messages) if loan is not None else [],
        guideline=markdown.render(loan.guideline.text) if loan is not None and loan.guideline is not None else "",
        left_s=max(0, round((loan.lease.expires_at - now).total_seconds())) if loan is not None else 0,
        warning=loan.comparison.attributes.get("warning", "") if loan is not None else "",
        reasons=RATING_REASONS if loan is not None and loan.scale is not None else REASONS,
        skip_reasons=SKIP_REASONS,
        flag_reasons=FLAG_REASONS,
        counted=COUNTED,
    )


def cards_of(loan: Loan) -> list[Json]:
    """The responses in the order shown, without their names."""
    return [
        {"letter": letter, "id": response.id, "raw": response.text, "text": markdown.render(response.text, top=4)}
        for letter, response in zip(LETTERS, loan.responses, strict=False)
    ]


def choices_of(loan: Loan) -> list[Json]:
    """The points of the scale, 7 between two answers: `value` names a response id, never a side. Empty for a rating with too many."""
    if loan.scale is not None:
        return [{**point, "value": f"rate:{point['value']}"} for point in _rating_points(loan.scale)]
    first, second = loan.lease.order[:2]
    left = [{"value": f"{first}:{strength}", "label": f"A {word}"} for strength, word in SCALE]
    right = [{"value": f"{second}:{strength}", "label": f"B {word}"} for strength, word in reversed(SCALE)]
    points = [*left, {"value": "tie", "label": "Equal"}, *right]
    letters = {2: "a", 4: "e", 6: "b"}
    return [{**point, "key": key, "letter": letters.get(key, "")} for key, point in enumerate(points, start=1)]


def criteria_of(loan: Loan) -> list[Json]:
    """Each criterion with its points, the answers in the order shown."""
    if loan.scale is not None:
        points = _rating_points(loan.scale)
    else:
        first, second = loan.lease.order[:2]
        points = [
            {"value": value, "label": label, "key": key, "letter": letter}
            for key, (value, label, letter) in enumerate(((first, "A", "a"), ("tie", "=", "e"), (second, "B", "b")), 1)
        ]
    return [{"name": name, "field": CRITERION + name, "points": points} for name in loan.comparison.criteria]


def _rating_points(scale: tuple[int, int]) -> list[Json]:
    low, high = scale
    if high - low + 1 > MOST_POINTS:
        return []
    keys = "1234567890"
    return [
        {"value": str(value), "label": str(value), "key": keys[at] if at < len(keys) else "", "letter": ""}
        for at, value in enumerate(range(low, high + 1))
    ]


def keys_of(loan: Loan) -> list[tuple[str, str]]:
    """The sheet of keys: (keys, what they do)."""
    points = choices_of(loan)
    own = [(f"1 to {points[-1]['key']}", "a rating, from worst to best")] if loan.scale is not None and points else []
    own = own if loan.scale is not None else list(PAIR_KEYS)
    criteria = [("C", "the next criterion that is open: there the keys act on it")] if loan.comparison.criteria else []
    return [
        *own, *criteria, ("Ctrl+Enter", "send"), ("S, F", "skip, flag"), ("Z", "take the last answer back"), ("?", "this sheet")
    ]  # fmt: skip


def talk_of(messages: tuple[Message, ...]) -> list[Json]:
    """The conversation as (role, safe text)."""
    return [{"role": one.get("role", ""), "text": markdown.render(plain_text(one), top=4)} for one in messages]


def plain_text(message: Message) -> str:
    """A message's words; what is no text is named."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else []
    return "\n\n".join(
        str(part.get("text", f"[{part.get('type', 'something')}]")) for part in parts if isinstance(part, dict)
    )
