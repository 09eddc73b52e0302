"""The group-baseline family raises a known reward on the tiny policy in seconds and holds its KL; with the sign turned it does the opposite."""

import copy
import json

import pytest
import torch

from plaudit.artifacts import read_manifest
from plaudit.errors import TrainingStopped
from plaudit.learn import checkpoint, experience, grpo
from plaudit.learn.configs import GRPOConfig, describe, from_dict
from plaudit.learn.run_folder import Clock, RunFolder, read_jsonl
from plaudit.learn.tokens import response_logprobs

# The known reward is a function of one's own: no model stands between the rule and what is learned.
LETTERS = """
def share(messages, responses, token_ids, meta):
    return [5 * sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in responses]
"""


@pytest.fixture(scope="module", autouse=True)
def letters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_letters.py").write_text(LETTERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.fixture(scope="session")
def grpo_config(tiny, make_snapshot):
    return {
        "snapshot": str(make_snapshot(n=60)),
        "base": str(tiny),
        "reward": "own_letters:share",
        "compute": {"threads": 2, "dtype": "float32"},
        "first_layer": 1,
        "lora": {"rank": 8, "alpha": 16},
        "steps": 6,
        "truncation": "none",
        "sampling": {"prompts_per_step": 6, "samples_per_prompt": 6, "max_new_tokens": 12},
        "optimizer": {"learning_rate": 1e-2},
        "kl": {"coef": 0.02, "budget": None},
    }


def merged(config, changes):
    out = dict(config)
    for key, value in changes.items():
        out[key] = out.get(key, {}) | value if isinstance(value, dict) else value
    return out


def train(config, folder, **changes):
    """(result, metric rows, weights of the last state)"""
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    result = grpo.train(from_dict(GRPOConfig, merged(config, changes)), run)
    return result, read_jsonl(run.metrics), checkpoint.load_state(run.state)["trained"]


def start(config, **changes):
    return grpo.start(from_dict(GRPOConfig, merged(config, changes)))


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "phases", "tokens_per_second")} for row in rows]


MEMBERS = {
    "rloo": {},
    "grpo": {"baseline": "group_mean_sd", "loss_norm": "sequence", "kl_in": "loss", "epochs": 2, "minibatches": 2},
    "dr_grpo": {"baseline": "group_mean", "loss_norm": "constant"},
    "reinforce++": {"baseline": "batch"},
}


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_raises_a_known_reward(grpo_config, tmp_path, member, tiny):
    result, rows, _ = train(grpo_config, tmp_path / "run", **MEMBERS[member])
    assert result["stop"] == "end"
    assert result["score"] > result["score_first"] + 0.5
    assert rows[0]["kl"] == 0.0
    assert result["kl"] == rows[-1]["kl"] == result["curve"][-1]["kl"]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    body = read_manifest(tmp_path / "run" / "checkpoint", "checkpoint").body
    assert body["checkpoint_kind"] == "policy"
    assert checkpoint.load_value_head(tmp_path / "run" / "checkpoint", tiny) is None
    (term,) = result["reward"]["terms"]
    assert len(term["source_sha256"]) == 64


def test_a_wrong_sign_fails(grpo_config, tmp_path):
    """Negative control: against minus the reward the same run loses what it is scored by."""
    minus = {"kind": "function", "name": "letters", "function": "own_letters:share", "weight": -1.0}
    _, rows, _ = train(grpo_config, tmp_path / "run", reward=[minus])
    assert rows[-1]["term_letters"] < rows[0]["term_letters"] - 0.3
    assert rows[0]["score"] == -rows[0]["term_letters"]


def test_a_penalty_holds_the_kl_wherever_it_acts(grpo_config, tmp_path):
    free, _, _ = train(grpo_config, tmp_path / "free", kl={"coef": 0.0})
    for where in ("reward", "loss"):
        held, _, _ = train(grpo_config, tmp_path / where, kl={"coef": 1.0}, kl_in=where)
        assert held["kl"] < 0.5 * free["kl"], where


