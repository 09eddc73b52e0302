from __future__ import annotations

import json

import pytest

from plaudit import openai_protocol as protocol
from plaudit.errors import BadInput, NotFound, RateLimited, Unavailable, UpstreamError
from plaudit.openai_protocol import EventReader, Gathered, parse_chat_request, text_of

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_what_is_not_said_is_none_and_not_forwarded() -> None:
    request = parse_chat_request({**BODY, "temperature": None, "stop": None, "n": None})
    assert (request.max_tokens, request.temperature, request.n, request.stop) == (None, None, 1, ())
    assert request.for_upstream("other") == {"messages": BODY["messages"], "model": "other", "stream": False}


def test_every_sampling_field_is_read() -> None:
    request = parse_chat_request(
        {
            **BODY, "max_tokens": 9, "temperature": 0, "top_p": 1, "n": 16, "stop": "X", "seed": -3, "logprobs": True,
            "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True}, "user": "u", "plaudit": {"family": "f"},
        }
    )  # fmt: skip
    assert (request.max_tokens, request.temperature, request.top_p, request.n) == (9, 0, 1, 16)
    assert (request.stop, request.seed, request.logprobs, request.top_logprobs) == (("X",), -3, True, 2)
    assert (request.stream, request.include_usage, request.user, request.extension) == (
        True,
        True,
        "u",
        {"family": "f"},
    )


def test_max_completion_tokens_wins_over_the_old_name() -> None:
    assert parse_chat_request({**BODY, "max_tokens": 9, "max_completion_tokens": 4}).max_tokens == 4


