"""Every route of `app.ROUTES`: who may, whose objects, what a hostile body gets, and that no secret comes out. A new route that names an
object must say here which one, so that its isolation is tested."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonState,
    EvaluationItem,
    Feedback,
    Interaction,
    Lease,
    Outcome,
    Project,
    Purpose,
    Release,
    ResponseText,
    Review,
    ReviewKind,
    Role,
    utc_now,
)
from plaudit.loop import govern, people, planning, release
from plaudit.loop.govern import PERSONAL_ROLES, Permission
from plaudit.web.app import PAGES, ROUTES
from plaudit.web.headers import HEADERS

OTHER = "prj_other"
ROOMY = 60  # seconds


@pytest.fixture
def service(start_service):
    return start_service(feedback_keys="k1:planted-ring-secret-0123456789abcdef")


def make_key(service, project_id: str, *roles: str, person: str | None = None) -> str:
    return govern.create_key(service.store, project_id, "-".join(roles), roles, person, now=utc_now())[1]


def request(service, method: str, path: str, key: str | None, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # verify=False: a context for TLS, which nobody speaks here, takes longer than the request
    return httpx.request(method, service.url + path, headers=headers, timeout=ROOMY, verify=False, **more)


def filled(template: str, names: Mapping[str, str]) -> str:
    """The path with the objects that it names; any other name is x."""
    return re.sub(r"{(\w+)}", lambda name: names.get(name[1], "x"), template)


NOBODYS = {"lease_id": "lse_0", "run_id": "run_0"}

# --- who may -----------------------------------------------------------------------------------------------------------


def test_every_role_may_what_the_table_says_and_nothing_else(service) -> None:
    keys = {
        role: make_key(service, service.project.id, role, person=f"P-{role}" if role in PERSONAL_ROLES else None)
        for role in Role
    }
    for method, template, _, permission in ROUTES:
        path = filled(template, NOBODYS)
        more = {"json": {}} if method == "POST" else {}
        if permission is None:
            continue
        for wrong in (None, "plk_invented", "pft_e30.invented"):
            answer = request(service, method, path, wrong, **more)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), (path, wrong)
        for role, key in keys.items():
            answer = request(service, method, path, key, **more)
            allowed = govern.may([role], permission)
            # such a key is not a person's
            nobodys = role == Role.ADMIN and permission in (Permission.ANNOTATE, Permission.REVIEW)
            assert (answer.status_code == 403) == (not allowed or nobodys), (role, path, answer.text)
            assert answer.status_code < 500, (role, path, answer.text)


def test_every_answer_has_the_security_headers(service) -> None:
    key = service.key("admin", person="Root")
    with httpx.Client(base_url=service.url, timeout=ROOMY) as client:
        for method, template, _, _ in (*ROUTES, *PAGES):
            path = filled(template, NOBODYS)
            for secret in (None, key):
                answer = client.request(
                    method,
                    path,
                    headers={"authorization": f"Bearer {secret}"} if secret else {},
                    json={} if method == "POST" else None,
                )
                assert set(HEADERS) <= set(answer.headers), (method, path, answer.status_code)
                assert "default-src 'none'" in answer.headers["content-security-policy"]
                assert "access-control-allow-origin" not in answer.headers


# --- two projects ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objects:
    """What the first project has, and the second one's people ask for."""

    user: str
    interaction_id: str
    release_id: str
    lease_id: str
    person_id: str
    comparison_id: str
    gold_id: str
    review_id: str


Body = Callable[[Objects], dict[str, Any]]
MESSAGES = [{"role": "user", "content": "hi"}]

