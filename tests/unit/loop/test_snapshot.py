from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.artifacts import Snapshot, open_snapshot
from plaudit.domain import (
    NOUNS,
    CompletionStatus,
    EvaluationItem,
    Interaction,
    Preference,
    PreferenceSource,
    Project,
    Purpose,
    Response,
    ResponseOrigin,
    ResponseText,
    SnapshotRecord,
    TrainingUse,
)
from plaudit.errors import BadInput, Corrupt, Refused
from plaudit.loop import annotate, collect, govern
from plaudit.loop.snapshot import _families_together, _split, freeze
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]


def annotated(store: Store, interactions: list[Interaction]) -> None:
    """Comparisons on these interactions, three votes each, concluded."""
    project_id = interactions[0].project_id
    annotate.plan_comparisons(
        store, project_id, interactions, {one.id: [ResponseText(f"sample for {one.family}")] for one in interactions},
        model="base", batch=interactions[0].id, now=NOW,
    )  # fmt: skip
    for number in range(3):
        who = govern.person(store, project_id, f"annotator {number}", NOW).id
        while (loan := annotate.lend(store, project_id, who, 60, NOW)) is not None:
            body = {
                "lease_id": loan.lease.id,
                "verdict": "prefer",
                "choice": loan.comparison.response_ids[0],
                "seconds": 3.0,
            }
            annotate.answer(store, project_id, who, body, NOW)
    annotate.aggregate(store, project_id, now=NOW)


def crowd(chat: Chat, n: int, **more: Any) -> list[Interaction]:
    return [chat(f"question {i}", (f"answer {i}",), family=f"family {i % 8}", **more) for i in range(n)]


def frozen(store: Store, folder: Path, **options: Any) -> tuple[SnapshotRecord, Snapshot]:
    return freeze(store, "prj_default", folder, now=NOW, **options)


def feedback(store: Store, interaction: Interaction, kind: str, value: Any, **more: Any) -> None:
    body = {"interaction_id": interaction.id, "kind": kind, "value": value, **more}
    collect.record_feedback(store, interaction.project_id, body, None, NOW)


# --- what goes in ------------------------------------------------------------------------------------------------------


def test_preferences_prompts_and_record(store: Store, chat: Chat, tmp_path: Path) -> None:
    interactions = crowd(chat, 16)
    annotated(store, interactions)
    record, snapshot = frozen(store, tmp_path)
    rows = {row.messages[0]["content"]: row for row in snapshot.preferences()}
    assert len(rows) == 16
    for i, interaction in enumerate(interactions):
        row = rows[f"question {i}"]
        assert (row.chosen, row.rejected) == (f"answer {i}", f"sample for {interaction.family}")
        stored = store.get(Preference, row.preference_id)
        assert (row.probability, row.weight, row.comparison_id) == (
            stored.probability,
            stored.weight,
            stored.comparison_id,
        )
        assert (row.family, row.source, row.criterion) == (interaction.family, "annotation", "overall")
    assert {row.messages[0]["content"] for row in snapshot.prompts()} == rows.keys()
    assert store.get(SnapshotRecord, record.id) == record
    assert (record.sha256, record.folder) == (snapshot.manifest.id, str(snapshot.folder))
    assert sum(record.counts["preferences"].values()) == snapshot.manifest.body["counts"]["preferences"] == 16
    assert record.lineage["conclusions"] == {"annotation/dawid-skene": 16}


def test_an_edit_is_a_demonstration_and_a_preference_over_the_original(
    store: Store, chat: Chat, tmp_path: Path
) -> None:
    interaction = chat("why?", ("because",), family="f")
    feedback(store, interaction, "edit", {"text": "worse first try"})
    feedback(store, interaction, "edit", {"text": "because of rain"})
    retracted = chat("how?", ("so",), family="g")
    feedback(store, retracted, "edit", {"text": "thus"})
    frozen(store, tmp_path / "early")  # writes what stood then
    feedback(store, retracted, "edit", None, retract=True)
    _, snapshot = frozen(store, tmp_path)
    (demonstration,) = snapshot.demonstrations()
    assert (demonstration.response, demonstration.messages) == ("because of rain", interaction.messages)
    (preference,) = snapshot.preferences()
    assert (preference.chosen, preference.rejected) == ("because of rain", "because")
    assert (preference.probability, preference.weight, preference.source) == (0.8, 1.0, "edit")
    assert preference.split == demonstration.split
    assert snapshot.manifest.body["filters"] == {"preferences: superseded or retracted": 1}
    written = {one.text for one in store.find(Response, origin=ResponseOrigin.EDITED)}
    assert written == {"because of rain", "thus"}  # older Snapshots point at both
    n_before = store.count(Preference)
    frozen(store, tmp_path)
    assert store.count(Preference) == n_before == 2


