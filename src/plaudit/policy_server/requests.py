"""What a request asks for: OpenAI's chat and text completions, and of vLLM's additions those that this server has.

A field that would change the answer and that this server does not have is refused: nothing is silently ignored.
Source of the additions: vLLM's OpenAI-compatible server, `ChatCompletionRequest` and `CompletionRequest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plaudit import openai_protocol as protocol
from plaudit.errors import BadInput

MAX_PROMPTS = 64  # of one text completion
TEXT_MAX_TOKENS = 16  # OpenAI's default of a text completion
MAX_TEXT_LOGPROBS = 20
# What this server does not do, and the values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "prompt_logprobs": (None,),
    "use_beam_search": (None, False),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "min_p": (None, 0, 0.0),
    "min_tokens": (None, 0),
    "repetition_penalty": (None, 1, 1.0),
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "continue_final_message": (None, False),
    "add_generation_prompt": (None, True),
    "chat_template": (None,),
}


@dataclass(frozen=True)
class Asked:
    """A checked request of either kind; `chat` holds what the two share. `logprobs` is how many alternatives, None for no log-probs."""

    chat: protocol.ChatRequest
    prompts: tuple[str | tuple[int, ...], ...] | None  # of a text completion; None for a chat
    logprobs: int | None
    top_k: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    return_token_ids: bool
    return_tokens_as_token_ids: bool


def read_chat(body: Any, vocab_size: int) -> Asked:
    """Raises BadInput naming the field."""
    request = protocol.parse_chat_request(body)
    return _asked(body, request, None, request.top_logprobs if request.logprobs else None, vocab_size)


def read_completion(body: Any, vocab_size: int) -> Asked:
    """A text completion: `prompt` is a text, token ids, or a list of either. Raises BadInput naming the field."""
    if not isinstance(body, dict):
        raise BadInput("The body must be a JSON object with `model` and `prompt`.")
    logprobs = _whole(body, "logprobs", 0, MAX_TEXT_LOGPROBS)
    prompts = _prompts(body.get("prompt"), vocab_size)
    default = TEXT_MAX_TOKENS if body.get("max_tokens") is None else body["max_tokens"]
    # The one parser checks what the two kinds of request share; a text has no messages, and its `logprobs` is a number.
    shared = {name: value for name, value in body.items() if name not in ("logprobs", "top_logprobs")}
    shared |= {"messages": [{"role": "user", "content": ""}], "max_tokens": default}
    return _asked(body, protocol.parse_chat_request(shared), prompts, logprobs, vocab_size)


def _asked(
    body: Mapping[str, Any],
    chat: protocol.ChatRequest,
    prompts: tuple[str | tuple[int, ...], ...] | None,
    logprobs: int | None,
    vocab_size: int,
) -> Asked:
    for name, nothing in REFUSED.items():
        if body.get(name) not in nothing:
            raise BadInput(f"`{name}` is {str(body[name])[:80]!r}, and this server does not do that; leave it out.")
    return Asked(
        chat=chat,
        prompts=prompts,
        logprobs=logprobs,
        top_k=max(0, _whole(body, "top_k", -1, vocab_size) or 0),  # vLLM says both 0 and -1 for all
        presence_penalty=float(body.get("presence_penalty") or 0.0),  # checked by the shared parser
        frequency_penalty=float(body.get("frequency_penalty") or 0.0),
        logit_bias=_biases(body.get("logit_bias"), vocab_size),
        stop_token_ids=_ids(body.get("stop_token_ids") or [], "stop_token_ids", vocab_size),
        ignore_eos=_flag(body, "ignore_eos"),
        return_token_ids=_flag(body, "return_token_ids"),
        return_tokens_as_token_ids=_flag(body, "return_tokens_as_token_ids"),
    )


def _prompts(prompt: Any, vocab_size: int) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if not isinstance(prompt, list) or not 0 < len(prompt) <= MAX_PROMPTS:
        raise BadInput(f"`prompt` must be a text, a list of token ids, or a list of 1 to {MAX_PROMPTS} of these.")
    return tuple(one if isinstance(one, str) else _ids(one, "prompt", vocab_size) for one in prompt)


def _ids(ids: Any, name: str, vocab_size: int) -> tuple[int, ...]:
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < vocab_size for one in ids):
        raise BadInput(f"`{name}` must be a list of token ids from 0 to {vocab_size - 1}.")
    return tuple(ids)


def _biases(biases: Any, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """{"token id": -100 .. 100}."""
    if biases is None:
        return ()
    sentence = f"`logit_bias` must map token ids from 0 to {vocab_size - 1} to numbers from -100 to 100."
    if not isinstance(biases, dict):
        raise BadInput(sentence)
    found = []
    for token, bias in biases.items():
        number = isinstance(bias, int | float) and not isinstance(bias, bool) and -100 <= bias <= 100
        if not (number and token.isdecimal() and int(token) < vocab_size):
            raise BadInput(sentence)
        found.append((int(token), float(bias)))
    return tuple(found)


def _whole(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is not None and not (type(value) is int and low <= value <= high):
        raise BadInput(f"`{name}` is {value!r}; it must be a whole number from {low} to {high}.")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadInput(f"`{name}` is {value!r}; it must be true or false.")
    return bool(value)
