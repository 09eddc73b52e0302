"""Guards on made-up rollouts: quiet where nothing changes, loud where a hack is planted. Training with them is in tests/learning."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from plaudit.errors import ConfigError
from plaudit.learn.configs import GuardsConfig, KLConfig, from_dict
from plaudit.learn.guards import Guards

from .rollouts import rollout


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


def test_traps_count_from_the_first_rollout_on():
    guarded = watching(act_on=["traps"])
    guarded.traps = {
        "verdict": "critical",
        "by": {"praise": {"verdict": "ok"}, "says_it_is_excellent": {"verdict": "critical"}},
    }
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