def test_a_choice_beats_each_other_answer_and_neither_beats_none(store: Store, chat: Chat, tmp_path: Path) -> None:
    three, two = chat("a", ("x", "y", "z"), family="f"), chat("b", ("x", "y"), family="g")
    feedback(store, three, "choice", {"chosen": 1})
    feedback(store, two, "choice", {"chosen": None})
    _, snapshot = frozen(store, tmp_path)
    rows = sorted(snapshot.preferences(), key=lambda row: row.rejected)
    assert [(row.chosen, row.rejected, row.weight, row.probability) for row in rows] == [
        ("y", "x", 0.5, 0.8),
        ("y", "z", 0.5, 0.8),
    ]
    assert snapshot.demonstrations() == []


def test_nothing_without_consent_enters_and_the_counts_say_so(store: Store, chat: Chat, tmp_path: Path) -> None:
    allowed = chat("fine", ("ok",), family="f")
    for use in (TrainingUse.DENIED, TrainingUse.UNKNOWN):
        secret = chat(f"secret {use}", ("hidden", "hidden too"), training_use=use)
        feedback(store, secret, "edit", {"text": "hidden edit"})
        feedback(store, secret, "choice", {"chosen": 0})
    annotated(store, [allowed])
    # Consent is looked at when the Snapshot is made, not when the Preference was: here it was withdrawn in between.
    withdrawn = chat("secret withdrawn", ("hidden",), family="g")
    annotated(store, [withdrawn])
    store.change(Interaction, withdrawn.id, training_use=TrainingUse.DENIED)
    _, snapshot = frozen(store, tmp_path)
    everything = str([snapshot.preferences(), snapshot.demonstrations(), snapshot.prompts()])
    assert "fine" in everything
    assert "secret" not in everything
    assert "hidden" not in everything
    assert snapshot.manifest.body["filters"] == {
        "choices of users: consent is not allowed": 2,
        "edits of users: consent is not allowed": 2,
        "preferences: consent is not allowed": 1,
        "prompts: consent is not allowed": 3,
    }


def placed(split: str, name: str) -> str:
    """A family of this name whose place is `split` under the defaults of freeze."""
    return next(f"{name} {i}" for i in range(999) if _split(f"{name} {i}", 0, (0.7, 0.1, 0.2)) == split)


def evaluate(store: Store, family: str, question: str) -> list[str]:
    """An evaluation item; the ids of its responses."""
    item = EvaluationItem(
        messages=({"role": "user", "content": question},), family=family,
        first=ResponseText("candidate text"), second=ResponseText("base text"),
        first_checkpoint_id="ckp", second_checkpoint_id=None,
    )  # fmt: skip
    (comparison,) = annotate.plan_evaluation(store, "prj_default", [item], batch=question, overlap=1, now=NOW)
    assert comparison.purpose is Purpose.EVALUATION
    return [comparison.id, *comparison.response_ids]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_what_an_evaluation_asks_about_is_not_learnt_from(store: Store, chat: Chat, tmp_path: Path, split: str) -> None:
    """Neither its family nor, under another family and system prompt, its question."""
    held, free = placed(split, "held"), placed(split, "free")
    kind = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "  Held OUT question "}]
    rows = [
        chat("question of a held-out family", ("one",), family=held),
        chat(messages=kind, answers=("two",), family=free),
        chat("free question", ("three",), family=free),
    ]
    annotated(store, rows)
    for row in rows:
        feedback(store, row, "edit", {"text": "edited"})
    evaluate(store, held, "held out question")
    _, snapshot = frozen(store, tmp_path)
    for table in (snapshot.preferences(), snapshot.prompts(), snapshot.demonstrations()):
        assert {(row.messages[-1]["content"], row.split) for row in table} == {("free question", split)}
    assert snapshot.manifest.body["filters"] == {
        "demonstrations: held out by an evaluation": 2,
        "preferences: held out by an evaluation": 4,
        "prompts: held out by an evaluation": 2,
    }


