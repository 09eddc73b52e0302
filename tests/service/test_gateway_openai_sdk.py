"""The official `openai` SDK is the contract of the gateway."""

from __future__ import annotations

import asyncio

import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from plaudit import openai_protocol as protocol
from plaudit.backends import Fake
from plaudit.domain import Completion, CompletionStatus, Interaction, Response

QUESTION = [{"role": "user", "content": "How do I reset my password?"}]


def sdk(service, **options):
    return openai.OpenAI(base_url=service.url + "/v1", api_key=service.key("application"), max_retries=0, **options)


def expected(model="fake-1", **body):
    """What the Fake says to a body."""
    return asyncio.run(Fake().complete({"model": model, "messages": QUESTION, **body}))


def test_a_completion_is_an_interaction_with_the_same_id(start_service) -> None:
    service = start_service()
    with sdk(service) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="anything",
            messages=QUESTION,
            user="u-1",
            temperature=0.5,
            max_tokens=5,
            extra_body={"plaudit": {"conversation_id": "c-9", "training_use": "allowed", "family": "reset"}},
        )
        answer = raw.parse()
    assert answer.choices[0].message.content == expected(max_tokens=5)["choices"][0]["message"]["content"]
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "fake-1"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    interaction = service.store.get(Interaction, answer.id)
    assert raw.headers["x-plaudit-interaction"] == interaction.id
    assert (interaction.actor, interaction.conversation_id, interaction.family) == ("u-1", "c-9", "reset")
    assert interaction.training_use == "allowed"
    assert interaction.sampling["temperature"] == 0.5
    assert interaction.release_id == interaction.served_release_id is not None
    completion = service.store.get(Completion, answer.id)
    assert (completion.status, completion.completion_tokens) == (CompletionStatus.OK, 5)
    (response,) = service.store.find(Response, interaction_id=answer.id)
    assert response.text == answer.choices[0].message.content


def test_a_stream_says_the_same_words_with_role_first_and_finish_reason_last(start_service) -> None:
    service = start_service()
    with sdk(service) as client:
        chunks = list(client.chat.completions.create(model="plaudit", messages=QUESTION, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    text = "".join(delta.content or "" for delta in deltas)
    assert text == expected()["choices"][0]["message"]["content"]
    assert deltas[0].role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk.id for chunk in chunks} == {service.store.find(Interaction)[0].id}
    assert all(chunk.usage is None for chunk in chunks)  # nobody asked
    (response,) = service.store.find(Response)
    assert (response.text, response.finish_reason) == (text, "stop")
    assert service.store.find(Completion)[0].completion_tokens == len(text.split())  # recorded although not shown


def test_usage_comes_last_and_only_on_request(start_service) -> None:
    service = start_service()
    with sdk(service) as client:
        chunks = list(
            client.chat.completions.create(
                model="plaudit", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 6
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_are_several_responses_to_one_interaction(start_service, stream: bool) -> None:
    service = start_service()
    texts = {0: "", 1: "", 2: ""}
    with sdk(service) as client:
        if stream:
            for chunk in client.chat.completions.create(model="plaudit", messages=QUESTION, n=3, stream=True):
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        else:
            whole = client.chat.completions.create(model="plaudit", messages=QUESTION, n=3)
            texts = {choice.index: choice.message.content for choice in whole.choices}
    assert len(set(texts.values())) == 3
    (interaction,) = service.store.find(Interaction)
    stored = service.store.find(Response, interaction_id=interaction.id)
    assert {response.idx: response.text for response in stored} == texts


def test_the_asynchronous_client_streams_side_by_side(start_service) -> None:
    service = start_service("fake:0.001")

    async def ask(client: openai.AsyncOpenAI, number: int) -> tuple[str, str]:
        question = [{"role": "user", "content": f"question {number}"}]
        stream = await client.chat.completions.create(model="plaudit", messages=question, stream=True)
        chunks = [chunk async for chunk in stream]
        return chunks[0].id, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    async def all_of_them() -> dict[str, str]:
        key = service.key("application")
        async with openai.AsyncOpenAI(base_url=service.url + "/v1", api_key=key, max_retries=0) as client:
            return dict(await asyncio.gather(*(ask(client, number) for number in range(20))))

    said = asyncio.run(all_of_them())
    assert len(said) == 20
    assert {response.interaction_id: response.text for response in service.store.find(Response)} == said


def test_content_parts_tools_and_log_probabilities_pass_through(start_service, serve) -> None:
    heard = []

    async def completions(request: Request) -> JSONResponse:
        heard.append(await request.json())
        call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}] * 3}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": logprobs}
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        return JSONResponse(
            {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )

    url = serve(Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])]))
    service = start_service(url + "/v1", "m-1")
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "find "}, {"type": "text", "text": "it"}]}]
    with sdk(service) as client:
        answer = client.chat.completions.create(
            model="plaudit",
            messages=parts,
            tools=tools,
            response_format={"type": "json_object"},
            logprobs=True,
            max_completion_tokens=7,
            user="secret-pseudonym",
            extra_body={"plaudit": {"family": "f"}, "unheard_of": 1},
        )
    assert answer.choices[0].message.tool_calls[0].function.name == "find"
    (body,) = heard
    assert body == {
        "model": "m-1",
        "messages": parts,
        "tools": tools,
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "max_completion_tokens": 7,
        "stream": False,
    }  # neither the user, nor what is ours, nor what nobody knows
    (response,) = service.store.find(Response)
    assert '"name": "find"' in response.text
    assert (response.logprob, response.n_tokens) == (pytest.approx(-1.5), 3)


def test_the_models_are_listed(start_service) -> None:
    with sdk(start_service()) as client:
        assert [model.id for model in client.models.list()] == ["plaudit", "fake-1"]


def test_an_upstream_with_other_manners_is_brought_into_shape(start_service, serve) -> None:
    """No role at all, usage in every chunk and beside the last choice, a name and an id of its own."""

    async def completions(request: Request) -> StreamingResponse:
        async def body():
            for text, finish in (("a", None), ("b", None), ("", "stop")):
                counts = {"usage": protocol.usage(3, 2)}
                yield protocol.event(protocol.chunk("theirs", 7, "secret", 0, {"content": text}, finish) | counts)
            yield protocol.DONE

        return StreamingResponse(body(), media_type="text/event-stream")

    url = serve(Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])]))
    service = start_service(url + "/v1", "m-1")
    with sdk(service) as client:
        plain = list(client.chat.completions.create(model="plaudit", messages=QUESTION, stream=True))
        asked = list(
            client.chat.completions.create(
                model="plaudit", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        )
    for chunks in (plain, asked):
        assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices] == ["assistant", None, None]
        assert {chunk.model for chunk in chunks} == {"m-1"}
        assert len({chunk.id for chunk in chunks}) == 1
        assert all(chunk.usage is None for chunk in chunks if chunk.choices)
    assert [len(chunks) for chunks in (plain, asked)] == [3, 4]
    assert asked[-1].usage is not None
    assert asked[-1].usage.total_tokens == 5
    assert {plain[0].id, asked[0].id} == {interaction.id for interaction in service.store.find(Interaction)}
