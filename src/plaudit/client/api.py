"""Plaudit and AsyncPlaudit: the OpenAI client for chats, and feedback, logging, assignment (and annotation) beside it.

    plaudit = Plaudit("http://127.0.0.1:8484", "plk_...")
    answer = plaudit.chat([{"role": "user", "content": "Hello"}], user="u-17", training_use="allowed")
    plaudit.feedback.thumb(answer.id, up=True)

Every call that acts twice when it is sent twice carries an idempotency key, made once and sent again with each retry. Errors are those of
`plaudit.errors`, by the code that the service answers with; `chat` raises the OpenAI SDK's own. Plaudit is safe to share between threads.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import httpx
from openai import AsyncOpenAI, AsyncStream, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI, Stream
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from plaudit.client.feedback import Feedback, Tokens
from plaudit.client.wire import AsyncHttp, Http, certificates, given, service_url

DEFAULT_URL = "http://127.0.0.1:8484"
MODEL = "plaudit"  # whatever release the user is assigned to


class Plaudit:
    """One application's connection. `api_key` needs the role application, or annotator for `.annotation`."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str = "",
        *,
        timeout_s: float = 60.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`transport` takes the place of the network for everything but `chat`."""
        url = service_url(base_url)
        self._http = Http(url, api_key, timeout_s, retries, transport)
        self._tokens = Tokens()
        self.openai = OpenAI(
            base_url=f"{url}/v1",
            api_key=api_key or "none",
            timeout=timeout_s,
            max_retries=retries,
            http_client=DefaultHttpxClient(verify=certificates(), event_hooks={"response": [self._tokens.hook]}),
        )
        self.feedback: Feedback[dict[str, Any]] = Feedback(self._give)
        self.annotation = AnnotationClient(self._http)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """One turn; the completion's `id` is the interaction's id, for feedback. `options` are ours (user, conversation_id, family,
        training_use, attributes), stream=False, model="plaudit", and those of the OpenAI SDK."""
        answer: ChatCompletion | Stream[ChatCompletionChunk]
        answer = self.openai.chat.completions.create(**_asked(messages, **options))
        return answer

    def log(self, messages: Sequence[Mapping[str, Any]], responses: Sequence[str], **about: Any) -> str:
        """Record what a model of yours answered; returns the interaction's id. `about`: user, conversation_id, family, training_use,
        attributes, model, release_id (where `assign` named it), at, idempotency_key (a new one)."""
        return self._logged(self._http.ask("POST", "/v1/interactions", logged(messages, responses, **about)))

    def assign(
        self, user: str, conversation_id: str | None = None, attributes: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Which release answers this user, in a conversation that may have begun already: {release_id, model, experiment_id, arm}.
        `attributes` are those of the later log, where releases or pilots of a segment exist."""
        return self._http.ask("GET", "/v1/assignment", params=_whom(user, conversation_id, attributes))

    def token(self, interaction_id: str) -> str | None:
        """What lets a browser rate this answer, of the last 10,000 that this object got or logged."""
        return self._tokens.get(interaction_id)

    def _give(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._http.ask("POST", "/v1/feedback", body)

    def _logged(self, said: Mapping[str, Any]) -> str:
        self._tokens.keep(said["id"], said.get("feedback_token"))
        return str(said["id"])

    def close(self) -> None:
        self._http.close()
        self.openai.close()

    def __enter__(self) -> Plaudit:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncPlaudit:
    """Plaudit for an event loop; for one loop only, as its connections are. Annotators have the synchronous one."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str = "",
        *,
        timeout_s: float = 60.0,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        url = service_url(base_url)
        self._http = AsyncHttp(url, api_key, timeout_s, retries, transport)
        self._tokens = Tokens()
        self.openai = AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key=api_key or "none",
            timeout=timeout_s,
            max_retries=retries,
            http_client=DefaultAsyncHttpxClient(
                verify=certificates(), event_hooks={"response": [self._tokens.async_hook]}
            ),
        )
        self.feedback: Feedback[Awaitable[dict[str, Any]]] = Feedback(self._give)

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """As `Plaudit.chat`."""
        answer: ChatCompletion | AsyncStream[ChatCompletionChunk]
        answer = await self.openai.chat.completions.create(**_asked(messages, **options))
        return answer

    async def log(self, messages: Sequence[Mapping[str, Any]], responses: Sequence[str], **about: Any) -> str:
        """As `Plaudit.log`."""
        said = await self._http.ask("POST", "/v1/interactions", logged(messages, responses, **about))
        self._tokens.keep(said["id"], said.get("feedback_token"))
        return str(said["id"])

    async def assign(
        self, user: str, conversation_id: str | None = None, attributes: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """As `Plaudit.assign`."""
        return await self._http.ask("GET", "/v1/assignment", params=_whom(user, conversation_id, attributes))

    def token(self, interaction_id: str) -> str | None:
        """As `Plaudit.token`."""
        return self._tokens.get(interaction_id)

    async def _give(self, body: dict[str, Any]) -> dict[str, Any]:
        return await self._http.ask("POST", "/v1/feedback", body)

    async def close(self) -> None:
        await self._http.close()
        await self.openai.close()

    async def __aenter__(self) -> AsyncPlaudit:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


class AnnotationClient:
    """An annotator's work, in the name of the key's person."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def lease(self) -> dict[str, Any] | None:
        """The next question: {lease_id, comparison_id, expires_at, messages, kind, criteria, scale, guideline, responses: [{id, text}]}, or
        None."""
        return self._http.ask("POST", "/v1/annotation/lease") or None

    def answer(
        self,
        lease_id: str,
        *,
        verdict: str,
        choice: str | None = None,
        strength: int | None = None,
        rating: int | None = None,
        criteria: Mapping[str, str | int] | None = None,
        seconds: float,
        note: str | None = None,
        edit: str | None = None,
    ) -> dict[str, Any]:
        """`verdict`: prefer (with `choice`, a response id), tie, both_bad, rate (with `rating`) or skip. `criteria`: of each that the
        question names a response id or tie, or a rating. `edit`: the chosen response as it should be. `seconds` is the time it took."""
        body = {"lease_id": lease_id, "verdict": verdict, "seconds": seconds}
        body |= given(choice=choice, strength=strength, rating=rating, criteria=criteria, note=note, edit=edit)
        return self._http.ask("POST", "/v1/annotations", body)

    def heartbeat(self, lease_id: str) -> dict[str, Any]:
        """More time for the question that is held."""
        return self._http.ask("POST", f"/v1/annotation/lease/{lease_id}/heartbeat")

    def release(self, lease_id: str) -> None:
        """Give the question back unanswered."""
        self._http.ask("POST", f"/v1/annotation/lease/{lease_id}/release")

    def progress(self) -> dict[str, Any]:
        return self._http.ask("GET", "/v1/annotation/progress")


def logged(
    messages: Sequence[Mapping[str, Any]],
    responses: Sequence[str],
    *,
    user: str | None = None,
    conversation_id: str | None = None,
    family: str | None = None,
    training_use: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    model: str | None = None,
    release_id: str | None = None,
    at: str | None = None,
    idempotency_key: str | None = None,
) -> dict[str, Any]:
    """The body of POST /v1/interactions."""
    key = idempotency_key or uuid.uuid4().hex
    return {"messages": list(messages), "responses": list(responses), "idempotency_key": key} | given(
        user=user,
        conversation_id=conversation_id,
        family=family,
        training_use=training_use,
        attributes=dict(attributes) if attributes is not None else None,
        model=model,
        release_id=release_id,
        at=at,
    )


def _whom(user: str, conversation_id: str | None, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    declared = [f"{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in (attributes or {}).items()]
    return {"user": user} | given(conversation_id=conversation_id, attribute=declared or None)


def _asked(
    messages: Sequence[Mapping[str, Any]],
    *,
    user: str | None = None,
    conversation_id: str | None = None,
    family: str | None = None,
    training_use: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    stream: bool = False,
    model: str = MODEL,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of the OpenAI SDK."""
    extension = given(
        conversation_id=conversation_id,
        family=family,
        training_use=training_use,
        attributes=dict(attributes) if attributes is not None else None,
    )
    extra = {**options.pop("extra_body", {}), **({"plaudit": extension} if extension else {})}
    asked = {"model": model, "messages": list(messages), "stream": stream, "extra_body": extra}
    return {**asked, **given(user=user), **options}
