"""The gateway: OpenAI's chat completions, each recorded as an Interaction whose id is the completion's id.

The release is chosen by who asks and by how the conversation began, not by the `model` of the request: any name is accepted, and the answer
says which model spoke. A client that leaves cancels the generation, and what it got is recorded. What happens between request and answer:
`web/turn.py`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from plaudit import openai_protocol as protocol
from plaudit.domain import Interaction, TrainingUse, utc_now
from plaudit.loop import body as fields
from plaudit.loop import collect, feedback_tokens, filters
from plaudit.loop.collect import MAX_NAME_CHARS
from plaudit.loop.filters import ScreenedMessages
from plaudit.openai_protocol import ChatRequest
from plaudit.web.access import key_of
from plaudit.web.door import Door, door_of, read_json, unless_client_leaves
from plaudit.web.problems import json_response
from plaudit.web.serving import Serving
from plaudit.web.turn import Turn

MODEL = "plaudit"  # the name for "whatever release this user is assigned to"
EXTENSION = ("conversation_id", "family", "training_use", "attributes")
CLIENT_LEFT = 499  # nginx's number; nobody is there to read it


async def models(request: Request) -> Response:
    """GET /v1/models"""
    serving = await door_of(request).configs.current(key_of(request).project_id)
    live = serving.config.live
    return json_response(protocol.model_list((MODEL, live.model), int(live.created_at.timestamp())))


async def chat_completions(request: Request) -> Response:
    """POST /v1/chat/completions"""
    return await answer_chat(request, key_of(request).project_id, await read_json(request))


async def answer_chat(request: Request, project_id: str, body: Any) -> Response:
    """One chat completion, streaming or not, of a key's or a person's project."""
    door, began = door_of(request), time.monotonic()
    asked = protocol.parse_chat_request(body, strict=door.settings.strict_requests)
    door.limits.actor(project_id, asked.user)
    serving = await door.configs.current(project_id)
    prompt = filters.screen_messages(door.filters.prompt, asked.messages)
    asked = asked.with_messages(prompt.messages)
    turn = Turn(door, serving, asked, await begin(door, serving, asked, prompt), prompt.blocked)
    if not prompt.blocked:
        door.shadowing.copy(serving.config.shadow, asked, turn.interaction)
    headers = {"x-plaudit-interaction": turn.interaction.id, "x-plaudit-feedback-token": _token(door, turn.interaction)}
    try:
        if asked.stream:
            await unless_client_leaves(request, turn.open())
            door.metrics.chat(time.monotonic() - began, turn.upstream_s)
            return EventStream(
                turn.events(), headers={**protocol.SSE_HEADERS, **headers}, media_type="text/event-stream"
            )
        whole = await unless_client_leaves(request, turn.complete())
        door.metrics.chat(time.monotonic() - began, turn.upstream_s)
        return json_response(whole, headers=headers)
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT)


def _token(door: Door, interaction: Interaction) -> str:
    """What lets the browser that gets this answer rate it, and nothing else."""
    keys = door.feedback_keys.current()
    return feedback_tokens.mint(keys, interaction.project_id, interaction.id, interaction.actor, utc_now())


class EventStream(StreamingResponse):
    """A stream whose generator is closed when the client leaves, not when it is next collected as garbage."""

    async def stream_response(self, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


async def begin(door: Door, serving: Serving, asked: ChatRequest, prompt: ScreenedMessages) -> Interaction:
    """The stub of this turn. Raises BadInput for a malformed `plaudit` object."""
    extension = fields.checked(asked.extension, "`plaudit`", EXTENSION)
    actor = fields.text({"user": asked.user}, "user", max_chars=MAX_NAME_CHARS)
    conversation_id = fields.text(extension, "conversation_id", max_chars=MAX_NAME_CHARS)
    attributes = fields.attributes(extension)
    interaction = collect.begin_interaction(
        serving.project,
        messages=asked.messages,
        actor=actor,
        conversation_id=conversation_id,
        family=fields.text(extension, "family", max_chars=MAX_NAME_CHARS),
        training_use=fields.member(
            extension, "training_use", TrainingUse, default=serving.project.training_use_default
        ),
        attributes=attributes,
        sampling=asked.sampling(),
        assignment=await door.configs.assign(serving, actor, conversation_id, attributes),
        config_version=serving.config.version,
        now=utc_now(),
    )
    if not prompt.verdicts:
        return interaction
    use = TrainingUse.DENIED if prompt.blocked else interaction.training_use  # what a filter blocked never trains
    return replace(interaction, verdicts=prompt.verdicts, training_use=use)
