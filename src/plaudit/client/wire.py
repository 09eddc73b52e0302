"""JSON over one pooled connection, with retries: where the service cannot have acted always, else where acting twice is harmless.

`Http` and `AsyncHttp` differ in how they wait; what to do about an answer or a failure is decided by `pause_s` for both.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import httpx

from plaudit import errors
from plaudit.errors import PlauditError, RateLimited, Refused, Unavailable

FIRST_PAUSE_S = 0.2  # before the first retry; doubles with each
LONGEST_PAUSE_S = 10.0
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)

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


def service_url(base_url: str) -> str:
    """The address of the service, given with or without its `/v1`."""
    return base_url.rstrip("/").removesuffix("/v1")


def headers_of(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


@cache
def certificates() -> ssl.SSLContext:
    """Whom every client of this process trusts, read once: to read them takes longer than a hundred requests."""
    return httpx.create_ssl_context()


class Http:
    """For the thread that calls."""

    def __init__(
        self, url: str, api_key: str, timeout_s: float, retries: int, transport: httpx.BaseTransport | None
    ) -> None:
        self._client = httpx.Client(
            base_url=url,
            headers=headers_of(api_key),
            timeout=timeout_s,
            limits=LIMITS,
            transport=transport,
            verify=certificates(),
        )
        self._retries = retries
        self._url = url

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """The decoded answer, {} where it is empty. Raises the PlauditError of its code, or Unavailable where there is no answer."""
        attempt = 0
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._client.request(method, path, json=body, params=params)
            except httpx.TransportError as error:
                outcome = error
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return decoded(outcome)
            time.sleep(pause_s(outcome, attempt, self._retries, repeatable, self._url))
            attempt += 1

    def close(self) -> None:
        self._client.close()


class AsyncHttp:
    """For an event loop."""

    def __init__(
        self, url: str, api_key: str, timeout_s: float, retries: int, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=headers_of(api_key),
            timeout=timeout_s,
            limits=LIMITS,
            transport=transport,
            verify=certificates(),
        )
        self._retries = retries
        self._url = url

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """As `Http.ask`."""
        attempt = 0
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._client.request(method, path, json=body, params=params)
            except httpx.TransportError as error:
                outcome = error
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return decoded(outcome)
            await asyncio.sleep(pause_s(outcome, attempt, self._retries, repeatable, self._url))
            attempt += 1

    async def close(self) -> None:
        await self._client.aclose()


def pause_s(
    outcome: httpx.Response | httpx.TransportError, attempt: int, retries: int, repeatable: bool, url: str
) -> float:
    """Seconds until the next try, after try number `attempt` (from 0) failed. Raises what the caller should see where there is none."""
    last = attempt >= retries
    pause = FIRST_PAUSE_S * 2.0**attempt
    if isinstance(outcome, httpx.TransportError):
        unsent = isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        if last or not (repeatable or unsent):
            raise Unavailable(f"{url} does not answer ({type(outcome).__name__}); is it running?") from outcome
        return min(pause, LONGEST_PAUSE_S)
    waits = outcome.status_code in (429, 503)  # the service says that it did nothing
    if last or not (waits or (repeatable and outcome.status_code >= 500)):
        raise error_of(outcome)
    return min(max(pause, retry_after_s(outcome)) if waits else pause, LONGEST_PAUSE_S)


def decoded(response: httpx.Response) -> dict[str, Any]:
    """The object that was answered. Raises PlauditError for a 200 that is none: a proxy's page, another service."""
    if not response.content:
        return {}
    try:
        said = response.json()
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise PlauditError(f"{response.url} answered {response.status_code} with something that is no JSON object.")
    return said


def error_of(response: httpx.Response) -> PlauditError:
    """The error of this code."""
    try:
        said = response.json()["error"]
        code, message = str(said["code"]), str(said["message"])
        reasons = tuple(said.get("reasons", ()))
    except (ValueError, KeyError, TypeError):
        code, message, reasons = "", f"The service answered {response.status_code}.", ()
    match code:
        case "rate_limited":
            return RateLimited(message, retry_after_s(response))
        case "unavailable":
            return Unavailable(message, retry_after_s(response))
        case "refused":
            return Refused(message, reasons)
    return _BY_CODE.get(code, PlauditError)(message)


def retry_after_s(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 1.0


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