# What each route that names an object is asked for it; a batch says 404 of its item.
OBJECTS: dict[str, Body] = {
    "POST /v1/interactions": lambda it: {"messages": MESSAGES, "responses": ["x"], "release_id": it.release_id},
    "POST /v1/interactions/batch": lambda it: {"items": [OBJECTS["POST /v1/interactions"](it)]},
    "POST /v1/feedback": lambda it: {"interaction_id": it.interaction_id, "kind": "thumb", "value": True},
    "POST /v1/feedback/batch": lambda it: {"items": [OBJECTS["POST /v1/feedback"](it)]},
    "POST /v1/erasure": lambda it: {"user": it.user},
    "POST /v1/annotation/lease/{lease_id}/heartbeat": lambda it: {},
    "POST /v1/annotation/lease/{lease_id}/release": lambda it: {},
    "POST /v1/annotations": lambda it: {"lease_id": it.lease_id, "verdict": "tie", "seconds": 1},
    "POST /v1/annotation/annotators": lambda it: {"person": it.person_id, "act": "pause", "reason": "x"},
    "POST /v1/annotation/gold": lambda it: {"comparison_id": it.comparison_id, "choice": "res_0"},
    "POST /v1/annotation/gold/{gold_id}/retire": lambda it: {},
    "POST /v1/annotation/questions": lambda it: {"comparison_id": it.comparison_id, "act": "keep"},
    "GET /v1/annotation/reviews/{review_id}": lambda it: {},
    "POST /v1/annotation/reviews/{review_id}": lambda it: {"verdict": "tie", "confidence": 2},
}
# These name none; what they show or write is of the key's own project, as the test below says.
WITHOUT = {
    "GET /metrics",
    "GET /v1/models",
    "POST /v1/chat/completions",
    "GET /v1/assignment",
    "POST /v1/outcomes",
    "POST /v1/outcomes/batch",
    "POST /v1/annotation/lease",
    "POST /v1/annotation/undo",
    "GET /v1/annotation/progress",
    "GET /v1/annotation/annotators",
    "GET /v1/annotation/gold",
    "GET /v1/annotation/reviews",
}


def furnish(service) -> Objects:
    """An interaction, a release, a question that Ann holds, gold, a review; all of the first project. The second has a release of its own."""
    service.store.add(Project(id=OTHER, project_id=OTHER, name="other", created_at=utc_now()))
    release.register_base(service.store, OTHER, "other-model", "fake:", utc_now())
    application = service.key("application")
    spoken = request(
        service, "POST", "/v1/chat/completions", application, json={"model": "m", "messages": MESSAGES, "user": "u1"}
    )
    item = EvaluationItem(
        messages=tuple(MESSAGES),
        family="f",
        first=ResponseText("a0"),
        second=ResponseText("b0"),
        first_checkpoint_id="ckp_1",
        second_checkpoint_id=None,
    )
    planning.plan_evaluation(service.store, service.project.id, [item], batch="b", overlap=2, now=utc_now())
    annotator = service.key("annotator", person="Ann")
    lent = request(service, "POST", "/v1/annotation/lease", annotator).json()
    (live,) = service.store.find(Release, project_id=service.project.id)
    lease = service.store.get(Lease, lent["lease_id"])
    asked = service.store.get(Comparison, lease.comparison_id)
    closed = replace(asked, id="cmp_closed", purpose=Purpose.TRAINING, state=ComparisonState.CLOSED)
    golden = replace(asked, id="cmp_gold", purpose=Purpose.GOLD, gold_choice=asked.response_ids[0])
    review = Review(
        id="rev_0", project_id=asked.project_id, comparison_id=closed.id, kind=ReviewKind.AUDIT, created_at=utc_now()
    )
    service.store.add(closed, golden, review)
    return Objects("u1", spoken.json()["id"], live.id, lease.id, lease.annotator_id, closed.id, golden.id, review.id)


def test_the_objects_of_one_project_are_not_there_for_another(service) -> None:
    guarded = {f"{method} {path}" for method, path, _, permission in ROUTES if permission is not None}
    assert set(OBJECTS) | WITHOUT == guarded, (
        "say in OBJECTS what a new route names, or in WITHOUT that it names nothing"
    )
    it = furnish(service)
    stranger = make_key(service, OTHER, "admin", person="Ann")  # of the same name even
    kinds = (Interaction, Feedback, Annotation, Comparison)
    before = [service.store.count(kind) for kind in kinds], service.store.get(Lease, it.lease_id)
    for route, body in OBJECTS.items():
        method, template = route.split()
        path = filled(template, vars(it))
        answer = request(service, method, path, stranger, json=body(it))
        status = answer.json()["results"][0]["code"] if answer.status_code == 207 else answer.status_code
        assert status == 404, (route, answer.text)
    assert ([service.store.count(kind) for kind in kinds], service.store.get(Lease, it.lease_id)) == before
    own = service.key("admin", person="Ann")
    for route in ("POST /v1/feedback", "POST /v1/annotation/lease/{lease_id}/heartbeat", "POST /v1/interactions"):
        method, template = route.split()
        path = filled(template, vars(it))
        assert request(service, method, path, own, json=OBJECTS[route](it)).status_code in (200, 201), route


