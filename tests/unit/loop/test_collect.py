from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from plaudit.artifacts import sha256_of
from plaudit.domain import (
    Assignment,
    Completion,
    CompletionStatus,
    Feedback,
    FeedbackKind,
    IdempotencyKey,
    Interaction,
    InteractionSource,
    Project,
    Release,
    ReleaseState,
    Response,
    ResponseOrigin,
    TrainingUse,
)
from plaudit.errors import BadInput, Conflict, NotFound, PlauditError
from plaudit.loop import collect
from plaudit.store import feedback as chains
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]


def say(store: Store, interaction: Interaction, kind: str, value: Any, key: str | None = None, **more: Any) -> Any:
    body = {"interaction_id": interaction.id, "kind": kind, "value": value, **more}
    return collect.record_feedback(store, interaction.project_id, body, key, NOW)


# --- interactions ------------------------------------------------------------------------------------------------------


def test_a_stub_carries_turn_hash_assignment_and_the_projects_consent(project: Project, chat: Chat) -> None:
    asked = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assignment = Assignment("rel_1", "exp_1", "candidate", 1, 0.5)
    stub = chat(messages=asked, assignment=assignment, training_use=None, conversation_id="cnv_7")
    assert (stub.turn, stub.prompt_sha256, stub.conversation_id) == (2, sha256_of(asked), "cnv_7")
    assert (stub.release_id, stub.served_release_id, stub.experiment_id) == ("rel_1", "rel_1", "exp_1")
    assert (stub.arm, stub.stage, stub.assignment_probability) == ("candidate", 1, 0.5)
    assert stub.training_use is project.training_use_default is TrainingUse.UNKNOWN


def test_without_a_conversation_each_interaction_is_its_own(chat: Chat) -> None:
    assert len({chat().conversation_id for _ in range(3)}) == 3


def test_the_stored_rows_come_back_as_they_went_in(store: Store, chat: Chat) -> None:
    stub = chat(answers=("one", "two"), attributes={"plan": "pro"}, sampling={"n": 2, "temperature": 0.7})
    assert store.get(Interaction, stub.id) == stub
    assert store.get(Completion, stub.id).completion_tokens == 7
    responses = store.find(Response, interaction_id=stub.id, order="idx")
    assert [(one.idx, one.text, one.origin) for one in responses] == [
        (0, "one", ResponseOrigin.SERVED),
        (1, "two", ResponseOrigin.SERVED),
    ]


def logged(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}], "responses": ["hello", "hey"], **more}


def test_a_logged_interaction_is_complete_at_once(store: Store, project: Project) -> None:
    release = Release(
        id="rel_x", project_id=project.id, checkpoint_id="ckp_1", model="tuned", upstream="http://x", created_at=NOW, state_at=NOW,
        state=ReleaseState.LIVE,
    )  # fmt: skip
    store.add(release)
    body = logged(user="bob", release_id="rel_x", training_use="allowed", attributes={"plan": "pro"}, family="greeting")
    assignment = Assignment("rel_x", "exp_1", "control", 0, 0.5)
    made = collect.log_interaction(store, project.id, body, NOW, assignment)
    stored = store.get(Interaction, made.id)
    assert stored == made
    assert (stored.source, stored.actor, stored.family) == (InteractionSource.LOGGED, "bob", "greeting")
    assert (stored.release_id, stored.experiment_id, stored.arm) == ("rel_x", "exp_1", "control")
    assert stored.training_use is TrainingUse.ALLOWED
    assert store.get(Completion, made.id).status is CompletionStatus.OK
    responses = store.find(Response, interaction_id=made.id, order="idx")
    assert [(one.text, one.origin, one.model) for one in responses] == [
        ("hello", ResponseOrigin.LOGGED, "tuned"),
        ("hey", ResponseOrigin.LOGGED, "tuned"),
    ]
    assert {one.checkpoint_id for one in responses} == {"ckp_1"}


def test_what_was_assigned_and_what_answered_are_kept_apart(store: Store, project: Project) -> None:
    store.add(
        Release(
            id="rel_y", project_id=project.id, checkpoint_id=None, model="m", upstream="u", created_at=NOW, state_at=NOW
        )
    )
    made = collect.log_interaction(store, project.id, logged(release_id="rel_y"), NOW, Assignment("rel_z"))
    assert (made.release_id, made.served_release_id) == ("rel_z", "rel_y")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (logged(responses=[]), "responses"),
        (logged(responses="hello"), "responses"),
        (logged(responses=[1]), "responses"),
        (logged(messages=[]), "messages"),
        (logged(training_use="yes"), "training_use"),
        (logged(user=""), "user"),
        (logged(user=7), "user"),
        (logged(attributes=[1]), "attributes"),
        (logged(family="x" * 201), "family"),
        (logged(surprise=1), "surprise"),
        ([], "interaction"),
    ],
)
def test_a_malformed_log_is_refused_by_field_and_stores_nothing(
    store: Store, project: Project, body: Any, field: str
) -> None:
    with pytest.raises(BadInput, match=field):
        collect.log_interaction(store, project.id, body, NOW)
    assert store.count(Interaction) == 0