def test_the_kl_budget_is_held(grpo_config, tmp_path):
    result, rows, weights = train(grpo_config, tmp_path / "run", kl={"coef": 0.0, "budget": 0.4})
    assert result["stop"] == "budget"
    assert result["kl"] == rows[-2]["kl"] <= 0.4 < rows[-1]["kl"]
    state = checkpoint.load_state(tmp_path / "run" / "state")
    assert all(torch.equal(weights[name], state["kept"][name]) for name in weights)


# --- the step ---------------------------------------------------------------------------------------------------------------


def test_on_policy_the_ratio_is_1_and_nothing_is_clipped(grpo_config, tmp_path):
    _, rows, _ = train(grpo_config, tmp_path / "run", steps=2)
    for row in rows[:-1]:
        assert row["clip_fraction"] == row["approx_kl"] == row["kl_loss"] == 0.0
        assert row["updates"] == 1
    _, rows, _ = train(grpo_config, tmp_path / "off", steps=2, epochs=3, clip=0.01)
    assert rows[0]["updates"] == 3
    assert rows[0]["clip_fraction"] > 0
    assert rows[0]["approx_kl"] > 0


def test_the_doctor_stops_a_policy_that_does_not_start_at_its_reference(grpo_config):
    learner = start(grpo_config)
    learner.adapter.b["3:down_proj"].data.fill_(1e-4)
    with pytest.raises(TrainingStopped, match="KL at step 0 is not 0"):
        grpo.collect(learner, 1, Clock())


def test_kl_in_the_loss_leaves_the_reward_alone(grpo_config):
    for where in ("reward", "loss"):
        learner = start(grpo_config, kl_in=where, kl={"coef": 0.5})
        data = grpo.collect(learner, 1, Clock())
        grpo.optimise(learner, data, 1)
        data = grpo.collect(learner, 2, Clock())
        sums = data.rewards.sum(dim=1)
        penalised = (sums - data.seen.scores).abs().max() > 1e-3
        assert penalised == (where == "reward")
        figures, _ = grpo.gradient(learner, data, data.seen.minibatches[0], data.old.held)
        kl = torch.where(data.seen.counts, grpo.losses.kl_k3(data.old.logprobs, data.seen.reference), 0.0)
        expected = 0.5 * float(kl.sum() / data.seen.counts.sum()) if where == "loss" else 0.0
        assert figures["kl_loss"] == pytest.approx(expected, rel=1e-5)


def test_truncated_responses_are_left_out_or_penalised(grpo_config):
    plain = grpo.collect(start(grpo_config), 1, Clock())
    assert 0 < plain.seen.finished.sum() < len(plain.seen.finished)
    masked = grpo.collect(start(grpo_config, truncation="mask"), 1, Clock())
    assert masked.advantages[~masked.seen.finished].abs().max() == 0
    whole = masked.seen.finished[:, None].expand_as(plain.advantages)
    assert torch.equal(masked.advantages[whole], plain.advantages[whole])  # they still are part of the baseline
    penalised = grpo.collect(start(grpo_config, truncation="penalty", missing_eos_penalty=0.75), 1, Clock())
    assert torch.equal(penalised.seen.scores, plain.seen.scores - 0.75 * (~plain.seen.finished).float())


def test_the_spread_within_groups_is_told(grpo_config):
    learner = start(grpo_config, reward=[{"kind": "length", "name": "any", "high": 1000}])
    row = grpo.describe(learner, grpo.collect(learner, 1, Clock()))
    assert (row["group_sd"], row["flat_group_fraction"]) == (0.0, 1.0)
    learner = start(grpo_config)
    data = grpo.collect(learner, 1, Clock())
    row = grpo.describe(learner, data)
    groups = data.seen.scored.total.view(6, 6)
    assert row["group_sd"] == pytest.approx(float(groups.std(dim=1).mean()), rel=1e-5)
    assert row["flat_group_fraction"] < 1


