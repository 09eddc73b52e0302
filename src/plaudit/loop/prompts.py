"""What makes two prompts the same question: the rule behind default families, and behind keeping evaluation out of training."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from plaudit.artifacts import sha256_of, sha256_of_texts
from plaudit.domain import Message


def text_of(message: Message) -> str:
    """The text of a message's content, be it a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or ""


def default_family(messages: Sequence[Message]) -> str:
    """`h:` + hash of the last user text without case, width and spacing: equal questions stay on one side of a split."""
    asked = _asked(messages)
    return "h:" + sha256_of(asked[-1])[:16]


def question_sha256(messages: Sequence[Message]) -> str:
    """Hash of everything the user said, in order, without case, width and spacing; system prompts and answers do not matter."""
    return sha256_of_texts(_asked(messages))


def _asked(messages: Sequence[Message]) -> list[str]:
    """The user's texts, normalised; of a conversation without any, all texts."""
    spoken = [message for message in messages if message["role"] == "user"] or messages
    return [" ".join(unicodedata.normalize("NFKC", text_of(message)).casefold().split()) for message in spoken]
