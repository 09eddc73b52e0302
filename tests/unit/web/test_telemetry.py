from __future__ import annotations

import importlib.util

import pytest

from plaudit.domain import Completion, CompletionStatus, Interaction, utc_now
from plaudit.errors import ConfigError
from plaudit.loop import collect, govern
from plaudit.openai_protocol import Answer, Choice, parse_chat_request
from plaudit.store.database import open_store
from plaudit.web import telemetry

trace = pytest.importorskip("opentelemetry.trace", reason="the extra otel is not installed")


@pytest.fixture(scope="module")
def exporter():
    """OpenTelemetry takes one provider a process."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    return made


@pytest.fixture
def interaction(tmp_path, with_schema) -> Interaction:
    store = open_store(with_schema(tmp_path / "store.sqlite"))
    project = govern.ensure_project(store, utc_now())
    store.close()
    return collect.begin_interaction(
        project, messages=[{"role": "user", "content": "my secret"}], actor="jane", conversation_id="c-1", family=None,
        training_use=None, attributes={}, sampling={}, assignment=None, config_version=1, now=utc_now(),
    )  # fmt: skip


def ended(interaction: Interaction, exporter, status: CompletionStatus):
    exporter.clear()
    body = {
        "model": "asked",
        "messages": [{"role": "user", "content": "my secret"}],
        "temperature": 0.5,
        "stop": ["x"],
        "n": 2,
    }
    span = telemetry.begin(parse_chat_request(body), interaction)
    answer = Answer("said", (Choice("my answer", "stop"), Choice("other", None)), 3, 4)
    completion = Completion(
        id=interaction.id, project_id=interaction.project_id, status=status, model="m-1", first_token_ms=2.5,
        created_at=utc_now(),
    )  # fmt: skip
    telemetry.end(span, "m-1", answer, completion)
    (finished,) = exporter.get_finished_spans()
    return finished


def test_a_span_has_the_names_of_the_convention_and_nobodys_words(interaction, exporter) -> None:
    span = ended(interaction, exporter, CompletionStatus.OK)
    assert span.name == "chat asked"
    said = dict(span.attributes)
    assert said.pop("plaudit.status") == "ok"
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "plaudit",
        "gen_ai.request.model": "asked",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.response.id": interaction.id,
        "gen_ai.conversation.id": "c-1",
        "gen_ai.response.model": "m-1",
        "gen_ai.response.finish_reasons": ("stop", ""),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "plaudit.time_to_first_chunk_ms": 2.5,
    }
    assert "secret" not in span.to_json()
    assert "jane" not in span.to_json()
    assert span.status.is_unset


def test_a_failure_is_an_error_and_a_client_that_leaves_is_none(interaction, exporter) -> None:
    failed = ended(interaction, exporter, CompletionStatus.ERROR)
    assert not failed.status.is_ok and not failed.status.is_unset  # noqa: PT018
    assert failed.attributes["error.type"] == "upstream_error"
    assert ended(interaction, exporter, CompletionStatus.CANCELLED).status.is_unset


def test_telemetry_without_its_package_is_refused_with_the_way_to_get_it(monkeypatch) -> None:
    telemetry.check()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"plaudit\[otel\]"):
        telemetry.check()
