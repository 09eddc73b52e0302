"""Terms alone and together: what the sum is can be worked out by hand."""

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plaudit.errors import BadInput, ConfigError, NotFound, TrainingStopped
from plaudit.learn import base_models, checkpoint
from plaudit.learn.composed import ComposedReward, combine
from plaudit.learn.configs import (
    FunctionTerm,
    HttpTerm,
    LengthTerm,
    ModelTerm,
    RegexTerm,
    RequireTerm,
)
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.rewards import RewardModel, score_responses
from plaudit.learn.tokens import ChatTokenizer, from_text, pack, run_trunk

ASKED = [[{"role": "user", "content": "first?"}], [{"role": "user", "content": "second?"}]]
TEXTS = [["yes please", "no"], ["please 12", "never ever 7"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def decoder(base):
    return Decoder.load(base, torch.float32)


@pytest.fixture(scope="module")
def tokenizer(base):
    return ChatTokenizer.load(base)


@pytest.fixture(scope="module")
def rollout(tokenizer):
    return from_text(tokenizer, ASKED, TEXTS, [[True, False], [True, True]])


@pytest.fixture(scope="module")
def members(base, decoder, tmp_path_factory):
    """Three reward Checkpoints: head seeds, first layers, spreads."""
    parent, folders = tmp_path_factory.mktemp("rewards"), []
    for seed, (first_layer, sd) in enumerate([(1, 1.0), (1, 2.0), (3, 0.5)]):
        adapter = Adapter(decoder.config, 4, 8.0, first_layer, ["o_proj"], seed=seed)
        with torch.no_grad():
            for weight in adapter.b.values():
                weight.normal_(generator=torch.Generator().manual_seed(seed))
        model = RewardModel(decoder, adapter, ScalarHead(64, seed=seed), "mean", first_layer, sd, read_layer=4)
        checkpoint.save_reward(parent / f"r{seed}", model, base, {}, {})
        folders.append(str(parent / f"r{seed}"))
    return folders


@pytest.fixture
def load(base, decoder, tokenizer):
    def made(config, environ=None):
        return ComposedReward.load(config, base, decoder, tokenizer, environ)

    return made


@pytest.fixture
def score(decoder, rollout):
    def made(composed, of=rollout, messages=ASKED):
        trunks = {depth: run_trunk(decoder, of, depth) if depth else None for depth in composed.depths}
        return composed.score(of, pack(of), trunks, messages)

    return made


def by_hand(folder, base, decoder, rollout):
    model = checkpoint.load_reward(base=base, decoder=decoder, folder=folder)
    return score_responses(model, pack(rollout), None) / model.sd


# --- models -----------------------------------------------------------------------------------------------------------------


def test_a_folder_alone_is_that_models_score_bit_for_bit(load, score, members, base, decoder, rollout):
    composed = load(members[1])
    assert composed.depths == (1,)
    found = score(composed)
    model = checkpoint.load_reward(base=base, decoder=decoder, folder=Path(members[1]))
    alone = score_responses(model, pack(rollout), run_trunk(decoder, rollout, 1)) / 2.0
    assert torch.equal(found.total, alone)
    assert torch.equal(found.terms["model"], alone)
    assert found.disagreement is None
    assert composed.parents() == {"reward": members[1]}


def test_closed_forms_of_an_ensemble():
    scores = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 6.0]])
    assert combine(scores, "mean", 1.0).tolist() == [2, 2, 3]
    assert combine(scores, "minimum", 1.0).tolist() == [1, 2, 0]
    assert combine(scores, "mean_minus_sd", 1.0).tolist() == [1, 2, 0]  # two members: the minimum
    assert combine(scores, "mean_minus_sd", 2.0).tolist() == [0, 2, -3]
    three = torch.tensor([[0.0], [0.0], [3.0]])
    assert float(combine(three, "mean_minus_sd", 1.0)) == pytest.approx(1 - math.sqrt(2))


@pytest.mark.parametrize("how", ["mean", "minimum", "mean_minus_sd"])
def test_an_ensemble_combines_members_each_in_its_own_units(load, score, members, base, decoder, rollout, how):
    composed = load((ModelTerm(name="judge", checkpoints=tuple(members), combine=how),))
    assert composed.depths == (1, 3)
    found = score(composed)
    alone = torch.stack([by_hand(Path(folder), base, decoder, rollout) for folder in members])
    mean, sd = alone.mean(0), ((alone - alone.mean(0)) ** 2).mean(0).sqrt()
    expected = {"mean": mean, "minimum": alone.amin(0), "mean_minus_sd": mean - sd}[how]
    torch.testing.assert_close(found.total, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.disagreement, sd, atol=1e-4, rtol=0)
    assert (sd > 1e-2).all()
    assert composed.parents() == {"reward": members[0], "reward_2": members[1], "reward_3": members[2]}


