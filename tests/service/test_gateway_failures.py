"""What the gateway does when the model server, or the client, does not do its part."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from plaudit import openai_protocol as protocol
from plaudit.domain import (
    Completion,
    CompletionStatus,
    Experiment,
    Interaction,
    Release,
    ReleaseState,
    Response,
    new_id,
    utc_now,
)
from plaudit.loop import experiment, serving

BODY = {"model": "plaudit", "messages": [{"role": "user", "content": "hello"}]}


class Midway(Exception):
    """Raised inside a scripted upstream: its connection breaks."""


def upstream(handler) -> Starlette:
    return Starlette(routes=[Route("/v1/chat/completions", handler, methods=["POST"])])


def words(*texts: str) -> list[bytes]:
    return [protocol.event(protocol.chunk("x", 0, "m", 0, {"content": text})) for text in texts]


def streaming(*pieces: bytes, end: BaseException | None = None):
    async def handler(request: Request) -> StreamingResponse:
        async def body():
            for piece in pieces:
                yield piece
            if end is not None:
                raise end

        return StreamingResponse(body(), media_type="text/event-stream")

    return handler


def post(service, **more) -> httpx.Response:
    headers = {"authorization": f"Bearer {service.key('application')}"}
    return httpx.post(service.url + "/v1/chat/completions", json={**BODY, **more}, headers=headers, timeout=30)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (PlainTextResponse("boom", 500), 502, "upstream_error"),
        (JSONResponse({"error": {"message": "too long"}}, 400), 400, "upstream_error"),
        (JSONResponse({"error": {"message": "bad key"}}, 401), 502, "upstream_error"),
        (JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": "7"}), 429, "upstream_error"),
        (JSONResponse({"error": "full"}, 503), 503, "upstream_error"),
        (PlainTextResponse("<html>not json</html>"), 502, "upstream_error"),
        (JSONResponse({"choices": []}), 502, "upstream_error"),
        (PlainTextResponse("data: {broken\n\n", media_type="text/event-stream"), 502, "upstream_error"),
    ],
)  # fmt: skip
def test_an_error_before_the_first_byte_keeps_its_meaning(start_service, serve, stream, answer, status, code) -> None:
    async def handler(request: Request):
        return answer

    service = start_service(serve(upstream(handler)) + "/v1", "m-1")
    response = post(service, stream=stream)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"].startswith("The model server")
    assert response.headers.get("retry-after") == {429: "7", 503: "1"}.get(status)
    (completion,) = service.store.find(Completion)
    assert (completion.status, completion.error) == (CompletionStatus.ERROR, error["message"])
    assert service.store.count(Interaction) == 1
    assert service.store.count(Response) == 0


def test_nobody_at_the_address_is_a_502(start_service) -> None:
    response = post(start_service("http://127.0.0.1:9/v1", "m-1"))
    assert response.status_code == 502
    assert "out of reach" in response.json()["error"]["message"]


def test_a_silent_model_server_is_a_504(start_service, serve) -> None:
    gone = threading.Event()

    async def silent(request: Request) -> PlainTextResponse:
        while not gone.is_set():
            await asyncio.sleep(0.02)
        return PlainTextResponse("late")

    service = start_service(serve(upstream(silent)) + "/v1", "m-1", upstream_timeout_s=0.3)
    try:
        for stream in (False, True):
            response = post(service, stream=stream)
            assert response.status_code == 504
            assert "silent" in response.json()["error"]["message"]
    finally:
        gone.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_hiccup_before_the_first_byte_is_tried_again_once(start_service, serve, stream) -> None:
    asked = []

    async def handler(request: Request):
        asked.append(await request.json())
        if len(asked) == 1:
            return PlainTextResponse("Internal Server Error", 500)
        if stream:
            return await streaming(*words("better"), protocol.DONE)(request)
        return JSONResponse(
            protocol.completion("x", 0, "m", [protocol.choice(0, "better", "stop")], protocol.usage(1, 1))
        )

    service = start_service(serve(upstream(handler)) + "/v1", "m-1")
    response = post(service, stream=stream)
    assert response.status_code == 200
    assert "better" in response.text
    assert len(asked) == 2
    assert service.store.count(Interaction) == 1


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(streaming(*words("half", " of")), id="ends without DONE"),
        pytest.param(streaming(*words("half", " of"), end=Midway()), id="breaks"),
        pytest.param(streaming(*words("half", " of"), b'data: {"error": {"message": "gpu"}}\n\n'), id="says error"),
        pytest.param(streaming(*words("half", " of"), b"data: {nonsense\n\n"), id="turns to garbage"),
    ],
)
def test_an_upstream_that_dies_midway_ends_the_stream_with_an_error_event(start_service, serve, end) -> None:
    service = start_service(serve(upstream(end)) + "/v1", "m-1")
    response = post(service, stream=True)
    assert response.status_code == 200  # the first byte was out
    assert "[DONE]" not in response.text
    last = response.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n")
    assert json.loads(last.split("data: ", 1)[1])["error"]["code"] == "upstream_error"
    (completion,) = service.store.find(Completion)
    assert completion.status == CompletionStatus.ERROR
    (kept,) = service.store.find(Response)
    assert kept.text == "half of"
    with (
        openai.OpenAI(base_url=service.url + "/v1", api_key=service.key("application"), max_retries=0) as client,
        pytest.raises(openai.APIError, match="model server"),
    ):
        list(client.chat.completions.create(**BODY, stream=True))


def test_a_client_that_leaves_midway_cancels_the_generation_and_leaves_its_part(start_service, serve) -> None:
    stopped = threading.Event()

    async def handler(request: Request) -> StreamingResponse:
        async def body():
            try:
                for number in range(10_000):
                    yield words(f" {number}")[0]
                    await asyncio.sleep(0.01)
            finally:
                stopped.set()

        return StreamingResponse(body(), media_type="text/event-stream")

    service = start_service(serve(upstream(handler)) + "/v1", "m-1")
    with openai.OpenAI(base_url=service.url + "/v1", api_key=service.key("application"), max_retries=0) as client:
        stream = client.chat.completions.create(**BODY, stream=True)
        seen = ""
        for chunk in stream:
            seen += chunk.choices[0].delta.content or ""
            if seen.endswith(" 5"):
                break
        stream.close()
    (completion,) = service.stored(Completion)
    assert completion.status == CompletionStatus.CANCELLED
    (response,) = service.stored(Response)
    assert response.text.startswith(" 0 1 2 3 4 5")
    assert len(response.text) < 1000
    assert stopped.wait(60), "the model server was left generating"


def test_a_client_that_leaves_a_whole_completion_cancels_it_too(start_service, serve) -> None:
    reached, stopped = threading.Event(), threading.Event()

    async def handler(request: Request):
        reached.set()
        while not await request.is_disconnected():
            await asyncio.sleep(0.02)
        stopped.set()
        return PlainTextResponse("")

    service = start_service(serve(upstream(handler)) + "/v1", "m-1")
    headers = {"authorization": f"Bearer {service.key('application')}"}
    with httpx.Client(timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post(service.url + "/v1/chat/completions", json=BODY, headers=headers)
    assert reached.is_set()
    (completion,) = service.stored(Completion)
    assert completion.status == CompletionStatus.CANCELLED
    assert stopped.wait(60), "the model server was left generating"
    assert service.store.count(Interaction) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_live_release_stands_in_for_a_candidate_that_cannot_answer(start_service, stream) -> None:
    service = start_service()
    control = service.store.find(Release)[0]
    now = utc_now()
    candidate = Release(
        id=new_id(Release), project_id=service.project.id, checkpoint_id=None, model="broken",
        upstream="http://127.0.0.1:9/v1", state=ReleaseState.CANARY, created_at=now, state_at=now,
    )  # fmt: skip
    service.store.add(candidate)
    started = experiment.start(service.store, service.project.id, candidate.id, control.id, now, stages=(0.5,))
    config = serving.serving_config(service.store, service.project.id)
    user = next(f"u{n}" for n in range(100) if serving.assign(config, f"u{n}").release_id == candidate.id)
    response = post(service, stream=stream, user=user)
    assert response.status_code == 200
    assert '"model":"fake-1"' in response.text
    (interaction,) = service.store.find(Interaction)
    assert (interaction.experiment_id, interaction.arm) == (started.id, "candidate")  # analysed as assigned
    assert (interaction.release_id, interaction.served_release_id) == (candidate.id, control.id)
    (completion,) = service.store.find(Completion)
    assert completion.status == CompletionStatus.OK
    assert candidate.id in completion.error
    assert service.store.count(Experiment) == 1


def test_a_request_at_fault_is_not_handed_to_another_release_and_nothing_is_stored(start_service) -> None:
    service = start_service()
    for body in (
        {"messages": []},
        {"messages": [{"role": "user", "content": "x\u0000y"}]},
        {"temperature": 3},
        {"n": 0},
        {"plaudit": {"training_use": "perhaps"}},
        {"plaudit": {"conversation": "c"}},
        {"user": 7},
        {"stream": "yes"},
    ):
        response = post(service, **body)
        assert response.status_code == 400, body
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert service.store.count(Interaction) == 0


def test_no_live_release_is_a_503_that_says_what_to_do(start_service) -> None:
    service = start_service("")
    response = post(service)
    assert response.status_code == 503
    assert "plaudit up" in response.json()["error"]["message"]
    assert httpx.get(service.url + "/readyz").status_code == 503
    assert httpx.get(service.url + "/healthz").status_code == 200


# --- stalls, garbage, strictness ---------------------------------------------------------------------------------------


def stalling(*pieces: bytes, repeat: bytes, every_s: float, gone: threading.Event):
    """Says `pieces`, then only `repeat` until the client is gone."""

    async def handler(request: Request) -> StreamingResponse:
        async def body():
            for piece in pieces:
                yield piece
            while not gone.is_set():
                await asyncio.sleep(every_s)
                yield repeat

        return StreamingResponse(body(), media_type="text/event-stream")

    return handler


@pytest.mark.parametrize("repeat", [b": still here\n\n", words("")[0]], ids=["comments", "empty chunks"])
def test_a_stream_that_never_says_a_word_is_a_504_however_alive_its_connection(start_service, serve, repeat) -> None:
    gone = threading.Event()
    handler = stalling(repeat=repeat, every_s=0.02, gone=gone)
    service = start_service(serve(upstream(handler)) + "/v1", "m-1", upstream_timeout_s=0.4)
    try:
        response = post(service, stream=True)
        assert response.status_code == 504
        assert "silent" in response.json()["error"]["message"]
        (completion,) = service.store.find(Completion)
        assert completion.status == CompletionStatus.ERROR
    finally:
        gone.set()


def test_a_stream_that_falls_silent_midway_ends_with_an_error_event(start_service, serve) -> None:
    gone = threading.Event()
    handler = stalling(*words("half", " of"), repeat=b": still here\n\n", every_s=0.02, gone=gone)
    service = start_service(serve(upstream(handler)) + "/v1", "m-1", upstream_idle_s=0.4)
    try:
        response = post(service, stream=True)
        assert response.status_code == 200
        assert response.text.rstrip().split("\n\n")[-1].startswith("event: error\n")
        assert "[DONE]" not in response.text
        (kept,) = service.store.find(Response)
        assert kept.text == "half of"
    finally:
        gone.set()


GARBAGE = [
    {"choices": [{"index": "zero", "message": {"content": "x"}}]},
    {"choices": [{"index": -1, "message": {"content": "x"}}]},
    {"choices": [{"index": 0, "message": {"content": 7}}]},
    {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": {"a": 1}}]},
    {"choices": [{"index": 0, "message": {"content": "x", "tool_calls": ["f"]}}]},
    {"choices": [{"index": 0, "message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}},
    {"choices": [{"index": 0, "message": {"content": "x"}, "logprobs": {"content": [{"logprob": None}]}}]},
    {"choices": {"0": "x"}},
]


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
def test_json_that_is_no_completion_is_a_502_and_no_bug(start_service, serve, body) -> None:
    async def handler(request: Request):
        if not (await request.json())["stream"]:
            return JSONResponse(body)
        return await streaming(protocol.event(body), protocol.DONE)(request)

    service = start_service(serve(upstream(handler)) + "/v1", "m-1")
    for stream in (False, True):
        response = post(service, stream=stream)
        assert response.status_code == 502, response.text
        assert response.json()["error"]["code"] == "upstream_error"
    assert {completion.status for completion in service.store.find(Completion)} == {CompletionStatus.ERROR}


@pytest.mark.parametrize("stream", [False, True])
def test_text_that_no_database_holds_is_mended_not_lost(start_service, serve, stream) -> None:
    """A NUL and half of a surrogate pair, which JSON can spell."""

    async def handler(request: Request):
        if not stream:
            text = '{"choices": [{"index": 0, "message": {"content": "a\\u0000b\\ud83dc\\ud83d\\ude00"}, "finish_reason": "stop"}]}'
            return PlainTextResponse(text, media_type="application/json")
        text = 'data: {"choices": [{"index": 0, "delta": {"content": "a\\u0000b\\ud83dc\\ud83d\\ude00"}, "finish_reason": "stop"}]}\n\n'
        return await streaming(text.encode(), protocol.DONE)(request)

    service = start_service(serve(upstream(handler)) + "/v1", "m-1")
    response = post(service, stream=stream)
    assert response.status_code == 200
    assert "a\ufffdb\ufffdc😀" in response.text
    assert service.store.find(Response)[0].text == "a\ufffdb\ufffdc😀"


def test_strict_mode_refuses_what_has_no_effect_and_names_the_nearest(start_service) -> None:
    assert (
        post(start_service(strict_requests=True), temprature=1)
        .json()["error"]["message"]
        .startswith("`temprature` is not a field that has an effect here; did you mean `temperature`?")
    )


def test_tool_calls_in_pieces_reach_the_caller_untouched_and_the_store_joined(start_service, serve) -> None:
    pieces = [
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "find", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"q":'}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "c2", "type": "function", "function": {"name": "count", "arguments": "{}"}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]},
    ]
    chunks = [protocol.event(protocol.chunk("x", 0, "m", 0, piece)) for piece in pieces]
    end = protocol.event(protocol.chunk("x", 0, "m", 0, {}, "tool_calls"))
    service = start_service(serve(upstream(streaming(*chunks, end, protocol.DONE))) + "/v1", "m-1")
    with openai.OpenAI(base_url=service.url + "/v1", api_key=service.key("application"), max_retries=0) as client:
        seen = list(client.chat.completions.create(**BODY, stream=True))
    deltas = [chunk.choices[0].delta for chunk in seen]
    said = [call.model_dump(exclude_unset=True) for delta in deltas for call in delta.tool_calls or ()]
    assert said == [call for piece in pieces for call in piece["tool_calls"]]
    assert deltas[0].role == "assistant"
    assert seen[-1].choices[0].finish_reason == "tool_calls"
    (response,) = service.store.find(Response)
    assert response.tool_calls == (
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "count", "arguments": "{}"}},
    )
    assert '"name": "find"' in response.text
