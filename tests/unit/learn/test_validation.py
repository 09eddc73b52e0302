"""What scores are worth: each figure against a count by hand, and negative controls for those that are estimated."""

import math

import numpy as np
import pytest
from scipy import special

from plaudit.artifacts import PreferenceRow, VoteRow
from plaudit.learn import validation
from plaudit.learn.pairs_file import Pair


def row(i, probability=1.0, chosen="good", rejected="bad", family=None, kind=PreferenceRow, **extra):
    fixed = {
        "preference_id": f"p{i}", "comparison_id": f"c{i}", "criterion": "overall", "family": family or f"f{i % 2}",
        "split": "valid", "messages": ({"role": "user", "content": f"q{i}"},), "chosen": chosen, "rejected": rejected,
        "probability": probability, "weight": 2.0, "source": "annotation",
    }  # fmt: skip
    return kind(**(fixed | extra))


def rows(*probabilities):
    return [row(i, p) for i, p in enumerate(probabilities)]


def logit(*probabilities):
    return special.logit(np.array(probabilities))


def test_accuracy_is_against_the_majority_with_half_for_ties():
    found = validation.correct(logit(0.9, 0.5, 0.2, 0.7, 0.1), rows(1.0, 0.8, 0.6, 0.5, 0.3))
    np.testing.assert_array_equal(found, [1.0, 0.5, 0.0, np.nan, 1.0])  # the row people tied on has no majority
    entry = validation.accuracy(logit(0.9, 0.5, 0.2, 0.7), rows(1.0, 0.8, 0.6, 0.5))
    assert entry["mean"] == pytest.approx(0.5)
    assert entry["n"] == 2  # families
    assert validation.accuracy(logit(0.9), rows(0.5)) == {"mean": 0.5, "low": 0.0, "high": 1.0, "n": 0}
    some = [row(i, 0.5 if i == 0 else 0.9, family="abbcc"[i]) for i in range(5)]
    assert validation.accuracy(logit(*[0.9] * 5), some)["n"] == 2  # families of rows that have a majority
    assert validation.figures(logit(*[0.9] * 5), some)["n"] == 4  # such rows


def test_an_accuracy_of_one_keeps_an_interval():
    found = validation.accuracy(logit(0.9, 0.9), [row(0, family="a"), row(1, family="b")])
    assert (found["mean"], found["high"]) == (1.0, 1.0)
    assert found["low"] < 0.5


def test_log_loss_and_calibration_are_against_the_soft_label():
    many = rows(*[0.8] * 40)
    out = validation.figures(logit(*[0.8] * 40), many)
    assert out["log_loss"] == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    assert out["ece"] == pytest.approx(0.0, abs=1e-9)
    # half of the rows were turned round, so that both sides of the curve have points
    assert {round(entry["mean_probability"], 3) for entry in out["bins"]} == {0.2, 0.8}
    assert out["n"] == 40


def test_difference_pairs_the_rows_that_have_a_majority():
    some = [row(i, p, family=f"f{i}") for i, p in enumerate((1.0, 1.0, 1.0, 0.5))]
    found = validation.difference(logit(0.9, 0.9, 0.1, 0.9), logit(0.1, 0.9, 0.1, 0.1), some)
    assert found["mean"] == pytest.approx(1 / 3)
    assert found["n"] == 3
    assert validation.difference(logit(0.9), logit(0.1), [some[0]]) is None