def test_the_members_of_an_ensemble_checkpoint_count_as_members(load, score, members, base, decoder, rollout, tmp_path):
    models = [checkpoint.load_reward(Path(folder), base, decoder) for folder in members[:2]]
    together = replace(models[0], sd=1.25, members=tuple(models))
    checkpoint.save_reward(tmp_path / "e", together, base, {}, {})
    folder = str(tmp_path / "e")
    alone = torch.stack([by_hand(Path(folder), base, decoder, rollout) for folder in members[:2]])
    found = score(load(folder))
    # As `score` says it: the mean of raw scores over the ensemble's spread; the members' spreads are 1 and 2.
    torch.testing.assert_close(found.total, (alone[0] + 2 * alone[1]) / 2 / 1.25, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.total, by_hand(tmp_path / "e", base, decoder, rollout), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.disagreement, (alone[0] - alone[1]).abs() / 2, atol=1e-4, rtol=0)
    least = score(load((ModelTerm(name="judge", checkpoints=(folder,), combine="minimum"),)))
    torch.testing.assert_close(least.total, alone.amin(0), atol=1e-4, rtol=0)


def test_of_several_ensembles_the_larger_disagreement_counts(load, score, members):
    one = ModelTerm(name="one", checkpoints=(members[0], members[1]))
    two = ModelTerm(name="two", checkpoints=(members[1], members[2]), weight=0.1)
    alone = [score(load((term,))).disagreement for term in (one, two)]
    assert torch.equal(score(load((one, two))).disagreement, torch.maximum(*alone))
    assert (alone[0] > alone[1]).any() or (alone[1] > alone[0]).any()


def test_one_model_is_no_ensemble(load, members):
    with pytest.raises(ConfigError, match="'judge' combines its members by 'minimum'"):
        load((ModelTerm(name="judge", checkpoints=(members[0],), combine="minimum"),))


def test_what_cannot_be_loaded_is_a_sentence(load, base, decoder, tmp_path):
    with pytest.raises(NotFound):
        load(str(tmp_path / "nothing"))
    checkpoint.save_policy(tmp_path / "p", Adapter(decoder.config, 4, 8.0, 1, ["o_proj"], seed=0), base, {}, {})
    with pytest.raises(BadInput, match="is a policy Checkpoint"):
        load(str(tmp_path / "p"))
    with pytest.raises(ConfigError, match="cannot be imported"):
        load("no_such_module_here:f")
    with pytest.raises(ConfigError, match="TOKEN is not set"):
        load((HttpTerm(name="remote", url="http://localhost", token_variable="TOKEN"),), {})


# --- the sum ----------------------------------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_of_terms_that_are_told_apart(load, score):
    composed = load(
        (
            RequireTerm(name="please", phrases=("please",), weight=2.0),
            RegexTerm(name="digits", pattern=r"\d", weight=-0.5),
            LengthTerm(name="short", high=1, unit="words", scale=1.0, weight=0.0),
        )
    )
    assert composed.depths == ()
    found = score(composed)
    assert {name: values.tolist() for name, values in found.terms.items()} == {
        "please": [1, 0, 1, 0],
        "digits": [0, 0, 1, 1],
        "short": [-1, 0, -1, -2],
    }
    assert found.total.tolist() == [2.0, 0.0, 1.5, -0.5]
    assert found.disagreement is None


def test_a_term_is_clipped_before_it_is_weighted(load, score):
    found = score(load((LengthTerm(name="short", high=1, unit="words", scale=0.5, weight=3.0, clip=2.5),)))
    assert found.terms["short"].tolist() == [-2, 0, -2, -2.5]
    assert found.total.tolist() == [-6, 0, -6, -7.5]


