"""The PPO checklist of docs/training.md, a test (or several) for each of its sixteen lines; the line's number is in the name."""

import copy
from dataclasses import replace

import pytest
import torch

from plaudit.errors import ConfigError, TrainingStopped
from plaudit.learn import advantages, checkpoint, experience, losses, ppo
from plaudit.learn.configs import PPOConfig, from_dict
from plaudit.learn.rollout import Sampling, generate
from plaudit.learn.run_folder import Clock, RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer, Rollout, pack, response_logprobs


@pytest.fixture
def small(ppo_config):
    """A run of two quick steps."""
    return ppo_config | {
        "steps": 2,
        "sampling": {"prompts_per_step": 4, "samples_per_prompt": 3, "max_new_tokens": 10},
    }


def merged(config, changes):
    out = dict(config)
    for key, value in changes.items():
        out[key] = out.get(key, {}) | value if isinstance(value, dict) else value
    return out


def start(config, **changes):
    return ppo.start(from_dict(PPOConfig, merged(config, changes)))


def trained_for(config, folder, **changes):
    """Run a whole training; returns (metric rows, weights of the last state)."""
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    ppo.train(from_dict(PPOConfig, merged(config, changes)), run)
    state = checkpoint.load_state(run.state)
    return read_jsonl(run.metrics), state["trained"]


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "phases", "tokens_per_second")} for row in rows]


# --- tokens and masks -------------------------------------------------------------------------------------------------------


def test_line_01_masks_come_from_lengths_not_from_ids(small):
    learner = start(small)
    eos = learner.decoder.config.stop_ids[0]
    prompt = learner.prompts[0].ids
    rows = Rollout([prompt], [[97, eos, 98, eos], [eos], [0, 0, 99]], [0, 0, 0], [True, True, False])
    together = pack(rows)
    logprobs, counts, _ = response_logprobs(learner.decoder, None, together)
    assert counts.sum(1).tolist() == [4, 1, 3]
    alone = [response_logprobs(learner.decoder, None, pack(rows, [i]))[0][i] for i in range(3)]
    for i, length in enumerate((4, 1, 3)):
        torch.testing.assert_close(logprobs[i, :length], alone[i][:length], atol=1e-5, rtol=0)


def test_line_02_responses_stay_ids_from_sampler_to_loss(small, monkeypatch):
    learner = start(small)

    def refuse(*_, **__):
        raise AssertionError("text inside training")

    for name in ("encode", "decode", "render"):
        monkeypatch.setattr(ChatTokenizer, name, refuse)
    data = ppo.collect(learner, 1, Clock())
    for packs in data.seen.minibatches:
        for batch in packs:
            for i, index in enumerate(batch.response.tolist()):
                assert batch.targets[i][batch.counts[i]].tolist() == data.seen.rollout.response_ids[index]
    ppo.optimise(learner, data, 1)


def test_line_03_eos_counts_and_truncation_is_what_the_config_says(small):
    data = {}
    for how in ("none", "penalty", "mask", "bootstrap"):
        learner = start(small, truncation=how, whiten_advantages=False, missing_eos_penalty=0.75)
        learner.heads["value"].bias.data.fill_(2.0)
        data[how] = ppo.collect(learner, 1, Clock())
    none = data["none"].seen
    finished = none.finished
    assert finished.tolist() == none.rollout.finished
    assert 0 < finished.sum() < len(finished)
    stop = learner.decoder.config.stop_ids
    for ids, end in zip(none.rollout.response_ids, none.rollout.finished, strict=True):
        assert (ids[-1] in stop) == end
        assert not set(ids[:-1]) & set(stop)
    assert torch.equal(none.mask, none.counts)
    assert none.counts.sum(1).tolist() == [len(ids) for ids in none.rollout.response_ids]  # EOS included
    assert torch.equal(data["penalty"].seen.scores, none.scores - 0.75 * (~finished).float())
    assert torch.equal(data["mask"].seen.mask, none.counts & finished[:, None])
    # V is 2 everywhere, gamma = lambda = 1: bootstrapping adds exactly 2 to every advantage of a truncated response.
    extra = torch.where(none.counts & ~finished[:, None], 2.0, 0.0)
    torch.testing.assert_close(data["bootstrap"].advantages, data["none"].advantages + extra, atol=1e-5, rtol=0)


