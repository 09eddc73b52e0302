"""The wire shapes of OpenAI's chat completions: reading requests and answers, building answers, server-sent events, the error shape.

The gateway, the policy server and the clients of upstreams share these. Pure functions on JSON values: no sockets, no clock, no ids.
Source: https://platform.openai.com/docs/api-reference/chat, and the streaming rules of `docs/api.md`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from plaudit.errors import BadInput, PlauditError, RateLimited, Unavailable, UpstreamError

Json = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_N = 16
MAX_STOPS = 16
MAX_CHOICES = 128  # that we believe an answer to have, and tool calls that a choice may have
# What is handed to an upstream as it came. Everything else in a request is ours (`plaudit`), the caller's (`user`), or unknown and ignored.
FORWARDED = (
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
)
# The other names that mean something here. Strict mode refuses all that remain, also those of OpenAI's that would change nothing.
OURS = ("model", "stream", "stream_options", "user", "plaudit")
SAMPLING = ("temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "response_format")


# --- requests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. None means that the caller did not say; the server that samples has the default."""

    model: str
    messages: tuple[Json, ...]
    max_tokens: int | None = None  # max_completion_tokens, else max_tokens
    temperature: float | None = None  # 0..2
    top_p: float | None = None  # above 0, up to 1
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    user: str | None = None
    extension: Json = field(default_factory=dict)  # the `plaudit` object
    forwarded: Json = field(default_factory=dict)  # the fields of FORWARDED, as they came

    def for_upstream(self, model: str) -> Json:
        """The body to send on. A stream always asks for usage; whether the caller sees it is decided by `include_usage`."""
        body = {**self.forwarded, "model": model, "stream": self.stream}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return body

    def with_messages(self, messages: tuple[Json, ...]) -> ChatRequest:
        """The same request about other messages."""
        return replace(self, messages=messages, forwarded={**self.forwarded, "messages": list(messages)})

    def sampling(self) -> Json:
        """What is remembered of how the answer was drawn."""
        said = {name: self.forwarded[name] for name in SAMPLING if name in self.forwarded}
        return {**said, "max_tokens": self.max_tokens, "n": self.n, "stream": self.stream, "model": self.model}


def parse_chat_request(body: Any, max_n: int = MAX_N, strict: bool = False) -> ChatRequest:
    """Check a decoded body. Raises BadInput naming the field; unknown fields are ignored, where `strict` refused."""
    if not isinstance(body, dict):
        raise BadInput("The body must be a JSON object with `model` and `messages`.")
    unknown = [name for name in body if name not in FORWARDED and name not in OURS] if strict else []
    if unknown:
        near = difflib.get_close_matches(unknown[0], (*FORWARDED, *OURS), n=1, cutoff=0.0)[0]
        raise BadInput(
            f"`{unknown[0]}` is not a field that has an effect here; did you mean `{near}`? (strict_requests is on)"
        )
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadInput("`model` must be a non-empty string.")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadInput("`stream_options` must be an object such as {'include_usage': true}.")
    limit = _number(body, "max_completion_tokens", int, 1, None)
    if limit is None:
        limit = _number(body, "max_tokens", int, 1, None)
    for name in ("presence_penalty", "frequency_penalty"):
        _number(body, name, float, -2, 2)
    logprobs = _flag(body, "logprobs")
    top_logprobs = _number(body, "top_logprobs", int, 0, 20) or 0
    if top_logprobs and not logprobs:
        raise BadInput("`top_logprobs` needs `logprobs`: true.")
    top_p = _number(body, "top_p", float, 0, 1)
    if top_p == 0:
        raise BadInput("`top_p` is 0; it must be above 0 and at most 1.")
    extension = body.get("plaudit")
    if extension is not None and not isinstance(extension, dict):
        raise BadInput("`plaudit` must be an object with conversation_id, family, training_use or attributes.")
    user = body.get("user")
    if user is not None and not isinstance(user, str):
        raise BadInput("`user` must be a string: the pseudonym of the end user.")
    return ChatRequest(
        model=model,
        messages=parse_messages(body.get("messages")),
        max_tokens=limit,
        temperature=_number(body, "temperature", float, 0, 2),
        top_p=top_p,
        n=_number(body, "n", int, 1, max_n) or 1,
        stop=_stops(body.get("stop")),
        seed=_number(body, "seed", int, -(2**63), 2**63 - 1),
        stream=_flag(body, "stream"),
        include_usage=_flag(options or {}, "include_usage"),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        user=user or None,
        extension=extension or {},
        forwarded={name: body[name] for name in FORWARDED if body.get(name) is not None},
    )


