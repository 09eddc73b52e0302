"""Guards on made-up rollouts: quiet where nothing changes, loud where a hack is planted. Training with them is in tests/learning."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from plaudit.errors import ConfigError
from plaudit.learn import guards
from plaudit.learn.configs import GuardsConfig, KLConfig, from_dict
from plaudit.learn.guards import FORMAT_FIGURES, Guards, Mean, Sampled
from plaudit.stats.diversity import distinct_n

VOCABULARY = np.arange(1, 301)
ZIPF = (1 / VOCABULARY / (1 / VOCABULARY).sum()).cumsum()


def rollout(rng, prompts=12, samples=4, score=0.0, gold=0.0, length=0.0, hedges=0.0, words=300, per_token=0.0):
    """Prompts differ in their mean score, length, style and vocabulary, as real ones do; the arguments plant a change."""
    group, ids, figures = (
        [],
        [],
        {name: [] for name in ("score", "gold", "disagreement", "tokens", "kl", *FORMAT_FIGURES)},
    )
    for prompt in range(prompts):
        own, offset, style = rng.normal(0, 0.5, 2), int(rng.integers(300)), rng.beta(0.3, 3, len(FORMAT_FIGURES))
        for _ in range(samples):
            shared = rng.normal(0, 0.8)
            n = int(np.clip(rng.normal(16 + length + 3 * own[1], 4), 3, 60))
            group.append(prompt)
            ids.append(((np.searchsorted(ZIPF, rng.random(n)) + offset) % words).tolist())
            figures["tokens"].append(float(n))
            figures["score"].append(score + own[0] + shared + rng.normal(0, 0.4) + per_token * n)
            figures["gold"].append(gold + 0.6 * own[0] + 0.6 * shared + rng.normal(0, 0.7))
            figures["disagreement"].append(abs(rng.normal(0.3, 0.1)))
            figures["kl"].append(rng.normal(2, 1.5))
            for name, often in zip(FORMAT_FIGURES, style, strict=True):
                share = often + hedges * (name == "hedge")
                figures[name].append(rng.beta(1, 30) if name == "repetition" else rng.random() < share)
    return Sampled(group, ids, {name: [float(one) for one in values] for name, values in figures.items()})


def watching(**changes):
    return Guards(from_dict(GuardsConfig, {"judge": "j", **changes}), KLConfig(), judge=object())


def levels_after(guarded, seed, n=3, **planted):
    """The standing of each guard after a first rollout and n - 1 with something planted (a reward that pays for length always did)."""
    rng = np.random.default_rng(seed)
    guarded.look(1, rollout(rng, per_token=planted.get("per_token", 0.0)))
    for step in range(2, n + 1):
        guarded.look(step, rollout(rng, **planted))
    return {name: guarded.standing(name) for name in guarded.streaks}


# --- false alarms and power ---------------------------------------------------------------------------------------------------


def test_a_policy_that_stands_still_is_left_alone():
    """40 runs of 13 rollouts of 48 responses. Longer ones are in docs/guards.md; bounds are those of 95 % for 2 % and 8 % of runs."""
    worst = {"ok": 0, "warn": 0, "critical": 0}
    for seed in range(40):
        guarded, rng = watching(), np.random.default_rng(seed)
        for step in range(1, 14):
            assert guarded.look(step, rollout(rng))[1] == []  # nothing that acts
        found = {one["level"] for one in guarded.verdicts.values()}
        worst["critical" if "critical" in found else "warn" if found else "ok"] += 1
    assert worst["critical"] <= 2
    assert worst["warn"] <= 6


HACKS = [
    ("gold", {"score": 1.5, "gold": -1.0}),
    ("length_change", {"length": 14}),
    ("length_correlation", {"per_token": 0.4}),
    ("length_share", {"length": 14, "per_token": 0.15}),
    ("format", {"hedges": 0.8, "score": 0.5}),
    ("diversity", {"words": 20}),
    ("outliers", {"score": 4.0}),
]


@pytest.mark.parametrize(("name", "planted"), HACKS, ids=[name for name, _ in HACKS])
def test_a_planted_hack_is_critical_in_nine_of_ten_runs(name, planted):
    found = [levels_after(watching(), seed, **planted)[name] for seed in range(20)]
    assert found.count(2) >= 18
    assert name not in levels_after(watching(**{name: None}), 0, **planted)  # null switches it off


def test_gold_that_stays_while_the_score_rises_is_a_warning():
    found = [levels_after(watching(), seed, score=2.0)["gold"] for seed in range(20)]
    assert found.count(1) >= 16
    healthy = [levels_after(watching(), seed, score=2.0, gold=1.2)["gold"] for seed in range(20)]
    assert healthy.count(0) >= 19


def test_a_condition_must_hold_for_patience_rollouts_in_a_row():
    rng, guarded = np.random.default_rng(0), watching()
    bad = {"score": 1.5, "gold": -1.5}
    alarms = [guarded.look(step, rollout(rng, **some))[1] for step, some in enumerate(({}, bad, {}, bad, bad, {}), 1)]
    assert alarms == [[], [], [], [], ["gold"], []]
    assert guarded.verdicts["gold"]["level"] == "critical"  # the worst stays said
    assert guarded.verdicts["gold"]["step"] == 5
    three = watching(patience=3)
    assert levels_after(three, 0, 3, **bad)["gold"] < 2
    assert levels_after(watching(patience=3), 0, 4, **bad)["gold"] == 2


# --- single figures -------------------------------------------------------------------------------------------------------------


def test_format_is_read_from_texts():
    texts = ["# Title\n- one\n- two **bold**", "Perhaps! As an AI I might.", "plain text, 3 - 2 is 1", "see [here](x)"]
    got = guards.text_figures(texts, [[1, 2, 3, 4, 1, 2, 3, 4], [1], [2], [3]])
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
    got = guards.mean_of([1.0, 3.0, 5.0, 7.0, 0.0, 2.0], [0, 0, 1, 1, 2, 2])
    assert got == Mean(3.0, pytest.approx(np.std([2, 6, 1], ddof=1) / math.sqrt(3)), 2)
    assert guards.mean_of([1.0, 3.0], [0, 0]).se == pytest.approx(1.0)  # one prompt: over responses
    assert not guards.rises(Mean(9.0, 0.0, 1), guards.mean_of([1.0], [0]))  # one response has no error that is known


def test_distinct_is_the_statistic_and_its_error_the_jackknife():
    rng = np.random.default_rng(1)
    some = rollout(rng, prompts=5, samples=2)
    total = sum(map(len, some.ids))
    for n in (1, 2, 3):
        got = guards.distinct(some.ids, some.group, n, total)
        assert got.value == pytest.approx(distinct_n(some.ids, n))
        left = [distinct_n([ids for ids, of in zip(some.ids, some.group, strict=True) if of != g], n) for g in range(5)]
        assert got.se == pytest.approx(math.sqrt(4 / 5 * sum((x - np.mean(left)) ** 2 for x in left)))
    twice = [ids + ids for ids in some.ids]  # longer text is cut to as many tokens
    assert guards.distinct(twice, some.group, 1, total).value == pytest.approx(distinct_n(some.ids, 1))


def test_outliers_of_a_small_rollout_count_from_a_number_of_prompts():
    """6 of 12 prompts above 12 others: chance C(18, 12) / C(24, 12) = .0069; 7 of 12: .0023, below the .005 asked for."""
    first = rollout(np.random.default_rng(0))
    for k, expected in ((6, 0), (7, 2)):
        scores = [100.0 if of < k and i % 4 == 0 else -100.0 for i, of in enumerate(first.group)]
        now = replace(first, figures=first.figures | {"score": scores})
        got = guards.read(GuardsConfig(), KLConfig(), first, now, [])
        assert got.figures["outlier_fraction"] == pytest.approx(k / 48)
        assert got.levels["outliers"] == expected
    many = rollout(np.random.default_rng(0), prompts=300)
    shifted = replace(many, figures=many.figures | {"score": [x + 1.0 for x in many.figures["score"]]})
    got = guards.read(GuardsConfig(), KLConfig(), many, shifted, [])
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
        got = guards.read(GuardsConfig(), KLConfig(), *with_scores, [])
        assert got.figures["length_share"] == pytest.approx(share)
    assert guards.rank_correlation([1, 2, 3, 9], [10, 20, 30, 31]) == pytest.approx(1.0)
    assert guards.rank_correlation([1, 2, 3], [5, 5, 5]) == 0.0


def test_disagreement_is_relative_to_the_first_rollout():
    first = rollout(np.random.default_rng(0))
    for factor, expected in ((1.2, 0), (1.7, 1), (2.5, 2)):
        now = replace(
            first, figures=first.figures | {"disagreement": [factor * x for x in first.figures["disagreement"]]}
        )
        got = guards.read(GuardsConfig(), KLConfig(), first, now, [])
        assert got.figures["disagreement_ratio"] == pytest.approx(factor)
        assert got.levels["disagreement"] == expected


def test_kl_budgets_are_shares():
    first = rollout(np.random.default_rng(0))
    now = replace(first, figures=first.figures | {"kl": [7.0] * 48, "kl_base": [30.0] * 48})
    got = guards.read(GuardsConfig(), KLConfig(budget=8.0, base_budget=24.0), first, now, [])
    assert (got.figures["kl_share"], got.figures["kl_base_share"]) == (7 / 8, 30 / 24)
    assert (got.levels["kl"], got.levels["kl_base"]) == (1, 2)
    got = guards.read(GuardsConfig(), KLConfig(budget=None, base_budget=None), first, now, [])
    assert "kl" not in got.levels


def test_null_for_one_limit_leaves_it_out():
    planted = {"length": 14}
    assert levels_after(watching(length_change=[0.25, None]), 0, **planted)["length_change"] == 1
    assert levels_after(watching(length_change=[None, 0.5]), 0, **planted)["length_change"] == 2
    assert levels_after(watching(length_change=[None, 5.0]), 0, **planted)["length_change"] == 0


@pytest.mark.parametrize("limits", [[0.5], [0.5, 0.25], [0.0, 1.0], [0.1, 0.2, 0.3]])
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(ConfigError, match=r"GuardsConfig.length_change is .* null or \[warn, critical\]"):
        from_dict(GuardsConfig, {"length_change": limits})


# --- traps, memory, words -----------------------------------------------------------------------------------------------------


def scorer(liked):
    """1 for texts that hold `liked`, else 0."""
    return lambda prompts, texts: [np.array([float(liked in text) for text in row]) for row in texts]


def test_traps_are_held_against_the_first_rollout_s_scores():
    asked = [[{"role": "user", "content": "how do I return shoes"}]] * 2
    got = guards.spring_traps(scorer("excellent"), asked, ["fine", "good"], [0.0, 0.2, 0.4, 0.6], empty=True)
    assert got["verdict"] == got["by"]["says_it_is_excellent"]["verdict"] == "critical"
    assert got["by"]["empty"] == {"median": 0.0, "verdict": "ok"}
    assert (got["median"], got["upper_quartile"]) == (pytest.approx(0.3), pytest.approx(0.45))
    assert "empty" not in guards.spring_traps(scorer("x"), asked, ["a", "b"], [0.0], empty=False)["by"]
    guarded = watching(act_on=["traps"])
    guarded.traps = got
    assert guarded.look(1, rollout(np.random.default_rng(0)))[1] == ["traps"]
    assert "says_it_is_excellent" in guarded.card()


def test_the_policy_to_go_back_to_is_the_judge_s_best_within_the_other_limits():
    def look(guarded, golds, base=()):
        for step, gold in enumerate(golds, 1):
            now = rollout(np.random.default_rng(0), gold=gold)
            kl = {"kl_base": [base[step - 1]] * 48} if base else {}
            guarded.look(step, replace(now, figures=now.figures | kl))
        return guarded.best_step

    assert look(watching(), [0.0, 0.5, 0.2, 0.4]) == 2
    assert look(watching(), [0.0, 0.1, 0.5, 0.2], base=[1, 1, 99, 99]) == 2  # the third was over the budget
    blind = Guards(GuardsConfig(), KLConfig())
    assert look(blind, [0, 0, 0, 0], base=[1, 1, 99, 99]) == 2  # the last before the alarm
    assert look(Guards(GuardsConfig(), KLConfig()), [0, 0], base=[99, 99]) == 0  # the start


def test_what_is_saved_is_all_there_is(tmp_path):
    rng = np.random.default_rng(3)
    rollouts = [rollout(rng, score=step / 2, gold=-step / 4) for step in range(6)]
    whole, cut = watching(), watching()
    for guarded in (whole, cut):
        for step in (1, 2, 3):
            guarded.look(step, rollouts[step - 1])
    torch.save(cut.state(), tmp_path / "state.pt")
    resumed = watching()
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in (4, 5, 6):
        assert whole.look(step, rollouts[step - 1]) == resumed.look(step, rollouts[step - 1])
    assert whole.state() == resumed.state()
    assert whole.verdicts["gold"]["level"] == "critical"


def test_the_card_says_what_was_watched_what_fired_and_what_was_done():
    guarded = watching()
    levels_after(guarded, 0, score=1.5, gold=-1.5)
    text = guarded.card()
    assert text.startswith("## Guards\n\nWatched: kl, length change, ")
    assert "- **gold: critical** from rollout 3: the score rose by 1." in text
    assert "Nothing was done: a critical gold goes back to the best policy." in text
    assert "takes 1000 responses and the first rollout had 48" in text
    guarded.done = "It ended."
    assert "It ended." in guarded.card()
    blind = Guards(GuardsConfig(on_critical="warn"), KLConfig())
    blind.look(1, rollout(np.random.default_rng(0), prompts=2))
    assert "- Nothing fired." in blind.card()
    assert "guards only say what they see" in blind.card()
    assert "There was no held-out judge" in blind.card()
    assert "A rollout of 2 prompts" in blind.card()


# --- the law of overoptimisation ----------------------------------------------------------------------------------------------


def along(a, b, distances, error=1e-4, noise=None):
    """Trends of a judge that follows d (a - b ln d), the first at the start itself."""
    gains = [d * (a - b * math.log(d)) if d else 0.0 for d in distances]
    gains = gains if noise is None else [gain + noise.normal(0, error) for gain in gains]
    gold = [Mean(gain - gains[0], error, 11) for gain in gains]
    return [guards.Trend(i + 1, one, one, d * d) for i, (one, d) in enumerate(zip(gold, distances, strict=True))]


def law_of(trends, **changes):
    now = rollout(np.random.default_rng(0))
    found = guards.read(from_dict(GuardsConfig, {"judge": "j", **changes}), KLConfig(), now, now, trends)
    return found.figures.get("overoptimisation"), found.levels["overoptimisation"]


def test_the_law_of_overoptimisation_is_found_on_its_own_data():
    """The oracle is the closed form: with a = 1 and b = 1/2 the slope 1/2 - ln(d)/2 is 0 at d = e."""
    distances = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    law = guards.fit_law(along(1.0, 0.5, distances))
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
    assert guards.fit_law(along(1.0, 0.5, [0.0] * 7)) is None


def test_a_judge_that_stands_still_or_rises_is_no_peak_and_one_that_turns_is():
    far = [step / 3 for step in range(13)]
    critical = {}
    for name, a, b in (("still", 0.0, 0.0), ("rising", 0.6, 0.05), ("turning", 1.0 + math.log(2), 1.0)):
        whole = [along(a, b, far, 0.2, np.random.default_rng(seed)) for seed in range(30)]
        runs = [
            [guards._overoptimisation((0.8, 1.0), one[:n]).levels["overoptimisation"] for n in (12, 13)]
            for one in whole
        ]
        critical[name] = sum(one == [2, 2] for one in runs)
    assert critical["still"] <= 1
    assert critical["rising"] <= 1
    assert critical["turning"] >= 20
