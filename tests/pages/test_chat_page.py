"""/chat over HTTP: one streamed turn in the name of who is signed in, rated with its own token."""

from __future__ import annotations

import json

import httpx
import pytest

from plaudit.domain import DEFAULT_PROJECT, Feedback, Interaction, Response, utc_now
from plaudit.loop import release
from plaudit.settings import Settings
from plaudit.web.pages import chat

ASKED = {"messages": [{"role": "user", "content": "Is it open?"}], "conversation_id": "chat_1"}


def ask(visitor, body, **headers: str) -> httpx.Response:
    return visitor.client.post("/chat/turn", json=body, headers={"sec-fetch-site": "same-origin", **headers})


@pytest.fixture
def served(console):
    release.register_base(console.store, DEFAULT_PROJECT, "fake-1", "fake:", utc_now())
    return console


@pytest.mark.parametrize("two", [False, True])
def test_a_turn_is_an_interaction_of_who_is_signed_in(served, two: bool) -> None:
    root = served.person("Root", "admin")
    answer = ask(root, {**ASKED, "two": two})
    assert answer.headers["content-type"].startswith("text/event-stream")
    (interaction,) = served.store.find(Interaction)
    assert (interaction.id, interaction.conversation_id) == (answer.headers["x-plaudit-interaction"], "chat_1")
    assert interaction.actor == served.named("Root").id
    assert interaction.attributes == chat.ATTRIBUTES
    texts = {one.idx: one.text for one in served.store.find(Response, interaction_id=interaction.id)}
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    shown = dict.fromkeys(texts, "")
    for choice in (choice for line in lines for choice in json.loads(line)["choices"]):
        shown[choice["index"]] += choice["delta"].get("content") or ""
    assert shown == texts
    assert len(texts) == (2 if two else 1)
    # The browser rates it with the token that came with it; its cookie says nothing there.
    item = {"interaction_id": interaction.id, "kind": "choice" if two else "thumb", "value": 1 if two else True}
    rated = root.client.post(
        "/v1/feedback/batch", json={"token": answer.headers["x-plaudit-feedback-token"], "items": [item]}
    )
    assert [one["code"] for one in rated.json()["results"]] == [201]
    assert [one.actor for one in served.store.find(Feedback)] == [interaction.actor]


def test_who_may_not_or_sends_nonsense_gets_no_answer(served) -> None:
    assert served.person("Ada", "lead").get("/chat").status_code == 403
    assert ask(served.person("Ada", "lead"), ASKED).status_code == 403
    root = served.person("Root", "admin")
    assert ask(root, ASKED, **{"sec-fetch-site": "cross-site"}).status_code == 403
    for wrong in ({}, {**ASKED, "two": "yes"}, {**ASKED, "messages": "hi"}, {**ASKED, "conversation_id": 7}):
        said = ask(root, wrong)
        assert said.status_code in (400, 422), said.text
    assert served.store.find(Interaction) == []


def test_a_console_of_its_own_says_that_it_serves_no_chats(served, monkeypatch) -> None:
    root = served.person("Root", "admin")
    assert 'id="ask"' in root.get("/chat").text
    monkeypatch.setattr(Settings, "roles", property(lambda self: frozenset({"console", "gateway"})))
    assert "serves no chats" in root.get("/chat").text
    assert 'id="ask"' not in root.get("/chat").text
    assert ask(root, ASKED).status_code == 404
