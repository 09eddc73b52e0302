"""OpenTelemetry spans of chats, off unless the setting `telemetry` says so, by the API package alone: where they go is the business of
whoever installs an SDK and an exporter. Names: OpenTelemetry's semantic conventions for generative AI (`gen_ai.*`). No text of anybody is
put into a span, and no pseudonym."""

from __future__ import annotations

import importlib.util
from typing import Any

from plaudit.domain import Completion, CompletionStatus, Interaction
from plaudit.errors import ConfigError
from plaudit.openai_protocol import Answer, ChatRequest

Span = Any  # opentelemetry's, which may not be installed


def check() -> None:
    """Raises ConfigError where the package is missing."""
    if importlib.util.find_spec("opentelemetry") is None:
        raise ConfigError("telemetry is on, but opentelemetry-api is not installed; install plaudit[otel].")


def begin(asked: ChatRequest, interaction: Interaction) -> Span:
    """The span of one chat, from the request on; a child of whatever span the caller is in."""
    from opentelemetry import trace

    said = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "plaudit",
        "gen_ai.request.model": asked.model,
        "gen_ai.request.choice.count": asked.n if asked.n > 1 else None,
        "gen_ai.request.max_tokens": asked.max_tokens,
        "gen_ai.request.temperature": asked.temperature,
        "gen_ai.request.top_p": asked.top_p,
        "gen_ai.request.seed": asked.seed,
        "gen_ai.request.stop_sequences": list(asked.stop) or None,
        "gen_ai.response.id": interaction.id,
        "gen_ai.conversation.id": interaction.conversation_id,
        "plaudit.release.id": interaction.release_id,
        "plaudit.experiment.arm": interaction.arm,
    }
    known = {name: value for name, value in said.items() if value is not None}
    return trace.get_tracer("plaudit").start_span(f"chat {asked.model}", kind=trace.SpanKind.SERVER, attributes=known)


def end(span: Span, model: str, answer: Answer, completion: Completion) -> None:
    """How it ended. A client that leaves is no error."""
    said = {
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [choice.finish_reason or "" for choice in answer.choices],
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.completion_tokens,
        "plaudit.time_to_first_chunk_ms": completion.first_token_ms,
        "plaudit.status": str(completion.status),
    }
    span.set_attributes({name: value for name, value in said.items() if value is not None})
    if completion.status is CompletionStatus.ERROR:
        fail(span, "upstream_error")
    else:
        span.end()


def fail(span: Span, kind: str) -> None:
    """It ended with an error; `kind` is the code of that."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))
    span.end()