def test_an_unknown_release_is_not_found(store: Store, project: Project) -> None:
    with pytest.raises(NotFound, match="rel_none"):
        collect.log_interaction(store, project.id, logged(release_id="rel_none"), NOW)
    assert store.count(Interaction) == 0


# --- feedback: one act -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        ("thumb", {"up": True}, {"up": True}),
        ("thumb", False, {"up": False}),
        ("rating", {"rating": 5}, {"rating": 5}),
        ("edit", {"text": "better"}, {"text": "better"}),
        ("choice", {"chosen": 1}, {"chosen": 1}),
        ("choice", {"chosen": None}, {"chosen": None}),
        ("comment", {"text": "hm", "reasons": ["long"]}, {"text": "hm", "reasons": ["long"]}),
        ("comment", {"reasons": ["long"]}, {"text": "", "reasons": ["long"]}),
        ("signal", {"name": "copy"}, {"name": "copy"}),
        ("signal", "copy", {"name": "copy"}),
    ],
)
def test_each_kind_is_stored_in_its_one_form(store: Store, chat: Chat, kind: str, value: Any, stored: Any) -> None:
    result = say(store, chat(answers=("a", "b")), kind, value)
    assert result.status == "recorded"
    row = store.get(Feedback, result.feedback.id)
    assert (row.kind, row.value, row.actor) == (FeedbackKind(kind), stored, "ada")


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [
        ("thumb", {"up": "yes"}, "up"),
        ("thumb", {}, "up"),
        ("thumb", {"down": True}, "down"),
        ("rating", {"rating": 6}, "rating"),
        ("rating", {"rating": 0}, "rating"),
        ("rating", {"rating": 4.5}, "rating"),
        ("rating", {"rating": True}, "rating"),
        ("edit", {"text": ""}, "text"),
        ("choice", {"chosen": -1}, "chosen"),
        ("choice", {"chosen": "A"}, "chosen"),
        ("comment", {}, "text"),
        ("comment", {"text": "x", "reasons": "long"}, "reasons"),
        ("signal", {"name": 5}, "name"),
        ("applause", {"up": True}, "kind"),
    ],
)
def test_a_malformed_value_is_refused_by_field_and_stores_nothing(
    store: Store, chat: Chat, kind: str, value: Any, field: str
) -> None:
    with pytest.raises(BadInput, match=field):
        say(store, chat(answers=("a", "b")), kind, value, "key")
    assert store.count(Feedback) == store.count(IdempotencyKey) == 0


def test_a_missing_value_and_odd_combinations_are_refused(store: Store, chat: Chat) -> None:
    two, one = chat(answers=("a", "b")), chat()
    with pytest.raises(BadInput, match="value is missing"):
        collect.record_feedback(store, two.project_id, {"interaction_id": two.id, "kind": "choice"}, None, NOW)
    with pytest.raises(BadInput, match="response_index"):
        say(store, two, "choice", {"chosen": 0}, response_index=1)
    with pytest.raises(BadInput, match="two or more"):
        say(store, one, "choice", {"chosen": 0})
    with pytest.raises(BadInput, match="retract"):
        say(store, one, "comment", {"text": "x"}, retract=True)
    with pytest.raises(BadInput, match="idempotency_key"):
        say(store, one, "thumb", True, "one", idempotency_key="two")
    assert store.count(Feedback) == 0


def test_unknown_interactions_and_indices_are_not_found(store: Store, chat: Chat, project: Project) -> None:
    with pytest.raises(NotFound, match="int_none"):
        collect.record_feedback(
            store, project.id, {"interaction_id": "int_none", "kind": "thumb", "value": {"up": True}}, None, NOW
        )
    with pytest.raises(NotFound, match="index 1"):
        say(store, chat(), "thumb", True, response_index=1)
    with pytest.raises(NotFound, match="index 2"):
        say(store, chat(answers=("a", "b")), "choice", {"chosen": 2})
    body = {"interaction_id": chat().id, "kind": "thumb", "value": {"up": True}}
    with pytest.raises(NotFound):
        collect.record_feedback(store, "prj_other", body, None, NOW)
    assert store.count(Feedback) == 0


def test_feedback_cannot_come_too_early(store: Store, chat: Chat) -> None:
    writing = chat(answers=None, sampling={"n": 2})
    assert say(store, writing, "thumb", True, response_index=1).status == "recorded"
    with pytest.raises(NotFound, match="index 2"):
        say(store, writing, "thumb", True, response_index=2)


