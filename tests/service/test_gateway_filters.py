"""Filters in the gateway, seen from the official SDK, the model server and the store."""

from __future__ import annotations

import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from plaudit import openai_protocol as protocol
from plaudit.domain import Completion, CompletionStatus, Interaction, Response
from plaudit.errors import ConfigError
from plaudit.settings import Settings
from plaudit.web.app import create_app

FILTERS = (
    {"name": "ip", "action": "redact", "detector": "ip"},
    {"name": "rival", "action": "replace", "words": ["Acme"], "replacement": "another shop", "on": "response"},
    {"name": "weapons", "action": "block", "words": ["pipe bomb"]},
    {"name": "anger", "action": "flag", "words": ["furious"]},
)
TOKEN = {"content": [{"token": "192.", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}


class Server:
    """An upstream that says its text word by word (or whole) to everybody, and remembers what it was asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[dict] = []
        self.n_words = 0

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])

    async def _answer(self, request: Request):
        body = await request.json()
        self.asked.append(body)
        if not body["stream"]:
            choice = protocol.choice(0, self.text, "stop", TOKEN)
            return JSONResponse(protocol.completion("x", 0, "m", [choice], protocol.usage(3, 4)))

        async def words():
            for word in self.text.split(" "):
                self.n_words += 1
                yield protocol.event(protocol.chunk("x", 0, "m", 0, {"content": word + " "}, logprobs=TOKEN))
            yield protocol.event(protocol.chunk("x", 0, "m", 0, {}, "stop"))
            yield protocol.event(protocol.usage_chunk("x", 0, "m", protocol.usage(3, 4)))
            yield protocol.DONE

        return StreamingResponse(words(), media_type="text/event-stream")


def ask(service, question: str, stream: bool, **more) -> tuple[str, str | None]:
    """(text, finish_reason) as the SDK has them."""
    messages = [{"role": "user", "content": question}]
    more = {"extra_body": {"plaudit": {"training_use": "allowed"}}, **more}
    with openai.OpenAI(base_url=service.url + "/v1", api_key=service.key("application"), max_retries=0) as client:
        if not stream:
            (choice,) = client.chat.completions.create(model="m", messages=messages, **more).choices
            assert choice.logprobs is None
            return choice.message.content or "", choice.finish_reason
        chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True, **more))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert all(choice.logprobs is None for choice in choices)
    return "".join(choice.delta.content or "" for choice in choices).strip(), choices[-1].finish_reason


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_redacted_reaches_neither_model_nor_store_nor_user(start_service, serve, stream) -> None:
    server = Server("Ask 192.0.2.9 or Acme , said the furious clerk")
    service = start_service(serve(server.app()) + "/v1", "m-1", filters=FILTERS)
    shown = "Ask [ip] or another shop , said the furious clerk"
    assert ask(service, "is 192.0.2.1 up?", stream, logprobs=True) == (shown, "stop")
    assert server.asked[0]["messages"] == [{"role": "user", "content": "is [ip] up?"}]
    (interaction,) = service.store.find(Interaction)
    assert interaction.messages[0]["content"] == "is [ip] up?"
    assert interaction.verdicts == ({"filter": "ip", "action": "redact", "n": 1},)
    assert interaction.training_use == "allowed"
    (response,) = service.store.find(Response)
    assert response.text.strip() == shown
    assert [(verdict["filter"], verdict["n"]) for verdict in response.verdicts] == [
        ("ip", 1),
        ("rival", 1),
        ("anger", 1),
    ]
    assert response.logprob is None  # it was of another text


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_prompt_is_asked_of_nobody_and_never_trains(start_service, serve, stream) -> None:
    server = Server("should not be said")
    service = start_service(serve(server.app()) + "/v1", "m-1", filters=FILTERS)
    assert ask(service, "how do I build a Pipe Bomb?", stream) == ("", "content_filter")
    assert server.asked == []
    (interaction,) = service.store.find(Interaction)
    assert interaction.training_use == "denied"
    assert interaction.verdicts == ({"filter": "weapons", "action": "block", "n": 1},)
    (completion,) = service.store.find(Completion)
    assert (completion.status, completion.completion_tokens) == (CompletionStatus.OK, 0)
    assert [response.text for response in service.store.find(Response)] == [""]


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_answer_is_shown_and_stored_up_to_the_match_and_never_trains(start_service, serve, stream) -> None:
    server = Server("Take a pipe bomb " + "and so on " * 2000)
    service = start_service(serve(server.app()) + "/v1", "m-1", filters=FILTERS)
    assert ask(service, "what do I take?", stream) in (("Take a", "content_filter"), ("Take a ", "content_filter"))
    (response,) = service.stored(Response)
    assert (response.text, response.finish_reason) == ("Take a ", "content_filter")
    assert response.verdicts == ({"filter": "weapons", "action": "block", "n": 1},)
    (interaction,) = service.store.find(Interaction)
    assert interaction.training_use == "denied"
    assert interaction.verdicts == ()
    assert service.store.find(Completion)[0].status == CompletionStatus.OK


def test_a_stream_flows_while_it_is_screened(start_service, serve) -> None:
    """Only as much is held back as the longest match may have; the user does not wait for the whole."""
    server = Server(" ".join(f"word{number}" for number in range(60)))
    service = start_service(serve(server.app()) + "/v1", "m-1", filters=FILTERS)
    with openai.OpenAI(base_url=service.url + "/v1", api_key=service.key("application"), max_retries=0) as client:
        messages = [{"role": "user", "content": "count"}]
        chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts).strip() == server.text
    assert sum(bool(text) for text in texts) > 40
    assert max(map(len, texts)) < 60  # the rest that comes with the finish_reason


def test_a_filter_that_cannot_be_keeps_the_service_from_starting(tmp_path) -> None:
    with pytest.raises(ConfigError, match="'x'"):
        create_app(Settings(home=tmp_path, filters=({"name": "x", "action": "block", "pattern": "("},)), None)
    with pytest.raises(ConfigError, match="on_store_failure is 'ignore'"):
        create_app(Settings(home=tmp_path, on_store_failure="ignore"), None)
