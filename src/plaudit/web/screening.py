"""The filters of a project over one answer of a model server, whole or chunk by chunk, before anything of it is shown or stored."""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.domain import Json
from plaudit.errors import UpstreamError
from plaudit.loop.filters import Filter, Screen

CONTENT_FILTER = "content_filter"  # OpenAI's finish_reason for content that a filter took away
KEPT = (
    "role",
    "content",
    "tool_calls",
    "function_call",
)  # of a message, where a filter may change text: no second way out


class Screening:
    """One attempt at an answer: each of its choices goes through a Screen of its own.

    What comes out is the same chunk or body with the text that may be shown. A choice that is blocked ends with the finish_reason
    `content_filter`; log-probabilities stay (they are counted), so whoever shows the chunk must take them away where `hides` says so.
    """

    def __init__(self, filters: Sequence[Filter]) -> None:
        self._filters = filters
        self._screens: dict[int, Screen] = {}
        self._ended: set[int] = set()
        self.hides = any(one.changes_text for one in filters)

    def whole(self, body: Json) -> Json:
        """A whole completion. Raises UpstreamError where it is none."""
        return self._each(body, "message", last=True)

    def chunk(self, chunk: Json) -> Json:
        """One chunk; choices that have ended are left out. Raises UpstreamError where it is none."""
        return self._each(chunk, "delta", last=False)

    def rest(self) -> Json:
        """At the end of a stream: what is still held back of choices that have no finish_reason, as a chunk."""
        open_ones = [index for index in sorted(self._screens) if index not in self._ended]
        held = {"choices": [{"index": index, "delta": {"content": ""}, "finish_reason": None} for index in open_ones]}
        return self._each(held, "delta", last=True)

    def verdicts(self, index: int) -> tuple[Json, ...]:
        screen = self._screens.get(index)
        return screen.verdicts if screen else ()

    def changed(self, index: int) -> bool:
        """Whether the text of the choice is not the model's own any more."""
        screen = self._screens.get(index)
        return screen is not None and screen.changed

    def n_blocked(self) -> int:
        return sum(screen.blocked for screen in self._screens.values())

    def end(self) -> None:
        """Nothing comes any more, whatever is held back: complete the verdicts."""
        for index, screen in self._screens.items():
            if index not in self._ended:
                screen.close()
                self._ended.add(index)

    def _each(self, body: Json, what: str, last: bool) -> Json:
        if not self._filters:
            return body
        try:
            choices = [
                self._screened(choice, what, last)
                for choice in body["choices"]
                if choice.get("index", 0) not in self._ended
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise UpstreamError("The model server answered with something that is not a chat completion.") from error
        return {**body, "choices": choices}

    def _screened(self, choice: Json, what: str, last: bool) -> Json:
        index, finish = choice.get("index", 0), choice.get("finish_reason")
        screen = self._screens.setdefault(index, Screen(self._filters))
        message = choice.get(what) or {}
        said = message.get("content") or ""
        shown = screen.feed(said)
        if finish or last or screen.blocked:
            shown += screen.close()
            self._ended.add(index)
        if screen.blocked:
            return {"index": index, what: {"content": shown}, "logprobs": None, "finish_reason": CONTENT_FILTER}
        if self.hides:
            message = {name: value for name, value in message.items() if name in KEPT}
        if said or shown:
            message = {**message, "content": shown}
        return {**choice, what: message}
