"""The card says what result.json knows, warns where the figures warn, and quotes nobody."""

import copy

from plaudit.learn import card
from plaudit.learn.configs import HeadConfig, RewardConfig


def interval(mean, low, high, n=200):
    return {"mean": mean, "low": low, "high": high, "n": n}


def figures(mean):
    bins = [
        {
            "low": low,
            "high": low + 0.5,
            "mean_probability": low + 0.25,
            "observed": interval(low + 0.25, low, low + 0.5),
        }
        for low in (0.0, 0.5)
    ]
    return {"accuracy": interval(mean, mean - 0.05, mean + 0.05), "n": 400, "log_loss": 0.6, "ece": 0.04, "bins": bins}


RESULT = {
    "n_train": 900, "n_valid": 400, "n_rejected": 0, "rejected": {}, "n_other_criteria": 0, "n_shared_families": 0,
    "cut": {"prompts": 0, "answers": 0},
    "valid": figures(0.66) | {
        "temperature": {"temperature": 1.8, "n_fit": 200, "n": 200, "before": {"log_loss": 0.7, "ece": 0.1},
                        "after": {"log_loss": 0.6, "ece": 0.02}},
    },
    "baselines": {"length_only": figures(0.55)},
    "difference": {"length_only": interval(0.11, 0.04, 0.18)},
    "slices": {"length": {"short": {"accuracy": interval(0.7, 0.6, 0.8), "n": 300, "difference": {}},
                          "long": {"accuracy": interval(0.5, 0.4, 0.6), "n": 100, "difference": {}}}},
    "people": {"one_vote": {"model": 0.63, "majority": 0.8}},
    "curve": [{"update": 5, "member": 0, "epoch": 1, "accuracy": 0.66, "log_loss": 0.6, "n": 400, "train_accuracy": 0.7, "train_loss": 0.5}],
    "traps": {"n": 3, "reference": {"median": 0.0, "upper_quartile": 0.6}, "verdict": "critical",
              "by": {"empty": {"median": -1.0, "verdict": "ok", "above_chosen_fraction": 0.0},
                     "padded_10x": {"median": 2.0, "verdict": "critical", "above_chosen_fraction": 1.0}}},
    "ablations": [{"id": "p1", "score": 1.0, "sentences": [{"text": "My name is Ada.", "change": 0.1}, {"text": "Bye.", "change": -0.9}]}],
}  # fmt: skip
CONFIG = RewardConfig(base="b", preferences="/somewhere/pairs.jsonl")


def changed(**values):
    return copy.deepcopy(RESULT) | values


def test_the_card_says_the_figures_and_draws_them():
    text, pictures = card.write(RESULT, CONFIG)
    for said in (
        "900 pairs from pairs.jsonl", "0.660 (0.610 to 0.710, n 200)", "+0.110 (+0.040 to +0.180)", "| short | 300 |", "temperature of 1.80",
        "0.630 of the pairs", "| padded 10x | 2.00 | 1.00 | critical |", "| p1 | 1.00 | 2 of 2 | -0.90 |",
    ):  # fmt: skip
        assert said in text
    assert set(pictures) == {"accuracy.svg", "reliability.svg", "curve.svg", "traps.svg"}
    for name, picture in pictures.items():
        assert f"]({name})" in text
        assert picture.startswith("<svg")
    assert "padded 10x" in pictures["traps.svg"]
    assert "length: long" in pictures["accuracy.svg"]


def test_it_quotes_nobody_and_names_no_folder_of_this_machine():
    text, pictures = card.write(RESULT, CONFIG)
    for part in (text, *pictures.values()):
        assert "Ada" not in part
        assert "/somewhere" not in part


