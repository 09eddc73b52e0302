"""What guards read in one rollout, against closed forms and other implementations; how often they are wrong is in test_readings.py."""

import math
from dataclasses import replace

import numpy as np
import pytest

from plaudit.learn import readings
from plaudit.learn.configs import GuardsConfig, KLConfig, from_dict
from plaudit.learn.readings import FORMAT_FIGURES, Mean, Sampled
from plaudit.stats.diversity import distinct_n, self_bleu

from .rollouts import rollout


def test_format_is_read_from_texts():
    texts = ["# Title\n- one\n- two **bold**", "Perhaps! As an AI I might.", "plain text, 3 - 2 is 1", "see [here](x)"]
    got = readings.text_figures(texts, [[1, 2, 3, 4, 1, 2, 3, 4], [1], [2], [3]])
    assert got == {
        "markdown": [1, 0, 0, 1],
        "list": [1, 0, 0, 0],
        "bold": [1, 0, 0, 0],
        "hedge": [0, 1, 0, 0],
        "exclamation": [0, 1, 0, 0],
        "as_an_ai": [0, 1, 0, 0],
        "repetition": [pytest.approx(0.2), 0, 0, 0],  # five 4-grams, one of them twice
    }


def test_the_error_of_a_mean_is_that_over_prompts():
    got = readings.mean_of([1.0, 3.0, 5.0, 7.0, 0.0, 2.0], [0, 0, 1, 1, 2, 2])
    assert got == Mean(3.0, pytest.approx(np.std([2, 6, 1], ddof=1) / math.sqrt(3)), 2)
    assert readings.mean_of([1.0, 3.0], [0, 0]).se == pytest.approx(1.0)  # one prompt: over responses
    assert not readings.rises(
        Mean(9.0, 0.0, 1), readings.mean_of([1.0], [0])
    )  # one response has no error that is known


def test_distinct_is_the_statistic_and_its_error_the_jackknife():
    rng = np.random.default_rng(1)
    some = rollout(rng, prompts=5, samples=2)
    total = sum(map(len, some.ids))
    for n in (1, 2, 3):
        got = readings.distinct(some.ids, some.group, n, total)
        assert got.value == pytest.approx(distinct_n(some.ids, n))
        left = [distinct_n([ids for ids, of in zip(some.ids, some.group, strict=True) if of != g], n) for g in range(5)]
        assert got.se == pytest.approx(math.sqrt(4 / 5 * sum((x - np.mean(left)) ** 2 for x in left)))
    twice = [ids + ids for ids in some.ids]  # longer text is cut to as many tokens
    assert readings.distinct(twice, some.group, 1, total).value == pytest.approx(distinct_n(some.ids, 1))


def test_siblings_that_say_the_same_are_told_from_those_that_do_not():
    """The oracle is the statistic over each prompt's responses, cut to as many tokens as the other rollout has."""
    rng = np.random.default_rng(2)
    first = rollout(rng)
    ids = [first.ids[i - i % 4] for i in range(48)]  # every prompt's four responses are its first
    now = replace(first, ids=ids)
    n_tokens = min(sum(map(len, some.ids)) for some in (first, now))
    share = n_tokens / sum(map(len, first.ids))
    parts = [tokens[: math.ceil(len(tokens) * share)] for tokens in first.ids]
    told = [self_bleu(parts[i : i + 4]) for i in range(0, 48, 4)]
    got = readings.unlike_siblings(first.ids, first.group, n_tokens)
    assert got == Mean(pytest.approx(1 - np.mean(told)), pytest.approx(np.std(told, ddof=1) / 12**0.5), 11)
    found = readings.read(GuardsConfig(), KLConfig(), first, now, [])
    assert found.figures["self_bleu"] == pytest.approx(1.0)
    assert (found.levels["diversity"], found.words["diversity_worst"]) == (2, "self_bleu")
    alone = rollout(rng, samples=1)
    assert "self_bleu" not in readings.read(GuardsConfig(), KLConfig(), alone, alone, []).figures