def test_what_names_no_object_shows_and_writes_ones_own_project(service) -> None:
    furnish(service)
    stranger = make_key(service, OTHER, "admin", person="Eve")
    listed = request(service, "GET", "/v1/models", stranger).json()["data"]
    assert [one["id"] for one in listed] == ["plaudit", "other-model"]
    assert request(service, "GET", "/v1/assignment?user=u1", stranger).json()["model"] == "other-model"
    assert request(service, "POST", "/v1/annotation/lease", stranger).status_code == 204
    assert request(service, "POST", "/v1/annotation/undo", stranger).status_code == 404
    assert request(service, "GET", "/v1/annotation/progress", stranger).json()["available"] == 0
    for what in ("annotators", "gold", "reviews"):
        assert request(service, "GET", f"/v1/annotation/{what}", stranger).json() == {what: []}
    body = {"model": "m", "messages": MESSAGES, "user": "u1"}
    spoken = request(service, "POST", "/v1/chat/completions", stranger, json=body).json()
    assert service.store.get(Interaction, spoken["id"]).project_id == OTHER
    outcome = {"user": "u1", "name": "sale", "value": 1, "at": "2026-01-01T00:00:00Z"}
    assert request(service, "POST", "/v1/outcomes", stranger, json=outcome).status_code == 201
    assert request(service, "POST", "/v1/outcomes/batch", stranger, json={"items": [outcome]}).status_code == 207
    assert {one.project_id for one in service.store.find(Outcome)} == {OTHER}


# --- hostile bodies ----------------------------------------------------------------------------------------------------

WHOLE = (
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe{}",
    b"\x00",
    b"{" * 50_000,
    b'{"a":' * 5_000,
    b'{"\\ud800": 1}',
    b'{"a": NaN}',
)
DEEP: Any = "x"
for _ in range(200):
    DEEP = [DEEP]
NASTY: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**400,
    1e308,
    "",
    "a\x00b",
    "\udfff",
    "x" * 5_000,
    [],
    {},
    [None],
    [{}],
    [["x"]],
    {"": {}},
    DEEP,
)
GOOD: dict[str, dict[str, Any]] = {
    "POST /v1/chat/completions": {
        "model": "m",
        "messages": MESSAGES,
        "user": "u",
        "n": 1,
        "max_tokens": 5,
        "temperature": 0.5,
        "stop": ["x"],
        "stream": False,
        "stream_options": {"include_usage": True},
        "logit_bias": {"1": 1},
        "tools": [],
        "plaudit": {"family": "f", "attributes": {"a": 1}},
    },
    "POST /v1/interactions": {
        "messages": MESSAGES,
        "responses": ["x"],
        "user": "u",
        "attributes": {"a": 1},
        "at": "2026-01-01T00:00:00Z",
        "idempotency_key": "k",
        "training_use": "allowed",
    },
    "POST /v1/feedback": {
        "interaction_id": "int_0",
        "kind": "comment",
        "value": {"text": "x", "reasons": ["a"]},
        "response_index": 0,
        "user": "u",
        "idempotency_key": "k",
        "retract": False,
        "at": "2026-01-01T00:00:00Z",
        "token": "pft_e30.e30",
    },
    "POST /v1/outcomes": {"user": "u", "name": "n", "value": 1, "at": "2026-01-01T00:00:00Z", "key": "k"},
    "POST /v1/erasure": {"user": "nobody"},
    "POST /v1/annotation/annotators": {"person": "per_0", "act": "pause", "reason": "x"},
    "POST /v1/annotation/gold": {"comparison_id": "cmp_0", "choice": "res_0"},
    "POST /v1/annotation/questions": {"comparison_id": "cmp_0", "act": "keep"},
    "POST /v1/annotation/reviews/{review_id}": {
        "verdict": "prefer",
        "choice": "res_0",
        "confidence": 2,
        "error_class": "none",
        "note": "x",
    },
    "POST /v1/annotations": {"lease_id": "lse_0", "verdict": "prefer", "choice": "res_0", "strength": 1, "seconds": 1},
}
BODILESS = {
    "POST /v1/annotation/gold/{gold_id}/retire",
    "POST /v1/annotation/lease",
    "POST /v1/annotation/undo",
    "POST /v1/annotation/lease/{lease_id}/heartbeat",
    "POST /v1/annotation/lease/{lease_id}/release",
}


def hostile(route: str) -> Iterator[bytes]:
    """Bodies for a POST route: none that is one, then the good one with each field made wrong."""
    yield from WHOLE
    single = route.removesuffix("/batch")
    good = GOOD.get(single, {})
    wrong = [good | {name: value} for name in good for value in NASTY] + [good | {"\udfff": 1}, good | {"": 1}]
    if route.endswith("/batch"):
        yield from (json.dumps({"items": value}).encode() for value in (*NASTY, wrong))
    else:
        yield from (json.dumps(body).encode() for body in wrong)


