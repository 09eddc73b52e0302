"""A remote scorer as a reward: POST {"messages", "responses", "meta"} -> {"scores": [...]}, `batch` responses a request, in order.

A failure is a refused or broken connection, a late answer, 429 or 5xx. Pauses double from `backoff_s`; after `attempts` failures in a
row the circuit breaker is open: no request for `pause_s`, then one (half open), whose success closes it and whose failure stops the
run with a sentence. The last saved state stays, so the same command goes on when the scorer is back. Any other answer is no failure to
wait for: it stops the run at once. Requests go one after another, so the failures of one request are all failures in a row.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch
from torch import Tensor

from plaudit.errors import ConfigError, TrainingStopped
from plaudit.learn.answers import Answers, checked
from plaudit.learn.configs import HttpTerm

SHOWN = 200  # characters of an answer in an error


class _Failure(Exception):
    """One that may pass; `after_s` is what the server asks us to wait."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True)
class Scorer:
    """A scorer and the headers it wants. The token is in no text that anything writes."""

    term: HttpTerm
    headers: dict[str, str] = field(repr=False)


def load(term: HttpTerm, environ: Mapping[str, str]) -> Scorer:
    """Read the token. Raises ConfigError where its variable is not set."""
    if not term.token_variable:
        return Scorer(term, {})
    token = environ.get(term.token_variable, "")
    if not token:
        raise ConfigError(
            f"The environment variable {term.token_variable} is not set; it must hold the bearer token of {public(term.url)}."
        )
    return Scorer(term, {"authorization": f"Bearer {token}"})


def public(url: str) -> str:
    """The address without its query, which may hold a secret."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def score(scorer: Scorer, answers: Answers) -> Tensor:
    """N -> (N,) fp32. Raises TrainingStopped where the breaker gives up, or the answer is not N finite numbers."""
    term, scores = scorer.term, []
    with httpx.Client(headers=scorer.headers, timeout=term.timeout_s) as client:
        for start in range(0, len(answers.texts), term.batch):
            part = answers.part(start, term.batch)
            answer = _ask(client, term, {"messages": part.messages, "responses": part.texts, "meta": part.meta})
            scores.append(checked(answer, part, f"The scorer at {public(term.url)}"))
    return torch.cat(scores)


def _ask(client: httpx.Client, term: HttpTerm, body: dict[str, Any]) -> Any:
    """The `scores` of one request, behind the circuit breaker."""
    for n_failed in itertools.count(1):
        try:
            return _post(client, term, body)
        except _Failure as failure:
            if n_failed > term.attempts:
                raise TrainingStopped(
                    f"The scorer at {public(term.url)} failed {n_failed} times in a row, the last time after a pause of "
                    f"{term.pause_s:g} s ({failure}); mend it and run this again, which goes on from the last saved state."
                ) from failure
            backoff = max(term.backoff_s * 2.0 ** (n_failed - 1), failure.after_s)
            time.sleep(term.pause_s if n_failed == term.attempts else min(backoff, term.pause_s))
    raise AssertionError("unreachable")


def _post(client: httpx.Client, term: HttpTerm, body: dict[str, Any]) -> Any:
    """One attempt. Raises _Failure where another may succeed, TrainingStopped where it cannot."""
    deadline = time.monotonic() + term.timeout_s
    try:
        with client.stream("POST", term.url, json=body) as response:
            content = b""
            for piece in response.iter_bytes():
                content += piece
                if time.monotonic() > deadline:  # httpx limits each wait, not their sum
                    raise _Failure(f"it answered too slowly, over {term.timeout_s:g} s")
    except httpx.TimeoutException as error:
        raise _Failure(f"no answer in {term.timeout_s:g} s") from error
    except httpx.RequestError as error:
        raise _Failure(f"{type(error).__name__}: {error}") from error
    said = content[:SHOWN].decode(errors="replace")
    if response.status_code == 429 or response.status_code >= 500:
        raise _Failure(f"it answered {response.status_code}: {said!r}", _retry_after_s(response))
    if response.status_code != 200:
        raise TrainingStopped(
            f"The scorer at {public(term.url)} answered {response.status_code}: {said!r}; look at the address, the token and what it expects."
        )
    try:
        return json.loads(content)["scores"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingStopped(
            f'The scorer at {public(term.url)} answered {said!r}; it must answer {{"scores": [...]}}, a number for each response.'
        ) from error


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds that the server asks for; 0 where it asks for none, or for a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
