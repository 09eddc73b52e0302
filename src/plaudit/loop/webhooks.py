"""Webhooks: somebody else's URL is told of feedback, alerts and changes of state, in order per object, at least once.

A Delivery is written in the transaction of what it tells of, so neither exists without the other. The worker sends: the oldest one of each
object first, and nothing more about that object until it arrived or was given up. The body is read when it is sent, so an erased user's
words do not wait in a queue. Each request is signed:

    X-Plaudit-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>" with the webhook's secret>

Any 2xx is an arrival; a receiver tells repeats apart by `id`.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from plaudit.domain import Alert, AuditEntry, Delivery, Feedback, Json, Webhook, new_id
from plaudit.errors import BadInput, NotFound
from plaudit.store.database import Store, Transaction

EVENTS = ("feedback", "alert", "state")
FIRST_PAUSE = timedelta(seconds=5)  # before the first retry; doubles with each
LONGEST_PAUSE = timedelta(hours=1)
MAX_ATTEMPTS = 20  # about half a day of silence
TIMEOUT_S = 10.0
PER_ROUND = 200
log = logging.getLogger("plaudit.webhooks")
_KINDS = {"feedback": Feedback, "alert": Alert, "state": AuditEntry}
Send = Callable[[str, bytes, dict[str, str]], int]


def add(store: Store, project_id: str, url: str, events: tuple[str, ...], now: datetime) -> Webhook:
    """A URL to tell, and the secret that signs. Raises BadInput."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"{url!r} is no URL to tell; give one that begins with https:// or http://.")
    for event in events:
        if event not in EVENTS:
            raise BadInput(f"Event {event!r} is unknown; choose from: {', '.join(EVENTS)}.")
    made = Webhook(
        id=new_id(Webhook),
        project_id=project_id,
        url=url,
        events=tuple(sorted(set(events))) or EVENTS,
        secret="whs_" + secrets.token_urlsafe(32),
        created_at=now,
    )
    store.add(made)
    return made


def end(store: Store, project_id: str, webhook_id: str, now: datetime) -> Webhook:
    """Tell it nothing more; what was on its way is given up. Raises NotFound."""
    with store.write() as tx:
        found = tx.first(Webhook, id=webhook_id, project_id=project_id)
        if found is None:
            raise NotFound(f"There is no webhook {webhook_id!r} in this project.")
        for one in tx.find(Delivery, webhook_id=webhook_id, delivered_at=None, given_up_at=None):
            tx.change(Delivery, one.id, given_up_at=now)
        return tx.change(Webhook, webhook_id, ended_at=found.ended_at or now)


def announce(tx: Transaction, project_id: str, event: str, told: list[tuple[str, str]], now: datetime) -> None:
    """Put (object id, id of the row that tells) on the way to every webhook that wants this event; with the transaction or not at all."""
    for webhook in tx.find(Webhook, project_id=project_id, ended_at=None):
        if event in webhook.events:
            tx.add(*(_delivery(webhook, event, object_id, source_id, now) for object_id, source_id in told))


def _delivery(webhook: Webhook, event: str, object_id: str, source_id: str, now: datetime) -> Delivery:
    return Delivery(
        id=new_id(Delivery),
        project_id=webhook.project_id,
        webhook_id=webhook.id,
        event=event,
        object_id=object_id,
        source_id=source_id,
        next_at=now,
        created_at=now,
    )


def deliver(store: Store, project_id: str, now: datetime, send: Send | None = None) -> int:
    """One round: try what is due, in order per object; how many arrived."""
    arrived = 0
    for webhook in store.find(Webhook, project_id=project_id, ended_at=None):
        waiting = store.find(Delivery, webhook_id=webhook.id, delivered_at=None, given_up_at=None, limit=PER_ROUND)
        blocked: set[str] = set()
        for one in waiting:
            if one.object_id in blocked:
                continue
            if one.next_at > now or not _try(store, webhook, one, now, send or _post):
                blocked.add(one.object_id)
            else:
                arrived += 1
    return arrived


def signature(secret: str, body: bytes, at: datetime) -> str:
    """The header that a receiver recomputes; one that is minutes old is a replay."""
    seconds = int(at.timestamp())
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, "sha256").hexdigest()
    return f"t={seconds},v1={digest}"


def _try(store: Store, webhook: Webhook, one: Delivery, now: datetime, send: Send) -> bool:
    """Send once; whether what comes after it may go."""
    body = json.dumps(_said(store, one), ensure_ascii=False, default=str, separators=(",", ":")).encode()
    headers = {"content-type": "application/json", "x-plaudit-signature": signature(webhook.secret, body, now)}
    try:
        status = send(webhook.url, body, headers)
        error = None if 200 <= status < 300 else f"answered {status}"
    except OSError as problem:
        error = str(problem)
    n_attempts = one.n_attempts + 1
    if error is None:
        store.change(Delivery, one.id, delivered_at=now, n_attempts=n_attempts, error=None)
        return True
    if n_attempts >= MAX_ATTEMPTS:
        log.warning("webhook %s: %s is given up after %d attempts (%s)", webhook.id, one.id, n_attempts, error)
        store.change(Delivery, one.id, given_up_at=now, n_attempts=n_attempts, error=error)
        return False
    pause = min(FIRST_PAUSE * 2 ** (n_attempts - 1), LONGEST_PAUSE)
    store.change(Delivery, one.id, next_at=now + pause, n_attempts=n_attempts, error=error)
    return False


def _said(store: Store, one: Delivery) -> Json:
    """The body: what the row says now, without hashes and what belongs to us alone."""
    row = store.first(_KINDS[one.event], id=one.source_id)
    hidden = ("project_id", "natural_key", "body_sha256", "quarantine_id", "previous_sha256", "sha256")
    data = {name: value for name, value in vars(row).items() if name not in hidden} if row is not None else None
    return {
        "id": one.id,
        "event": one.event,
        "object_id": one.object_id,
        "created_at": one.created_at.isoformat(),
        "data": data,
    }


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """The status. Raises ConnectionError where there is none."""
    import httpx  # the service, which only announces, starts without it

    try:
        return httpx.post(url, content=body, headers=headers, timeout=TIMEOUT_S, follow_redirects=False).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConnectionError(f"no answer ({type(error).__name__})") from error
