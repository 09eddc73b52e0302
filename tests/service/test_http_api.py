"""Capture, annotation and access over HTTP, with the SDK of `client.py` where it has a word for it."""

from __future__ import annotations

import re

import httpx
import pytest

from plaudit.client import Plaudit
from plaudit.domain import (
    Annotation,
    ApiKey,
    AuditEntry,
    Comparison,
    ComparisonState,
    EvaluationItem,
    Feedback,
    Interaction,
    Person,
    Purpose,
    Response,
    ResponseOrigin,
    ResponseText,
    Review,
    Verdict,
    utc_now,
)
from plaudit.errors import Conflict, Expired, Forbidden, NotFound, Unauthorized
from plaudit.loop import govern, planning
from plaudit.web.app import ROUTES

QUESTION = [{"role": "user", "content": "Where is my order?"}]


@pytest.fixture
def service(start_service):
    return start_service()


@pytest.fixture
def application(service):
    with Plaudit(service.url, service.key("application")) as client:
        yield client


def request(service, method: str, path: str, key: str | None, **more) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, service.url + path, headers=headers, timeout=30, **more)


# --- access ---


def test_every_route_wants_its_permission(service) -> None:
    keys = {
        "application": service.key("application"),
        "annotator": service.key("annotator", person="Ann"),
        "operator": service.key("operator"),
        "admin": service.key("admin"),
    }
    for method, template, _, permission in ROUTES:
        path = re.sub(r"{\w+}", "lse_0", template)
        body = {"json": {}} if method == "POST" else {}
        bare = request(service, method, path, None, **body)
        if permission is None:
            assert bare.status_code == 200
            continue
        assert bare.status_code == 401, path
        assert bare.headers["www-authenticate"] == "Bearer"
        assert request(service, method, path, "plk_invented", **body).status_code == 401
        for role, key in keys.items():
            answer = request(service, method, path, key, **body)
            allowed = govern.may([role], permission)
            # The admin's key is nobody's: annotation is refused to it for that.
            personal = role == "admin" and permission in (govern.Permission.ANNOTATE, govern.Permission.REVIEW)
            assert (answer.status_code == 403) == (not allowed or personal), (role, path, answer.text)
    assert service.store.count(Interaction) == 0
    assert service.store.count(Annotation) == 0


def test_a_revoked_key_stops_working(service) -> None:
    key = service.key("application")
    assert request(service, "GET", "/v1/models", key).status_code == 200
    (made,) = service.store.find(ApiKey)
    govern.revoke_key(service.store, service.project.id, made.id, utc_now())
    service.app.state.door.keys._known.clear()  # a second later
    assert request(service, "GET", "/v1/models", key).status_code == 401


def test_a_path_or_method_that_is_not_there_is_said_in_json(service) -> None:
    assert request(service, "GET", "/v1/nothing", None).json()["error"]["code"] == "not_found"
    assert request(service, "DELETE", "/v1/feedback", None).status_code == 405
    openai_shaped = request(service, "GET", "/v1/chat/completions", None).json()["error"]
    assert openai_shaped["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"[]", 422),
        (b"{", 422),
        (b"\xff\xfe", 422),
        (b'{"value": NaN}', 422),
        (b'{"value": "\\ud800"}', 422),
        (b'{"value": "\\u0000"}', 422),
        (b'{"\\ud800": 1}', 422),
        (b"[" * 100_000, 422),
        (b'{"value": ' + b"[" * 200 + b"]" * 200 + b"}", 422),
        (b'{"value": "' + b"x" * 1_000_001 + b'"}', 413),
        (b'{"interaction_id": "int_0", "kind": "thumb", "value": true}', 404),
        (b'{"interaction_id": "int_0", "kind": "thumb", "value": 1}', 422),
        (b'{"interaction_id": "int_0", "kind": "applause", "value": true}', 422),
    ],
)
def test_a_bad_body_gets_its_status_and_changes_nothing(service, content, status) -> None:
    answer = request(service, "POST", "/v1/feedback", service.key("application"), content=content)
    assert answer.status_code == status
    assert set(answer.json()["error"]) >= {"code", "message"}
    assert service.store.count(Feedback) == 0


# --- capture ---


def test_feedback_is_recorded_superseded_and_replayed(service, application) -> None:
    answer = application.chat(QUESTION, user="u1", training_use="allowed", attributes={"plan": "free"})
    assert application.feedback.thumb(answer.id, up=True)["status"] == "recorded"
    assert application.feedback.thumb(answer.id, up=True)["status"] == "replayed"
    assert application.feedback.thumb(answer.id, up=False)["status"] == "superseded"
    assert application.feedback.retract(answer.id, "thumb")["status"] == "superseded"
    assert application.feedback.rate(answer.id, 4)["status"] == "recorded"
    assert application.feedback.edit(answer.id, "Better.")["status"] == "recorded"
    assert application.feedback.comment(answer.id, "thanks", reasons=["helpful"])["status"] == "recorded"
    assert application.feedback.signal(answer.id, "copy")["status"] == "recorded"
    kinds = [feedback.kind for feedback in service.store.find(Feedback)]
    assert kinds == ["thumb", "thumb", "thumb", "rating", "edit", "comment", "signal"]
    assert service.store.get(Interaction, answer.id).attributes == {"plan": "free"}


