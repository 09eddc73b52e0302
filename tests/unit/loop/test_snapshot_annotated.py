"""What annotators write and rate enters a Snapshot: a better wording as a Demonstration and a Preference, ratings as thumbs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from plaudit.domain import (
    Annotation,
    Interaction,
    Preference,
    Project,
    Response,
    ResponseOrigin,
    ResponseText,
    TrainingUse,
)
from plaudit.formats.catalogue import writer
from plaudit.formats.trl import NO_MARGIN
from plaudit.loop import annotate, govern, planning
from plaudit.loop.asking import Asking
from plaudit.loop.exports import snapshot_records
from plaudit.loop.snapshot import freeze
from plaudit.loop.snapshots.diff import diff
from plaudit.loop.snapshots.pool import Curation
from plaudit.store.database import Store

Chat = Callable[..., Interaction]


def rate(store: Store, talks: list[Interaction], ratings: list[int], now: datetime, who: str = "ann") -> None:
    planning.plan_ratings(store, "prj_default", talks, batch="rate", overlap=2, now=now)
    for rating in ratings:
        person = govern.person(store, "prj_default", who, now).id
        loan = annotate.lend(store, "prj_default", person, 60, now)
        assert loan is not None
        body = {"lease_id": loan.lease.id, "verdict": "rate", "rating": rating, "seconds": 1.0}
        annotate.answer(store, "prj_default", person, body, now)


def test_a_better_wording_is_a_demonstration_and_beats_what_was_chosen(
    store: Store, project: Project, chat: Chat, now: datetime, tmp_path: Path
) -> None:
    talk = chat(answers=("Press the button.",))
    denied = chat("Secret?", ("No.",))
    for one in (talk, denied):
        planning.plan_comparisons(
            store, project.id, [one], {one.id: [ResponseText("Hm.")]}, model="m", batch="b", overlap=1, now=now
        )
        ann = govern.person(store, project.id, "ann", now).id
        loan = annotate.lend(store, project.id, ann, 60, now)
        assert loan is not None
        body = {
            "lease_id": loan.lease.id,
            "verdict": "prefer",
            "choice": loan.comparison.response_ids[1],
            "seconds": 1.0,
        }
        annotate.answer(store, project.id, ann, {**body, "edit": f"Better than {one.id}."}, now)
    store.change(Interaction, denied.id, training_use=TrainingUse.DENIED)
    for _ in range(2):  # the second time finds what the first one wrote
        record, snapshot = freeze(store, project.id, tmp_path, now=now)
    (demonstration,) = snapshot.demonstrations()
    (preference,) = snapshot.preferences()
    better = f"Better than {talk.id}."
    assert (demonstration.response, demonstration.source, demonstration.messages) == (better, "edit", talk.messages)
    assert (preference.chosen, preference.rejected, preference.source) == (better, "Hm.", "edit")
    assert record.counts["filters"]["edits of annotators: consent is not allowed"] == 1  # type: ignore[index]
    assert [one.text for one in store.find(Response, origin=ResponseOrigin.EDITED)] == [better]
    assert store.count(Preference) == 1
    _, without = freeze(store, project.id, tmp_path, now=now, curation=Curation(without=("b",)))
    assert (without.preferences(), without.demonstrations()) == (
        [],
        [],
    )  # what was written over a batch is of the batch


def test_what_an_annotator_wrote_counts_towards_their_cap_and_holds_nothing_that_they_were_not_shown(
    store: Store, project: Project, chat: Chat, now: datetime, tmp_path: Path
) -> None:
    talks = [chat(f"Mine is {number}, GB82 WEST 1234 5698 7654 32. Good?", ("Yes.",)) for number in range(3)]
    extra = {one.id: [ResponseText("Hm.")] for one in talks}
    hidden = Asking(personal_data={"iban": "redact"})
    planning.plan_comparisons(store, project.id, talks, extra, model="m", batch="b", overlap=1, asking=hidden, now=now)
    planning.plan_ratings(store, project.id, talks[:1], batch="rate", overlap=1, asking=hidden, now=now)
    ann = govern.person(store, project.id, "ann", now).id
    while (loan := annotate.lend(store, project.id, ann, 60, now)) is not None:
        verdict = {"verdict": "rate", "rating": 5} if len(loan.comparison.response_ids) == 1 else {
            "verdict": "prefer", "choice": loan.comparison.response_ids[0]
        }  # fmt: skip
        body = {"lease_id": loan.lease.id, "seconds": 1.0, "edit": f"Not {loan.comparison.id}.", **verdict}
        annotate.answer(store, project.id, ann, body, now)
    _, snapshot = freeze(store, project.id, tmp_path, now=now)
    rows = [*snapshot.preferences(), *snapshot.demonstrations(), *snapshot.thumbs()]
    assert [len(snapshot.preferences()), len(snapshot.demonstrations()), len(snapshot.thumbs())] == [4, 4, 1]
    assert all("[iban]" in str(one.messages) and "WEST" not in str(one) for one in rows)
    _, capped = freeze(store, project.id, tmp_path, now=now, curation=Curation(max_per_annotator=2))
    assert [len(capped.preferences()), len(capped.demonstrations())] == [2, 2]


def test_an_open_question_gives_nothing_yet(
    store: Store, project: Project, chat: Chat, now: datetime, tmp_path: Path
) -> None:
    talk = chat()
    planning.plan_comparisons(
        store, project.id, [talk], {talk.id: [ResponseText("Hm.")]}, model="m", batch="b", overlap=2, now=now
    )
    ann = govern.person(store, project.id, "ann", now).id
    loan = annotate.lend(store, project.id, ann, 60, now)
    assert loan is not None
    body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": loan.comparison.response_ids[0], "seconds": 1.0}
    annotate.answer(store, project.id, ann, {**body, "edit": "Better."}, now)
    _, snapshot = freeze(store, project.id, tmp_path, now=now)
    assert list(snapshot.demonstrations()) == []


@pytest.mark.parametrize(("ratings", "up"), [((4, 3), True), ((1, 3), False), ((2, 4), None)])
def test_the_mean_of_ratings_is_a_thumb_unless_it_is_the_middle(
    store: Store, project: Project, chat: Chat, now: datetime, tmp_path: Path, ratings: tuple[int, int], up: bool | None
) -> None:
    talk = chat()
    for who, rating in zip(("ann", "bob"), ratings, strict=True):
        rate(store, [talk], [rating], now, who)
    record, snapshot = freeze(store, project.id, tmp_path, now=now)
    found = [(one.up, one.source, one.response) for one in snapshot.thumbs()]
    assert found == ([] if up is None else [(up, "rating", "Press the button.")])
    filters = record.counts["filters"]
    assert filters.get("thumbs: rated in the middle of the scale", 0) == (up is None)  # type: ignore[attr-defined]


def test_how_much_better_people_said_is_kept_where_it_is_asked_for(
    store: Store, project: Project, chat: Chat, now: datetime, tmp_path: Path
) -> None:
    """Votes of three people each: (side, strength), a side of None is a tie; the third says how much only in the last."""
    votes: list[list[tuple[int | None, int | None]]] = [
        [(0, 3), (0, 1)], [(0, 3), (0, None)], [(0, 3), (None, None)], [(0, None), (0, None)], [(0, 1), (1, 3)]
    ]  # fmt: skip
    votes = [[*said, (0, 1 if number == 4 else None)] for number, said in enumerate(votes)]
    talks = [chat(f"Question {number}?", (f"Yes {number}.",)) for number in range(len(votes))]
    extra = {one.id: [ResponseText("Hm.")] for one in talks}
    planning.plan_comparisons(store, project.id, talks, extra, model="m", batch="b", overlap=3, now=now)
    for voter, who in enumerate(("ann", "bob", "cid")):
        person = govern.person(store, project.id, who, now).id
        while (loan := annotate.lend(store, project.id, person, 60, now)) is not None:
            number = next(n for n, one in enumerate(talks) if one.id == loan.comparison.interaction_id)
            side, strength = votes[number][voter]
            said = {"verdict": "tie"} if side is None else {
                "verdict": "prefer", "choice": loan.comparison.response_ids[side]
            }  # fmt: skip
            body = {"lease_id": loan.lease.id, "seconds": 1.0, **said}
            annotate.answer(store, project.id, person, body | ({"strength": strength} if strength else {}), now)
    annotate.aggregate(store, project.id, method="majority", now=now)
    _, plain = freeze(store, project.id, tmp_path, now=now)
    assert plain.margins() == {}
    assert "margins" not in plain.manifest.body["config"]["curation"], "the id is what it was"
    _, made = freeze(store, project.id, tmp_path, now=now, curation=Curation(margins=True))
    number_of = {one.preference_id: int(one.messages[0]["content"][9]) for one in made.preferences()}
    found = {number_of[id]: margin for id, margin in made.margins().items()}
    # Of the last, votes for the other side are taken off, and never below 0.
    assert found == {0: 0.666667, 1: 1.0, 2: 0.5, 4: 0.0}
    card = (made.folder / "card.md").read_text()
    assert "| 1.00 to 1.25 |" not in card
    assert "| 0.75 to 1.00 | 1 |" in card
    changed = diff(plain, made).tables["preferences"]
    assert (changed.came, changed.went, changed.changed) == (0, 0, 4)
    rows = {one.id: one.margin for one in snapshot_records(made.folder) if one.ranks}
    assert {id: margin for id, margin in rows.items() if margin is not None} == made.margins()
    report = writer("trl-margin")(snapshot_records(made.folder), tmp_path / "margins.jsonl")
    assert (report.n_written, report.dropped[NO_MARGIN]) == (4, 1)
    assert writer("trl-margin")(snapshot_records(plain.folder), tmp_path / "none.jsonl").dropped[NO_MARGIN] == 5
    for one in store.find(Annotation):
        store.change(Annotation, one.id, strength=None)
    _, none = freeze(store, project.id, tmp_path, now=now, curation=Curation(margins=True))
    assert "margins.parquet" not in none.manifest.files
    assert "Nobody said how much better" in (none.folder / "card.md").read_text()
    assert "Nobody said how much better" not in card + (plain.folder / "card.md").read_text()