# --- invariance -------------------------------------------------------------------------------------------------------------


def gradient_of(learner, data):
    grpo.gradient(learner, data, data.seen.minibatches[0], data.old.held)
    return [p.grad.clone() for p in learner.adam.parameters]


@pytest.mark.parametrize("norm", ["token", "sequence", "constant"])
def test_micro_batches_give_one_gradient(grpo_config, norm):
    gradients = []
    for tokens in (10_000, 250, 40):
        learner = start(grpo_config, compute={"micro_tokens": tokens}, loss_norm=norm, kl_in="loss")
        learner.adapter.b["2:o_proj"].data.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
        data = grpo.collect(learner, 2, Clock())
        gradients.append((len(data.seen.minibatches[0]), gradient_of(learner, data)))
    assert gradients[0][0] == 1 < gradients[1][0] < gradients[2][0]
    for _, other in gradients[1:]:
        for a, b in zip(gradients[0][1], other, strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-3)


def test_the_order_of_prompts_does_not_matter(grpo_config, monkeypatch):
    learner = start(grpo_config, baseline="group_mean_sd")
    learner.adapter.b["2:o_proj"].data.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    prompts = experience.next_prompts(learner)
    sampled = experience.sample(learner.decoder, learner.adapter, prompts, 6, experience.Sampling(12, seed=3))
    gradients = []
    for order in (range(6), (4, 0, 5, 2, 1, 3)):
        moved = copy.copy(learner)
        members = [i for g in order for i in range(6 * g, 6 * g + 6)]
        rollout = experience.Rollout(
            [sampled.prompt_ids[g] for g in order],
            [sampled.response_ids[i] for i in members],
            sampled.group,
            [sampled.finished[i] for i in members],
        )
        monkeypatch.setattr(experience, "next_prompts", lambda _, order=order: [prompts[g] for g in order])
        monkeypatch.setattr(experience, "sample", lambda *_, rollout=rollout: rollout)
        gradients.append(gradient_of(moved, grpo.collect(moved, 2, Clock())))
        moved.adam.clear()
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-4
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"minibatches": 2, "epochs": 2, "kl": {"target": 0.5, "horizon": 50.0}}])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(grpo_config, tmp_path, monkeypatch, changes):
    term = {"kind": "function", "name": "letters", "function": "own_letters:share", "normalise": "reference"}
    changes = changes | {"steps": 3, "reward": [term], "running_normaliser": True}
    _, rows, weights = train(grpo_config, tmp_path / "whole", **changes)
    log = RunFolder.log

    def killed(self, step, *rest, **named):
        row = log(self, step, *rest, **named)
        if step == 3:
            raise KeyboardInterrupt  # after the step's work, before its state is saved
        return row

    monkeypatch.setattr(RunFolder, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        train(grpo_config, tmp_path / "cut", **changes)
    monkeypatch.undo()
    _, again, resumed = train(grpo_config, tmp_path / "cut", **changes)
    assert without_times(again) == without_times(rows)
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


# --- every accepted flag acts (checklist 15) ------------------------------------------------------------------------------------

OFF_POLICY = {"epochs": 2}  # what clips needs a ratio
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
    {"kl": {"coef": 0.5}, **OFF_POLICY},
    {"kl": {"target": 1.0, "horizon": 10.0}, "steps": 3},
    {"kl": {"budget": 1e-9}, "steps": 3},
    {"epochs": 3},
    {"minibatches": 2},
    {"clip": 1e-4, **OFF_POLICY},
    {"dual_clip": 1.0001, **OFF_POLICY},
    {"target_approx_kl": 1e-7, **OFF_POLICY},
    {"baseline": "group_mean"},
    {"baseline": "group_mean_sd"},
    {"baseline": "batch"},
    {"kl_in": "loss", "steps": 2},
    {"loss_norm": "sequence"},
    {"loss_norm": "constant"},
    {"score_clip": 0.1},
    {"running_normaliser": True},
    {"truncation": "penalty"},
    {"truncation": "mask"},
    {"truncation": "penalty", "missing_eos_penalty": 3.0},
    {"entropy": True},
    {"optimizer": {"learning_rate": 1e-4}},
    {"optimizer": {"weight_decay": 0.5}},
    {"optimizer": {"warmup_fraction": 0.6}, "steps": 4},
    {"optimizer": {"schedule": "constant"}, "steps": 4},
    {"optimizer": {"max_grad_norm": 1e-3}},
    {"optimizer": {"adam_eps": 1.0}},
    {"optimizer": {"beta1": 0.5}, "steps": 2},
    {"optimizer": {"beta2": 0.5}, "steps": 2},
    {"compute": {"dtype": "bfloat16"}},
]
CARRIERS = (
    "steps",
    "epochs",
)  # beside a flag that acts late or off-policy only: it is compared with a stock run of that length


