from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from plaudit.domain import Annotation, Verdict
from plaudit.loop.conclusions import conclude
from plaudit.stats.aggregate import Method, Votes, dawid_skene
from plaudit.store.annotation import Vote

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
P = Verdict.PREFER


def vote(
    comparison: int,
    annotator: str,
    choice: int | None,
    verdict: Verdict = P,
    first: int = 0,
    seconds: float = 3.0,
    strength: int | None = None,
) -> Vote:
    """`choice` and `first` are 0 (what was served) or 1."""
    ids = (f"res_{comparison}a", f"res_{comparison}b")
    annotation = Annotation(
        id=f"ann_{comparison}_{annotator}",
        project_id="prj",
        comparison_id=f"cmp_{comparison}",
        annotator_id=annotator,
        guideline_id=None,
        verdict=verdict,
        choice=None if choice is None else ids[choice],
        strength=strength,
        order=ids if first == 0 else ids[::-1],
        seconds=seconds,
        created_at=NOW,
    )
    return Vote(annotation, f"cmp_{comparison}", f"int_{comparison}", f"family {comparison}", ids)


def test_a_majority_is_its_share_and_a_tie_half_a_vote_each_way() -> None:
    cast = [vote(0, "a", 0), vote(0, "b", 0), vote(0, "c", None, Verdict.TIE)]
    (preference,), report = conclude(cast, {}, "majority", "prj", NOW)
    assert preference.chosen_response_id == "res_0a"
    assert preference.probability == pytest.approx(2.5 / 3, abs=1e-6)
    assert (preference.n_votes, report.n_votes) == (3, 3)


def test_all_ties_are_even() -> None:
    cast = [vote(0, who, None, Verdict.TIE) for who in "abc"]
    for method in ("majority", "dawid-skene"):
        (preference,), _ = conclude(cast, {}, method, "prj", NOW)
        assert preference.probability == 0.5


def test_the_probability_is_that_of_dawid_skene_on_the_same_votes() -> None:
    """Against stats called directly on votes whose two sides were dealt by the hash of the response ids."""
    draw = random.Random(5)
    cast = [vote(i, f"w{w}", int(draw.random() < (0.9 if i % 2 else 0.2))) for i in range(60) for w in range(3)]
    preferences, report = conclude(cast, {}, "dawid-skene", "prj", NOW)
    dealt = [sorted(one.response_ids, key=lambda id: hashlib.sha256(id.encode()).hexdigest()) for one in cast]
    labels = [ids.index(one.annotation.choice or "") for ids, one in zip(dealt, cast, strict=True)]
    assert 60 < sum(ids[0].endswith("a") for ids in dealt) < 120  # what was served is not always label 0
    posterior = dawid_skene(
        Votes(np.repeat(np.arange(60), 3), np.tile(np.arange(3), 60), np.array(labels), 2)
    ).posterior
    assert [one.probability for one in preferences] == pytest.approx(posterior.max(axis=1).tolist(), abs=1e-6)
    chosen = [dealt[3 * i][int(row.argmax())] for i, row in enumerate(posterior)]
    assert [one.chosen_response_id for one in preferences] == chosen
    agreeing = [len(set(labels[3 * i : 3 * i + 3])) == 1 for i in range(60)]
    assert report.agreement is not None
    assert report.agreement.raw.mean == pytest.approx(np.mean([1 if same else 1 / 3 for same in agreeing]))


def test_both_bad_casts_no_vote_and_by_most_makes_no_preference() -> None:
    cast = [vote(0, "a", 0), vote(0, "b", 0), vote(0, "c", None, Verdict.BOTH_BAD)]
    cast += [vote(1, "a", 0), vote(1, "b", None, Verdict.BOTH_BAD), vote(1, "c", None, Verdict.BOTH_BAD)]
    cast += [vote(2, who, None, Verdict.BOTH_BAD) for who in "abc"]
    preferences, report = conclude(cast, {}, "majority", "prj", NOW)
    assert [(one.comparison_id, one.n_votes, one.probability) for one in preferences] == [("cmp_0", 2, 1.0)]
    assert (report.n_both_bad, report.n_comparisons) == (2, 1)


@pytest.mark.parametrize("method", ["majority", "dawid-skene", "one-coin"])
def test_strength_is_weight_and_never_probability(method: Method) -> None:
    """One crowd as it is, and with strengths: a's votes slight, b's by far, c's clear, d's without a word."""
    plain = [
        vote(i, who, int((i * 7 + n) % 5 == 0), first=(i + n) % 2) for i in range(40) for n, who in enumerate("abcd")
    ]
    said = {"a": 1, "b": 3, "c": 2, "d": None}
    strong = [replace(v, annotation=replace(v.annotation, strength=said[v.annotation.annotator_id])) for v in plain]
    before, _ = conclude(plain, {}, method, "prj", NOW)
    after, _ = conclude(strong, {}, method, "prj", NOW)
    assert [one.probability for one in after] == [one.probability for one in before]
    if method == "majority":
        assert {one.weight for one in before} == {4.0}
    only_b = [v if v.annotation.annotator_id != "b" else s for v, s in zip(plain, strong, strict=True)]
    heavier, _ = conclude(only_b, {}, method, "prj", NOW)
    assert all(more.weight > one.weight for more, one in zip(heavier, before, strict=True))
    if method == "majority":
        assert {one.weight for one in heavier} == {4.5}
        assert {one.weight for one in after} == {4.0}  # .5 + 1.5 + 1 + 1