def test_distances_are_those_between_responses_to_one_prompt():
    states = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0], [1.0, 1.0], [1.0, 2.0]])
    assert readings.distances(states, [0, 0, 0, 1, 1]) == pytest.approx([6.5, 5.0, 6.5, 1.0, 1.0])
    assert readings.distances(states[:3], [0, 1, 2]) == pytest.approx([6.5, 5.0, 6.5])  # of all prompts
    assert readings.distances(states[:1], [0]) == [0.0]
    first = rollout(np.random.default_rng(0))
    levels = {}
    for factor in (0.95, 0.8, 0.6):
        far = [1.0 + 0.01 * (i % 3) for i in range(48)]
        one, now = (
            replace(first, figures=first.figures | {"embedding_distance": [by * x for x in far]})
            for by in (1.0, factor)
        )
        got = readings.read(GuardsConfig(), KLConfig(), one, now, [])
        levels[factor] = got.levels["diversity"], got.words["diversity_worst"]
    assert levels == {0.95: (0, "embedding_distance"), 0.8: (1, "embedding_distance"), 0.6: (2, "embedding_distance")}


def test_outliers_of_a_small_rollout_count_from_a_number_of_prompts():
    """6 of 12 prompts above 12 others: chance C(18, 12) / C(24, 12) = .0069; 7 of 12: .0023, below the .005 asked for."""
    first = rollout(np.random.default_rng(0))
    for k, expected in ((6, 0), (7, 2)):
        scores = [100.0 if of < k and i % 4 == 0 else -100.0 for i, of in enumerate(first.group)]
        now = replace(first, figures=first.figures | {"score": scores})
        got = readings.read(GuardsConfig(), KLConfig(), first, now, [])
        assert got.figures["outlier_fraction"] == pytest.approx(k / 48)
        assert got.levels["outliers"] == expected
    many = rollout(np.random.default_rng(0), prompts=300)
    shifted = replace(many, figures=many.figures | {"score": [x + 1.0 for x in many.figures["score"]]})
    got = readings.read(GuardsConfig(), KLConfig(), many, shifted, [])
    assert (got.levels["outliers"], got.words["outlier_quantile"]) == (1, "99.9 % quantile")


def test_length_s_share_of_a_gain():
    """score = 2 x tokens in the one, nothing but a shift in the other: all of the gain is length, or none."""
    first, now = (
        Sampled([0, 0, 1, 1, 2, 2], [[1]] * 6, {"tokens": [float(n + more) for n in (4, 6, 5, 7, 4, 6)]})
        for more in (0, 10)
    )
    style = {name: [0.0] * 6 for name in (*FORMAT_FIGURES, "kl")}
    for per_token, gain, share in ((2.0, 0.0, 1.0), (0.0, 20.0, 0.0), (1.0, 10.0, 0.5)):
        with_scores = [
            replace(
                some, figures=some.figures | style | {"score": [per_token * n + up for n in some.figures["tokens"]]}
            )
            for some, up in ((first, 0.0), (now, gain))
        ]
        got = readings.read(GuardsConfig(), KLConfig(), *with_scores, [])
        assert got.figures["length_share"] == pytest.approx(share)
    assert readings.rank_correlation([1, 2, 3, 9], [10, 20, 30, 31]) == pytest.approx(1.0)
    assert readings.rank_correlation([1, 2, 3], [5, 5, 5]) == 0.0


def test_disagreement_is_relative_to_the_first_rollout():
    first = rollout(np.random.default_rng(0))
    for factor, expected in ((1.2, 0), (1.7, 1), (2.5, 2)):
        now = replace(
            first, figures=first.figures | {"disagreement": [factor * x for x in first.figures["disagreement"]]}
        )
        got = readings.read(GuardsConfig(), KLConfig(), first, now, [])
        assert got.figures["disagreement_ratio"] == pytest.approx(factor)
        assert got.levels["disagreement"] == expected


def test_kl_budgets_are_shares():
    first = rollout(np.random.default_rng(0))
    now = replace(first, figures=first.figures | {"kl": [7.0] * 48, "kl_base": [30.0] * 48})
    got = readings.read(GuardsConfig(), KLConfig(budget=8.0, base_budget=24.0), first, now, [])
    assert (got.figures["kl_share"], got.figures["kl_base_share"]) == (7 / 8, 30 / 24)
    assert (got.levels["kl"], got.levels["kl_base"]) == (1, 2)
    got = readings.read(GuardsConfig(), KLConfig(budget=None, base_budget=None), first, now, [])
    assert "kl" not in got.levels