@pytest.fixture(scope="module")
def stock(grpo_config, tmp_path_factory):
    """stock(carried): weights and rows of the run that a flag is compared with, on few and short samples."""
    config = merged(
        grpo_config,
        {
            "steps": 1,
            "score_clip": 50.0,
            "sampling": {"prompts_per_step": 4, "samples_per_prompt": 3, "max_new_tokens": 8},
            "kl": {"coef": 0.02},
        },
    )
    folder, runs = tmp_path_factory.mktemp("flags"), {}

    def run(carried):
        key = json.dumps(carried)
        if key not in runs:
            runs[key] = train(config, folder / str(len(runs)), **carried)[1:]
        return config, *runs[key]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS, ids=str)
def test_line_15_every_accepted_flag_acts(stock, tmp_path, flag):
    """A flag that is accepted and ignored gives the stock run again, bit for bit."""
    carried = {name: flag[name] for name in CARRIERS if name in flag and len(flag) > 1}
    config, rows, weights = stock(carried)
    _, new_rows, new_weights = train(config, tmp_path / "run", **flag)
    same_weights = new_weights.keys() == weights.keys() and all(
        new_weights[name].shape == weights[name].shape and torch.equal(new_weights[name], weights[name])
        for name in weights
    )
    assert not (same_weights and effects(new_rows) == effects(rows))


def effects(rows):
    """Rows without what merely repeats the config."""
    return [{k: v for k, v in row.items() if k not in ("kl_coef", "of")} for row in without_times(rows)]


def test_line_15_no_flag_is_left_out_of_that_test():
    inputs = {"snapshot", "base", "bases", "reward", "start"}
    layout = {"compute.threads", "compute.micro_tokens", "compute.save_every"}  # must not change results
    refused = {"optimizer.head_learning_rate"}  # test_configs.py
    groups = {"lora", "sampling", "kl", "optimizer", "compute", "guards"}
    known = {name for name, _, _ in describe(GRPOConfig)} - inputs - layout - groups - refused
    # Guards look and do not train: what they do is in test_guards.py and test_guards_learning.py.
    known -= {name for name in known if name.startswith("guards.")} | {"kl.base_budget"}
    known -= {name for name in known if name.partition(".")[0] == "rollout"}  # test_rollout_server_learning.py
    tried = {
        f"{key}.{inner}" if inner else key
        for flag in FLAGS
        for key, value in flag.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert tried == known


def test_line_07_the_reference_is_where_the_policy_started(grpo_config, tmp_path):
    train(grpo_config, tmp_path / "first", steps=2)
    learner = start(grpo_config, start=str(tmp_path / "first" / "checkpoint"))
    data = grpo.collect(learner, 1, Clock())
    assert torch.equal(data.old.logprobs, data.seen.reference)
    packs = [batch for part in data.seen.minibatches for batch in part]
    base, _, _ = response_logprobs(learner.decoder, None, packs, data.seen.trunk)
    assert (base - data.seen.reference).abs().max() > 1e-4  # the base is another policy
