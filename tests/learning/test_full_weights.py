"""ppo and grpo with weights of their own (`lora: null`): they learn, start exactly at their reference, resume bit for bit, and become a base."""

import pytest
import torch

from plaudit.artifacts import read_manifest
from plaudit.errors import BadInput, ConfigError
from plaudit.learn import checkpoint, experience, export, grpo, online_run, policies, ppo
from plaudit.learn.configs import GRPOConfig, PPOConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.run_folder import Clock, RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer, Rollout, pack, response_logprobs

FULL = {"lora": None, "optimizer": {"learning_rate": 1e-3}}


@pytest.fixture(scope="module")
def config(tiny, make_snapshot):
    """Lower-case letters are the reward: a regular expression, so that no model stands between the rule and what is learnt."""
    return FULL | {
        "snapshot": str(make_snapshot(n=60)),
        "base": str(tiny),
        "reward": [{"kind": "regex", "name": "vowels", "pattern": "^[ aeiou]", "weight": 3.0}],
        "compute": {"threads": 2, "dtype": "float32"},
        "steps": 5,
        "truncation": "none",
        "score_clip": None,
        "sampling": {"prompts_per_step": 8, "samples_per_prompt": 6, "max_new_tokens": 6},
        "kl": {"coef": 0.02, "budget": None},
    }


def train(program, kind, config, folder):
    """(result, metric rows, last state)"""
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    result = program.train(from_dict(kind, config), run)
    return result, read_jsonl(run.metrics), checkpoint.load_state(run.state)


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "phases", "tokens_per_second")} for row in rows]


def logprobs(decoder, adapter=None):
    rows = Rollout([[260, 97, 98, 256, 260]], [[97, 98, 256]], [0], [True])
    return response_logprobs(decoder, adapter, pack(rows))[0]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "grpo"
    return folder, *train(grpo, GRPOConfig, config, folder)


def test_grpo_learns_and_what_it_makes_is_a_base(finished, tiny, tmp_path):
    folder, result, rows, _ = finished
    assert rows[0]["kl"] == 0.0
    assert result["score"] > result["score_first"] + 0.5
    assert result["kl"] > 0.05
    made = folder / "checkpoint"
    body = read_manifest(made, "checkpoint").body
    assert (body["checkpoint_kind"], body["adapter"]) == ("policy", None)
    with pytest.raises(BadInput, match="give the folder itself as the base"):
        checkpoint.load_policy(made, tiny)
    export.export(made, tiny, "merged", tmp_path / "out")
    exported, base = (Decoder.load(place, torch.float32) for place in (tmp_path / "out", tiny))
    assert torch.equal(logprobs(exported), logprobs(Decoder.load(made, torch.float32)))
    assert (logprobs(exported) - logprobs(base)).abs().max() > 1e-2
    assert ChatTokenizer.load(tmp_path / "out").eos_id == 256


def test_ppo_learns_with_its_value_head_and_holds_the_budget(config, tmp_path, tiny):
    """A step too large for the budget: what is kept is the policy before it, read back from the disk."""
    wild = config | {"steps": 6, "epochs": 2, "kl": {"coef": 0.0, "budget": 0.6}, "target_approx_kl": None}
    result, rows, state = train(ppo, PPOConfig, wild, tmp_path / "run")
    assert result["score"] > result["score_first"] + 0.1
    assert result["stop"] == "budget"
    assert result["kl"] == rows[-2]["kl"] <= 0.6 < rows[-1]["kl"]
    assert all(torch.equal(state["trained"][name], kept) for name, kept in state["kept"].items())
    made = checkpoint.load_full_policy(tmp_path / "run" / "checkpoint", tiny, torch.float32)
    assert torch.equal(made.embedding, state["kept"]["policy.embedding"])
    assert checkpoint.load_value_head(tmp_path / "run" / "checkpoint", tiny) is not None
    assert list((tmp_path / "run" / "state").glob("*.tmp")) == []