def parse_messages(messages: Any) -> tuple[Json, ...]:
    """Check a list of messages. Raises BadInput naming the first that is wrong."""
    if not isinstance(messages, list) or not messages:
        raise BadInput("`messages` must be a non-empty list of objects with `role` and `content`.")
    for place, message in enumerate(messages):
        where = f"`messages[{place}]`"
        if not isinstance(message, dict):
            raise BadInput(f"{where} must be an object with `role` and `content`.")
        if message.get("role") not in ROLES:
            raise BadInput(f"{where} has the role {message.get('role')!r}; it must be one of {', '.join(ROLES)}.")
        content = message.get("content")
        if isinstance(content, list):
            for part in content:
                if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                    raise BadInput(f"{where} has a content part without a `type`.")
                if part["type"] == "text" and not isinstance(part.get("text"), str):
                    raise BadInput(f"{where} has a text part whose `text` is not a string.")
        elif content is None:
            if message["role"] != "assistant" or not (message.get("tool_calls") or message.get("function_call")):
                raise BadInput(f"{where} has no `content`.")
        elif not isinstance(content, str):
            raise BadInput(f"{where} has a `content` that is neither a string nor a list of parts.")
    return tuple(messages)


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message's content: the string, or its text parts joined. Raises BadInput for images, audio, files."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    other = [part["type"] for part in content if part["type"] != "text"]
    if other:
        raise BadInput(f"A message has a part of type {other[0]!r}; this model reads text only.")
    return "".join(part["text"] for part in content)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadInput(f"`{name}` is {value!r}; it must be true or false.")
    return value


def _number(body: Mapping[str, Any], name: str, kind: type, low: float, high: float | None) -> Any:
    value = body.get(name)
    if value is None:
        return None
    right = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not right or not low <= value <= (value if high is None else high):  # as a whole, so that NaN is refused
        what = "a whole number" if kind is int else "a number"
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise BadInput(f"`{name}` is {value!r}; it must be {what} {span}.")
    return value


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise BadInput(f"`stop` must be a non-empty string, or a list of at most {MAX_STOPS} of them.")
    return tuple(stops)


# --- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """One sampled text. `logprob` is the sum over its tokens in nats, known only where log-probabilities were asked for."""

    text: str
    finish_reason: str | None
    logprob: float | None = None
    n_tokens: int | None = None
    tool_calls: tuple[Json, ...] = ()  # as the server sent them; pieces of a stream joined


@dataclass(frozen=True)
class Answer:
    """A whole completion as the loop uses it; `choices` in the order of their index."""

    model: str
    choices: tuple[Choice, ...]
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Gathered:
    """Collects a completion, whole or chunk by chunk, into an Answer; at any moment `answer()` is what has arrived so far."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._tools: dict[int, dict[int, Json]] = {}
        self._logprobs: dict[int, list[float]] = {}
        self._finish: dict[int, str | None] = {}
        self._usage: Json = {}
        self._model = ""

    def add(self, body: Json) -> None:
        """A decoded chunk or a decoded whole body. Raises UpstreamError where it is neither."""
        try:
            self._model = _text(body.get("model")) or self._model
            self._usage = _counts(body.get("usage")) or self._usage
            for choice in body["choices"]:
                self._add_choice(choice)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UpstreamError("The model server answered with something that is not a chat completion.") from error

    def _add_choice(self, choice: Json) -> None:
        index = _place(choice.get("index", 0))
        message = choice.get("delta", choice.get("message")) or {}
        self._texts.setdefault(index, []).append(_text(message.get("content")))
        for place, call in enumerate(message.get("tool_calls") or ()):
            known = self._tools.setdefault(index, {}).setdefault(_place(call.get("index", place)), {})
            _join(known, {name: value for name, value in call.items() if name != "index"})
        for token in (choice.get("logprobs") or {}).get("content") or ():
            self._logprobs.setdefault(index, []).append(float(token["logprob"]))
        self._finish[index] = _text(choice.get("finish_reason")) or self._finish.get(index)

    @property
    def usage(self) -> Json:
        """The counts as the server gave them; empty where it gave none."""
        return self._usage

    @property
    def indices(self) -> list[int]:
        """Of the choices of `answer()`, in its order."""
        return sorted(self._texts)

    def answer(self) -> Answer:
        """Tool calls stand in for a text that is not there, as JSON."""
        choices = []
        for index in sorted(self._texts):
            text = "".join(self._texts[index])
            calls = tuple(call for _, call in sorted(self._tools.get(index, {}).items()))
            if not text and calls:
                named = [{"id": call.get("id"), **(call.get("function") or call.get("custom") or {})} for call in calls]
                text = json.dumps({"tool_calls": named}, ensure_ascii=False)
            logprobs = self._logprobs.get(index)
            n_tokens = len(logprobs) if logprobs else self._usage.get("completion_tokens")
            if not logprobs and len(self._texts) > 1:
                n_tokens = None  # usage counts all choices together
            total = sum(logprobs) if logprobs else None
            choices.append(Choice(text, self._finish.get(index), total, n_tokens, calls))
        usage = self._usage
        return Answer(self._model, tuple(choices), usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"{value!r} is not a text")


def _place(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_CHOICES:
        return value
    raise TypeError(f"{value!r} is not an index")


def _counts(value: Any) -> Json:
    """Usage, whose counts we store."""
    counts = {} if value is None else dict(value)
    for name in ("prompt_tokens", "completion_tokens"):
        if not isinstance(counts.get(name, 0), int | None):
            raise TypeError(f"{name} is {counts[name]!r}")
    return counts


def _join(known: Json, piece: Json) -> None:
    """Add a piece of a tool call to what is known of it: the argument text grows, everything else is said once."""
    for name, value in piece.items():
        if isinstance(value, dict):
            _join(known.setdefault(name, {}), value)
        elif name in ("arguments", "input") and isinstance(value, str):
            known[name] = known.get(name, "") + value
        elif value is not None:
            known[name] = value


def read_answer(body: Any) -> Answer:
    """A whole body as an Answer. Raises UpstreamError where it is not a completion with at least one choice."""
    gathered = Gathered()
    gathered.add(body)
    answer = gathered.answer()
    if not answer.choices:
        raise UpstreamError("The model server answered without any choice.")
    return answer


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def choice(index: int, text: str, finish_reason: str | None, logprobs: Json | None = None) -> Json:
    """One entry of a whole completion's `choices`; `logprobs` is {"content": [{"token", "logprob", "bytes", "top_logprobs"}]}."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def completion(id: str, created: int, model: str, choices: Iterable[Json], counts: Json) -> Json:
    """A whole completion; `created` in seconds since 1970, `counts` from `usage()`."""
    head = {"id": id, "object": "chat.completion", "created": created, "model": model}
    return {**head, "choices": list(choices), "usage": counts}