def test_line_04_passes_are_deterministic_and_permutations_have_a_saved_generator(small):
    learner = start(small)
    first, second = (
        ppo.old_pass(learner, [packs], None, counts, hold=False) for packs, counts in [_packs(learner)] * 2
    )
    assert torch.equal(first.logprobs, second.logprobs)
    state, learner.order = learner.generator.get_state(), []
    chosen = experience.next_prompts(learner)
    learner.generator.set_state(state)
    learner.order = []
    assert experience.next_prompts(learner) == chosen


def _packs(learner):
    sampled = experience.sample(learner.decoder, learner.adapter, learner.prompts[:4], 3, Sampling(10))
    return pack(sampled), sampled.counts()


# --- rollout ----------------------------------------------------------------------------------------------------------------


def test_line_05_one_temperature_everywhere(small):
    with pytest.raises(ConfigError, match="no field 'top_p'"):
        start(small, sampling={"top_p": 0.9})
    learner = start(small, sampling={"temperature": 0.6})
    prompts = [prompt.ids for prompt in learner.prompts[:2]]
    made = generate(learner.decoder, prompts, 3, Sampling(8, 0.6, seed=5))
    packs, counts = pack(made.rollout), made.rollout.counts()
    old = ppo.old_pass(learner, [packs], None, counts, hold=False)
    reference, _, _ = response_logprobs(learner.decoder, None, packs, None, 0.6)
    for i, sampled in enumerate(made.logprobs):
        torch.testing.assert_close(old.logprobs[i][counts[i]], torch.tensor(sampled), atol=1e-4, rtol=0)
    assert torch.equal(old.logprobs, reference)
    hot, _, _ = response_logprobs(learner.decoder, None, packs, None, 1.0)
    assert (hot - reference).abs().max() > 0.1  # the test would see another temperature


@pytest.mark.parametrize("held_packs", [0, 2])
@pytest.mark.parametrize("minibatches", [1, 3])
def test_line_06_kl_at_step_0_is_0_and_the_first_ratio_is_1(small, monkeypatch, held_packs, minibatches):
    monkeypatch.setattr(experience, "HELD_PACKS", held_packs)
    learner = start(small, minibatches=minibatches, compute={"micro_tokens": 60})
    data = ppo.collect(learner, 1, Clock())
    assert torch.equal(data.old.logprobs, data.seen.reference)
    assert ppo.describe(learner, data)["kl"] == 0.0
    assert bool(data.old.held) == (held_packs == 2 and len(data.seen.minibatches[0]) <= 2)
    _, worst = ppo.gradient(learner, data, data.seen.minibatches[0], data.old.held)
    assert worst == 0.0


def test_line_06_the_doctor_stops_a_run_that_starts_elsewhere(small):
    learner = start(small)
    learner.adapter.b["3:down_proj"].data.fill_(1e-4)
    with pytest.raises(TrainingStopped, match="KL at step 0 is not 0"):
        ppo.collect(learner, 1, Clock())


def test_line_06_the_doctor_stops_old_log_probs_from_another_graph(small, monkeypatch):
    monkeypatch.setattr(experience, "HELD_PACKS", 0)
    learner = start(small)
    data = ppo.collect(learner, 1, Clock())
    data.old.logprobs[0, 0] += 1e-6
    with pytest.raises(TrainingStopped, match="first ratio of step 1 is off 1"):
        ppo.optimise(learner, data, 1)


