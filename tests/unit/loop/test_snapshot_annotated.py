"""What annotators write and rate enters a Snapshot: a better wording as a Demonstration and a Preference, ratings as thumbs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from plaudit.domain import Interaction, Preference, Project, Response, ResponseOrigin, ResponseText, TrainingUse
from plaudit.loop import annotate, govern, planning
from plaudit.loop.snapshot import freeze
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
