"""What users said, in the shape of the API; and the feedback tokens that let a browser say it."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from plaudit.client.wire import given

R = TypeVar("R")
MAX_TOKENS = 10_000  # remembered by one process; the answer that was given longest ago is forgotten first
INTERACTION_HEADER = "x-plaudit-interaction"
TOKEN_HEADER = "x-plaudit-feedback-token"


class Feedback(Generic[R]):
    """A method for each kind. `send` gets the body: it returns {"id", "status": recorded | superseded | replayed} (Plaudit), an awaitable
    of that (AsyncPlaudit), or nothing, at once (Capture). A thumb, rating, edit or choice given again with another value supersedes.

    `where` of every method: response_index=0, user=None (the interaction's own), at=None (ISO 8601; now), idempotency_key=None (a new one).
    """

    def __init__(self, send: Callable[[dict[str, Any]], R]) -> None:
        self._hand_over = send

    def thumb(self, interaction_id: str, up: bool, **where: Any) -> R:
        return self._send(interaction_id, "thumb", {"up": up}, **where)

    def rate(self, interaction_id: str, rating: int, **where: Any) -> R:
        """On the project's scale, 1 to 5 unless configured."""
        return self._send(interaction_id, "rating", {"rating": rating}, **where)

    def edit(self, interaction_id: str, text: str, **where: Any) -> R:
        """The answer as it should have been."""
        return self._send(interaction_id, "edit", {"text": text}, **where)

    def choose(self, interaction_id: str, chosen: int | None, **where: Any) -> R:
        """The index of the better response of several, None for neither."""
        return self._send(interaction_id, "choice", {"chosen": chosen}, **where)

    def comment(self, interaction_id: str, text: str = "", reasons: Sequence[str] = (), **where: Any) -> R:
        return self._send(interaction_id, "comment", {"text": text or None, "reasons": list(reasons or ())}, **where)

    def signal(
        self,
        interaction_id: str,
        name: str,
        *,
        seconds: float | None = None,
        consent: bool | None = None,
        **where: Any,
    ) -> R:
        """Weak evidence: copy, regenerate, stop, edit_and_resend, abandon, dwell. `consent`: whether the user agreed to be observed."""
        return self._send(interaction_id, "signal", {"name": name} | given(seconds=seconds, consent=consent), **where)

    def retract(self, interaction_id: str, kind: str, **where: Any) -> R:
        """Take back a thumb, rating, edit or choice."""
        return self._send(interaction_id, kind, None, retract=True, **where)

    def _send(
        self,
        interaction_id: str,
        kind: str,
        value: Mapping[str, Any] | None,
        *,
        response_index: int = 0,
        user: str | None = None,
        retract: bool = False,
        at: str | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        key = idempotency_key or uuid.uuid4().hex
        body = {"interaction_id": interaction_id, "kind": kind, "idempotency_key": key}
        extra = given(value=value, response_index=response_index or None, user=user, retract=retract or None, at=at)
        return self._hand_over({**body, **extra})


class Tokens:
    """Feedback tokens by interaction, of the answers that this process saw."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, interaction_id: str | None, token: str | None) -> None:
        if not interaction_id or not token:
            return
        with self._lock:
            self._known[interaction_id] = token
            if len(self._known) > MAX_TOKENS:
                self._known.popitem(last=False)

    def get(self, interaction_id: str) -> str | None:
        return self._known.get(interaction_id)

    def hook(self, response: Any) -> None:
        """For the `event_hooks` of an HTTP client: called with the head of every answer, before a stream's first chunk."""
        self.keep(response.headers.get(INTERACTION_HEADER), response.headers.get(TOKEN_HEADER))

    async def async_hook(self, response: Any) -> None:
        self.hook(response)