def test_line_07_the_reference_is_where_the_policy_started(small, tmp_path):
    trained_for(small, tmp_path / "first")
    learner = start(small, start=str(tmp_path / "first" / "checkpoint"))
    data = ppo.collect(learner, 1, Clock())
    assert torch.equal(data.old.logprobs, data.seen.reference)
    packs = [batch for part in data.seen.minibatches for batch in part]
    base, _, _ = response_logprobs(learner.decoder, None, packs, data.seen.trunk)
    assert (base - data.seen.reference).abs().max() > 1e-4  # the base is another policy
    reference = learner.reference.adapter
    before = copy.deepcopy(reference.state_dict())
    ppo.optimise(learner, data, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in reference.state_dict().items())


# --- rewards and advantages -------------------------------------------------------------------------------------------------


def test_line_08_three_tokens_by_hand():
    """Score 2 on the third of three tokens, KL .1 .2 .3 at coefficient .5; the fourth column is padding."""
    mask = torch.tensor([[True, True, True, False]])
    kl = torch.tensor([[0.1, 0.2, 0.3, 7.0]])
    rewards = advantages.token_rewards(torch.tensor([2.0]), kl, mask, 0.5)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, -0.10, 1.85, 0.0]]))


def test_line_09_scores_in_the_references_units_and_estimators_signs(small):
    learner = start(small)
    data = ppo.collect(learner, 1, Clock()).seen
    doubled = start(small)
    members = doubled.reward.parts["model"]
    (model,) = members.models
    doubled.reward.parts["model"] = replace(members, models=(replace(model, sd=model.sd * 2),))
    torch.testing.assert_close(ppo.collect(doubled, 1, Clock()).seen.scored.total * 2, data.scored.total)
    clipped = ppo.collect(start(small, score_clip=0.1), 1, Clock()).seen
    assert clipped.scores.abs().max() <= 0.1 < data.scores.abs().max()
    running = ppo.collect(start(small, running_normaliser=True), 1, Clock()).seen
    assert float(running.scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(running.scores.std()) == pytest.approx(1, abs=1e-5)
    p, q = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert losses.kl_k1(p, q).min() < 0
    assert losses.kl_k3(p, q).min() >= 0


def test_line_10_returns_come_before_whitening_and_whitening_covers_the_rollout(small):
    plain = ppo.collect(start(small, whiten_advantages=False, lam=0.95), 1, Clock())
    white = ppo.collect(start(small, lam=0.95), 1, Clock())
    torch.testing.assert_close(white.returns, plain.returns)
    values = plain.old.columns["values"]
    torch.testing.assert_close(plain.returns, torch.where(plain.seen.counts, plain.advantages + values, 0.0))
    flat = white.advantages[white.seen.mask]
    assert float(flat.mean()) == pytest.approx(0, abs=1e-5)
    assert float(flat.var(unbiased=False)) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(white.advantages, advantages.whiten(plain.advantages, plain.seen.mask, shift_mean=True))


def test_line_11_values_come_from_the_position_that_predicts(small):
    learner = start(small)
    learner.heads["value"].weight.data.normal_(generator=torch.Generator().manual_seed(0))
    prompt = learner.prompts[0].ids
    rows = Rollout([prompt], [[97, 98, 99], [97, 120, 99]], [0, 0], [False, False])
    values = ppo.old_pass(learner, [pack(rows)], None, rows.counts(), hold=False).columns["values"]
    torch.testing.assert_close(values[0, :2], values[1, :2], atol=1e-4, rtol=0)  # before the token that differs
    assert abs(float(values[0, 2] - values[1, 2])) > 1e-2


# --- loss -------------------------------------------------------------------------------------------------------------------


def test_line_12_micro_batches_give_one_gradient(small):
    gradients = []
    for tokens in (10_000, 120, 40):
        learner = start(small, compute={"micro_tokens": tokens}, value_detach=False)
        learner.adapter.b["2:o_proj"].data.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
        learner.reference = replace(learner.reference, adapter=copy.deepcopy(learner.adapter).requires_grad_(False))
        learner.heads["value"].weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        data = ppo.collect(learner, 1, Clock())
        ppo.gradient(learner, data, data.seen.minibatches[0], data.old.held)
        gradients.append((len(data.seen.minibatches[0]), [p.grad.clone() for p in learner.adam.parameters]))
    assert gradients[0][0] == 1 < gradients[1][0] < gradients[2][0]
    for _, other in gradients[1:]:
        for a, b in zip(gradients[0][1], other, strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-3)


def test_line_13_epochs_stop_on_kl_and_far_minibatches_are_skipped(small):
    learner = start(small, epochs=6, target_approx_kl=1e-5)
    row = ppo.optimise(learner, ppo.collect(learner, 1, Clock()), 1)
    assert row["early_stop"]
    assert 0 < row["updates"] < 6
    learner = start(small, epochs=3, target_approx_kl=None)
    data = ppo.collect(learner, 1, Clock())
    learner.adapter.b["3:down_proj"].data.fill_(0.5)  # the policy jumped: what was sampled says nothing about it
    data.old.held.clear()
    data.old.logprobs.sub_(5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experience.doctor, "check_first_ratio", lambda *_: None)
        before = copy.deepcopy(learner.adapter.state_dict())
        row = ppo.optimise(learner, data, 1)
    assert (row["skipped"], row["updates"]) == (3, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.adapter.state_dict().items())


def test_line_14_rates_clip_and_adaptive_kl_reach_the_run(small, tmp_path):
    rows, _ = trained_for(small, tmp_path / "a", kl={"target": 1e-6, "horizon": 12.0, "coef": 0.02}, steps=3)
    # From step 2 on KL is far above the target: the coefficient grows by .2 * 12 / 12 a step.
    assert rows[0]["kl_coef"] == rows[0]["kl"] + 0.02 == 0.02
    assert rows[1]["kl_coef"] == pytest.approx(0.02 * 0.8)  # KL 0 at step 1: the clip at -.2
    sign = 1.2 if rows[1]["kl"] > 0 else 0.8
    assert rows[2]["kl_coef"] == pytest.approx(0.02 * 0.8 * sign)
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates == pytest.approx([5e-3 * factor for factor in (1.0, 3 / 5, 1 / 5)], rel=0.35)
    assert rates[0] > rates[1] > rates[2]


FLAGS = [
    {"seed": 1},
    {"lora": {"rank": 4}},
    {"lora": {"alpha": 4.0}},
    {"lora": {"targets": ["o_proj"]}},
    {"first_layer": 2},
    {"steps": 2},
    {"sampling": {"prompts": "preferences"}},
    {"sampling": {"prompts_per_step": 3}},
    {"sampling": {"samples_per_prompt": 2}},
    {"sampling": {"max_new_tokens": 5}},
    {"sampling": {"max_prompt_tokens": 4}},
    {"sampling": {"temperature": 0.7}},
    {"kl": {"coef": 0.5}},
    {"kl": {"target": 1.0, "horizon": 10.0}},
    {"kl": {"budget": 1e-9}},
    {"epochs": 1},
    {"minibatches": 2},
    {"clip": 1e-4},
    {"dual_clip": 1.0001},
    {"value_coef": 0.7},
    {"value_clip": 1e-4},
    {"value_detach": False},
    {"critic": "reward"},
    {"gamma": 0.5},
    {"lam": 0.5},
    {"whiten_advantages": False},
    {"whiten_rewards": True},
    {"score_clip": 0.1},
    {"running_normaliser": True},
    {"truncation": "penalty"},
    {"truncation": "mask"},
    {"truncation": "bootstrap"},
    {"truncation": "penalty", "missing_eos_penalty": 3.0},
    {"target_approx_kl": 1e-7},
    {"entropy": True},
    {"optimizer": {"learning_rate": 1e-4}},
    {"optimizer": {"head_learning_rate": 1e-4}},
    {"optimizer": {"weight_decay": 0.5}},
    {"optimizer": {"warmup_fraction": 0.6}},
    {"optimizer": {"schedule": "constant"}},
    {"optimizer": {"max_grad_norm": 1e-3}},
    {"optimizer": {"adam_eps": 1.0}},
    {"optimizer": {"beta1": 0.5}},
    {"optimizer": {"beta2": 0.5}},
    {"compute": {"dtype": "bfloat16"}},
]


@pytest.fixture(scope="session")
def stock(ppo_config, tmp_path_factory):
    """The run that every flag is compared with, on few and short samples."""
    config = ppo_config | {
        "steps": 1,
        "epochs": 3,
        "score_clip": 50.0,
        "sampling": {"prompts_per_step": 4, "samples_per_prompt": 3, "max_new_tokens": 8},
        "value_clip": 0.5,
        "kl": {"coef": 0.02, "budget": None},
    }
    folder = tmp_path_factory.mktemp("flags")
    rows, weights = trained_for(config, folder / "stock")
    return config, effects(rows), weights


def effects(rows):
    """Rows without what merely repeats the config."""
    return [{k: v for k, v in row.items() if k not in ("kl_coef", "of")} for row in without_times(rows)]


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS, ids=str)
def test_line_15_every_accepted_flag_acts(stock, tmp_path, flag):
    """A flag that is accepted and ignored gives the stock run again, bit for bit."""
    config, rows, weights = stock
    new_rows, new_weights = trained_for(config, tmp_path / "run", **flag)
    same_weights = new_weights.keys() == weights.keys() and all(
        torch.equal(new_weights[name], weights[name])
        for name in weights
        if new_weights[name].shape == weights[name].shape
    )
    assert not (same_weights and effects(new_rows) == rows)