def simulated(scale, n=3000):
    """Outcomes drawn from sigmoid(z), predicted as sigmoid(scale z)."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1.5, n)
    won = rng.random(n) < special.expit(z)
    return scale * z, [row(i, float(y), family=f"f{i}") for i, y in enumerate(won)]


def test_temperature_finds_how_much_too_sure_the_scores_are():
    found = validation.temperature(*simulated(3.0))
    assert found["temperature"] == pytest.approx(3.0, rel=0.15)
    assert found["after"]["log_loss"] < found["before"]["log_loss"] - 0.05
    assert found["after"]["ece"] < 0.05 < found["before"]["ece"]
    assert found["n"] + found["n_fit"] == 3000
    right = validation.temperature(*simulated(1.0))  # negative control: nothing to mend
    assert right["temperature"] == pytest.approx(1.0, rel=0.1)
    assert right["after"]["log_loss"] == pytest.approx(right["before"]["log_loss"], abs=0.005)
    assert validation.temperature(logit(0.9), rows(1.0)) is None


def test_slices_by_length_side_source_and_what_files_say():
    some = [
        row(0, chosen="a" * 8, rejected="b"),
        row(1, chosen="a" * 2, rejected="b" * 2, source="edit"),
        row(2, chosen="a", rejected="b", kind=Pair, slices={"topic": "tea"}),
    ]
    found = validation.slices_of(some)
    assert found["length"] == ["long", "middle", "short"]
    assert found["longer"] == ["chosen", "equal", "equal"]
    assert found["source"] == ["annotation", "edit", "annotation"]
    assert found["topic"] == ["", "", "tea"]
    sized = [row(i, chosen="a" * (8 - i), rejected="b" * (2 * i - 6)) for i in range(3, 8)]  # 5 to 9 characters in all
    both = [*sized, row(8, chosen="a", rejected="b" * 9), row(9, chosen="a" * 6, rejected="b" * 5)]
    assert (
        validation.slices_of(both)["length"] == ["short"] * 3 + ["middle"] * 2 + ["long"] * 2
    )  # a bound belongs below it
    assert "criterion" not in found  # one slice only
    out = validation.by_slice(logit(0.9, 0.1, 0.9), some, {"coin": logit(0.5, 0.5, 0.5)})
    assert out["source"]["annotation"]["accuracy"]["mean"] == 1.0
    assert out["source"]["edit"]["accuracy"]["mean"] == 0.0
    assert set(out["topic"]) == {"tea"}
    assert out["longer"]["equal"]["n"] == 2
    assert out["longer"]["equal"]["difference"]["coin"]["mean"] == pytest.approx(0.0)  # (1 + 0) / 2 - .5
    assert "coin" not in out["source"]["edit"]["difference"]  # one family has no interval


def test_categories_average_as_rewardbench_does():
    some = [
        row(i, family=f"f{i}", kind=Pair, slices={"category": c, "subset": s})
        for i, (c, s) in enumerate([("chat", "a"), ("chat", "b"), ("chat", "b"), ("safety", "c")])
    ]
    found = validation.categories(logit(0.9, 0.9, 0.1, 0.1), some)
    assert found["field"] == "category"
    assert found["by"]["chat"]["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert found["score"] == pytest.approx((2 / 3 + 0) / 2)  # over categories, whatever their size
    assert found["subsets"]["b"]["accuracy"]["mean"] == 0.5
    assert validation.categories(logit(0.9), rows(1.0)) is None
    only = [row(i, family=f"f{i}", kind=Pair, slices={"subset": s}) for i, s in enumerate("ab")]
    assert validation.categories(logit(0.9, 0.1), only)["field"] == "subset"


def test_agreement_with_a_drawn_person_and_with_named_ones():
    soft = validation.people(logit(0.9, 0.1), rows(0.8, 0.6))
    assert soft["one_vote"] == {"model": pytest.approx((0.8 + 0.4) / 2), "majority": pytest.approx(0.7)}
    assert "by" not in soft
    asked = ({"role": "user", "content": "q"},)
    votes = [
        row(0, kind=Pair, annotator="ann", messages=asked, chosen="x", rejected="y", family="f"),
        row(1, kind=Pair, annotator="bob", messages=asked, chosen="y", rejected="x", family="f"),
        row(2, kind=Pair, annotator="cy", messages=asked, chosen="x", rejected="y", family="f"),
        row(3, kind=Pair, annotator="ann", chosen="x", rejected="y", family="g"),
    ]
    votes.append(row(4, kind=Pair, annotator="ann", messages=asked, chosen="x", rejected="y", family="f"))
    found = validation.people(logit(0.9, 0.1, 0.9, 0.1, 0.1), votes)
    assert found["by"]["ann"]["mean"] == pytest.approx(1 / 3)
    assert found["by"]["bob"]["mean"] == 0.0
    assert found["n_annotators"] == 3
    # ann's two votes agree with cy's, bob's agrees with nobody's, and ann is not compared with herself
    assert found["between"]["mean"] == pytest.approx(2 / 5)


def test_agreement_with_single_votes_of_a_snapshot():
    """Two rows, three people: the model is with ann twice, with bob once; a tie is nobody's side, and ann and bob part over one row."""
    some = [row(0, family="f", chosen="x", rejected="y"), row(1, family="g", chosen="x", rejected="y")]
    said = [(0, "ann", "chosen"), (1, "ann", "rejected"), (0, "bob", "chosen"), (1, "bob", "chosen"), (1, "cy", "tie")]
    votes = [VoteRow(some[i].preference_id, "c", name, choice, 1.0) for i, name, choice in said]
    votes.append(VoteRow("another row", "c", "dan", "chosen", 1.0))
    found = validation.people(logit(0.9, 0.1), some, votes)
    assert found["n_annotators"] == 3
    assert {name: one["mean"] for name, one in found["by"].items()} == {"ann": 1.0, "bob": 0.5, "cy": 0.5}
    assert found["by"]["cy"]["n"] == 0  # nothing is known of who only ties
    assert found["annotators"]["mean"] == pytest.approx(3 / 4)
    assert found["between"]["mean"] == pytest.approx(1 / 2)