def test_a_sample_that_nobody_was_shown_takes_no_feedback(store: Store, chat: Chat) -> None:
    interaction = chat()
    store.add(
        Response(
            id="res_s",
            project_id=interaction.project_id,
            interaction_id=interaction.id,
            idx=1,
            text="b",
            finish_reason="stop",
            origin=ResponseOrigin.SAMPLED,
            model="m",
            created_at=NOW,
        )
    )
    with pytest.raises(NotFound, match="index 1"):
        say(store, interaction, "thumb", True, response_index=1)


# --- feedback: many acts -----------------------------------------------------------------------------------------------


def test_an_equal_body_replays_another_supersedes_and_a_retraction_is_a_row(store: Store, chat: Chat) -> None:
    interaction = chat()
    up = say(store, interaction, "thumb", True)
    assert say(store, interaction, "thumb", True) == collect.FeedbackResult(up.feedback, "replayed")
    down = say(store, interaction, "thumb", False)
    assert (down.status, down.feedback.supersedes) == ("superseded", up.feedback.id)
    gone = say(store, interaction, "thumb", None, retract=True)
    assert (gone.status, gone.feedback.retracted, gone.feedback.value) == ("superseded", True, {})
    assert say(store, interaction, "thumb", None, retract=True).status == "replayed"
    with store.read() as tx:
        assert chains.current(tx, interaction.project_id) == []
    again = say(store, interaction, "thumb", False)
    assert (again.status, again.feedback.supersedes) == ("superseded", gone.feedback.id)
    assert store.count(Feedback) == 4


def test_nothing_to_retract_is_not_found(store: Store, chat: Chat) -> None:
    with pytest.raises(NotFound, match="retract"):
        say(store, chat(), "rating", None, retract=True)


def test_chains_are_apart_by_user_kind_index_and_interaction(store: Store, chat: Chat) -> None:
    interaction = chat(answers=("a", "b"))
    results = [
        say(store, interaction, "thumb", True),
        say(store, interaction, "thumb", True, user="bob"),
        say(store, interaction, "thumb", True, response_index=1),
        say(store, interaction, "rating", 5),
        say(store, chat(), "thumb", True),
    ]
    assert {result.status for result in results} == {"recorded"}


def test_comments_and_signals_accumulate(store: Store, chat: Chat) -> None:
    interaction = chat()
    for _ in range(2):
        assert say(store, interaction, "comment", "again").status == "recorded"
        assert say(store, interaction, "signal", "copy").status == "recorded"
    assert store.count(Feedback) == 4


def test_a_key_acts_once_and_with_another_body_is_a_conflict(store: Store, chat: Chat) -> None:
    interaction = chat()
    first = say(store, interaction, "comment", "hello", "k1")
    assert say(store, interaction, "comment", "hello", "k1") == collect.FeedbackResult(first.feedback, "replayed")
    assert say(store, interaction, "comment", "hello", idempotency_key="k1").status == "replayed"
    with pytest.raises(Conflict, match="k1"):
        say(store, interaction, "comment", "another", "k1")
    assert store.count(Feedback) == 1


def test_a_late_retry_of_an_act_that_changed_nothing_does_not_undo_what_came_between(store: Store, chat: Chat) -> None:
    interaction = chat()
    say(store, interaction, "thumb", True, "k1")
    say(store, interaction, "thumb", True, "k2")  # equal body: a replay, whose key must be remembered
    say(store, interaction, "thumb", False, "k3")
    assert say(store, interaction, "thumb", True, "k2").status == "replayed"
    with store.read() as tx:
        assert [row.value for row in chains.current(tx, interaction.project_id)] == [{"up": False}]


def test_sixteen_clients_at_once_make_one_chain(store: Store, chat: Chat) -> None:
    interaction = chat()
    failures: list[Exception] = []

    def client(number: int) -> None:
        try:
            for step in range(5):
                say(store, interaction, "rating", 1 + (number + step) % 5, f"{number}-{step}")
        except PlauditError as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    rows = {row.id: row for row in store.find(Feedback)}
    roots = [row for row in rows.values() if row.supersedes is None]
    assert len(roots) == 1
    follows = {row.supersedes for row in rows.values() if row.supersedes}
    assert len(follows) == len(rows) - 1  # every row but the head is superseded exactly once
    assert store.count(IdempotencyKey) == 80


def test_turns_under_the_same_instructions_share_a_hash(store: Store, project: Project) -> None:
    def asked(system: str | None, text: str) -> str | None:
        said = [{"role": "system", "content": system}] if system else []
        body = logged(messages=[*said, {"role": "user", "content": text}])
        return collect.log_interaction(store, project.id, body, NOW).system_sha256

    assert asked("Be kind.", "one") == asked("Be kind.", "two") != asked("Be brief.", "one")
    assert asked(None, "one") is None
