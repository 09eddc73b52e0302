"""The Python SDK that an application imports: the OpenAI client for chats, and feedback, logging, assignment and annotation beside it.

    plaudit = Plaudit("http://127.0.0.1:8484", "plk_...")
    answer = plaudit.chat([{"role": "user", "content": "Hello"}], user="u-17", training_use="allowed")
    plaudit.feedback.thumb(answer.id, up=True)

Every call that acts twice when it is sent twice carries an idempotency key, made once and sent again with each retry. Errors are those of
`plaudit.errors`, by the code that the service answers with; `chat` raises the OpenAI SDK's own. Safe to share between threads.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from plaudit import errors
from plaudit.errors import PlauditError, RateLimited, Refused, Unavailable

DEFAULT_URL = "http://127.0.0.1:8484"
MODEL = "plaudit"  # whatever release the user is assigned to
FIRST_PAUSE_S = 0.2  # before the first retry; doubles with each
LONGEST_PAUSE_S = 10.0

_BY_CODE: Mapping[str, type[PlauditError]] = {
    kind.code: kind
    for kind in (
        errors.BadInput,
        errors.NotFound,
        errors.Conflict,
        errors.Unauthorized,
        errors.Forbidden,
        errors.Expired,
        errors.TooLarge,
        errors.Refused,
    )
}


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
        url = base_url.rstrip("/").removesuffix("/v1")
        self._http = _Http(url, api_key, timeout_s, retries, transport)
        self.openai = OpenAI(base_url=f"{url}/v1", api_key=api_key or "none", timeout=timeout_s, max_retries=retries)
        self.feedback = FeedbackClient(self._http)
        self.annotation = AnnotationClient(self._http)

    def chat(
        self,
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
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """One turn; `options` are those of the OpenAI SDK. The completion's `id` is the interaction's id, for feedback."""
        extension = _given(
            conversation_id=conversation_id,
            family=family,
            training_use=training_use,
            attributes=dict(attributes) if attributes is not None else None,
        )
        extra = {**options.pop("extra_body", {}), **({"plaudit": extension} if extension else {})}
        asked: dict[str, Any] = {"model": model, "messages": list(messages), "stream": stream, "extra_body": extra}
        answer: ChatCompletion | Stream[ChatCompletionChunk]
        answer = self.openai.chat.completions.create(**asked, **_given(user=user), **options)
        return answer

    def log(
        self,
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
    ) -> str:
        """Record what a model of yours answered; returns the interaction's id. Give `release_id` where `assign` named it.

        Not sent again once the service may have read it: a second copy would be a second interaction.
        """
        body = {"messages": list(messages), "responses": list(responses)} | _given(
            user=user,
            conversation_id=conversation_id,
            family=family,
            training_use=training_use,
            attributes=dict(attributes) if attributes is not None else None,
            model=model,
            release_id=release_id,
        )
        return str(self._http.ask("POST", "/v1/interactions", body, repeatable=False)["id"])

    def assign(self, user: str, conversation_id: str | None = None) -> dict[str, Any]:
        """Which release answers this user, in a conversation that may have begun already: {release_id, model, experiment_id, arm}."""
        params = {"user": user} | _given(conversation_id=conversation_id)
        return self._http.ask("GET", "/v1/assignment", params=params)

    def close(self) -> None:
        self._http.close()
        self.openai.close()

    def __enter__(self) -> Plaudit:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FeedbackClient:
    """What users said. Each call returns {"id", "status": recorded | superseded | replayed}; a thumb, rating, edit or choice given again
    with another value supersedes, and `retract` takes it back."""

    def __init__(self, http: _Http) -> None:
        self._http = http

    def thumb(self, interaction_id: str, up: bool, **where: Any) -> dict[str, Any]:
        """`where`: response_index=0, user=None (the interaction's own)."""
        return self._send(interaction_id, "thumb", {"up": up}, **where)

    def rate(self, interaction_id: str, rating: int, **where: Any) -> dict[str, Any]:
        """On the project's scale, 1 to 5 unless configured."""
        return self._send(interaction_id, "rating", {"rating": rating}, **where)

    def edit(self, interaction_id: str, text: str, **where: Any) -> dict[str, Any]:
        """The answer as it should have been."""
        return self._send(interaction_id, "edit", {"text": text}, **where)

    def choose(self, interaction_id: str, chosen: int | None, **where: Any) -> dict[str, Any]:
        """The index of the better response of several, None for neither."""
        return self._send(interaction_id, "choice", {"chosen": chosen}, **where)

    def comment(self, interaction_id: str, text: str = "", reasons: Sequence[str] = (), **where: Any) -> dict[str, Any]:
        return self._send(interaction_id, "comment", {"text": text or None, "reasons": list(reasons)}, **where)

    def signal(self, interaction_id: str, name: str, **where: Any) -> dict[str, Any]:
        """Weak evidence: copy, regenerate, stop, abandon ..."""
        return self._send(interaction_id, "signal", {"name": name}, **where)

    def retract(self, interaction_id: str, kind: str, **where: Any) -> dict[str, Any]:
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
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        key = idempotency_key or uuid.uuid4().hex
        body = {"interaction_id": interaction_id, "kind": kind, "idempotency_key": key}
        extra = _given(value=value, response_index=response_index or None, user=user, retract=retract or None)
        return self._http.ask("POST", "/v1/feedback", {**body, **extra})


class AnnotationClient:
    """An annotator's work, in the name of the key's person."""

    def __init__(self, http: _Http) -> None:
        self._http = http

    def lease(self) -> dict[str, Any] | None:
        """The next question: {lease_id, comparison_id, expires_at, messages, kind, guideline, responses: [{id, text}]}, or None."""
        return self._http.ask("POST", "/v1/annotation/lease") or None

    def answer(
        self,
        lease_id: str,
        *,
        verdict: str,
        choice: str | None = None,
        strength: int | None = None,
        seconds: float,
    ) -> dict[str, Any]:
        """`verdict`: prefer (with `choice`, a response id), tie, both_bad or skip; `seconds` is the time it took."""
        body = {"lease_id": lease_id, "verdict": verdict, "seconds": seconds} | _given(choice=choice, strength=strength)
        return self._http.ask("POST", "/v1/annotations", body)

    def heartbeat(self, lease_id: str) -> dict[str, Any]:
        """More time for the question that is held."""
        return self._http.ask("POST", f"/v1/annotation/lease/{lease_id}/heartbeat")

    def release(self, lease_id: str) -> None:
        """Give the question back unanswered."""
        self._http.ask("POST", f"/v1/annotation/lease/{lease_id}/release")

    def progress(self) -> dict[str, Any]:
        return self._http.ask("GET", "/v1/annotation/progress")


class _Http:
    """JSON over one pooled connection, with retries: where the service cannot have acted always, else where acting twice is harmless."""

    def __init__(
        self, url: str, api_key: str, timeout_s: float, retries: int, transport: httpx.BaseTransport | None
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, limits=limits, transport=transport
        )
        self._retries = retries
        self._url = url

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """The decoded answer, {} where it is empty. Raises the PlauditError of its code, or Unavailable where there is no answer."""
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            pause = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
            try:
                response = self._client.request(method, path, json=body, params=params)
            except httpx.TransportError as error:
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if last or not (repeatable or unsent):
                    raise Unavailable(
                        f"{self._url} does not answer ({type(error).__name__}); is it running?"
                    ) from error
            else:
                if response.is_success:
                    return dict(response.json()) if response.content else {}
                waits = response.status_code in (429, 503)  # the service says that it did nothing
                if last or not (waits or (repeatable and response.status_code >= 500)):
                    raise _error(response)
                pause = max(pause, _retry_after_s(response)) if waits else pause
            time.sleep(min(pause, LONGEST_PAUSE_S))
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        self._client.close()


def _error(response: httpx.Response) -> PlauditError:
    try:
        said = response.json()["error"]
        code, message = str(said["code"]), str(said["message"])
        reasons = tuple(said.get("reasons", ()))
    except (ValueError, KeyError, TypeError):
        code, message, reasons = "", f"The service answered {response.status_code}.", ()
    match code:
        case "rate_limited":
            return RateLimited(message, _retry_after_s(response))
        case "unavailable":
            return Unavailable(message, _retry_after_s(response))
        case "refused":
            return Refused(message, reasons)
    return _BY_CODE.get(code, PlauditError)(message)


def _retry_after_s(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 1.0


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
