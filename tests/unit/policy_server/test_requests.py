"""What a request may ask: read into one shape, refused where this server would have to ignore it."""

from __future__ import annotations

import pytest

from plaudit.errors import BadInput
from plaudit.policy_server import requests

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}


def test_a_chat_without_additions_asks_for_nothing_special():
    asked = requests.read_chat(CHAT, 300)
    assert (asked.prompts, asked.logprobs, asked.top_k, asked.logit_bias, asked.stop_token_ids) == (
        None, None, 0, (), (),
    )  # fmt: skip
    assert (asked.ignore_eos, asked.return_token_ids, asked.return_tokens_as_token_ids) == (False, False, False)
    assert asked.presence_penalty == asked.frequency_penalty == 0


def test_additions_are_read():
    more = {
        "top_k": 5, "presence_penalty": 1, "frequency_penalty": -0.5, "logit_bias": {"7": -100, "8": 2.5}, "stop_token_ids": [3],
        "ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    asked = requests.read_chat(CHAT | more, 300)
    assert (asked.top_k, asked.presence_penalty, asked.frequency_penalty) == (5, 1.0, -0.5)
    assert (asked.logit_bias, asked.stop_token_ids, asked.logprobs) == (((7, -100.0), (8, 2.5)), (3,), 2)
    assert asked.ignore_eos
    assert asked.return_token_ids
    assert asked.return_tokens_as_token_ids
    assert requests.read_chat(CHAT | {"top_k": -1}, 300).top_k == 0


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("hi", ("hi",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_a_prompt_has_four_forms(prompt, read):
    asked = requests.read_completion(TEXT | {"prompt": prompt}, 300)
    assert asked.prompts == read
    assert (asked.chat.max_tokens, asked.logprobs) == (16, None)


def test_a_texts_log_probs_are_a_number():
    assert requests.read_completion(TEXT | {"logprobs": 0, "max_tokens": 4}, 300).logprobs == 0
    with pytest.raises(BadInput, match="logprobs"):
        requests.read_completion(TEXT | {"logprobs": True}, 300)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tools": [{}]}, "tools"), ({"response_format": {"type": "json_object"}}, "response_format"), ({"min_p": 0.1}, "min_p"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"), ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"top_k": -2}, "top_k"), ({"top_k": 1.5}, "top_k"), ({"logit_bias": {"300": 1}}, "logit_bias"), ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"), ({"logit_bias": []}, "logit_bias"), ({"stop_token_ids": [300]}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids"), ({"return_token_ids": 1}, "return_token_ids"), ({"presence_penalty": 3}, "presence_penalty"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_there_is_named(change, word):
    for read, body in ((requests.read_chat, CHAT), (requests.read_completion, TEXT)):
        with pytest.raises(BadInput, match=word):
            read(body | change, 300)


@pytest.mark.parametrize("prompt", [None, [], [[]][:0], 3, [1, "a"], [[1, 300]], [-1], [["a"]], ["a"] * 65])
def test_prompts_that_are_none(prompt):
    with pytest.raises(BadInput, match="prompt"):
        requests.read_completion(TEXT | {"prompt": prompt}, 300)
    with pytest.raises(BadInput, match="JSON object"):
        requests.read_completion([], 300)


def test_saying_that_nothing_is_wanted_is_fine():
    body = CHAT | {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "min_p": 0,
        "echo": False,
        "logit_bias": None,
    }
    requests.read_chat(body, 300)
