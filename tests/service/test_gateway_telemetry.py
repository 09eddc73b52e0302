"""Every chat has one span, and every span ends; off by default."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest

from plaudit.domain import Release
from plaudit.errors import Unavailable
from plaudit.web import turn
from plaudit.web.recorder import Recorder

pytest.importorskip("opentelemetry", reason="the extra otel is not installed")
BODY = {"model": "plaudit", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def spans(monkeypatch) -> list[str]:
    heard: list[str] = []
    stand_in = SimpleNamespace(
        begin=lambda asked, interaction: heard.append("begin") or "a span",
        end=lambda span, model, answer, completion: heard.append(str(completion.status)),
        fail=lambda span, kind: heard.append(kind),
    )
    monkeypatch.setattr(turn, "telemetry", stand_in)
    return heard


def post(service, **more) -> httpx.Response:
    headers = {"authorization": f"Bearer {service.key('application')}"}
    return httpx.post(service.url + "/v1/chat/completions", json={**BODY, **more}, headers=headers, timeout=30)


def test_a_chat_has_a_span_whatever_becomes_of_it(start_service, spans, monkeypatch) -> None:
    service = start_service(telemetry=True, on_store_failure="refuse")
    assert post(service).status_code == 200
    assert post(service, stream=True).status_code == 200
    assert spans == ["begin", "ok"] * 2
    with monkeypatch.context() as patch:

        def locked(*_: object) -> None:
            raise Unavailable("locked")

        patch.setattr(Recorder, "_commit", locked)
        assert post(service).status_code == 503
    assert spans[4:] == ["begin", "unavailable"]
    (live,) = service.store.find(Release)
    service.store.change(Release, live.id, upstream="http://127.0.0.1:9/v1")
    while post(service).status_code == 200:  # until the service has seen it
        pass
    assert spans[-2:] == ["begin", "error"]


def test_nobody_is_told_anything_unless_asked_to(start_service, spans) -> None:
    assert post(start_service()).status_code == 200
    assert spans == []