def scorer(liked):
    """1 for texts that hold `liked`, else 0."""
    return lambda prompts, texts: [np.array([float(liked in text) for text in row]) for row in texts]


def test_traps_are_held_against_the_first_rollout_s_scores():
    asked = [[{"role": "user", "content": "how do I return shoes"}]] * 2
    got = readings.spring_traps(scorer("excellent"), asked, ["fine", "good"], [0.0, 0.2, 0.4, 0.6], empty=True)
    assert got["verdict"] == got["by"]["says_it_is_excellent"]["verdict"] == "critical"
    assert got["by"]["empty"] == {"median": 0.0, "verdict": "ok"}
    assert (got["median"], got["upper_quartile"]) == (pytest.approx(0.3), pytest.approx(0.45))
    assert "empty" not in readings.spring_traps(scorer("x"), asked, ["a", "b"], [0.0], empty=False)["by"]


# --- the law of overoptimisation ----------------------------------------------------------------------------------------------


def along(a, b, distances, error=1e-4, noise=None):
    """Trends of a judge that follows d (a - b ln d), the first at the start itself."""
    gains = [d * (a - b * math.log(d)) if d else 0.0 for d in distances]
    gains = gains if noise is None else [gain + noise.normal(0, error) for gain in gains]
    gold = [Mean(gain - gains[0], error, 11) for gain in gains]
    return [readings.Trend(i + 1, one, one, d * d) for i, (one, d) in enumerate(zip(gold, distances, strict=True))]


def law_of(trends, **changes):
    now = rollout(np.random.default_rng(0))
    found = readings.read(from_dict(GuardsConfig, {"judge": "j", **changes}), KLConfig(), now, now, trends)
    return found.figures.get("overoptimisation"), found.levels["overoptimisation"]


def test_the_law_of_overoptimisation_is_found_on_its_own_data():
    """The oracle is the closed form: with a = 1 and b = 1/2 the slope 1/2 - ln(d)/2 is 0 at d = e."""
    distances = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    law = readings.fit_law(along(1.0, 0.5, distances))
    assert (law.a, law.b) == pytest.approx((1.0, 0.5))
    assert law.peak == pytest.approx(math.e)
    at = {distances[n - 1]: law_of(along(1.0, 0.5, distances[:n])) for n in range(1, 8)}
    assert [at[d] for d in (0.0, 0.5, 1.0, 1.5)] == [(None, 0)] * 4  # fewer than four points
    assert at[2.0] == (pytest.approx(2 / math.e), 0)
    assert at[2.5] == (pytest.approx(2.5 / math.e), 1)
    assert at[3.0] == (pytest.approx(3 / math.e), 2)
    assert law_of(along(1.0, 0.5, distances), overoptimisation=[1.0, 1.2]) == (pytest.approx(3 / math.e), 1)
    assert law_of(along(1.0, 0.5, distances, error=2.0))[1] == 0  # the same curve within noise
    assert law_of(along(1.0, -0.1, distances)) == (None, 0)  # no peak at all
    share, level = law_of(along(-0.5, 1e-3, distances))  # it falls from the start
    assert math.isfinite(share)
    assert level == 2
    assert law_of(along(0.0, 0.0, [0.0] + [2.0] * 6)) == (None, 0)  # one distance tells nothing
    assert readings.fit_law(along(1.0, 0.5, [0.0] * 7)) is None


def test_a_judge_that_stands_still_or_rises_is_no_peak_and_one_that_turns_is():
    far = [step / 3 for step in range(13)]
    critical = {}
    for name, a, b in (("still", 0.0, 0.0), ("rising", 0.6, 0.05), ("turning", 1.0 + math.log(2), 1.0)):
        whole = [along(a, b, far, 0.2, np.random.default_rng(seed)) for seed in range(30)]
        runs = [
            [readings._overoptimisation((0.8, 1.0), one[:n]).levels["overoptimisation"] for n in (12, 13)]
            for one in whole
        ]
        critical[name] = sum(one == [2, 2] for one in runs)
    assert critical["still"] <= 1
    assert critical["rising"] <= 1
    assert critical["turning"] >= 20