def test_an_evaluation_may_draw_from_the_test_split_turn_after_turn(store: Store, chat: Chat, tmp_path: Path) -> None:
    family = placed("test", "drawn")
    annotated(store, [chat("drawn question", ("one",), family=family)])
    _, before = frozen(store, tmp_path)
    evaluate(store, family, "drawn question")
    _, after = frozen(store, tmp_path)
    assert after.manifest.id == before.manifest.id
    assert [row.split for row in after.prompts()] == ["test"]


def test_answers_made_for_an_evaluation_never_enter(store: Store, chat: Chat, tmp_path: Path) -> None:
    free = chat("free question", ("three",), family="free")
    comparison_id, first, second = evaluate(store, "held", "held out question")
    smuggled = Preference(
        id="prf_smuggled", project_id=free.project_id, comparison_id=comparison_id, interaction_id=free.id, family="free",
        chosen_response_id=first, rejected_response_id=second, probability=0.9, weight=1.0, n_votes=1,
        source=PreferenceSource.ANNOTATION, method="x", created_at=NOW,
    )  # fmt: skip
    store.add(smuggled)
    _, snapshot = frozen(store, tmp_path)
    assert snapshot.preferences() == []
    assert snapshot.manifest.body["filters"] == {"preferences: made for an evaluation": 1}


def test_an_answer_that_met_its_token_limit_is_marked_unfinished(store: Store, chat: Chat, tmp_path: Path) -> None:
    cut, whole = ResponseText("cut o", "length"), ResponseText("whole", "stop")
    for first, second in ((cut, whole), (whole, cut)):
        feedback(store, chat(f"{first.text}?", (first, second)), "choice", {"chosen": 0})
    _, snapshot = frozen(store, tmp_path)
    finished = {row.chosen: (row.chosen_finished, row.rejected_finished) for row in snapshot.preferences()}
    assert finished == {"cut o": (False, True), "whole": (True, False)}


def test_empty_and_identical_texts_and_failed_turns_teach_nothing(store: Store, chat: Chat, tmp_path: Path) -> None:
    same, empty = chat("a", ("same",), family="f"), chat("b", ("",), family="g")
    feedback(store, same, "edit", {"text": " same "})
    feedback(store, empty, "edit", {"text": "something"})
    chat("c", (), status=CompletionStatus.ERROR, family="h")
    _, snapshot = frozen(store, tmp_path)
    assert snapshot.preferences() == []
    assert [row.family for row in snapshot.prompts()] == ["f", "g"]
    assert snapshot.manifest.body["filters"] == {"preferences: empty text": 1, "preferences: identical texts": 1}


def test_a_prompt_sent_twice_is_one_prompt(store: Store, chat: Chat, tmp_path: Path) -> None:
    chat("again", family="z")
    chat("again", family="a")
    _, snapshot = frozen(store, tmp_path)
    assert [row.family for row in snapshot.prompts()] == ["a"]
    assert snapshot.manifest.body["filters"] == {"prompts: seen before": 1}


def test_with_nothing_to_train_on_it_is_refused_with_what_was_removed(store: Store, chat: Chat, tmp_path: Path) -> None:
    chat(training_use=TrainingUse.DENIED)
    with pytest.raises(Refused) as refused:
        frozen(store, tmp_path)
    assert refused.value.reasons == ("prompts: consent is not allowed: 1 removed",)
    assert store.count(SnapshotRecord) == 0
    assert list(tmp_path.glob("*/manifest.json")) == []


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.8, 0.1, 0.2), (1.2, -0.2, 0.0), (0.0, 0.5, 0.5)])
def test_fractions_are_three_shares(
    store: Store, project: Project, tmp_path: Path, fractions: tuple[float, ...]
) -> None:
    with pytest.raises(BadInput, match="fractions"):
        frozen(store, tmp_path, fractions=fractions)