@pytest.mark.parametrize(("program", "kind", "first_layer"), [(grpo, GRPOConfig, 2), (ppo, PPOConfig, 0)])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(
    config, tmp_path, monkeypatch, program, kind, first_layer, vowel_reward
):
    model = {"kind": "model", "name": "model", "checkpoints": [str(vowel_reward / "checkpoint")]}
    some = config | {"steps": 3, "first_layer": first_layer, "reward": [*config["reward"], model]}
    _, rows, whole = train(program, kind, some, tmp_path / "whole")
    log = RunFolder.log

    def killed(self, step, *rest, **named):
        row = log(self, step, *rest, **named)
        if step == 3:
            raise KeyboardInterrupt  # after the step's work, before its state is saved
        return row

    monkeypatch.setattr(RunFolder, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        train(program, kind, some, tmp_path / "cut")
    monkeypatch.undo()
    _, again, state = train(program, kind, some, tmp_path / "cut")
    assert without_times(again) == without_times(rows)
    for part in ("trained", "kept", "best"):
        assert all(torch.equal(state[part][name], tensor) for name, tensor in whole[part].items())


def test_only_what_is_trained_is_copied(config):
    """Memory: policy and reference share the frozen layers, and the base is the reference."""
    learner = grpo.start(from_dict(GRPOConfig, config | {"first_layer": 2}))
    own, base = learner.decoder, learner.base
    assert learner.reference.decoder is base
    assert own.embedding is base.embedding
    assert own.cos is base.cos
    assert [own.layer(i).qkv is base.layer(i).qkv for i in range(4)] == [True, True, False, False]
    assert own.norm is not base.norm
    assert not any(p.requires_grad for p in base.parameters())
    grpo.optimise(learner, grpo.collect(learner, 1, Clock()), 1)
    assert torch.equal(own.layer(1).down, base.layer(1).down)
    assert not torch.equal(own.layer(2).down, base.layer(2).down)


def test_a_start_may_be_an_adapter_or_full_weights(config, finished, tiny, tmp_path):
    decoder, adapter = policies.load_start(
        str(tiny),
        "",
        from_dict(GRPOConfig, config | {"lora": {"rank": 4}}).lora,
        1,
        0,
        from_dict(GRPOConfig, config).compute,
    )
    for b in adapter.b.values():
        b.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    checkpoint.save_policy(tmp_path / "lora", adapter, tiny, {}, {})
    for start, expected in (
        (tmp_path / "lora", logprobs(decoder, adapter)),
        (finished[0] / "checkpoint", logprobs(Decoder.load(finished[0] / "checkpoint", torch.float32))),
    ):
        learner = grpo.start(from_dict(GRPOConfig, config | {"start": str(start)}))
        torch.testing.assert_close(logprobs(learner.decoder), expected, atol=1e-5, rtol=1e-5)
        data = grpo.collect(learner, 1, Clock())
        assert torch.equal(data.old.logprobs, data.seen.reference)
        assert (data.seen.base - data.seen.reference).abs().max() > 1e-3  # kl_base is measured against the base itself
    with pytest.raises(ConfigError, match=r"changed layers\.1\..*, which is frozen"):
        grpo.start(from_dict(GRPOConfig, config | {"start": str(tmp_path / "lora"), "first_layer": 2}))


def test_full_weights_want_float32(config):
    with pytest.raises(ConfigError, match="bfloat16"):
        ppo.start(from_dict(PPOConfig, config | {"compute": {"dtype": "bfloat16"}}))


def test_a_reward_model_stands_on_the_base_whatever_the_policy_has_become(config, vowel_reward):
    """Its lower layers are the base's: after an update of the policy's own, its scores are those that a fresh start gives."""
    some = config | {"reward": str(vowel_reward / "checkpoint"), "optimizer": {"learning_rate": 3e-2}}
    learner, fresh = (grpo.start(from_dict(GRPOConfig, some)) for _ in range(2))
    grpo.optimise(learner, grpo.collect(learner, 1, Clock()), 1)
    seen = grpo.collect(learner, 2, Clock()).seen
    trunks = experience.run_trunks(fresh.base, seen.rollout, fresh.reward.depths, 2048)
    expected = fresh.reward.score(seen.rollout, seen.packs, trunks, seen.messages).total
    torch.testing.assert_close(seen.scored.total, expected, atol=1e-4, rtol=1e-4)
    assert (logprobs(learner.decoder) - logprobs(fresh.decoder)).abs().max() > 0.1


def test_what_a_run_may_go_back_to_survives_a_kill(config, tmp_path):
    """The kept weights lie in a file without a name while the run lives, and in its state afterwards."""
    run = RunFolder(tmp_path)
    learner, again = (grpo.start(from_dict(GRPOConfig, config)) for _ in range(2))
    learner.kept = learner.best = learner.copies(run)
    before = {name: tensor.clone() for name, tensor in learner.trained().items()}
    for tensor in learner.trained().values():
        tensor.add_(1.0)
    online_run.save(learner, run)
    online_run.restore(again, run)
    for name, tensor in before.items():
        assert torch.equal(again.kept[name], tensor)
        assert torch.equal(again.best[name], tensor)
        assert torch.equal(again.trained()[name], tensor + 1.0)
