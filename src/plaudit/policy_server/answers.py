"""Pieces of text as the JSON of a chat or text completion, whole or chunk by chunk.

Beyond OpenAI's shapes, as vLLM spells it: `stop_reason` (the request's own stop string or stop token that ended a choice), and where
`return_token_ids` asks, `token_ids` of each choice and `prompt_token_ids` (of a chat beside the choices, of a text in each choice; in a stream
in a choice's first chunk only). Of our own: a token of a chat's log-probs also carries its `token_id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plaudit import openai_protocol as protocol
from plaudit.openai_protocol import Json
from plaudit.policy_server.engine import Piece
from plaudit.policy_server.requests import Asked


@dataclass(frozen=True)
class Reply:
    """What every part of an answer must know: choices are numbered prompt by prompt, n for each."""

    asked: Asked
    prompt_ids: tuple[tuple[int, ...], ...]
    id: str
    created: int

    @property
    def n_choices(self) -> int:
        return len(self.prompt_ids) * self.asked.chat.n

    @property
    def is_chat(self) -> bool:
        return self.asked.prompts is None

    def prompt_of(self, index: int) -> list[int]:
        return list(self.prompt_ids[index // self.asked.chat.n])

    def usage(self, n_tokens: int) -> Json:
        return protocol.usage(sum(map(len, self.prompt_ids)), n_tokens)


def whole(reply: Reply, pieces: Sequence[Piece]) -> Json:
    """The last piece of each choice, in order, as a completion."""
    counts = reply.usage(sum(piece.n_tokens for piece in pieces))
    choices = []
    for piece in pieces:
        beside = _logprobs(reply, piece)
        if reply.is_chat:
            choice = protocol.choice(piece.index, piece.text, piece.finish_reason, beside)
        else:
            choice = _text_choice(piece.index, piece.text, piece.finish_reason, beside)
        choices.append(choice | {"stop_reason": piece.stop_reason} | _ids(reply, piece, first=True))
    if reply.is_chat:
        answer = protocol.completion(reply.id, reply.created, reply.asked.chat.model, choices, counts)
        return answer | _chat_prompt(reply, 0)
    return _text_head(reply) | {"choices": choices, "usage": counts}


def chunks(reply: Reply, piece: Piece, first: bool) -> list[Json]:
    """What a stream says of a piece; `first` of its choice."""
    news = piece.text or piece.logprobs or (reply.asked.return_token_ids and piece.ids)
    if not reply.is_chat:
        choice = _text_choice(piece.index, piece.text, piece.finish_reason, _logprobs(reply, piece))
        choice |= {"stop_reason": piece.stop_reason} | _ids(reply, piece, first)
        return [_text_head(reply) | {"choices": [choice]}] if news or piece.finish_reason else []
    said = []
    if first:
        said.append(_chunk(reply, piece.index, {"role": "assistant", "content": ""}) | _chat_prompt(reply, piece.index))
    if news:
        delta = _chunk(reply, piece.index, {"content": piece.text}, None, _logprobs(reply, piece))
        delta["choices"][0] |= _ids(reply, piece, first)
        said.append(delta)
    if piece.finish_reason is not None:
        last = _chunk(reply, piece.index, {}, piece.finish_reason)
        last["choices"][0] |= {"stop_reason": piece.stop_reason}
        said.append(last)
    return said


def usage_chunk(reply: Reply, n_tokens: int) -> Json:
    """The chunk before `[DONE]` of a stream that was asked to include usage."""
    counts = reply.usage(n_tokens)
    if reply.is_chat:
        return protocol.usage_chunk(reply.id, reply.created, reply.asked.chat.model, counts)
    return _text_head(reply) | {"choices": [], "usage": counts}


def _chunk(reply: Reply, index: int, delta: Json, reason: str | None = None, logprobs: Json | None = None) -> Json:
    return protocol.chunk(reply.id, reply.created, reply.asked.chat.model, index, delta, reason, logprobs)


def _text_head(reply: Reply) -> Json:
    return {"id": reply.id, "object": "text_completion", "created": reply.created, "model": reply.asked.chat.model}


def _text_choice(index: int, text: str, reason: str | None, logprobs: Json | None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _chat_prompt(reply: Reply, index: int) -> Json:
    return {"prompt_token_ids": reply.prompt_of(index)} if reply.asked.return_token_ids else {}


def _ids(reply: Reply, piece: Piece, first: bool) -> Json:
    if not reply.asked.return_token_ids:
        return {}
    prompt = {"prompt_token_ids": reply.prompt_of(piece.index)} if first and not reply.is_chat else {}
    return {"token_ids": piece.ids} | prompt


def _logprobs(reply: Reply, piece: Piece) -> Json | None:
    """Of a chat {"content": [...]}; of a text OpenAI's four lists side by side."""
    if reply.asked.logprobs is None:
        return None
    entries = [_named(reply, entry) for entry in piece.logprobs]
    if reply.is_chat:
        return {"content": entries, "refusal": None}
    offsets, at = [], piece.start
    for entry in piece.logprobs:
        offsets.append(at)
        at += len(entry["token"])
    return {
        "text_offset": offsets,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "tokens": [entry["token"] for entry in entries],
        "top_logprobs": [
            {one["token"]: one["logprob"] for one in (entry, *entry["top_logprobs"])} for entry in entries
        ],
    }


def _named(reply: Reply, entry: dict[str, Any]) -> dict[str, Any]:
    """Tokens under their id, where asked: a token that is part of a character has no text that JSON could hold."""
    if not reply.asked.return_tokens_as_token_ids:
        return entry
    inner = {"top_logprobs": [_named(reply, one) for one in entry["top_logprobs"]]} if "top_logprobs" in entry else {}
    return entry | {"token": f"token_id:{entry['token_id']}"} | inner
