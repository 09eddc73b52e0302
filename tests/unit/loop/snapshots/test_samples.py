from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from plaudit import artifacts
from plaudit.artifacts import PreferenceRow, Snapshot, write_snapshot
from plaudit.domain import (
    Annotation,
    Comparison,
    Feedback,
    Interaction,
    Preference,
    PreferenceSource,
    Project,
    Purpose,
    Verdict,
)
from plaudit.errors import Corrupt, NotFound
from plaudit.loop import collect
from plaudit.loop.snapshots import samples
from plaudit.store.database import Store


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    """Twenty-five rows in groups of ten."""
    monkeypatch.setattr(artifacts, "ROWS_PER_GROUP", 10)
    rows = [
        PreferenceRow(
            f"prf_{n:02}",
            f"cmp_{n}",
            "overall",
            "f",
            "train",
            ({"role": "user", "content": f"q{n}"},),
            f"good {n}",
            "bad",
            0.8,
            1.0,
            "annotation",
        )
        for n in range(25)
    ]
    return write_snapshot(tmp_path, rows, [], [], {}, {})


def test_samples_are_drawn_by_their_seed_from_every_group(frozen: Snapshot) -> None:
    drawn = samples.sample(frozen.folder, "preferences", 5, 3)
    assert drawn == samples.sample(frozen.folder, "preferences", 5, 3)
    assert len({one["preference_id"] for one in drawn}) == 5
    assert drawn != samples.sample(frozen.folder, "preferences", 5, 4)
    often = [
        one["preference_id"] for seed in range(40) for one in samples.sample(frozen.folder, "preferences", 5, seed)
    ]
    assert len(set(often)) == 25  # none is out of reach; one draw in 7,500 misses a row
    everything = samples.sample(frozen.folder, "preferences", 99, 0)
    known = {row.preference_id: row for row in frozen.preferences()}
    assert sorted(one["preference_id"] for one in everything) == sorted(known)
    assert all(one["messages"] == list(known[one["preference_id"]].messages) for one in everything)
    assert samples.sample(frozen.folder, "thumbs", 5, 0) == []


def test_a_row_is_found_in_the_last_group_too(frozen: Snapshot) -> None:
    for row in frozen.preferences():
        assert samples.row(frozen.folder, "preferences", row.preference_id)["chosen"] == row.chosen
    with pytest.raises(NotFound, match="no row 'prf_99'"):
        samples.row(frozen.folder, "preferences", "prf_99")
    with pytest.raises(NotFound, match="no table of rows"):
        samples.row(frozen.folder, "../manifest", "x")


def test_a_changed_byte_is_refused_with_its_file_named(frozen: Snapshot) -> None:
    file = frozen.folder / "preferences.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(Corrupt, match=r"preferences\.parquet is not what was frozen"):
        samples.sample(frozen.folder, "preferences", 1, 0)


# --- back to the people ------------------------------------------------------------------------------------------------

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def concluded(id: str, project_id: str, source: PreferenceSource, **about: Any) -> Preference:
    given = {"comparison_id": None, "interaction_id": None, "method": "m", "family": "f", "created_at": NOW} | about
    return Preference(
        id=id, project_id=project_id, source=source, chosen_response_id="res_a", rejected_response_id="res_b",
        probability=1.0, weight=1.0, n_votes=1, **given,
    )  # fmt: skip


def test_what_annotators_said_of_a_row_is_of_its_criterion_and_stays_in_its_project(
    store: Store, project: Project
) -> None:
    about: dict[str, Any] = {"project_id": project.id, "created_at": NOW}
    store.add(
        Comparison(
            id="cmp_1", interaction_id=None, purpose=Purpose.TRAINING, messages=(), family="f",
            response_ids=("res_a", "res_b"), **about,
        ),
        *(
            Annotation(
                id=f"ann_{n}", comparison_id="cmp_1", annotator_id=who, guideline_id=None, criterion=criterion,
                verdict=Verdict.PREFER if choice else Verdict.TIE, choice=choice, order=("res_a", "res_b"), seconds=7.5 + n,
                reasons=("clearer", "shorter"), **about,
            )
            for n, (who, criterion, choice) in enumerate(
                [("ada", "tone", "res_b"), ("ada", "overall", "res_a"), ("bob", "tone", None), ("cem", "tone", "res_a")]
            )
        ),
        concluded("prf_1", project.id, PreferenceSource.ANNOTATION, comparison_id="cmp_1", criterion="tone"),
    )  # fmt: skip
    origin = samples.origin(store, project.id, "preferences", "prf_1")
    names = {samples.pseudonym(project.id, "annotator", who): who for who in ("ada", "bob", "cem")}
    assert sorted((names[one.who], one.what, one.seconds, one.reasons) for one in origin.said) == [
        ("ada", "rejected", 7.5, "clearer, shorter"),
        ("bob", "tie", 9.5, "clearer, shorter"),
        ("cem", "chosen", 10.5, "clearer, shorter"),
    ]
    assert samples.pseudonym("prj_other", "annotator", "ada") not in names
    with pytest.raises(NotFound, match="'prf_1' any more"):
        samples.origin(store, "prj_other", "preferences", "prf_1")


def test_what_users_said_of_a_row_is_the_act_it_is_made_of_and_goes_with_an_erasure(
    store: Store, project: Project, chat: Callable[..., Interaction]
) -> None:
    asked, others = chat(actor="ada"), chat(actor=None)

    def say(kind: str, value: object, of: Interaction = asked) -> str:
        body = {"interaction_id": of.id, "kind": kind, "value": value}
        return collect.record_feedback(store, project.id, body, None, NOW).feedback.id.partition("_")[2]

    edit, _, _ = say("edit", "Press the other button."), say("thumb", False), say("comment", {"text": "Bah."})
    of_feedback = {"interaction_id": asked.id, "source": PreferenceSource.EDIT}
    store.add(concluded(f"prf_{edit}", project.id, **of_feedback), concluded("prf_of_all", project.id, **of_feedback))
    said = {
        id: sorted(one.what for one in samples.origin(store, project.id, "preferences", f"prf_{id}").said)
        for id in (edit, "of_all")
    }
    assert said == {edit: ["an edit of the answer"], "of_all": ["an edit of the answer", "thumbs down"]}
    nameless = say("thumb", True, of=others)
    store.add(concluded(f"prf_{nameless}", project.id, interaction_id=others.id, source=PreferenceSource.EDIT))
    (one,) = samples.origin(store, project.id, "preferences", f"prf_{nameless}").said
    given = store.get(Feedback, f"fdb_{nameless}")
    assert (one.who, one.what, one.at) == ("a user without a name", "thumbs up", given.created_at)
    of_ada = samples.origin(store, project.id, "preferences", "prf_of_all").said
    assert {one.who for one in of_ada} == {samples.pseudonym(project.id, "user", "ada")}
    origin = samples.origin(store, project.id, "demonstrations", f"dem_{edit}")
    assert (origin.user, origin.interaction_id) == (samples.pseudonym(project.id, "user", "ada"), asked.id)
    with pytest.raises(NotFound, match="knows nothing"):
        samples.origin(store, "prj_other", "demonstrations", f"dem_{edit}")
    store.change(Interaction, asked.id, erasure_id="era_1")
    origin = samples.origin(store, project.id, "demonstrations", f"dem_{edit}")
    assert (origin.user, origin.asked_at, origin.consent, origin.interaction_id) == (None, None, None, asked.id)
