"""`GET /metrics`: figures in Prometheus' text format (version 0.0.4). Those of requests are this process's own since it started; no project, no
user and no text is in a label. Written out by hand: the format is a page, and the package for it keeps a registry of its own."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit.domain import Alert, AlertState, Quarantine, Run, RunState
from plaudit.errors import Unavailable
from plaudit.loop.collect import FeedbackResult
from plaudit.store.database import Store
from plaudit.web.access import key_of

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
ELSEWHERE = "other"  # a path that no route has: never itself a label, or anybody could make new ones
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Histogram:
    """How many values lie in each bucket, and their sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.sum += seconds


@dataclass
class Metrics:
    """What this process has counted. Its event loop is the only writer."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)  # by method, route, status
    seconds: defaultdict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))  # by route
    overhead: Histogram = field(default_factory=Histogram)
    upstream: Histogram = field(default_factory=Histogram)
    feedback: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind, status

    def chat(self, total_s: float, upstream_s: float) -> None:
        """A chat came as far as its first content, or its whole answer; `upstream_s` of that were the model server's."""
        self.upstream.observe(upstream_s)
        self.overhead.observe(max(0.0, total_s - upstream_s))

    def said(self, results: Sequence[FeedbackResult | Exception]) -> None:
        for one in results:
            if isinstance(one, FeedbackResult):
                self.feedback[str(one.feedback.kind), one.status] += 1


def counted(app: ASGIApp, templates: Mapping[Any, str]) -> ASGIApp:
    """The app, each of its requests counted by the route's template; `templates` has them by endpoint."""

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        kept: Metrics = scope["app"].state.door.metrics
        began, status = monotonic(), 500  # what a bug that nobody caught is answered

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, sending)
        finally:
            route = templates.get(scope.get("endpoint"), ELSEWHERE)
            method = scope["method"] if scope["method"] in METHODS else ELSEWHERE
            kept.requests[method, route, status] += 1
            kept.seconds[route].observe(monotonic() - began)

    return counting


async def show(request: Request) -> Response:
    """GET /metrics"""
    door = request.app.state.door
    recorder, spool = door.recorder, door.settings.home / "spool"
    try:
        stored = await door.run_within(_stored, door.store, key_of(request).project_id)
    except Unavailable:  # which is what these figures are looked at for
        stored = []
    lines = [
        *_process(door.metrics, recorder.commits),
        *_gauge("plaudit_recorder_queue_jobs", "Writes that wait for the store or the spool.", recorder.n_waiting),
        *_gauge("plaudit_spooling", "1 while the store is away and rows go to the spool.", int(recorder.spooling)),
        *_gauge("plaudit_spool_bytes", "Bytes in the spool files of this home.", spool_bytes(spool)),
        *_gauge("plaudit_store_up", "1 where the store answered this question in time.", int(bool(stored))),
        *stored,
    ]
    return Response("\n".join([*lines, ""]), media_type=MEDIA_TYPE)


def spool_bytes(folder: Path) -> int:
    """A file that is being brought into the store counts until all of it is there."""
    total = 0
    for path in folder.glob("spool-*.jsonl"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # it has just been brought in
            continue
    return total


def _stored(store: Store, project_id: str) -> list[str]:
    """What the store says of the key's project."""
    firing = Counter(one.severity for one in store.find(Alert, project_id=project_id, state=AlertState.FIRING))
    waiting = store.find(Run, project_id=project_id, state=[RunState.QUEUED, RunState.RUNNING])
    runs = Counter(str(one.state) for one in waiting)
    alerts: dict[Labels, int] = {(("severity", one),): firing[one] for one in ("warning", "critical")}
    queue: dict[Labels, int] = {(("state", str(one)),): runs[str(one)] for one in (RunState.QUEUED, RunState.RUNNING)}
    held = store.count(Quarantine, project_id=project_id, lifted_at=None)
    return [
        *_gauge("plaudit_quarantines", "Quarantines of this key's project that hold feedback now.", held),
        *_family("plaudit_alerts_firing", "gauge", "Alerts of this key's project that fire.", alerts),
        *_family("plaudit_runs", "gauge", "Runs of this key's project that wait or run.", queue),
    ]


def _process(metrics: Metrics, commits: Histogram) -> Iterator[str]:
    by_request: dict[Labels, int] = {
        (("method", method), ("route", route), ("status", str(status))): n
        for (method, route, status), n in sorted(metrics.requests.items())
    }
    said: dict[Labels, int] = {
        (("kind", kind), ("status", status)): n for (kind, status), n in sorted(metrics.feedback.items())
    }
    by_route: dict[Labels, Histogram] = {(("route", route),): one for route, one in sorted(metrics.seconds.items())}
    yield from _family("plaudit_http_requests_total", "counter", "Requests that were answered.", by_request)
    yield from _histograms("plaudit_http_request_seconds", "From a request's head to the end of its answer.", by_route)
    yield from _histograms(
        "plaudit_gateway_overhead_seconds",
        "Of a chat up to its first content or whole answer, what was not the model server's: queue and recording included.",
        {(): metrics.overhead},
    )
    yield from _histograms(
        "plaudit_upstream_wait_seconds",
        "Of a chat, the wait for the model server's first content or whole answer.",
        {(): metrics.upstream},
    )
    yield from _histograms(
        "plaudit_store_commit_seconds", "Of the recorder's transactions, many chats each.", {(): commits}
    )
    yield from _family("plaudit_feedback_total", "counter", "Acts of feedback that were acknowledged.", said)


# --- the text format: prometheus.io/docs/instrumenting/exposition_formats ------------------------------------------------

Labels = tuple[tuple[str, str], ...]


def _family(name: str, kind: str, text: str, values: Mapping[Labels, int]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{_shown(labels)} {value}"


def _gauge(name: str, text: str, value: int) -> Iterator[str]:
    return _family(name, "gauge", text, {(): value})


def _histograms(name: str, text: str, values: Mapping[Labels, Histogram]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} histogram"
    for labels, one in values.items():
        counts, total, n = list(one.counts), one.sum, 0
        for count, bound in zip(counts, (*map(str, BUCKETS_S), "+Inf"), strict=True):
            n += count
            yield f"{name}_bucket{_shown((*labels, ('le', bound)))} {n}"
        yield f"{name}_sum{_shown(labels)} {total!r}"
        yield f"{name}_count{_shown(labels)} {n}"


def _shown(labels: Labels) -> str:
    """Values are ours (templates, enums, numbers): nothing in them needs escaping."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""
