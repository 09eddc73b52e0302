"""A store with its project, and a user who asked something and was answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from plaudit.domain import CompletionStatus, Interaction, Project, ResponseText, TrainingUse
from plaudit.loop import collect, govern
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path, with_schema: Callable[[Path], str]) -> Iterator[Store]:
    """Each test of the loop runs on both databases; the second round is for `make test-slow`."""
    on_postgresql = request.param == "postgresql"
    opened = open_store(
        request.getfixturevalue("postgres_store_url") if on_postgresql else with_schema(tmp_path / "store.sqlite")
    )
    yield opened
    opened.close()


@pytest.fixture
def project(store: Store) -> Project:
    return govern.ensure_project(store, NOW)


@pytest.fixture
def chat(store: Store, project: Project) -> Chat:
    """chat(question, answers, ...) -> the stored Interaction; answers None: the answer is still being written."""

    def make(
        question: str = "How do I reset it?",
        answers: Sequence[str | ResponseText] | None = ("Press the button.",),
        *,
        status: CompletionStatus = CompletionStatus.OK,
        messages: Sequence[dict[str, Any]] | None = None,
        **given: Any,
    ) -> Interaction:
        fields: dict[str, Any] = {
            "actor": "ada",
            "conversation_id": None,
            "family": None,
            "training_use": TrainingUse.ALLOWED,
            "attributes": {},
            "sampling": {},
            "assignment": None,
            "config_version": 1,
            "now": NOW,
        }
        fields.update(given)
        asked = messages or [{"role": "user", "content": question}]
        interaction = collect.begin_interaction(project, messages=asked, **fields)
        store.add(interaction)
        if answers is not None:
            completion, responses = collect.finish_interaction(
                interaction,
                texts=[answer if isinstance(answer, ResponseText) else ResponseText(answer) for answer in answers],
                status=status,
                model="base",
                checkpoint_id=None,
                prompt_tokens=5,
                completion_tokens=7,
                first_token_ms=3.0,
                latency_ms=9.0,
                error=None,
                now=fields["now"],
            )
            store.add(completion, *responses)
        return interaction

    return make
