"""Chat: the gateway as a user of an application meets it, with the widget under each answer and sometimes two answers to choose from."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from plaudit.errors import NotFound
from plaudit.loop import body as fields
from plaudit.web.api import openai
from plaudit.web.door import Door, door_of, read_json
from plaudit.web.pages.shell import answer
from plaudit.web.sign_in import signed_in

NEEDS = frozenset(
    {"gateway", "feedback"}
)  # the roles of a process that can answer and be told what the answer is worth
ATTRIBUTES = {"source": "chat_page"}  # tells these turns from the application's own


async def chat(request: Request) -> Response:
    """GET /chat."""
    return answer(request, "chat.html", serves=_serves(door_of(request)))


async def turn(request: Request) -> Response:
    """POST /chat/turn: {messages, conversation_id, two} -> what a streaming chat completion answers, in the name of who is signed in."""
    if not _serves(door_of(request)):
        raise NotFound("This process serves no chats; its role needs gateway and feedback.")
    me, asked = signed_in(request), await read_json(request)
    body = {
        "model": openai.MODEL,
        "messages": asked.get("messages"),
        "n": 2 if fields.flag(asked, "two") else 1,
        "stream": True,
        "user": me.id,
        "plaudit": {"conversation_id": asked.get("conversation_id"), "attributes": ATTRIBUTES},
    }
    return await openai.answer_chat(request, me.project_id, body)


def _serves(door: Door) -> bool:
    return door.settings.roles >= NEEDS