# --- identity ----------------------------------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_snapshot_and_record(store: Store, chat: Chat, tmp_path: Path) -> None:
    annotated(store, crowd(chat, 8))
    record, first = frozen(store, tmp_path)
    assert frozen(store, tmp_path) == (record, first)
    assert store.count(SnapshotRecord) == 1
    later, elsewhere = freeze(store, "prj_default", tmp_path / "elsewhere", now=NOW + timedelta(days=9))
    assert later == record
    assert elsewhere.manifest.id == first.manifest.id
    assert frozen(store, tmp_path, seed=1)[1].manifest.id != first.manifest.id
    chat("one more", family="new")
    assert frozen(store, tmp_path)[1].manifest.id != first.manifest.id


def test_the_order_of_the_rows_in_the_store_does_not_matter(store: Store, chat: Chat, tmp_path: Path) -> None:
    annotated(store, crowd(chat, 8))
    _, first = frozen(store, tmp_path / "a")
    copy = open_store(f"sqlite:///{tmp_path / 'copy.sqlite'}")
    for kind in NOUNS:
        if kind is not SnapshotRecord:
            copy.add(*reversed(store.find(kind)))
    _, second = freeze(copy, "prj_default", tmp_path / "b", now=NOW)
    copy.close()
    assert second.manifest.id == first.manifest.id
    assert second.manifest.files == first.manifest.files


def test_a_flipped_byte_is_refused_by_the_name_of_the_file(store: Store, chat: Chat, tmp_path: Path) -> None:
    annotated(store, crowd(chat, 4))
    _, snapshot = frozen(store, tmp_path)
    for name in ("preferences.parquet", "prompts.parquet", "demonstrations.parquet"):
        path = snapshot.folder / name
        right = path.read_bytes()
        path.write_bytes(right[:20] + bytes([right[20] ^ 1]) + right[21:])
        with pytest.raises(Corrupt, match=name):
            open_snapshot(snapshot.folder)
        path.write_bytes(right)
    open_snapshot(snapshot.folder)


# --- splits ------------------------------------------------------------------------------------------------------------


def test_no_family_and_no_question_is_in_two_splits(store: Store, chat: Chat, tmp_path: Path) -> None:
    interactions = crowd(chat, 24)
    # The same questions again, under other names and another system prompt.
    twins = [
        chat(
            messages=[{"role": "system", "content": "be kind"}, {"role": "user", "content": f"Question {i} "}],
            answers=(f"twin {i}",),
            family=f"twin family {i}",
        )
        for i in range(24)
    ]
    for one in interactions[:6]:
        feedback(store, one, "edit", {"text": "edited"})
    annotated(store, interactions + twins)
    _, snapshot = frozen(store, tmp_path, fractions=(0.4, 0.3, 0.3))
    by_family: dict[str, set[str]] = defaultdict(set)
    by_question: dict[str, set[str]] = defaultdict(set)
    for row in [*snapshot.preferences(), *snapshot.demonstrations(), *snapshot.prompts()]:
        by_family[row.family].add(row.split)
        by_question[row.messages[-1]["content"].strip().lower()].add(row.split)
    assert len(by_question) == 24
    assert {len(splits) for splits in [*by_family.values(), *by_question.values()]} == {1}
    assert len(set().union(*by_family.values())) > 1


def test_a_familys_place_does_not_depend_on_what_else_is_there() -> None:
    fractions = (0.7, 0.1, 0.2)
    places = [_split(f"family {i}", 3, fractions) for i in range(4000)]
    shares = [places.count(split) / 4000 for split in ("train", "valid", "test")]
    assert shares == pytest.approx(fractions, abs=0.03)  # 4 standard deviations of a share of .7
    assert places != [_split(f"family {i}", 4, fractions) for i in range(4000)]
    # printf '0:family 0' | sha256sum starts with 98: 0x98 / 0x100 = .59, and so on. It must never change: it is in people's Snapshots.
    assert [_split(f"family {i}", 0, (0.5, 0.25, 0.25)) for i in range(8)] == [
        "valid", "test", "valid", "train", "train", "train", "train", "valid",
    ]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 9)), max_size=30))
def test_families_together_are_the_connected_components(rows: list[tuple[str, int]]) -> None:
    """Against the closure computed by brute force."""
    together = _families_together([(family, [{"role": "user", "content": str(number)}]) for family, number in rows])
    groups = {family: {family} for family, _ in rows}
    for _ in rows:
        for family, number in rows:
            for other, same in rows:
                if number == same:
                    merged = groups[family] | groups[other]
                    for one in merged:
                        groups[one] = groups[one] | merged
    assert together == {family: min(group) for family, group in groups.items()}