def test_its_limits_follow_from_the_figures():
    text, _ = card.write(RESULT, CONFIG)
    limits = text.partition("## Known limits")[2]
    assert "worse than its mean on: length = long" in limits
    assert "`padded_10x` scores above the upper quartile" in limits
    assert "`empty`" not in limits
    assert "not shown to be better" not in limits
    weak = changed(difference={"length_only": interval(0.02, -0.03, 0.07)}, n_shared_families=3)
    text, _ = card.write(weak, CONFIG)
    assert "not shown to be better than length only" in text
    assert "3 prompt families are in both parts" in text
    few = changed(valid=RESULT["valid"] | {"n": 30})
    assert "Only 30 held-out pairs" in card.write(few, CONFIG)[0]
    assert "Only" not in limits


def test_overfitting_is_said_where_the_curve_turns():
    later = RESULT["curve"][0] | {"update": 10, "log_loss": 0.75}
    text, _ = card.write(changed(curve=[RESULT["curve"][0], later]), CONFIG)
    assert "lowest after update 5" in text
    assert "lowest after" not in card.write(RESULT, CONFIG)[0]


def test_without_held_out_rows_it_says_that_nothing_is_known():
    text, pictures = card.write(
        changed(valid=None, slices={}, people={}, curve=[], baselines={}, difference={}), CONFIG
    )
    assert "no figure here says how good it is" in text
    assert set(pictures) == {"traps.svg"}


def test_heads_members_rejected_lines_and_annotators_are_said():
    config = RewardConfig(
        base="b",
        preferences="p",
        heads=(HeadConfig("kind", 2.0), HeadConfig("brief", 0.5)),
        members=3,
        members_share="body",
    )
    part = {"own_head": interval(0.7, 0.6, 0.8), "one_score": interval(0.65, 0.6, 0.7)}
    people = RESULT["people"] | {
        "by": {},
        "n_annotators": 7,
        "annotators": interval(0.6, 0.5, 0.7),
        "between": interval(0.72, 0.7, 0.74),
    }
    result = changed(
        n_rejected=2, rejected={"the chosen answer is empty": 2}, people=people,
        one_score={"accuracy": interval(0.66, 0.6, 0.7), "kind": part}, ensemble={"accuracy": [0.6, 0.61, 0.62], "logit_sd": 0.31},
    )  # fmt: skip
    text, _ = card.write(result, config)
    for said in (
        "2 x kind + 0.5 x brief", "an ensemble of 3 members, a head each on one body", "the chosen answer is empty: 2", "7 named annotators",
        "0.720 (0.700 to 0.740", "kind: 0.700", "0.600, 0.610, 0.620",
    ):  # fmt: skip
        assert said in text


def test_a_cell_cannot_break_its_table():
    odd = {"a|b\nc": {"accuracy": interval(0.7, 0.6, 0.8), "n": 3, "difference": {}}}
    assert "| a\\|b c | 3 |" in card.write(changed(slices={"topic": odd}), CONFIG)[0]


def test_thumbs_and_other_bases_are_said():
    auc = {"auc": interval(0.61, 0.55, 0.67), "n_up": 80, "n_down": 40}
    thumbs = {
        **auc,
        "n_left_out": 0,
        "by": {
            "length": {"long": {"auc": interval(0.5, 0.4, 0.6), "n_up": 20, "n_down": 20}},
            "group:plan": {"free": {**auc}},
        },
    }
    config = RewardConfig(base="b", preferences="p", members=4, other_bases=("c",))
    text, _ = card.write(changed(thumbs=thumbs, bases=[{"spec": "small"}, {"spec": "large"}]), config)
    assert "| all | 80 | 40 | 0.610 (0.550 to 0.670" in text
    assert "| length: long | 20 | 20 | 0.500" in text
    assert "| group plan: free | 80 | 40 | 0.610" in text
    assert "an adapter each, in turn on small and large" in text
    assert "not shown to tell answers that users liked" not in text
    weak, _ = card.write(changed(thumbs=thumbs | {"auc": interval(0.52, 0.45, 0.59)}), CONFIG)
    assert "not shown to tell answers that users liked from others (AUC 0.520" in weak.partition("## Known limits")[2]
