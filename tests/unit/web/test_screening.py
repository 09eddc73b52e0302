from __future__ import annotations

import pytest

from plaudit import openai_protocol as protocol
from plaudit.errors import UpstreamError
from plaudit.loop.filters import parse
from plaudit.web.screening import Screening

TOKEN = {"content": [{"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": []}]}


def screening(*tables) -> Screening:
    return Screening(parse([{"name": f"f{place}", **table} for place, table in enumerate(tables)]).response)


def delta(index: int, text: str, finish: str | None = None, **more) -> dict:
    return protocol.chunk("x", 0, "m", index, {"content": text, **more}, finish, TOKEN)


def shown(chunk: dict) -> list[tuple[int, str | None, str | None]]:
    return [(one["index"], one["delta"].get("content"), one["finish_reason"]) for one in chunk["choices"]]


def test_without_filters_everything_is_the_very_same_object() -> None:
    one, chunk = screening(), delta(0, "hi")
    assert one.chunk(chunk) is chunk
    assert one.whole(chunk) is chunk
    assert not one.hides
    assert one.rest()["choices"] == []


def test_choices_are_held_back_and_let_go_each_by_itself() -> None:
    one = screening({"action": "redact", "words": ["secret"]})
    assert shown(one.chunk(delta(0, "a long secr"))) == [(0, "a lo", None)]
    assert shown(one.chunk(delta(1, "other text"))) == [(1, "oth", None)]
    assert shown(one.chunk(delta(0, "et is", "stop"))) == [(0, "ng [f0] is", "stop")]
    assert shown(one.rest()) == [(1, "er text", None)]
    assert (one.changed(0), one.changed(1), one.verdicts(1)) == (True, False, ())
    assert one.verdicts(0) == ({"filter": "f0", "action": "redact", "n": 1},)


def test_a_blocked_choice_ends_as_openai_says_it_and_stays_silent() -> None:
    one = screening({"action": "block", "words": ["bomb"]})
    assert shown(one.chunk(delta(0, "how to bomb it, in short"))) == [(0, "how to ", "content_filter")]
    assert one.chunk(delta(0, "and more", "stop"))["choices"] == []
    assert (one.n_blocked(), one.rest()["choices"]) == (1, [])


def test_no_other_field_is_a_way_out_while_tool_calls_pass() -> None:
    one = screening({"action": "block", "words": ["bomb"]})
    calls = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]
    (choice,) = one.chunk(delta(0, "", tool_calls=calls, reasoning_content="a bomb", refusal="a bomb"))["choices"]
    assert choice["delta"] == {"content": "", "tool_calls": calls}
    flag = screening({"action": "flag", "words": ["bomb"]})
    assert flag.chunk(delta(0, "", reasoning_content="a bomb"))["choices"][0]["delta"]["reasoning_content"] == "a bomb"


def test_a_whole_answer_is_screened_at_once() -> None:
    one = screening({"action": "redact", "detector": "ip"}, {"action": "block", "words": ["bomb"]})
    choices = [protocol.choice(0, "at 192.0.2.1", "stop", TOKEN), protocol.choice(1, "a bomb", "stop", TOKEN)]
    body = one.whole(protocol.completion("x", 0, "m", choices, protocol.usage(1, 1)))
    assert [(one["message"]["content"], one["finish_reason"]) for one in body["choices"]] == [
        ("at [f0]", "stop"),
        ("a ", "content_filter"),
    ]
    assert body["usage"]["total_tokens"] == 2


def test_a_stream_that_is_cut_off_has_its_verdicts_too() -> None:
    one = screening({"action": "flag", "words": ["bomb"]}, {"action": "block", "pattern": "x+y"})
    assert shown(one.chunk(delta(0, "a bomb xxy"))) == [(0, "", None)]
    one.end()
    assert [verdict["filter"] for verdict in one.verdicts(0)] == ["f0", "f1"]
    assert one.n_blocked() == 1


@pytest.mark.parametrize(
    "body",
    [{}, {"choices": 3}, {"choices": [3]}, {"choices": [{"delta": {"content": 3}}]}, {"choices": [{"delta": "x"}]}],
)
def test_what_is_no_chunk_is_the_upstreams_fault(body) -> None:
    with pytest.raises(UpstreamError):
        screening({"action": "flag", "words": ["x"]}).chunk(body)
