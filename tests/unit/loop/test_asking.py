from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from plaudit.domain import (
    Comparison,
    EvaluationItem,
    Interaction,
    Project,
    Response,
    ResponseOrigin,
    ResponseText,
    TrainingUse,
)
from plaudit.errors import BadInput
from plaudit.loop import annotate, collect, erasure, evaluate, govern, planning
from plaudit.loop.asking import Asking, screen
from plaudit.loop.snapshot import freeze
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
IBAN = "DE89 3704 0044 0532 0130 00"
Chat = Callable[..., Interaction]


def asked(store: Store, project: Project, chats: list[Interaction], second: str, **asking: object) -> planning.Plan:
    extra = {one.id: [ResponseText(second)] for one in chats}
    return planning.plan_comparisons(
        store, project.id, chats, extra, model="base", batch="b", overlap=1, asking=Asking(**asking), now=NOW,
    )  # type: ignore[arg-type]  # fmt: skip


def shown_to_annotators(store: Store, project: Project) -> list[str]:
    who = govern.person(store, project.id, "ann", NOW).id
    texts = []
    while (loan := annotate.lend(store, project.id, who, 60, NOW)) is not None:
        texts.append(str(loan.comparison.messages) + str([one.text for one in loan.responses]))
        choice = loan.comparison.response_ids[0]
        body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": choice, "seconds": 3.0}
        annotate.answer(store, project.id, who, body, NOW)
    return texts


def test_what_is_redacted_is_shown_to_nobody_and_in_no_snapshot(
    store: Store, project: Project, chat: Chat, tmp_path: Path
) -> None:
    one = chat(f"Is {IBAN} right?", (f"{IBAN} is right.",))
    plan = asked(store, project, [one], f"Yes, {IBAN}!", personal_data={"iban": "redact"})
    assert (len(plan.comparisons), dict(plan.found)) == (1, {"iban": 3})
    (text,) = shown_to_annotators(store, project)
    assert IBAN not in text
    assert text.count("[iban]") == 3
    copy = store.get(Response, plan.comparisons[0].response_ids[0])
    assert (copy.origin, copy.text, copy.model) == (ResponseOrigin.REDACTED, "[iban] is right.", "base")
    annotate.aggregate(store, project.id, now=NOW)
    _, snapshot = freeze(store, project.id, tmp_path, now=NOW)
    (row,) = snapshot.preferences()
    assert IBAN not in str(row)
    assert row.chosen == "[iban] is right."
    # What the user was shown stays what it was, and is still the one answer that feedback is about.
    assert store.find(Response, interaction_id=one.id, origin=ResponseOrigin.SERVED)[0].text == f"{IBAN} is right."
    body = {"interaction_id": one.id, "kind": "edit", "value": "No."}
    collect.record_feedback(store, project.id, body, None, NOW)


@pytest.mark.parametrize("treatment", ["detect", "drop"])
def test_what_is_only_counted_and_what_is_not_asked_at_all(
    store: Store, project: Project, chat: Chat, treatment: str
) -> None:
    plain, other = chat("plain", ("fine",)), chat("with it", (IBAN,))
    plan = asked(store, project, [plain, other], "second", personal_data={"iban": treatment, "email": "redact"})
    assert dict(plan.found) == {"iban": 1}
    kept = {one.interaction_id for one in plan.comparisons}
    if treatment == "drop":
        assert (kept, dict(plan.skipped)) == ({plain.id}, {"personal data (iban)": 1})
    else:
        assert kept == {plain.id, other.id}
        assert any(IBAN in text for text in shown_to_annotators(store, project))


def test_consent_and_terms_come_before_the_question(store: Store, project: Project, chat: Chat) -> None:
    chats = [chat("a", ("x",)), chat("b", ("x",), training_use=TrainingUse.UNKNOWN)]
    assert dict(asked(store, project, chats, "y", forbidden_models=("ba*",)).skipped) == {
        "terms of the upstream forbid training": 1,
        "consent is not allowed": 1,
    }
    assert dict(asked(store, project, chats, "y", forbidden_models=("gpt-*",)).skipped) == {"consent is not allowed": 1}
    assert store.count(Comparison, project_id=project.id) == 1


def test_a_single_response_is_screened_too(store: Store, project: Project, chat: Chat) -> None:
    one = chat("q", (f"to {IBAN}",))
    rules = Asking({"iban": "redact"})
    plan = planning.plan_ratings(store, project.id, [one], batch="r", overlap=1, asking=rules, now=NOW)
    assert store.get(Response, plan.comparisons[0].response_ids[0]).text == "to [iban]"


def test_an_evaluation_keeps_every_item_and_an_erasure_still_finds_its_prompt(
    store: Store, project: Project, chat: Chat, tmp_path: Path
) -> None:
    messages = ({"role": "user", "content": f"My cat Zerberus has {IBAN}"},)
    item = EvaluationItem(
        messages=messages, family="f", first=ResponseText(f"a {IBAN}"), second=ResponseText("b"), first_checkpoint_id=None,
        second_checkpoint_id=None,
    )  # fmt: skip
    for _ in range(2):  # again: what is there
        made = planning.plan_evaluation(
            store, project.id, [item], batch="e", overlap=1, asking=Asking({"iban": "drop"}), now=NOW
        )
    (read,) = evaluate.stored_items(store, project.id, "e")
    assert (read.messages[0]["content"], read.first.text) == ("My cat Zerberus has [iban]", "a [iban]")
    chat(messages=messages, actor="ada")
    erasure.erase_user(store, tmp_path, project.id, "ada", "test", 30, NOW)
    assert store.get(Comparison, made[0].id).messages == ()
    assert store.get(Response, made[0].response_ids[0]).text == ""


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(BadInput, match="shoe size"):
        screen(Asking({"shoe size": "redact"}), [], [])


def test_only_what_forbids_asking_is_named_as_the_reason() -> None:
    rules = Asking({"iban": "drop", "email": "redact"})
    shown = screen(rules, [], [f"{IBAN} of ada@b.example", "fine"])
    assert (shown.dropped, dict(shown.found)) == ("iban", {"iban": 1, "email": 1})
    assert screen(rules, [], ["ada@b.example"]).dropped == ""