def chunk(
    id: str,
    created: int,
    model: str,
    index: int,
    delta: Json,
    finish_reason: str | None = None,
    logprobs: Json | None = None,
) -> Json:
    """One chunk of one choice: the first has the delta {"role": "assistant", "content": ""}, the last an empty delta and the finish_reason."""
    one = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return {"id": id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": [one]}


def usage_chunk(id: str, created: int, model: str, counts: Json) -> Json:
    """The chunk before `[DONE]` of a stream that was asked to include usage."""
    head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
    return {**head, "choices": [], "usage": counts}


def model_list(names: Iterable[str], created: int = 0, owner: str = "plaudit") -> Json:
    data = [{"id": name, "object": "model", "created": created, "owned_by": owner} for name in names]
    return {"object": "list", "data": data}


# --- server-sent events ------------------------------------------------------------------------------------------------

DONE = b"data: [DONE]\n\n"
SSE_HEADERS: Mapping[str, str] = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_event(error: PlauditError) -> bytes:
    """What ends a stream that failed after its first byte; no `[DONE]` follows."""
    return b"event: error\n" + event(error_body(error))


class EventReader:
    """Cuts a byte stream into the data of its events, whatever the borders of the pieces and the line ends (LF, CRLF)."""

    def __init__(self, limit_bytes: int = 16_000_000) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._limit = limit_bytes

    def feed(self, piece: bytes) -> Iterator[str]:
        """Raises UpstreamError for text that is not UTF-8 and for an event without end."""
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        if len(self._buffer) > self._limit:
            raise UpstreamError(f"The model server sent an event of more than {self._limit} bytes.")
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                try:
                    yield data.decode()
                except UnicodeDecodeError as error:
                    raise UpstreamError("The model server sent an event that is not UTF-8.") from error


# --- errors ------------------------------------------------------------------------------------------------------------

STATUS: Mapping[str, int] = {
    "bad_input": 400,
    "config_error": 500,
    "not_found": 404,
    "conflict": 409,
    "unauthorized": 401,
    "forbidden": 403,
    "expired": 401,
    "too_large": 413,
    "rate_limited": 429,
    "unavailable": 503,
    "refused": 409,
}
_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def status_of(error: PlauditError) -> int:
    """HTTP status of an error on an OpenAI route. An upstream's error has its own; what we never expect is a 500."""
    if isinstance(error, UpstreamError):
        return error.status
    return STATUS.get(error.code, 500)


def error_body(error: PlauditError) -> Json:
    kind = _TYPES.get(status_of(error), "server_error")
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}


def error_headers(error: PlauditError) -> dict[str, str]:
    """`Retry-After` (whole seconds, at least one) where the error says when to come back."""
    if isinstance(error, RateLimited | Unavailable | UpstreamError) and error.retry_after_s is not None:
        return {"retry-after": str(max(1, round(error.retry_after_s)))}
    return {}
