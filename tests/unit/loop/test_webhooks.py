from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plaudit.domain import Delivery, Interaction, Project
from plaudit.errors import BadInput, NotFound
from plaudit.loop import collect, govern, webhooks
from plaudit.loop.webhooks import FIRST_PAUSE, MAX_ATTEMPTS
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]
URL = "https://hook.example/in"


class Receiver:
    """Answers as it is told, and remembers what it took."""

    def __init__(self) -> None:
        self.status: int | None = 200
        self.refuses: str | None = None  # an object it fails on, once
        self.took: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []

    def __call__(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        assert url == URL
        said = json.loads(body)
        if self.status is None:
            raise ConnectionError("no answer (ConnectError)")
        if said["object_id"] == self.refuses:
            self.refuses = None  # once: what comes after it must not slip through
            return 500
        if self.status == 200:
            self.took.append(said)
            self.headers.append(headers)
            self.bodies.append(body)
        return self.status


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


def thumb(store: Store, interaction: Interaction, up: bool) -> str:
    body = {"interaction_id": interaction.id, "kind": "thumb", "value": up}
    return collect.record_feedback(store, interaction.project_id, body, None, NOW).feedback.id


def test_events_come_signed_once_and_in_order(store: Store, project: Project, chat: Chat, receiver: Receiver) -> None:
    one = chat()
    thumb(store, one, True)  # before anybody asked to be told
    hook = webhooks.add(store, project.id, URL, ("feedback", "state"), NOW)
    told = [thumb(store, one, False), thumb(store, one, True)]
    thumb(store, one, True)  # a replay is no event
    govern.audit(store, project.id, "me", "system", "release.live", "rel_1", {}, {"state": "live"}, NOW)
    assert webhooks.deliver(store, project.id, NOW, receiver) == 3
    assert webhooks.deliver(store, project.id, NOW, receiver) == 0
    assert [(one["event"], one["object_id"]) for one in receiver.took] == [("feedback", one.id)] * 2 + [
        ("state", "rel_1")
    ]
    assert [said["data"]["id"] for said in receiver.took[:2]] == told
    assert receiver.took[0]["data"]["value"] == {"up": False}
    assert "natural_key" not in receiver.took[0]["data"]
    stamp, _, digest = receiver.headers[0]["x-plaudit-signature"].partition(",v1=")
    right = hmac.new(hook.secret.encode(), stamp.removeprefix("t=").encode() + b"." + receiver.bodies[0], "sha256")
    assert (stamp, digest) == (f"t={int(NOW.timestamp())}", right.hexdigest())


def test_a_failed_one_holds_up_its_own_object_only_and_is_tried_later(
    store: Store, project: Project, chat: Chat, receiver: Receiver
) -> None:
    webhooks.add(store, project.id, URL, (), NOW)
    stuck, free = chat(), chat()
    receiver.refuses = stuck.id
    for up in (True, False):
        thumb(store, stuck, up)
        thumb(store, free, up)
    assert webhooks.deliver(store, project.id, NOW, receiver) == 2
    assert {said["object_id"] for said in receiver.took} == {free.id}
    assert webhooks.deliver(store, project.id, NOW + FIRST_PAUSE / 2, receiver) == 0
    assert webhooks.deliver(store, project.id, NOW + FIRST_PAUSE, receiver) == 2
    assert [said["data"]["value"]["up"] for said in receiver.took[2:]] == [True, False]


def test_the_pause_doubles_and_in_the_end_it_is_given_up(
    store: Store, project: Project, chat: Chat, receiver: Receiver
) -> None:
    webhooks.add(store, project.id, URL, ("feedback",), NOW)
    thumb(store, chat(), True)
    receiver.status, at, pauses = None, NOW, []
    for _ in range(MAX_ATTEMPTS):
        webhooks.deliver(store, project.id, at, receiver)
        (one,) = store.find(Delivery)
        pauses.append((one.next_at - at).total_seconds())
        at = max(at + timedelta(seconds=1), one.next_at)
    assert pauses[:4] == [5, 10, 20, 40]
    assert max(pauses) == 3600
    assert (one.n_attempts, one.error) == (MAX_ATTEMPTS, "no answer (ConnectError)")
    assert one.given_up_at is not None
    receiver.status = 200
    assert webhooks.deliver(store, project.id, at + timedelta(days=1), receiver) == 0


def test_an_ended_webhook_is_told_nothing_more(store: Store, project: Project, chat: Chat, receiver: Receiver) -> None:
    hook = webhooks.add(store, project.id, URL, (), NOW)
    thumb(store, chat(), True)
    webhooks.end(store, project.id, hook.id, NOW)
    thumb(store, chat(), True)
    assert webhooks.deliver(store, project.id, NOW, receiver) == 0
    assert store.count(Delivery) == 1
    with pytest.raises(NotFound, match="whk_0"):
        webhooks.end(store, project.id, "whk_0", NOW)
    for url, events in (("ftp://x", ()), ("nothing", ()), (URL, ("applause",))):
        with pytest.raises(BadInput):
            webhooks.add(store, project.id, url, events, NOW)