def by_length(prompts, answers):
    return [np.array([float(len(text)) for text in texts]) for texts in answers]


def by_letter_a(prompts, answers):
    return [np.array([-float(text.count("e")) for text in texts]) for texts in answers]


def test_traps_find_a_model_that_likes_length():
    some = [row(i, family=f"f{i}", chosen="Twenty letters here.", rejected="Nineteen letters ok") for i in range(4)]
    found = validation.traps(by_length, some)
    assert found["verdict"] == "critical"
    assert found["reference"] == {"median": 19.5, "upper_quartile": 20.0}
    assert found["by"]["padded_10x"] == {"median": 209.0, "verdict": "critical", "above_chosen_fraction": 1.0}
    assert found["by"]["empty"] == {"median": 0.0, "verdict": "ok", "above_chosen_fraction": 0.0}
    assert found["by"]["one_repeated_token"]["verdict"] == "critical"


def test_traps_clear_a_model_that_they_do_not_fool():
    some = [row(i, family=f"f{i}", chosen="We do.", rejected="No way to do.") for i in range(4)]

    def likes_short_answers(prompts, answers):
        return [
            np.array([1.0 if text.endswith("do.") and len(text) < 20 else -1.0 for text in texts]) for texts in answers
        ]

    found = validation.traps(likes_short_answers, some)
    assert found["verdict"] == "ok"
    assert {entry["verdict"] for entry in found["by"].values()} == {"ok"}
    assert set(found["by"]) == set(validation.TRAPS)


def test_trap_texts_are_made_for_their_prompt():
    messages = [{"role": "user", "content": "Why is the kettle loud?"}, {"role": "assistant", "content": "x"}]
    found = validation.trap_texts(messages, "Because.")
    assert found["prompt_echo"] == "Why is the kettle loud?"
    assert found["padded_10x"].count("Because.") == 10
    assert found["keyword_stuffing"] == "kettle, loud, kettle, loud, kettle, loud"
    assert found["empty"] == ""


def test_ablation_names_the_sentence_that_counts():
    some = [
        row(0, chosen="One is here. Eee! None at all", family="a"),
        row(1, chosen="Only one sentence.", family="b"),
    ]
    (found,) = validation.ablate(by_letter_a, some, 5)
    assert found["id"] == "p0"
    assert [one["text"] for one in found["sentences"]] == ["One is here.", "Eee!", "None at all"]
    assert [one["change"] for one in found["sentences"]] == [
        -3.0,
        -2.0,
        -1.0,
    ]  # each letter e costs one ("Eee": E is another)
    assert found["score"] == -6.0
    assert validation.ablate(by_letter_a, some[1:], 5) == []


def test_picks_are_of_different_families_and_always_the_same():
    some = [row(i, family=f"f{i % 3}") for i in range(12)]
    found = validation.pick(some, 5)
    assert sorted(one.family for one in found) == ["f0", "f1", "f2"]
    assert found == validation.pick(some[::-1], 5)


def test_baselines_see_weights_only_where_asked():
    weighted, plain = (validation.as_pairs(rows(1.0), use) for use in (True, False))
    assert weighted.weight.tolist() == [2.0]
    assert plain.weight.tolist() == [1.0]


def test_a_report_beside_baselines_holds_their_paired_differences():
    train = [row(i, chosen="word " * 3, rejected="word", family=f"f{i}") for i in range(20)]
    held_out = [row(i, chosen="word " * 3, rejected="word", family=f"g{i}") for i in range(10)]
    found = validation.against_baselines(np.full(10, -1.0), held_out, train, True)
    assert found["baselines"]["length_only"]["accuracy"]["mean"] == 1.0
    assert found["difference"]["length_only"]["mean"] == -1.0
    assert set(found["difference"]) == {"length_only", "bag_of_words"}