def test_an_idempotency_key_acts_once_in_header_or_body(service, application) -> None:
    answer = application.chat(QUESTION, n=2)
    key = service.key("application")
    body = {"interaction_id": answer.id, "kind": "choice", "value": {"chosen": 1}}
    headers = {"authorization": f"Bearer {key}", "idempotency-key": "once"}
    sent = [httpx.post(service.url + "/v1/feedback", json=body, headers=headers) for _ in range(2)]
    assert [one.status_code for one in sent] == [201, 200]
    assert sent[0].json()["id"] == sent[1].json()["id"]
    with pytest.raises(Conflict, match="once"):
        application.feedback.choose(answer.id, 0, idempotency_key="once")
    with pytest.raises(NotFound, match="index 2"):
        application.feedback.thumb(answer.id, up=True, response_index=2)
    assert service.store.count(Feedback) == 1


def test_what_the_application_made_itself_is_logged_and_rated(service, application) -> None:
    assigned = application.assign("u7")
    interaction_id = application.log(
        QUESTION, ["one", "two"], user="u7", model="mine", release_id=assigned["release_id"], training_use="allowed"
    )
    stored = service.store.get(Interaction, interaction_id)
    assert (stored.source, stored.release_id, stored.actor) == ("logged", assigned["release_id"], "u7")
    assert [one.text for one in service.store.find(Response, interaction_id=interaction_id)] == ["one", "two"]
    assert application.feedback.thumb(interaction_id, up=True, response_index=1)["status"] == "recorded"
    assert assigned == {"release_id": stored.release_id, "model": "fake-1", "experiment_id": None, "arm": None}
    with pytest.raises(NotFound):
        application.log(QUESTION, ["x"], release_id="rel_0")


# --- annotation ---


def ask(service) -> None:
    """One question for one annotator."""
    item = EvaluationItem(
        messages=({"role": "user", "content": "q0"},),
        family="f",
        first=ResponseText("a0"),
        second=ResponseText("b0"),
        first_checkpoint_id="ckp_1",
        second_checkpoint_id=None,
    )
    planning.plan_evaluation(service.store, service.project.id, [item], batch="b", overlap=1, now=utc_now())


def test_a_question_is_lent_answered_once_and_closed(service) -> None:
    ask(service)
    with (
        Plaudit(service.url, service.key("annotator", person="Ann")) as ann,
        Plaudit(service.url, service.key("annotator", person="Bea")) as bea,
    ):
        loan = ann.annotation.lease()
        assert {response["text"] for response in loan["responses"]} == {"a0", "b0"}
        assert loan["messages"] == [{"role": "user", "content": "q0"}]
        assert set(loan) == {
            "lease_id",
            "comparison_id",
            "expires_at",
            "messages",
            "kind",
            "guideline",
            "responses",
        } | {
            "criteria",
            "scale",
        }
        assert all(set(response) == {"id", "text"} for response in loan["responses"])
        assert bea.annotation.lease() is None
        assert ann.annotation.heartbeat(loan["lease_id"])["expires_at"] >= loan["expires_at"]
        with pytest.raises(NotFound):
            bea.annotation.heartbeat(loan["lease_id"])
        choice = loan["responses"][0]["id"]
        ann.annotation.answer(loan["lease_id"], verdict="prefer", choice=choice, strength=2, seconds=3.5)
        ann.annotation.answer(loan["lease_id"], verdict="prefer", choice=choice, strength=2, seconds=3.5)  # a retry
        with pytest.raises(Conflict):
            ann.annotation.answer(loan["lease_id"], verdict="tie", seconds=3.5)
        assert ann.annotation.lease() is None
        assert ann.annotation.progress()["answered"] == 1
    (annotation,) = service.store.find(Annotation)
    (person,) = service.store.find(Person, name="Ann")
    assert (annotation.annotator_id, annotation.choice, annotation.strength) == (person.id, choice, 2)


def test_a_question_given_back_goes_to_somebody_else(service) -> None:
    ask(service)
    with (
        Plaudit(service.url, service.key("annotator", person="Ann")) as ann,
        Plaudit(service.url, service.key("annotator", person="Bea")) as bea,
    ):
        loan = ann.annotation.lease()
        ann.annotation.release(loan["lease_id"])
        assert bea.annotation.lease()["comparison_id"] == loan["comparison_id"]
        with pytest.raises(Expired):
            ann.annotation.answer(loan["lease_id"], verdict="tie", seconds=1)


def test_the_sdk_raises_the_errors_of_plaudit(service) -> None:
    with Plaudit(service.url, "plk_wrong") as nobody, pytest.raises(Unauthorized, match="plaudit key create"):
        nobody.assign("u")
    with Plaudit(service.url, service.key("application")) as application, pytest.raises(Forbidden, match="annotate"):
        application.annotation.lease()


