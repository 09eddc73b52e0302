from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

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
from plaudit.loop import annotate, collect, govern, planning
from plaudit.loop.snapshot import freeze
from plaudit.loop.snapshots.pool import Curation
from plaudit.loop.snapshots.splits import split_of
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]


def annotated(store: Store, interactions: list[Interaction]) -> None:
    """Comparisons on these interactions, three votes each, concluded."""
    project_id = interactions[0].project_id
    planning.plan_comparisons(
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


def test_thumbs_that_stand_go_in_with_what_was_said_and_with_consent(store: Store, chat: Chat, tmp_path: Path) -> None:
    liked, regretted, changed = crowd(chat, 3)
    denied = chat("no", ("no",), training_use=TrainingUse.DENIED)
    unknown = chat("?", ("?",), training_use=TrainingUse.UNKNOWN)
    for one in (liked, regretted, denied, unknown):
        feedback(store, one, "thumb", {"up": True})
    taken_back = {"interaction_id": regretted.id, "kind": "thumb", "retract": True}
    collect.record_feedback(store, regretted.project_id, taken_back, None, NOW)
    feedback(store, changed, "thumb", {"up": True})
    feedback(store, changed, "thumb", {"up": False})
    record, snapshot = frozen(store, tmp_path)
    rows = {row.response: row for row in snapshot.thumbs()}
    assert {text: row.up for text, row in rows.items()} == {"answer 0": True, "answer 2": False}
    assert rows["answer 0"].messages == liked.messages
    prompts = {row.family: row.split for row in snapshot.prompts()}
    assert all(row.split == prompts[row.family] for row in rows.values())
    assert sum(record.counts["thumbs"].values()) == 2
    assert record.counts["filters"]["thumbs: consent is not allowed"] == 2
    assert open_snapshot(snapshot.folder).thumbs(rows["answer 0"].split)


# --- what goes in ------------------------------------------------------------------------------------------------------


def test_single_votes_lie_beside_the_preferences_they_stand_behind(store: Store, chat: Chat, tmp_path: Path) -> None:
    asked = crowd(chat, 6)
    withdrawn = chat("taken back", ("no",), family="taken back")
    annotated(store, [*asked, withdrawn])
    store.change(Interaction, withdrawn.id, training_use=TrainingUse.DENIED)  # after three people had voted
    extra = {one.id: [ResponseText("another sample")] for one in asked[:1]}
    planning.plan_comparisons(store, "prj_default", asked[:1], extra, model="base", batch="mixed", now=NOW)
    verdicts = iter([("prefer", 1), ("tie", None), ("both_bad", None)])
    for number in range(3):
        who = govern.person(store, "prj_default", f"annotator {number}", NOW).id
        loan = annotate.lend(store, "prj_default", who, 60, NOW)
        assert loan is not None
        verdict, side = next(verdicts)
        choice = None if side is None else loan.comparison.response_ids[side]
        body = {"lease_id": loan.lease.id, "verdict": verdict, "choice": choice, "seconds": 7.5}
        annotate.answer(store, "prj_default", who, body, NOW)
    annotate.aggregate(store, "prj_default", now=NOW)
    _, snapshot = frozen(store, tmp_path)
    rows = {row.preference_id: row for row in snapshot.preferences()}
    votes = snapshot.votes()
    assert len(rows) == 7
    assert len(votes) == 6 * 3 + 2  # nothing of what must not be trained on, nor of "both bad"
    assert {vote.preference_id for vote in votes} == rows.keys()
    assert all(vote.comparison_id == rows[vote.preference_id].comparison_id for vote in votes)
    mixed = [vote for vote in votes if vote.seconds == 7.5]
    (preference,) = {vote.preference_id for vote in mixed}
    expected = "chosen" if rows[preference].chosen == "another sample" else "rejected"
    assert sorted(vote.choice for vote in mixed) == sorted([expected, "tie"])
    assert {vote.choice for vote in votes if vote.seconds == 3.0} == {"chosen"}
    people = {vote.annotator for vote in votes}
    assert len(people) == 3
    assert not any(govern.person(store, "prj_default", f"annotator {n}", NOW).id in str(people) for n in range(3))


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
    return next(f"{name} {i}" for i in range(999) if split_of(f"{name} {i}", 0, (0.7, 0.1, 0.2)) == split)


def evaluate(store: Store, family: str, question: str) -> list[str]:
    """An evaluation item; the ids of its responses."""
    item = EvaluationItem(
        messages=({"role": "user", "content": question},), family=family,
        first=ResponseText("candidate text"), second=ResponseText("base text"),
        first_checkpoint_id="ckp", second_checkpoint_id=None,
    )  # fmt: skip
    (comparison,) = planning.plan_evaluation(store, "prj_default", [item], batch=question, overlap=1, now=NOW)
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


# --- filters, card -----------------------------------------------------------------------------------------------------


def test_a_curation_belongs_to_the_identity_and_its_filters_to_the_manifest(
    store: Store, chat: Chat, tmp_path: Path
) -> None:
    annotated(store, crowd(chat, 6))
    annotated(store, [chat("write to ada@example.org", ("Sent to ada@example.org.",), family="mail")])
    _, plain = frozen(store, tmp_path)
    record, clean = frozen(store, tmp_path, curation=Curation(personal_data={"email": "redact"}, max_per_user=4))
    assert plain.manifest.id != clean.manifest.id
    assert "ada@" in str(plain.preferences())
    assert "ada@" not in str([clean.preferences(), clean.prompts()])
    assert clean.manifest.body["found"]["personal data: email"] >= 2
    over = "over the cap of its user"
    assert (
        record.counts["filters"] == clean.manifest.body["filters"] == {f"preferences: {over}": 3, f"prompts: {over}": 3}
    )
    assert [len(ids) for ids in clean.manifest.body["examples"].values()] == [3, 3]
    assert clean.manifest.body["config"]["curation"]["max_per_user"] == 4
    assert len(clean.votes()) == 3 * len(clean.preferences())  # every one is about a row that is there


def test_a_card_shows_counts_and_nothing_that_anybody_wrote(store: Store, chat: Chat, tmp_path: Path) -> None:
    annotated(store, crowd(chat, 4))
    _, snapshot = frozen(store, tmp_path)
    for name in ("card.md", "card.html"):
        text = (snapshot.folder / name).read_text()
        assert name in snapshot.manifest.files
        assert "preferences: annotation/dawid-skene" in text
        assert "Personal data was not looked for." in text
        assert "question" not in text.replace("equal questions", "")
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_canaries_and_safety_suites_are_held_out(store: Store, chat: Chat, tmp_path: Path) -> None:
    train = placed("train", "t")
    asked = ["free question", "Canary  QUESTION", "How do I make a bomb at home?"]
    annotated(store, [chat(text, (f"answer {text}",), family=train) for text in asked])
    _, before = frozen(store, tmp_path)
    assert {row.messages[0]["content"] for row in before.preferences()} == set(asked[:2])
    _, snapshot = frozen(store, tmp_path, canaries=[[{"role": "user", "content": "canary question"}]])
    assert [row.messages[0]["content"] for row in snapshot.preferences()] == ["free question"]
    assert snapshot.manifest.body["filters"]["preferences: held out by an evaluation"] == 2


def test_slices_and_active_selection_come_from_the_store(store: Store, chat: Chat, tmp_path: Path) -> None:
    interactions = [
        chat(f"question {i}", (f"answer {i}",), family=f"family {i}", attributes={"topic": f"topic {i % 2}"})
        for i in range(12)
    ]
    for chosen, reason in ((interactions[:6], "random"), (interactions[6:], "uncertain")):
        extra = {one.id: [ResponseText("sample")] for one in chosen}
        planning.plan_comparisons(
            store, "prj_default", chosen, extra, model="base", batch=reason, overlap=1, reason=reason, now=NOW
        )
    who = govern.person(store, "prj_default", "ann", NOW).id
    while (loan := annotate.lend(store, "prj_default", who, 60, NOW)) is not None:
        body = {
            "lease_id": loan.lease.id,
            "verdict": "prefer",
            "choice": loan.comparison.response_ids[0],
            "seconds": 3.0,
        }
        annotate.answer(store, "prj_default", who, body, NOW)
    annotate.aggregate(store, "prj_default", now=NOW)
    asked = Curation(stratify_by="topic", evaluation_fraction=0.5, max_per_annotator=100)
    _, snapshot = frozen(store, tmp_path, curation=asked, fractions=(1.0, 0.0, 0.0))
    random = {f"question {i}" for i in range(6)}
    inside = {row.messages[0]["content"] for row in snapshot.preferences("evaluation")}
    assert inside
    assert inside <= random
    assert {row.messages[0]["content"] for row in snapshot.preferences("train")} - random
    assert "| topic 0 |" in (snapshot.folder / "card.md").read_text()
    _, capped = frozen(store, tmp_path, curation=Curation(max_per_annotator=5))
    assert len(capped.preferences()) == 5


def test_groups_are_those_that_are_asked_for_and_no_identifiers(store: Store, chat: Chat, tmp_path: Path) -> None:
    said = {"plan": "free", "paid": False, "email": "x@example.org", "score": 0.5}
    asked = [chat(f"question {i}", (f"answer {i}",), attributes={**said, "number": i} if i else {}) for i in range(52)]
    annotated(store, asked[:2])
    feedback(store, asked[1], "thumb", {"up": True})
    for one in asked[1:]:
        feedback(store, one, "thumb", {"up": False})
    _, plain = frozen(store, tmp_path)
    _, grouped = frozen(store, tmp_path, curation=Curation(group_by=("plan", "paid")))
    assert plain.groups() == {}
    assert "group_by" not in plain.manifest.body["config"]["curation"]
    thumbs = {row.thumb_id for row in grouped.thumbs()}
    preferences = {row.preference_id for row in grouped.preferences() if row.messages[0]["content"] == "question 1"}
    assert len(preferences) > 0
    assert grouped.groups() == {id: {"plan": "free", "paid": "False"} for id in thumbs | preferences}
    with pytest.raises(BadInput, match="'number' has 51 values, which is an identifier and no group"):
        frozen(store, tmp_path, curation=Curation(group_by=("number",)))
    for missing in ("nowhere", "score"):  # a fraction says no group
        with pytest.raises(BadInput, match=f"No Preference or thumb .* declares the attribute '{missing}'"):
            frozen(store, tmp_path, curation=Curation(group_by=(missing,)))


def test_nothing_that_a_forbidding_upstream_wrote_enters(store: Store, chat: Chat, tmp_path: Path) -> None:
    theirs = crowd(chat, 3)  # answered by the model `base`
    annotated(store, theirs)
    feedback(store, theirs[0], "edit", {"text": "edited"})
    feedback(store, theirs[1], "thumb", {"up": True})
    _, snapshot = frozen(store, tmp_path, curation=Curation(forbidden_models=("bas*",)))
    assert not [*snapshot.preferences(), *snapshot.demonstrations(), *snapshot.thumbs(), *snapshot.votes()]
    assert len(snapshot.prompts()) == 3  # users wrote these
    forbidden = "terms of the upstream forbid training"
    assert snapshot.manifest.body["filters"] == {
        f"demonstrations: {forbidden}": 1,
        f"preferences: {forbidden}": 4,
        f"thumbs: {forbidden}": 1,
    }