def test_line_15_no_flag_is_left_out_of_that_test():
    from plaudit.learn.configs import describe

    inputs = {"snapshot", "base", "bases", "reward", "start"}  # `start` is line 7
    layout = {"compute.threads", "compute.micro_tokens", "compute.save_every"}  # must not change results (line 12, 16)
    groups = {"lora", "sampling", "kl", "optimizer", "compute", "guards"}
    known = {name for name, _, _ in describe(PPOConfig)} - inputs - layout - groups
    # Guards look and do not train: what they do is in test_guards.py and test_guards_learning.py.
    known -= {name for name in known if name.startswith("guards.")} | {"kl.base_budget"}
    known -= {name for name in known if name.partition(".")[0] == "rollout"}  # test_rollout_server_learning.py
    tried = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for flag in FLAGS
        for key, value in flag.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert tried - {"kl.horizon"} == known - {"kl.horizon"}


def test_line_15_dtype_is_what_was_asked(small):
    assert start(small).decoder.dtype == torch.float32
    learner = start(small, compute={"dtype": "bfloat16"})
    assert learner.decoder.layer(0).qkv.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in learner.adapter.parameters())
    data = ppo.collect(learner, 1, Clock())  # the doctor's KL = 0 holds in bf16 too
    assert data.old.logprobs.dtype == torch.float32


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_line_16_stopped_and_resumed_is_uninterrupted_bit_for_bit(small, tmp_path, stop_after, monkeypatch):
    changes = {"steps": 3, "kl": {"target": 0.5, "horizon": 50.0}, "running_normaliser": True, "minibatches": 2}
    rows, weights = trained_for(small, tmp_path / "whole", **changes)
    log = RunFolder.log

    def killed(self, step, *rest, **named):
        row = log(self, step, *rest, **named)
        if step == stop_after + 1:
            raise KeyboardInterrupt  # after the step's work, before its state is saved
        return row

    monkeypatch.setattr(RunFolder, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        trained_for(small, tmp_path / "cut", **changes)
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "checkpoint").exists()
    again, resumed = trained_for(small, tmp_path / "cut", **changes)
    assert without_times(again) == without_times(rows)
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    files = [tmp_path / name / "checkpoint" / "adapter_model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
