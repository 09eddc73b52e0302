"""What each route of `app.ROUTES` takes and answers, for `GET /openapi.json`. Bodies that a stage reads by a shape are that shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plaudit import openai_protocol as protocol
from plaudit.domain import FeedbackKind, TrainingUse, Verdict
from plaudit.loop import answers, collect, outcomes, quality, reviews, shapes
from plaudit.loop.collect import MAX_NAME_CHARS
from plaudit.loop.shapes import NULL, Shape, shape
from plaudit.web.api.erasure import ERASURE
from plaudit.web.openapi import EVENTS, STRING, TEXT, Operation, answer, batch

ID: Shape = {"type": "string", "minLength": 1}
TIME: Shape = {"type": "string", "format": "date-time"}
COUNT: Shape = {"type": "integer", "minimum": 0}
TEXTS: Shape = {"type": "array", "items": STRING}
OBJECT: Shape = {"type": "object"}


def _or_null(part: Shape) -> Shape:
    return {"anyOf": [part, NULL]}


def _titled(title: str, part: Shape) -> Shape:
    return {"title": title, **part}


# --- chats: OpenAI's, so what is not named here is ignored -----------------------------------------------------------------

_WORD: Shape = {"type": "string", "minLength": 1}
_FORWARDED: Mapping[str, Shape] = {
    "max_tokens": {"type": "integer", "minimum": 1},
    "max_completion_tokens": {"type": "integer", "minimum": 1},
    "temperature": shapes.real(0, 2),
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": shapes.whole(1, protocol.MAX_N),
    "stop": {"anyOf": [_WORD, {"type": "array", "maxItems": protocol.MAX_STOPS, "items": _WORD}]},
    "seed": shapes.whole(-(2**63), 2**63 - 1),
    "presence_penalty": shapes.real(-2, 2),
    "frequency_penalty": shapes.real(-2, 2),
    "logit_bias": {},
    "logprobs": shapes.FLAG,
    "top_logprobs": {**shapes.whole(0, 20), "description": "Needs logprobs: true."},
    "tools": {},
    "tool_choice": {},
    "parallel_tool_calls": {},
    "response_format": {},
    "reasoning_effort": {},
}
_NAME = shapes.text(MAX_NAME_CHARS)
_EXTENSION = shape(
    {},
    {
        "conversation_id": _NAME,
        "family": _NAME,
        "training_use": shapes.one_of(TrainingUse),
        "attributes": shapes.ATTRIBUTES,
    },
)
CHAT: Shape = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "minLength": 1, "description": "Any name; who asks decides which release answers."},
        "messages": shapes.MESSAGES,
        **{name: _or_null(part) for name, part in _FORWARDED.items()},
        "stream": _or_null(shapes.FLAG),
        "stream_options": _or_null({"type": "object", "properties": {"include_usage": _or_null(shapes.FLAG)}}),
        "user": _or_null({"type": "string", "maxLength": MAX_NAME_CHARS, "description": "Pseudonym of the end user."}),
        "plaudit": _or_null(_EXTENSION),
    },
    "required": ["model", "messages"],
}

# --- feedback: one schema for each kind, and one for what takes a kind back ----------------------------------------------


def feedback_schema() -> Shape:
    """What `collect` reads by FEEDBACK and then, by kind, `value_shape`; ratings on the scale that a project has unless configured."""
    flat = collect.FEEDBACK["properties"]
    beside = {name: part for name, part in flat.items() if name not in ("kind", "value", "retract")}

    def one(title: str, kinds: list[FeedbackKind], value: Shape, retract: bool) -> Shape:
        parts: dict[str, Any] = {**beside, "kind": {"type": "string", "enum": [str(kind) for kind in kinds]}}
        parts |= {"value": value, "retract": {"const": True} if retract else _or_null({"const": False})}
        if kinds == [FeedbackKind.CHOICE]:
            parts["response_index"] = _or_null({"const": 0})
        needed = ["interaction_id", "kind", "retract" if retract else "value"]
        return {
            "title": title,
            "type": "object",
            "properties": parts,
            "required": needed,
            "additionalProperties": False,
        }

    variants = []
    for kind in FeedbackKind:
        whole = collect.value_shape(kind, 1, 5)
        if kind is FeedbackKind.COMMENT:
            text, reasons = shapes.text(collect.MAX_TEXT_CHARS), shapes.texts(1, 20)
            parts = whole["properties"]
            whole = {
                "anyOf": [
                    {**whole, "properties": {**parts, "text": text}, "required": ["text"]},
                    {**whole, "properties": {**parts, "reasons": reasons}, "required": ["reasons"]},
                ]
            }
            bare: Shape = text
        else:
            bare = whole["properties"][collect.VALUE_FIELD[kind]]
        variants.append(one(f"{kind.capitalize()}Feedback", [kind], {"anyOf": [whole, bare]}, retract=False))
    back = [kind for kind in FeedbackKind if kind not in {*collect.ACCUMULATES, FeedbackKind.CHOICE}]
    variants.append(one("Retraction", back, {}, retract=True))
    variants.append(one("ChoiceRetraction", [FeedbackKind.CHOICE], {}, retract=True))
    return {"title": "Feedback", "anyOf": variants}


# --- annotation --------------------------------------------------------------------------------------------------------


def annotation_schema() -> Shape:
    """What `loop.answers` reads, by verdict."""
    needed: dict[str, Shape] = {
        "lease_id": shapes.text(answers.MAX_ID_CHARS),
        "seconds": shapes.real(0, answers.MAX_SECONDS, "How long it took."),
    }
    beside: dict[str, Shape] = {
        "reasons": shapes.texts(0, answers.MAX_REASONS, 100),
        "note": shapes.text(answers.MAX_NOTE_CHARS),
    }
    edit = shapes.text(answers.MAX_EDIT_CHARS, "The chosen response as it should be.")
    criteria: Shape = {"type": "object", "description": "By criterion: a response id, `tie`, or a rating."}
    choice, rating = (
        shapes.text(answers.MAX_ID_CHARS, "A response id that was shown."),
        shapes.whole(-answers.MAX_RATING, answers.MAX_RATING, "On the project's scale."),
    )

    def one(title: str, verdicts: list[Verdict], more: Mapping[str, Shape], may: Mapping[str, Shape]) -> Shape:
        verdict = {"type": "string", "enum": [str(verdict) for verdict in verdicts]}
        return _titled(title, shape({**needed, "verdict": verdict, **more}, {**beside, **may}))

    return {
        "title": "Annotation",
        "anyOf": [
            one(
                "Prefer",
                [Verdict.PREFER],
                {"choice": choice},
                {"strength": shapes.whole(1, 3), "edit": edit, "criteria": criteria},
            ),
            one("Neither", [Verdict.TIE, Verdict.BOTH_BAD], {}, {"criteria": criteria}),
            one("Rate", [Verdict.RATE], {"rating": rating}, {"edit": edit, "criteria": criteria}),
            one("Skip", [Verdict.SKIP], {}, {"flagged": shapes.FLAG}),
        ],
    }


LIST: Shape = {"type": "array"}
LOAN = answer(lease_id=ID, comparison_id=ID, expires_at=TIME, kind=STRING, messages=LIST, responses=LIST)
LENT_AGAIN = answer(lease_id=ID, comparison_id=ID)
ANNOTATOR = answer(id=ID, name=STRING, paused=_or_null(STRING), qualified=LIST, batches=TEXTS, domains=TEXTS)
ACT = _titled(
    "Act",
    shape(
        {"person": shapes.text(200, "A name or an id."), "act": {"type": "string", "enum": list(quality.ACTS)}},
        {
            "reason": shapes.text(quality.MAX_REASON_CHARS, "Of a pause."),
            "batch": shapes.text(200),
            "domain": shapes.text(200),
            "until": {**TIME, "description": "When a qualification ends; without it, now."},
        },
    ),
)
GOLD = answer(id=ID, made_from=_or_null(STRING), choice=ID, state=STRING, n_right=COUNT, n_answers=COUNT)
MADE_GOLD = _titled(
    "Gold",
    shape(
        {"comparison_id": shapes.text(200, "A training question."), "choice": shapes.text(200, "Its right response.")},
        {},
    ),
)
QUESTION = answer(comparison_id=ID, state=STRING, review_id=_or_null(STRING))
QUESTION_ACT = _titled(
    "QuestionAct",
    shape({"comparison_id": shapes.text(200), "act": {"type": "string", "enum": list(reviews.QUESTION_ACTS)}}, {}),
)
WAITING = answer(id=ID, kind=STRING, created_at=TIME)
CASE = answer(
    id=ID, kind=STRING, comparison_id=ID, messages=LIST, responses=LIST, guideline={}, votes=LIST, decided=shapes.FLAG
)
DECIDED = answer(id=ID, comparison_id=ID, verdict=STRING, choice=_or_null(STRING))
_SURE = shapes.whole(1, 3, "1 is a guess, 3 certain.")
_WHY: dict[str, Shape] = {
    "error_class": {"type": "string", "enum": list(reviews.ERROR_CLASSES)},
    "note": shapes.text(reviews.MAX_NOTE_CHARS),
}
_NEITHER: Shape = {"type": "string", "enum": [str(one) for one in reviews.DECISIONS if one is not Verdict.PREFER]}
DECISION: Shape = {
    "title": "Decision",
    "anyOf": [
        _titled(
            "DecidePrefer",
            shape({"verdict": {"const": "prefer"}, "choice": shapes.text(200), "confidence": _SURE}, _WHY),
        ),
        _titled("DecideNeither", shape({"verdict": _NEITHER, "confidence": _SURE}, _WHY)),
    ],
}

# --- all of them -------------------------------------------------------------------------------------------------------

INTERACTION = _titled("Interaction", collect.INTERACTION)
FEEDBACK = feedback_schema()
OUTCOME = _titled("Outcome", outcomes.OUTCOME)
LOGGED = answer(id=ID, feedback_token=ID)
SAID = answer(id=ID, status={"type": "string", "enum": ["recorded", "superseded", "replayed"]})
READY = answer(status={"type": "string", "enum": ["ready", "spooling", "missing"]}, missing=TEXTS)
FULL = {207: answer(results={"type": "array", "items": answer(code={"type": "integer"})})}

OPERATIONS: Mapping[str, Operation] = {
    "GET /healthz": Operation("The process answers.", {200: answer(status={"const": "ok"})}),
    "GET /readyz": Operation("It can serve.", {200: READY, 503: READY}),
    "GET /openapi.json": Operation("This document.", {200: answer(openapi=STRING, paths=OBJECT)}),
    "GET /v1/models": Operation(
        "OpenAI's model list.", {200: answer(object={"const": "list"}, data={"type": "array"})}, openai=True
    ),
    "POST /v1/chat/completions": Operation(
        "OpenAI's chat completions; the id of the answer is the Interaction's. With `stream`, server-sent events.",
        {200: answer(id=ID, object=STRING, model=STRING, choices={"type": "array"}), 502: None, 504: None},
        _titled("Chat", CHAT),
        openai=True,
        media=EVENTS,
    ),
    "GET /v1/assignment": Operation(
        "Which Release a user is assigned to, for applications that call the model themselves.",
        {
            200: answer(release_id=ID, model=STRING, experiment_id=_or_null(STRING), arm=_or_null(STRING)),
            422: None,
        },
        query={"user": _NAME, "conversation_id": STRING},
    ),
    "POST /v1/interactions": Operation(
        "Log a completion that the application made elsewhere.",
        {200: LOGGED, 201: LOGGED, 404: None, 409: None},
        INTERACTION,
    ),
    "POST /v1/interactions/batch": Operation("Up to 1000 of them.", FULL, batch(INTERACTION)),
    "POST /v1/feedback": Operation(
        "What an end user said or did about an Interaction. Where no header can be set, a feedback token may stand in the body as `token`.",
        {200: SAID, 201: SAID, 404: None, 409: None},
        FEEDBACK,
        token=True,
    ),
    "POST /v1/feedback/batch": Operation("Up to 1000 of them.", FULL, batch(FEEDBACK), token=True),
    "POST /v1/outcomes": Operation("What became of a user.", {200: SAID, 201: SAID, 409: None}, OUTCOME),
    "POST /v1/outcomes/batch": Operation("Up to 1000 of them.", FULL, batch(OUTCOME)),
    "POST /v1/erasure": Operation(
        "Erase what is kept of a user.",
        {201: answer(id=ID, reason=STRING, erased=OBJECT, tainted=OBJECT, purge_at=_or_null(TIME)), 404: None},
        _titled("Erasure", ERASURE),
    ),
    "POST /v1/annotation/lease": Operation("The next question.", {200: LOAN, 204: None}),
    "POST /v1/annotation/lease/{lease_id}/heartbeat": Operation(
        "Keep it.", {200: answer(lease_id=ID, expires_at=TIME), 404: None, 409: None, 410: None}
    ),
    "POST /v1/annotation/lease/{lease_id}/release": Operation("Give it back.", {204: None, 404: None, 409: None}),
    "POST /v1/annotations": Operation(
        "One verdict.",
        {
            200: answer(id=ID, comparison_id=ID),
            201: answer(id=ID, comparison_id=ID),
            404: None,
            409: None,
            410: None,
        },
        annotation_schema(),
    ),
    "POST /v1/annotation/undo": Operation(
        "Take the newest answer back.", {200: LENT_AGAIN, 404: None, 409: None, 410: None}
    ),
    "GET /v1/annotation/progress": Operation(
        "One's own figures.", {200: answer(answered=COUNT, skipped=COUNT, available=COUNT, median_seconds={})}
    ),
    "GET /v1/annotation/annotators": Operation(
        "Who is paused, qualified and assigned.", {200: answer(annotators={"type": "array", "items": ANNOTATOR})}
    ),
    "POST /v1/annotation/annotators": Operation(
        "Pause, resume, qualify, or assign work.", {200: ANNOTATOR, 404: None, 409: None}, ACT
    ),
    "GET /v1/annotation/gold": Operation(
        "Every question whose answer is known.", {200: answer(gold={"type": "array", "items": GOLD})}
    ),
    "POST /v1/annotation/gold": Operation(
        "Make gold of a training question.", {201: GOLD, 404: None, 409: None}, MADE_GOLD
    ),
    "POST /v1/annotation/gold/{gold_id}/retire": Operation("Ask it no more.", {200: GOLD, 404: None}),
    "POST /v1/annotation/questions": Operation(
        "Keep or drop a flagged question, or send a disputed one to an expert.",
        {200: QUESTION, 404: None, 409: None},
        QUESTION_ACT,
    ),
    "GET /v1/annotation/reviews": Operation(
        "What waits for this expert.", {200: answer(reviews={"type": "array", "items": WAITING})}
    ),
    "GET /v1/annotation/reviews/{review_id}": Operation(
        "A question, its answers and votes, without names.", {200: CASE, 404: None}
    ),
    "POST /v1/annotation/reviews/{review_id}": Operation(
        "Decide a dispute or an audit, once.", {200: DECIDED, 404: None, 409: None}, DECISION
    ),
    "GET /metrics": Operation("Figures of this process and of the store, for Prometheus.", {200: STRING}, media=TEXT),
}
