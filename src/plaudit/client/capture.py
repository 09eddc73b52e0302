"""Capture: feedback from an application that must not notice. Two lines adopt it:

    capture = Capture("http://127.0.0.1:8484", "plk_...")
    client = capture.wrap(OpenAI())                 # an OpenAI client as before, whose chats go through the gateway

    answer = client.chat.completions.create(...)    # answer.id is the interaction's id
    capture.feedback.thumb(answer.id, up=True)      # returns at once; a thread sends it
    app.mount("/plaudit", capture.routes())         # the widget, and the way of the browser's feedback

No method but `wrap` raises, and none waits for the service but `assign` (for `assign_timeout_s` at most). One Capture a process is enough.
"""

from __future__ import annotations

import atexit
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

from plaudit.client.api import DEFAULT_URL, logged
from plaudit.client.feedback import Feedback, Tokens
from plaudit.client.outbox import FEEDBACK, INTERACTIONS, Outbox
from plaudit.client.relay import Relay
from plaudit.client.wire import certificates, given, headers_of, service_url
from plaudit.errors import BadInput

Client = TypeVar("Client", OpenAI, AsyncOpenAI)
NOT_ASKED_S = 5.0  # after an assignment that failed, nobody else waits for one
log = logging.getLogger("plaudit.client")


class Capture:
    """`api_key` needs the role application."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str = "",
        *,
        max_items: int = 10_000,
        max_bytes: int = 16_000_000,
        interval_s: float = 0.5,
        timeout_s: float = 10.0,
        assign_timeout_s: float = 0.5,
        exit_timeout_s: float = 3.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """At most `max_items` of `max_bytes` together wait in memory; beyond that new ones are dropped. `timeout_s` is for one request of the
        thread, `exit_timeout_s` for all that waits when the process ends. `transport` takes the place of the network but for `wrap`."""
        self._url = service_url(base_url)
        self._key = api_key
        self._assign_timeout_s = assign_timeout_s
        self._exit_timeout_s = exit_timeout_s
        self._tokens = Tokens()
        self._not_asked_until = 0.0

        def connect() -> httpx.Client:
            return httpx.Client(
                base_url=self._url,
                headers=headers_of(api_key),
                timeout=timeout_s,
                transport=transport,
                verify=certificates(),
            )

        self._http = connect()
        self.outbox = Outbox(
            connect, max_items=max_items, max_bytes=max_bytes, interval_s=interval_s, on_logged=self._tokens.keep
        )
        self.feedback = QuietFeedback(lambda body: self._put(FEEDBACK, body))
        atexit.register(self.close)

    def wrap(self, client: Client) -> Client:
        """The same client, with its settings, whose requests go to the gateway; the ids of its completions are interaction ids. Streams too,
        synchronous or not. Raises BadInput for what is no OpenAI client (or Azure's, whose addresses are others)."""
        to: dict[str, Any] = {"base_url": f"{self._url}/v1", "api_key": self._key or "none"}
        if isinstance(client, AzureOpenAI | AsyncAzureOpenAI) or not isinstance(client, OpenAI | AsyncOpenAI):
            raise BadInput(f"Capture.wrap was given a {type(client).__name__}; give it an OpenAI or AsyncOpenAI.")
        if isinstance(client, AsyncOpenAI):
            hooks = {"response": [self._tokens.async_hook]}
            return client.with_options(
                **to, http_client=DefaultAsyncHttpxClient(verify=certificates(), event_hooks=hooks)
            )
        http_client = DefaultHttpxClient(verify=certificates(), event_hooks={"response": [self._tokens.hook]})
        return client.with_options(**to, http_client=http_client)

    def token(self, interaction_id: str) -> str | None:
        """What lets the browser rate this answer: give it to the page beside the id. None for an answer that did not come through here."""
        return self._tokens.get(interaction_id)

    def log(self, messages: Sequence[Mapping[str, Any]], responses: Sequence[str], **about: Any) -> str:
        """Record, later, what a model of yours answered (`about`: see `Plaudit.log`). Returns a name for it that `feedback` of this Capture
        takes in place of an id; where a browser shall rate the answer use `Plaudit.log`, which waits for id and token."""
        key = f"log_{uuid.uuid4().hex}"
        try:
            self._put(INTERACTIONS, logged(messages, responses, **({"at": _now(), "idempotency_key": key} | about)))
            return str(about.get("idempotency_key", key))
        except Exception as error:
            log.warning("Not logged: %s", error)
            return key

    def assign(self, user: str, conversation_id: str | None = None) -> dict[str, Any] | None:
        """Which release answers this user ({release_id, model, experiment_id, arm}); None where the service does not say so in time: use
        your default. For users without an account see `plaudit.client.visitor`."""
        if time.monotonic() < self._not_asked_until:
            return None
        try:
            params = {"user": user} | given(conversation_id=conversation_id)
            answer = self._http.get("/v1/assignment", params=params, timeout=self._assign_timeout_s)
            answer.raise_for_status()
            return dict(answer.json())
        except Exception as error:
            self._not_asked_until = time.monotonic() + NOT_ASKED_S
            log.warning("No assignment for the next %g s: %s", NOT_ASKED_S, error)
            return None

    def routes(self) -> Relay:
        """An ASGI application to mount: `widget.js`, and `feedback`, which passes the browser's feedback on."""
        return Relay(self._url)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Send what waits now; whether all of it went out in time."""
        return self.outbox.flush(timeout_s)

    def close(self) -> None:
        """Send what waits, in `exit_timeout_s`, and stop. Called when the process ends, too."""
        atexit.unregister(self.close)
        self.outbox.close(self._exit_timeout_s)
        self._http.close()

    def _put(self, path: str, body: Mapping[str, Any]) -> None:
        self.outbox.put(path, body)


class QuietFeedback(Feedback[None]):
    """Feedback that is handed over, never refused: what is wrong with it is said in the log. `at` is when the method was called."""

    def _send(self, interaction_id: str, kind: str, value: Mapping[str, Any] | None, **where: Any) -> None:
        try:
            super()._send(interaction_id, kind, value, **({"at": _now()} | where))
        except Exception as error:
            log.warning("A %s was not kept: %s", kind, error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
