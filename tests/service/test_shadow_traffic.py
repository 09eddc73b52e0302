"""A Release in shadow: it is asked what live users ask, and they never notice, whatever it does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from plaudit import openai_protocol as protocol
from plaudit.domain import (
    Completion,
    CompletionStatus,
    Feedback,
    Interaction,
    Release,
    ReleaseState,
    Response,
    ShadowAnswer,
    new_id,
    utc_now,
)


class Slow:
    """Answers only once it is let go; then well, or with an error."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[dict] = []
        self.broken = False

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> JSONResponse:
        self.asked.append(await request.json())
        await run_in_threadpool(self.go.wait, 20)
        if self.broken:
            return JSONResponse({"error": {"message": "no"}}, 500)
        choice = protocol.choice(0, "I am the shadow", "stop")
        return JSONResponse(protocol.completion("x", 0, "m", [choice], protocol.usage(3, 4)))


def test_users_never_meet_or_wait_for_a_release_in_shadow(start_service, serve: Callable[..., str]) -> None:
    slow = Slow()
    service = start_service(shadow_fraction=1.0, shadow_concurrency=2)
    now = utc_now()
    shadow = Release(
        id=new_id(Release), project_id=service.project.id, checkpoint_id=None, model="shadow",
        upstream=serve(slow.app()) + "/v1", state=ReleaseState.SHADOW, created_at=now, state_at=now,
    )  # fmt: skip
    service.store.add(shadow)
    body = {"model": "live", "user": "u", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {service.key('application')}"}

    def chat(stream: bool = False) -> str:
        url = service.url + "/v1/chat/completions"
        return httpx.post(url, json={**body, "stream": stream}, headers=headers, timeout=20).raise_for_status().text

    said = [chat(), chat(stream=True), chat()]  # the third copy finds two on their way
    assert not slow.go.is_set()  # all three were answered while the shadow had said nothing
    assert service.app.state.door.shadowing.n_left_out == 1
    slow.go.set()
    kept = service.stored(ShadowAnswer, at_least=2)
    assert not any("shadow" in text for text in said)
    assert [(one.status, one.n_chars, one.n_tokens, one.release_id) for one in kept] == [
        (CompletionStatus.OK, 15, 4, shadow.id)
    ] * 2
    assert {one.interaction_id for one in kept} <= {one.id for one in service.stored(Interaction, at_least=3)}
    assert {(ask["model"], ask["stream"]) for ask in slow.asked} == {("shadow", False)}
    slow.broken = True
    chat()
    last = service.stored(ShadowAnswer, at_least=3)[-1]
    assert (last.status, last.n_chars) == (CompletionStatus.ERROR, 0)
    assert {one.model for one in service.stored(Completion, at_least=4)} == {"fake-1"}
    assert {one.model for one in service.store.find(Response)} == {"fake-1"}
    assert {one.release_id for one in service.store.find(Interaction)} != {shadow.id}
    assert service.store.count(Feedback) == 0
