from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from plaudit.artifacts import Columns, PreferenceRow
from plaudit.errors import BadInput
from plaudit.loop.prompts import question_sha256
from plaudit.loop.snapshots.pool import Candidate, Curation, HeldOut, Pool
from plaudit.loop.snapshots.splits import split_of

FRACTIONS = (0.7, 0.1, 0.2)
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def family(split: str, name: str = "f") -> str:
    return next(f"{name} {i}" for i in range(999) if split_of(f"{name} {i}", 0, FRACTIONS) == split)


def asked(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": text},)


def pair(
    id: str, question: str, chosen: str = "yes", rejected: str = "no", **facts: Any
) -> tuple[Candidate, dict[str, Any]]:
    facts = {"family": f"family of {question}", "weight": 1.0, "source": "annotation", **facts}
    row = {
        "preference_id": id, "comparison_id": "c", "criterion": "overall", "family": facts["family"],
        "messages": asked(question), "chosen": chosen, "rejected": rejected, "probability": facts.get("probability", 0.9),
        "weight": facts["weight"], "source": "annotation", "chosen_finished": True, "rejected_finished": True,
    }  # fmt: skip
    return Candidate(id=id, question=question_sha256(asked(question)), **facts), row


def thumb(id: str, response: str) -> tuple[Candidate, dict[str, Any]]:
    row = {"thumb_id": id, "family": "f", "messages": asked("q"), "response": response, "up": True, "source": "thumb"}
    return Candidate(id=id, family="f", question=question_sha256(asked("q"))), row


def left(
    tmp_path: Path, rows: Sequence[tuple[Candidate, dict[str, Any]]], held: HeldOut | None = None, **options: Any
) -> tuple[list[str], dict[str, int], Pool]:
    """Ids of the Preferences that stay, what was removed, and the pool."""
    pool = Pool(tmp_path, Curation(**options))
    with pool:
        pool.take("preferences", rows)
        pool.decide(held or HeldOut(), 0, FRACTIONS)
        ids = [cells[0] for cells in pool.rows("preferences")]
    assert ids == [one.id for one in pool.kept("preferences")]
    return ids, dict(pool.tally.removed), pool


def test_of_exact_duplicates_that_of_most_weight_stays(tmp_path: Path) -> None:
    rows = [
        pair("a", "q"),
        pair("b", "q", weight=3.0),
        pair("c", "q", weight=3.0),
        pair("d", "q", "yes!"),
        pair("e", "r"),
    ]
    ids, removed, pool = left(tmp_path, rows)
    assert ids == ["b", "d", "e"]
    assert removed == {"preferences: exact duplicate": 2}
    assert pool.tally.examples["preferences: exact duplicate"] == ["a", "c"]


def test_near_duplicates_go_where_they_are_looked_for_but_opposites_are_none(tmp_path: Path) -> None:
    rows = [
        pair("a", "q", LONG + " end", LONG[::-1]),
        pair("b", "q", LONG + " stop", LONG[::-1], weight=2.0),
        pair("c", "q", LONG[::-1], LONG + " end"),
    ]
    assert left(tmp_path, rows)[0] == ["a", "b", "c"]
    ids, removed, pool = left(tmp_path, rows, near_duplicates=0.6)
    assert ids == ["b", "c"]
    assert removed == {"preferences: near duplicate": 1}
    assert pool.tally.found["contradictions"] == 0  # a, which c contradicts, is gone
    others = [pair("a", LONG, "yes it is", "no"), pair("b", LONG[::-1], "yes it is", "no")]
    assert left(tmp_path, others, near_duplicates=0.6)[0] == ["a", "b"]  # the same answers to another question
    twice = [*rows, pair("e", "q", LONG + " end", LONG[::-1])]
    assert left(tmp_path, twice, near_duplicates=0.6)[1] == {  # what is gone already is not counted again
        "preferences: exact duplicate": 1,
        "preferences: near duplicate": 1,
    }
    with Pool(tmp_path, Curation(near_duplicates=0.6)) as thumbs:
        thumbs.take("thumbs", [thumb("t", LONG + " end"), thumb("u", LONG + " stop")])
        thumbs.decide(HeldOut(), 0, FRACTIONS)
        assert [one.id for one in thumbs.kept()] == ["t", "u"]  # a thumb is a vote


def test_near_questions_are_in_one_split_and_leak_from_no_evaluation(tmp_path: Path) -> None:
    train, test = family("train", "a"), family("test", "b")
    rows = [pair("a", LONG + " why", family=train), pair("b", LONG + " how", LONG[::-1], LONG[:40], family=test)]
    apart = left(tmp_path, rows)[2]
    assert {one.split for one in apart.candidates} == {"train", "test"}  # the control
    joined = left(tmp_path, rows, near_duplicates=0.6)[2]
    assert len({one.split for one in joined.candidates}) == 1
    held = HeldOut(prompts=(asked(LONG + " when"),))
    assert left(tmp_path, rows[:1], held)[0] == ["a"]
    ids, removed, _ = left(tmp_path, rows[:1], held, near_duplicates=0.6)
    assert (ids, removed) == ([], {"preferences: nearly what an evaluation holds out": 1})
    assert left(tmp_path, rows[1:], held, near_duplicates=0.6)[0] == ["b"]  # nothing is trained on test


def test_a_conversation_is_in_one_split(tmp_path: Path) -> None:
    train, test = family("train", "a"), family("test", "b")
    rows = [pair("a", "first", family=train, conversation="cnv"), pair("b", "second", family=test, conversation="cnv")]
    assert len({one.split for one in left(tmp_path, rows)[2].candidates}) == 1


def test_contradictions_are_found_and_dropped_only_where_asked(tmp_path: Path) -> None:
    rows = [pair("a", "q", "x", "y"), pair("b", "q", "y", "x"), pair("c", "other", "y", "x")]
    ids, removed, pool = left(tmp_path, rows)
    assert (ids, removed, pool.tally.found["contradictions"]) == (["a", "b", "c"], {}, 2)
    ids, removed, _ = left(tmp_path, rows, contradictions="drop")
    assert (ids, removed) == (["c"], {"preferences: contradicted": 2})


def test_bounds_of_length_language_agreement_and_source(tmp_path: Path) -> None:
    german = "Das ist nicht die Antwort und ich weiß auch nicht für wie viele."
    rows = [
        pair("a", "q0", "long enough", "this too"),
        pair("b", "q1", "x", "long enough"),
        pair("c", "q2", "long enough", "y" * 99),
        pair("d", "q3", german, "long enough"),
        pair("e", "q4", "long enough", "this too", probability=0.6),
        pair("f", "q5", "long enough", "this too", batch="bought"),
        pair("g", "q6", "long enough", "this too", source="choice"),
        pair("h", "q7", "long enough", "this too", models=("ours", "gpt-9-mini")),
        pair("i", "q8", "long enough", "this too", models=("ours", "our-gpt-9")),
        pair("j", "q9", "five!", "y" * 80, probability=0.7),  # on every bound
        pair("k", german, "long enough", "this too"),
        pair("l", "q11", "long enough", "this too", forbidden=True),
    ]
    asked: dict[str, Any] = {"min_chars": 5, "max_chars": 80, "languages": ("en",), "min_probability": 0.7}
    ids, removed, _ = left(tmp_path, rows, without=("bought", "choice"), forbidden_models=("gpt-*",), **asked)
    assert ids == ["a", "i", "j"]
    assert removed == {
        "preferences: shorter than 5 characters": 1,
        "preferences: longer than 80 characters": 1,
        "preferences: language de": 2,
        "preferences: low agreement": 1,
        "preferences: source bought left out": 1,
        "preferences: source choice left out": 1,
        "preferences: terms of the upstream forbid training": 2,
    }


def test_personal_data_is_redacted_in_the_rows_and_rows_that_become_equal_are_one(tmp_path: Path) -> None:
    rows = [pair("a", "q", "ask ada@example.org"), pair("b", "q", "ask bob@example.org"), pair("c", "q", "ask nobody")]
    with Pool(tmp_path, Curation(personal_data={"email": "redact"})) as pool:
        pool.take("preferences", rows)
        pool.decide(HeldOut(), 0, FRACTIONS)
        chosen = Columns.of(PreferenceRow).names.index("chosen")
        assert [cells[chosen] for cells in pool.rows("preferences")] == ["ask [email]", "ask nobody"]
    assert pool.tally.removed == {"preferences: exact duplicate": 1}
    assert pool.tally.found == {"personal data: email": 2}
    ids, removed, _ = left(tmp_path, rows, personal_data={"email": "drop"})
    assert (ids, removed) == (["c"], {"preferences: personal data (email)": 2})
    both = [pair("a", "q", "ask ada@example.org, +49 170 1234567")]
    assert left(tmp_path, both, personal_data={"email": "detect", "phone": "drop"})[1] == {
        "preferences: personal data (phone)": 1  # not what it would have stayed with
    }


def test_caps_hold_for_users_and_for_annotators(tmp_path: Path) -> None:
    mine = [pair(f"a{i}", f"a{i}", actor="ada") for i in range(9)] + [pair("b", "b", actor="bob"), pair("n", "n")]
    ids, removed, _ = left(tmp_path, mine, max_per_user=3)
    assert len([id for id in ids if id.startswith("a")]) == 3
    assert {"b", "n"} <= set(ids)
    assert removed == {"preferences: over the cap of its user": 6}
    judged = [pair(f"p{i}", f"p{i}", annotators=("one",)) for i in range(6)]
    both = [f"both {i}" for i in range(4)]
    judged += [pair(id, id, annotators=("one", id)) for id in both]
    ids, removed, _ = left(tmp_path, judged, max_per_annotator=2)
    assert set(both) <= set(ids)  # somebody below the cap is behind each of them too
    assert removed == {"preferences: over the cap of its annotators": 10 - len(ids)}
    assert len(ids) in (4, 5, 6)
    who: dict[str, Any] = {"actor": "ada", "annotators": ("one",)}
    with Pool(tmp_path, Curation(max_per_annotator=1, max_per_user=1, near_duplicates=0.6)) as pool:
        pool.take("preferences", [pair("p", LONG, **who)])
        written = Candidate(id="d", family=f"family of {LONG}", question=question_sha256(asked(LONG)), **who)
        row = {"demonstration_id": "d", "family": written.family, "messages": asked(LONG), "response": "yes"}
        pool.take("demonstrations", [(written, {**row, "source": "edit"})])
        pool.decide(HeldOut(), 0, FRACTIONS)
        assert [one.id for one in pool.kept()] == ["p", "d"]  # each table has its own caps and near duplicates


def test_the_evaluation_split_holds_nothing_that_was_actively_chosen(tmp_path: Path) -> None:
    rows = [pair(f"p{i}", f"question {i}", active=i % 2 == 0) for i in range(60)]
    ids, removed, pool = left(tmp_path, rows, evaluation_fraction=0.5)
    inside = [one for one in pool.kept() if one.split == "evaluation"]
    assert len(inside) > 5
    assert not any(one.active for one in inside)
    assert any(one.active for one in pool.kept())
    assert removed == {"preferences: chosen by active selection, in the split evaluation": 60 - len(ids)}
    learnt = next(one for one in pool.kept() if one.split == "train")
    held = HeldOut(families=frozenset({inside[0].family, learnt.family}))
    stayed, removed, _ = left(tmp_path, rows, held, evaluation_fraction=0.5)
    assert set(ids) - set(stayed) == {learnt.id}  # nothing is trained on the split evaluation
    assert removed["preferences: held out by an evaluation"] == 1


def test_of_equal_prompts_that_of_the_first_family_by_name_stays(tmp_path: Path) -> None:
    with Pool(tmp_path, Curation()) as pool:
        rows = [Candidate(id="pmt_1", family=name, question=name) for name in ("b", "a", "c")]
        pool.take(
            "prompts", [(one, {"prompt_id": one.id, "family": one.family, "messages": asked("q")}) for one in rows]
        )
        pool.decide(HeldOut(), 0, FRACTIONS)
        assert [one.family for one in pool.kept()] == ["a"]
    assert pool.tally.removed == {"prompts: seen before": 2}


def test_the_order_of_rows_does_not_decide_who_stays(tmp_path: Path) -> None:
    rows = [
        pair(f"p{i}", f"question {i % 4}", LONG + f" {i % 3}", weight=float(i % 2), actor=f"u{i % 2}")
        for i in range(24)
    ]
    options: dict[str, Any] = {"near_duplicates": 0.8, "max_per_user": 3}
    assert sorted(left(tmp_path, rows, **options)[0]) == sorted(left(tmp_path, rows[::-1], **options)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"near_duplicates": 0.3}, {"min_probability": 0.2}, {"contradictions": "x"}, {"evaluation_fraction": 1.0},
        {"min_chars": -1}, {"languages": ("xx",)}, {"personal_data": {"email": "x"}},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Curation(**wrong)