def test_a_spammers_strength_weighs_nothing() -> None:
    cast = crowd()
    loud = [
        replace(v, annotation=replace(v.annotation, strength=3)) if v.annotation.annotator_id == "guess" else v
        for v in cast
    ]
    before, after = (conclude(votes, {}, "dawid-skene", "prj", NOW)[0] for votes in (cast, loud))
    assert max(more.weight - one.weight for more, one in zip(after, before, strict=True)) < 0.05


def test_a_skip_is_no_vote() -> None:
    preferences, report = conclude([vote(0, "a", None, Verdict.SKIP)], {}, "auto", "prj", NOW)
    assert (preferences, report.n_comparisons) == ([], 0)
    assert [(row.n_skips, row.n_answers, row.first_fraction, row.reliability) for row in report.annotators] == [
        (1, 0, None, None)
    ]


def crowd(seed: int = 0) -> list[Vote]:
    """120 comparisons; four annotators right 9 times in 10, one who guesses, one who clicks what stands first."""
    draw = random.Random(seed)
    cast = []
    for i in range(120):
        truth = draw.randrange(2)
        for who in ("good1", "good2", "good3", "good4", "guess", "lazy"):
            first = draw.randrange(2)
            choice = {"guess": draw.randrange(2), "lazy": first}.get(who, truth if draw.random() < 0.9 else 1 - truth)
            cast.append(vote(i, who, choice, first=first))
    return cast


def test_the_table_tells_good_annotators_from_guessing_and_lazy_ones() -> None:
    _, report = conclude(crowd(), {"lazy": "Lee"}, "auto", "prj", NOW)
    rows = {row.annotator_id: row for row in report.annotators}
    assert report.method == "dawid-skene"
    assert rows["lazy"].name == "Lee"
    assert rows["lazy"].first_fraction == 1.0
    for who in ("good1", "good2", "good3", "good4"):
        good = rows[who].reliability
        assert good is not None
        assert good.low > 0.75
        assert rows[who].first_fraction is not None
        assert 0.3 < rows[who].first_fraction < 0.7
    for who in ("guess", "lazy"):
        bad = rows[who].reliability
        assert bad is not None
        assert bad.high < 0.7
    assert report.agreement is not None
    assert report.agreement.ac1.low > 0.1


def test_the_order_of_the_rows_does_not_matter_to_the_last_digit() -> None:
    cast = crowd(1)
    by_comparison = sorted(cast, key=lambda one: (one.comparison_id, one.annotation.annotator_id))
    backwards = sorted(cast, key=lambda one: (one.comparison_id, one.annotation.annotator_id), reverse=True)
    key = lambda one: one.id  # noqa: E731
    first, _ = conclude(by_comparison, {}, "dawid-skene", "prj", NOW)
    second, _ = conclude(backwards, {}, "dawid-skene", "prj", NOW)
    assert sorted(first, key=key) == sorted(second, key=key)


def test_each_criterion_is_concluded_alone() -> None:
    """On `tone` everybody contradicts their own overall verdict; and d, who is alone against three, is unreliable in `overall` only."""
    overall = [vote(n, who, 1 if who == "d" else 0) for n in range(8) for who in "abcd"]
    tone = [
        replace(
            one,
            annotation=replace(
                one.annotation, id=f"{one.annotation.id}_tone", criterion="tone", choice=f"res_{n // 4}b"
            ),
        )
        for n, one in enumerate(overall)
    ]
    drawn, report = conclude([*tone, *overall], {}, "dawid-skene", "prj", NOW)
    alone, _ = conclude(overall, {}, "dawid-skene", "prj", NOW)
    by_key = {(one.comparison_id, one.criterion): one for one in drawn}
    assert len(by_key) == len({one.id for one in drawn}) == 16
    assert [by_key[one.comparison_id, "overall"] for one in alone] == alone
    assert by_key["cmp_0", "overall"].chosen_response_id == "res_0a"
    assert by_key["cmp_0", "tone"].chosen_response_id == "res_0b"
    assert (report.criterion, [one.criterion for one in report.others]) == ("overall", ["tone"])
    reliability = {row.annotator_id: row.reliability.mean for row in report.annotators}
    elsewhere = {row.annotator_id: row.reliability.mean for row in report.others[0].annotators}
    assert reliability["d"] < 0.5 < elsewhere["d"]