def test_a_model_and_rules_add_up(load, score, members, base, decoder, rollout):
    model = ModelTerm(name="judge", checkpoints=(members[0],), weight=0.5)
    found = score(load((model, RegexTerm(name="digits", pattern=r"\d"))))
    alone = by_hand(Path(members[0]), base, decoder, rollout)
    expected = 0.5 * alone + torch.tensor([0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(found.total, expected, atol=1e-4, rtol=0)


# --- the normaliser ---------------------------------------------------------------------------------------------------------

# Words over 1, halved: values 0.5, 0, 0.5, 1 times -1, so mean -1/2 and population sd sqrt(1/8).
NORMALISED = LengthTerm(name="short", high=1, unit="words", scale=2.0, normalise="reference")


def test_the_first_rollout_sets_the_normaliser_and_later_ones_use_it(load, score, tokenizer):
    composed = load((NORMALISED,))
    root = math.sqrt(1 / 8)
    assert score(composed).total.tolist() == pytest.approx([0, 0.5 / root, 0, -0.5 / root])
    assert composed.normaliser == {"short": (pytest.approx(-0.5), pytest.approx(root))}
    later = from_text(tokenizer, ASKED[:1], [["one two three four five"]])
    assert score(composed, later, ASKED[:1]).total.tolist() == pytest.approx([-1.5 / root])  # -2 is 1.5 below the mean
    assert composed.normaliser == {"short": (pytest.approx(-0.5), pytest.approx(root))}


def test_clipping_comes_after_normalising(load, score):
    composed = load((LengthTerm(name="short", high=1, unit="words", scale=2.0, normalise="reference", clip=1.0),))
    assert score(composed).total.tolist() == pytest.approx([0, 1, 0, -1])


def test_a_term_that_is_constant_at_first_is_centred_only(load, score, tokenizer):
    composed = load((RegexTerm(name="x", pattern="e|o", normalise="reference"),))  # in every text: 1
    assert score(composed).total.tolist() == [0, 0, 0, 0]
    assert score(composed, from_text(tokenizer, ASKED[:1], [["aaa"]]), ASKED[:1]).total.tolist() == [-1]


def test_a_resumed_run_goes_on_with_the_saved_normaliser(load, score, tokenizer, tmp_path):
    first = load((NORMALISED,))
    score(first)
    checkpoint.save_state(tmp_path, {"reward": first.state()})
    again = load((NORMALISED,))
    again.restore(checkpoint.load_state(tmp_path)["reward"])
    later = from_text(tokenizer, ASKED[:1], [["one two three", "one"]])
    assert torch.equal(score(again, later, ASKED[:1]).total, score(first, later, ASKED[:1]).total)
    assert again.normaliser == first.normaliser


# --- lineage ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module with a reward function, and a way to change it."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_of_{tmp_path.name}"

    def write(body):
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text(f"def f(messages, responses, token_ids, meta):\n    {body}\n")
        importlib.invalidate_caches()
        return f"{name}:f"

    yield write
    sys.modules.pop(name, None)


def test_a_function_alone_is_the_reward(load, score, own):
    found = score(load(own("return [len(r) - len(m[0]['content']) for r, m in zip(responses, messages)]")))
    assert found.total.tolist() == [10 - 6, 2 - 6, 9 - 7, 12 - 7]
    with pytest.raises(TrainingStopped, match=r"nan for response 0, 'yes please', to 'first\?'"):
        score(load(own("return [float('nan')] * len(responses)")))


def test_the_lineage_says_what_the_reward_was_and_keeps_secrets(load, members, own):
    function = own("return [0.0]")
    terms = (
        ModelTerm(name="judge", checkpoints=(members[0], members[1]), combine="mean_minus_sd", sd_coef=0.5),
        FunctionTerm(name="mine", function=function, weight=2.0),
        HttpTerm(name="remote", url="https://host/score?key=s3cret", token_variable="TOKEN"),
        RegexTerm(name="digits", pattern=r"\d", clip=1.0),
    )
    composed = load(terms, {"TOKEN": "hush"})
    judge, mine, remote, digits = composed.lineage()["terms"]
    assert judge["checkpoints"] == [checkpoint._id_of(folder) for folder in members[:2]]
    assert all(len(one) == 64 for one in [*judge["checkpoints"], mine["source_sha256"]])
    assert (judge["combine"], judge["sd_coef"], mine["weight"]) == ("mean_minus_sd", 0.5, 2.0)
    assert (remote["url"], digits["pattern"], digits["clip"]) == ("https://host/score", r"\d", 1.0)
    for secret in ("s3cret", "hush", str(members[0])):
        assert secret not in str(composed.lineage())
        assert secret == "hush" or secret in str(terms)


def test_a_function_that_changed_does_not_resume(load, own):
    before = load(own("return [0.0]")).state()
    load(own("return [0.0]")).restore(before)
    with pytest.raises(ConfigError, match="'function' changed since this run began: source_sha256"):
        load(own("return [1.0]")).restore(before)


# --- beginnings -------------------------------------------------------------------------------------------------------------


def test_a_whole_responses_prefix_score_is_the_model_terms_part_of_the_total(load, score, members, decoder, rollout):
    """Two Checkpoints with a weight beside a rule: the rule says nothing of a beginning, the models what they say of the whole."""
    models = ModelTerm(name="people", checkpoints=(members[0], members[2]), weight=0.5)
    composed = load((models, LengthTerm(name="short", high=2, weight=3.0)))
    trunks = {depth: run_trunk(decoder, rollout, depth) for depth in composed.depths}
    prefix = composed.prefix_scores(pack(rollout), trunks)
    whole = prefix.gather(1, rollout.lengths()[:, None] - 1).squeeze(1)
    torch.testing.assert_close(whole, 0.5 * score(composed).terms["people"], atol=1e-5, rtol=0)
    assert composed.reads_prefixes
    assert not load((LengthTerm(name="short", high=2),)).reads_prefixes
