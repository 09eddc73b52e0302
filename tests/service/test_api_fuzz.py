"""schemathesis over `GET /openapi.json`: bodies that fit the document are not called malformed, bodies that do not are, and every answer is one
that the document has. And what no schema says: bytes, clocks, tokens, other people's answers. Event streams have tests of their own."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from plaudit.domain import ApiKey, Completion, Feedback, Interaction, Outcome, Project, utc_now
from plaudit.loop import feedback_tokens, govern, release
from plaudit.store.database import Store

MESSAGES = [{"role": "user", "content": "hi"}]
IN_WORDS = (
    "`top_logprobs` needs",
    "nested deeper",
    "must be a whole number",
)  # what docs/api.md says and the schema does not
KINDS = (Interaction, Completion, Feedback, Outcome)


def rows(store: Store) -> list[int]:
    return [store.count(kind) for kind in KINDS]


def ask(url: str, key: str, operation: Any, positive: bool, n_examples: int) -> int:
    """Ask one operation; how many requests were judged. Raises what is wrong with an answer."""
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    mode = GenerationMode.POSITIVE if positive else GenerationMode.NEGATIVE
    n_judged = 0

    @settings(max_examples=n_examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def once(case: Any) -> None:
        nonlocal n_judged
        if isinstance(case.body, dict) and "stream" in case.body:
            case.body["stream"] = False
        case.headers, case.cookies = {"authorization": f"Bearer {key}"}, {}
        answer = case.call(base_url=url)
        case.validate_response(answer, checks=checks)
        malformed = answer.status_code in (400, 422)
        parts = {str(part.value) for part, info in case.meta.components.items() if info.mode is GenerationMode.NEGATIVE}
        if positive:
            excused = any(words in answer.text for words in IN_WORDS)
            assert not malformed or excused, (answer.text, case.body)
        elif parts == {"body"}:
            items = answer.json().get("results", []) if answer.status_code == 207 else []
            refused = malformed or answer.status_code in (404, 413) or any(one["code"] in (404, 422) for one in items)
            assert refused, (answer.status_code, answer.text, case.body)
        n_judged += 1

    once()
    return n_judged


@pytest.mark.slow
def test_the_document_is_true_of_every_route(start_service) -> None:
    import schemathesis
    from hypothesis import strategies as st

    past = st.datetimes(datetime(1990, 1, 1), datetime(2020, 1, 1), timezones=st.just(UTC))
    schemathesis.openapi.format("date-time", past.map(datetime.isoformat))
    service = start_service()
    key = service.key("admin", person="Ann")
    document = httpx.get(f"{service.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.generation.update(
        allow_x00=False
    )  # a NUL is refused everywhere; tests/service/test_every_route.py sends them
    operations = [one.ok() for one in schema.get_all_operations()]
    wrong, n_judged = [], 0
    for one in operations:
        for positive in (True, False) if one.body.items else (True,):
            try:
                n_judged += ask(service.url, key, one, positive, 12 if one.body.items else 4)
            except Exception as error:
                said = [error, *getattr(error, "exceptions", ())]
                wrong.append(f"{one.method} {one.path} positive={positive}: " + "\n".join(map(str, said))[:1500])
    assert wrong == []
    assert {one.path for one in operations} == set(document["paths"])
    assert n_judged > 150
    assert service.store.count(ApiKey) == 1


# --- what no schema says -----------------------------------------------------------------------------------------------


def test_clocks_tokens_and_other_peoples_answers(start_service) -> None:
    service = start_service(feedback_keys="k2:second-secret-0123456789abcdef0123,k1:first-secret-0123456789abcdef0123")
    key, now = service.key("application"), utc_now()
    service.store.add(Project(id="prj_other", project_id="prj_other", name="other", created_at=now))
    release.register_base(service.store, "prj_other", "m", "fake:", now)
    stranger = govern.create_key(service.store, "prj_other", "k", ["application"], now=now)[1]
    with httpx.Client(base_url=service.url, timeout=60) as client:

        def send(secret: str, body: dict[str, Any], path: str = "/v1/feedback") -> int:
            answer = client.post(path, json=body, headers={"authorization": f"Bearer {secret}"})
            assert answer.status_code < 400 or answer.json()["error"]["message"], answer.text
            return answer.status_code

        chats = [
            client.post(
                "/v1/chat/completions",
                json={"model": "m", "messages": MESSAGES, "user": user},
                headers={"authorization": f"Bearer {key}"},
            )
            for user in ("u1", "u2")
        ]
        mine, theirs = (chat.json()["id"] for chat in chats)
        token = chats[0].headers["x-plaudit-feedback-token"]
        thumb = {"interaction_id": mine, "kind": "thumb", "value": True}
        before = rows(service.store)
        head, _, signature = token.partition(".")
        keys = feedback_tokens.KeyRing(service.settings.home, service.settings.feedback_keys).current()
        expired = feedback_tokens.mint(keys, service.project.id, mine, "u1", now - timedelta(days=2))
        unsigned = f"{head}.{'A' * len(signature)}"
        for secret, body, status in (
            (expired, thumb, 401),
            (unsigned, thumb, 401),
            (f"{token}x", thumb, 401),
            (token, {**thumb, "interaction_id": theirs}, 403),
            (token, {**thumb, "user": "u2"}, 403),
            (stranger, thumb, 404),
            (key, {**thumb, "interaction_id": "int_invented"}, 404),
            (key, {**thumb, "at": (now + timedelta(hours=1)).isoformat()}, 422),
            (key, {**thumb, "at": (now - timedelta(hours=1)).isoformat()}, 422),
            (key, {**thumb, "at": "9999-12-31T23:59:59-23:59"}, 422),
        ):
            assert send(secret, body) == status, (body, status)
        future = {"messages": MESSAGES, "responses": ["x"], "at": (now + timedelta(hours=1)).isoformat()}
        assert send(key, future, "/v1/interactions") == 422
        assert rows(service.store) == before  # nothing of it is stored
        assert (
            send(token, {**thumb, "at": (utc_now() + timedelta(minutes=4)).isoformat()}) == 201
        )  # skew within the tolerance
        assert send(token, thumb) == 200  # replayed by who holds the token: the same act, once
    assert service.store.count(Feedback) == 1


def test_a_body_that_trickles_is_refused_and_stores_nothing(start_service) -> None:
    service = start_service(body_timeout_s=0.3)
    key = service.key("application")
    before = rows(service.store)
    body = json.dumps({"interaction_id": "int_0", "kind": "thumb", "value": True}).encode()
    host, port = service.url.removeprefix("http://").split(":")
    for path, status in (("/v1/feedback", b"422"), ("/v1/chat/completions", b"400")):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = (
                f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body[:10])  # and never the rest
            said = b"".join(iter(lambda: connection.recv(65_536), b""))  # to the end: it closes
        assert said.split(b" ", 2)[1] == status, said
        assert b"body_timeout_s" in said
    assert rows(service.store) == before