# --- gold and reviews ---


def test_a_lead_makes_gold_and_an_expert_decides_over_the_api(service) -> None:
    """Each as the page does it, in the name of the key's person, with the status of what went wrong."""
    store, project_id, now = service.store, service.project.id, utc_now()
    made = []
    for at, state in enumerate((ComparisonState.CLOSED, ComparisonState.CLOSED, ComparisonState.FLAGGED)):
        answers = [
            Response(
                id=f"res_{at}{side}", project_id=project_id, interaction_id=None, idx=0, text=side, finish_reason="stop",
                origin=ResponseOrigin.LOGGED, model="m", created_at=now,
            )
            for side in "ab"
        ]  # fmt: skip
        one = Comparison(
            id=f"cmp_{at}", project_id=project_id, interaction_id=None, purpose=Purpose.TRAINING, messages=tuple(QUESTION),
            family="f", response_ids=tuple(one.id for one in answers), overlap=1, state=state, created_at=now,
        )  # fmt: skip
        store.add(*answers, one)
        made.append(one)
    source, disputed, flagged = made
    ann = govern.person(store, project_id, "Ann", now)
    said = {"comparison_id": disputed.id, "guideline_id": None, "verdict": Verdict.PREFER, "choice": "res_1a"}
    store.add(
        Annotation(
            id="ann_1", project_id=project_id, annotator_id=ann.id, order=("res_1a", "res_1b"), seconds=3.0, created_at=now, **said
        )
    )  # fmt: skip
    lead, expert = service.key("lead", person="Lea"), service.key("expert", person="Eve")

    def ask(method: str, path: str, key: str, body: dict | None = None) -> tuple[int, dict]:
        answer = request(service, method, f"/v1/annotation/{path}", key, **({"json": body} if body is not None else {}))
        return answer.status_code, answer.json()

    gold = {"comparison_id": source.id, "choice": "res_0b"}
    status, row = ask("POST", "gold", lead, gold)
    shown = {"made_from": source.id, "choice": "res_0b", "state": "open", "n_right": 0, "n_answers": 0}
    assert (status, row) == (201, {"id": row["id"], **shown})
    assert ask("POST", "gold", lead, gold)[0] == 409
    assert ask("POST", "gold", lead, {**gold, "choice": "res_9"})[0] == 422
    assert ask("GET", "gold", lead) == (200, {"gold": [row]})
    retired = row | {"state": "retired"}
    assert ask("POST", f"gold/{row['id']}/retire", lead) == (200, retired)
    assert ask("POST", f"gold/{source.id}/retire", lead)[0] == 404
    assert [(one.action, one.actor) for one in store.find(AuditEntry)][-2:] == [
        ("gold.make", "Lea"),
        ("gold.retire", "Lea"),
    ]

    kept = {"comparison_id": flagged.id, "act": "drop"}
    assert ask("POST", "questions", lead, kept) == (
        200,
        {"comparison_id": flagged.id, "state": "cancelled", "review_id": None},
    )
    assert ask("POST", "questions", lead, kept)[0] == 409
    assert ask("POST", "questions", lead, {**kept, "act": "expert"})[0] == 422
    status, sent = ask("POST", "questions", lead, {"comparison_id": disputed.id, "act": "expert"})
    review = f"reviews/{sent['review_id']}"
    assert (status, sent["state"]) == (200, "closed")

    assert [one["id"] for one in ask("GET", "reviews", expert)[1]["reviews"]] == [sent["review_id"]]
    status, case = ask("GET", review, expert)
    assert (status, case["kind"], case["decided"]) == (200, "dispute", False)
    assert {one["id"]: one["text"] for one in case["responses"]} == {"res_1a": "a", "res_1b": "b"}
    assert [(vote["column"], vote["choice"]) for vote in case["votes"]] == [(1, "res_1a")]
    assert "Ann" not in str(case)
    assert ann.id not in str(case)
    own = service.key("expert", person="Ann")
    decision = {"verdict": "prefer", "choice": "res_1b", "confidence": 3, "error_class": "taste", "note": "Shorter."}
    assert ask("GET", "reviews", own) == (200, {"reviews": []})
    assert (ask("GET", review, own)[0], ask("POST", review, own, decision)[0]) == (403, 403)
    for wrong in ({"confidence": None}, {"confidence": 4}, {"verdict": "skip"}, {"choice": None}, {"error_class": "x"}):
        assert ask("POST", review, expert, decision | wrong)[0] == 422, wrong
    status, decided = ask("POST", review, expert, decision)
    assert (status, decided["choice"]) == (200, "res_1b")
    stored = store.get(Review, sent["review_id"])
    assert (stored.verdict, stored.choice, stored.confidence, stored.error_class, stored.note) == tuple(
        decision.values()
    )
    assert ask("POST", review, expert, decision)[0] == 409
    assert ask("GET", "reviews", expert) == (200, {"reviews": []})