@pytest.mark.slow
@pytest.mark.parametrize("route", [f"{method} {path}" for method, path, _, may in ROUTES if method == "POST" and may])
def test_a_hostile_body_is_the_callers_fault_every_time(service, route: str) -> None:
    method, template = route.split()
    it = furnish(service)
    path = filled(template, vars(it))
    headers = {"authorization": f"Bearer {service.key('admin', person='Ann')}"}
    assert route in BODILESS or route.removesuffix("/batch") in GOOD, "give the new route a GOOD body"
    with httpx.Client(base_url=service.url, headers=headers, timeout=ROOMY) as client:
        for body in hostile(route):
            answer = client.request(method, path, content=body)
            assert answer.status_code < 500, (body[:300], answer.text)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) >= {"code", "message"}


def test_hostile_headers_paths_and_queries_are_the_callers_fault(service) -> None:
    key = service.key("admin", person="Ann")
    own = {b"authorization": f"Bearer {key}".encode()}
    body = {"interaction_id": "int_0", "kind": "thumb", "value": True}
    with httpx.Client(base_url=service.url, timeout=ROOMY) as client:
        for secret in (
            b"Bearer",
            b"Bearer \xff",
            b"bearer " + b"x" * 10_000,
            b"Basic eDp4",
            b"\xe9",
            b"Bearer pft_\xff.x",
        ):
            for path in ("/v1/feedback", "/v1/chat/completions"):
                assert client.post(path, json=body, headers={b"authorization": secret}).status_code == 401, secret
        for value in (b"", b"\xff\xfe", b"x" * 201):
            refused = client.post("/v1/feedback", json=body, headers=own | {b"idempotency-key": value})
            assert refused.status_code in (404, 422), value
        for name in ("lse_0", "%00", "%ff", "x" * 5_000, "..%2f..", "%f0%9f%98%80"):
            gone = client.post(f"/v1/annotation/lease/{name}/heartbeat", headers=own)
            assert gone.status_code in (404, 422), (name, gone.text)
        for query in (
            "",
            "user=",
            "user=%00",
            "user=%ff",
            "user=" + "x" * 20_000,
            "user=a&user=b",
            "user=a&conversation_id=%00",
        ):
            asked = client.get(f"/v1/assignment?{query}", headers=own)
            assert asked.status_code in (200, 422), (query, asked.text)


# --- secrets -----------------------------------------------------------------------------------------------------------


def test_no_secret_is_in_an_answer_or_a_log(start_service, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, logger="httpcore")  # the client's own, which say what it sends
    ring = "planted-ring-secret-0123456789abcdef"
    service = start_service("http://planted-name:planted-upstream@127.0.0.1:9/v1", feedback_keys=f"k1:{ring}")
    key, revoked = service.key("admin", person="Root"), service.key("application")
    _, _, invitation = people.invite(service.store, service.project.id, "Root", ["admin"], utc_now())
    with httpx.Client(base_url=service.url, timeout=ROOMY) as browser:
        form = {"invitation": invitation}
        entered = browser.post("/sign-in", data=form, headers={"sec-fetch-site": "same-origin"})
        cookie_secret = (service.settings.home / "keys" / "cookie.key").read_bytes().hex()
        planted = [ring, "planted-upstream", key, revoked, invitation, cookie_secret, *browser.cookies.values()]
        assert entered.status_code == 303
        assert len(planted) == 7
        said = []
        for method, template, _, _ in (*ROUTES, *PAGES):
            path = filled(template, NOBODYS)
            if path == "/sign-out":
                continue  # or the pages after it would show nothing
            for accept in ("application/json", "text/html"):
                for secret in (key, revoked, f"{key}x"):
                    headers = {"authorization": f"Bearer {secret}", "accept": accept, "sec-fetch-site": "same-origin"}
                    more: dict[str, Any] = {}
                    if method == "POST":
                        more = {"json": GOOD.get(f"{method} {path}", {})}
                    answer = browser.request(method, path, headers=headers, **more)
                    kept = [(name, value) for name, value in answer.headers.items() if name != "set-cookie"]
                    said.append(f"{method} {path} {answer.status_code} {answer.text} {kept}")
    assert any("502" in one and "/v1/chat/completions" in one for one in said)  # the upstream's error was among them
    said += [f"{record.getMessage()} {record.exc_text or ''}" for record in caplog.records]
    for secret in planted:
        assert not [one for one in said if secret in one]