def test_a_stream_asks_its_upstream_for_usage_whether_the_caller_wants_it_or_not() -> None:
    assert parse_chat_request({**BODY, "stream": True}).for_upstream("m")["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": ""}, "model"), ({"model": 3}, "model"),
        ({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"messages": ["hi"]}, r"messages\[0\]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "content"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "text"),
        ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"), ({"temperature": -0.1}, "temperature"), ({"temperature": "1"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_p": 1.01}, "top_p"),
        ({"n": 0}, "`n`"), ({"n": 17}, "`n`"), ({"stop": ""}, "stop"), ({"stop": ["a", ""]}, "stop"), ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 1}, "stop"), ({"seed": 2**63}, "seed"), ({"stream": 1}, "stream"), ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"), ({"stream_options": 1}, "stream_options"), ({"user": 1}, "user"),
        ({"plaudit": "x"}, "plaudit"), ({"presence_penalty": 3}, "presence_penalty"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(change, field) -> None:
    with pytest.raises(BadInput, match=field):
        parse_chat_request({**BODY, **change})


def test_text_parts_are_joined_and_other_parts_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert text_of({"role": "user", "content": parts}) == "ab"
    assert text_of({"role": "assistant", "content": None}) == ""
    with pytest.raises(BadInput, match="image_url"):
        text_of({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})


def test_a_stream_gathers_to_the_same_answer_as_the_whole() -> None:
    token = {"token": "x", "logprob": -0.25, "bytes": None, "top_logprobs": []}
    counts = protocol.usage(5, 6)
    whole = [protocol.choice(index, f"hi {index}", "stop", {"content": [token] * 3}) for index in (0, 1)]
    streamed = Gathered()
    for index in (1, 0):
        streamed.add(protocol.chunk("i", 0, "m", index, {"role": "assistant", "content": ""}))
        for text in ("h", "i ", str(index)):
            streamed.add(protocol.chunk("i", 0, "m", index, {"content": text}, logprobs={"content": [token]}))
        streamed.add(protocol.chunk("i", 0, "m", index, {}, "stop"))
    streamed.add(protocol.usage_chunk("i", 0, "m", counts))
    answer = protocol.read_answer(protocol.completion("i", 0, "m", whole, counts))
    assert streamed.answer() == answer
    assert answer.choices[1] == protocol.Choice("hi 1", "stop", -0.75, 3)
    assert (answer.prompt_tokens, answer.completion_tokens) == (5, 6)


def test_usage_counts_one_choice_but_never_one_of_several() -> None:
    one = protocol.completion("i", 0, "m", [protocol.choice(0, "a", "stop")], protocol.usage(1, 7))
    two = protocol.completion("i", 0, "m", [protocol.choice(i, "a", "stop") for i in (0, 1)], protocol.usage(1, 7))
    assert [choice.n_tokens for choice in protocol.read_answer(one).choices] == [7]
    assert [choice.n_tokens for choice in protocol.read_answer(two).choices] == [None, None]


def test_tool_calls_in_pieces_become_one_text() -> None:
    gathered = Gathered()
    for piece in (
        {"index": 0, "id": "c", "function": {"name": "find", "arguments": '{"q"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ):
        gathered.add(protocol.chunk("i", 0, "m", 0, {"tool_calls": [piece]}))
    (choice,) = gathered.answer().choices
    assert json.loads(choice.text) == {"tool_calls": [{"id": "c", "name": "find", "arguments": '{"q": 1}'}]}


@pytest.mark.parametrize(
    "body", [{}, {"choices": 3}, {"choices": [3]}, {"choices": [{"message": "x"}]}, {"choices": []}]
)
def test_what_is_no_completion_is_the_upstreams_fault(body) -> None:
    with pytest.raises(UpstreamError):
        protocol.read_answer(body)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_are_read_whatever_the_borders_of_the_pieces(size, end) -> None:
    lines = [b": comment", b"event: x", "data: {\"t\": \"Grüße 🎉\"}".encode(), b"", b"data:two", b"data: lines", b""]  # fmt: skip
    lines += [b"data: [DONE]", b""]
    stream = b"".join(line + end for line in lines)
    reader = EventReader()
    found = [data for at in range(0, len(stream), size) for data in reader.feed(stream[at : at + size])]
    assert found == ['{"t": "Grüße 🎉"}', "two\nlines", "[DONE]"]


def test_an_event_without_end_and_an_event_without_utf8_are_refused() -> None:
    with pytest.raises(UpstreamError, match="more than"):
        list(EventReader(limit_bytes=10).feed(b"data: 0123456789"))
    with pytest.raises(UpstreamError, match="UTF-8"):
        list(EventReader().feed(b"data: \xff\n\n"))


def test_an_event_survives_the_way_there_and_back() -> None:
    value = {"text": "line\nbreak  and \u2028 \"quotes\"", "n": 1}  # fmt: skip
    (data,) = EventReader().feed(protocol.event(value))
    assert json.loads(data) == value


@pytest.mark.parametrize(
    ("error", "status", "kind", "headers"),
    [
        (BadInput("x"), 400, "invalid_request_error", {}),
        (NotFound("x"), 404, "not_found_error", {}),
        (RateLimited("x", 2.4), 429, "rate_limit_error", {"retry-after": "2"}),
        (Unavailable("x", 0.2), 503, "server_error", {"retry-after": "1"}),
        (UpstreamError("x"), 502, "server_error", {}),
        (UpstreamError("x", 429, 9), 429, "rate_limit_error", {"retry-after": "9"}),
    ],
)
def test_errors_have_a_status_a_type_and_a_time_to_come_back(error, status, kind, headers) -> None:
    body = protocol.error_body(error)["error"]
    assert (protocol.status_of(error), body["type"], body["code"]) == (status, kind, error.code)
    assert protocol.error_headers(error) == headers


def test_strict_mode_refuses_what_has_no_effect() -> None:
    body = {**BODY, "user": "u", "plaudit": {}, "stream_options": {}, "temperature": 1}
    assert parse_chat_request({**body, "metadata": {}}).temperature == 1
    assert parse_chat_request(body, strict=True).temperature == 1
    with pytest.raises(BadInput, match="`metadata` is not a field"):
        parse_chat_request({**body, "metadata": {}}, strict=True)


def test_a_request_about_other_messages_is_sent_on_with_them() -> None:
    other = ({"role": "user", "content": "[ip]"},)
    asked = parse_chat_request({**BODY, "seed": 1}).with_messages(other)
    assert asked.messages == other
    assert asked.for_upstream("m") == {"messages": list(other), "seed": 1, "model": "m", "stream": False}


def test_tool_calls_are_kept_as_the_server_sends_them_also_those_that_are_no_functions() -> None:
    gathered = Gathered()
    for piece in (
        {"index": 1, "id": "b", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}},
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}, "extra": {"x": 1}},
        {"index": 1, "type": None, "custom": {"input": " 1"}},
        {"index": 0, "function": {"arguments": "}"}},
    ):
        gathered.add(protocol.chunk("i", 0, "m", 2, {"tool_calls": [piece]}))
    (choice,) = gathered.answer().choices
    assert choice.tool_calls == (
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra": {"x": 1}},
        {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}},
    )
    assert gathered.indices == [2]
    whole = Gathered()
    whole.add({"choices": [{"index": 2, "message": {"content": None, "tool_calls": list(choice.tool_calls)}}]})
    assert whole.answer().choices[0].tool_calls == choice.tool_calls
