"""Every program on an architecture that only transformers runs: a random GPT-2 with the tiny model's bytes. What they share is tested
elsewhere; here, that the plain path carries it: adapters from `first_layer` on, the step-0 doctor, resume, sampling with a folded adapter."""

from __future__ import annotations

import asyncio
import json
import shutil

import httpx
import pytest
import torch

from plaudit.errors import BadInput
from plaudit.learn import checkpoint, decoders, dpo, grpo, ppo, reward, score, sft
from plaudit.learn.configs import DPOConfig, GRPOConfig, PPOConfig, RewardConfig, ScoreConfig, SFTConfig, from_dict
from plaudit.learn.plain import PlainDecoder
from plaudit.learn.run_folder import RunFolder, read_jsonl
from plaudit.policy_server.app import PolicyServer, create_app

tr = pytest.importorskip("transformers")

PROGRAMS = {
    "sft": (SFTConfig, sft.train),
    "reward": (RewardConfig, reward.train),
    "dpo": (DPOConfig, dpo.train),
    "ppo": (PPOConfig, ppo.train),
    "grpo": (GRPOConfig, grpo.train),
    "score": (ScoreConfig, score.measure),
}
LORA = {"lora": {"rank": 4, "alpha": 8}, "first_layer": 1}
QUICK = {"optimizer": {"learning_rate": 3e-3}}
ONLINE = {
    "steps": 2,
    "sampling": {"prompts_per_step": 2, "samples_per_prompt": 3, "max_new_tokens": 8},
    "kl": {"budget": None},
}


@pytest.fixture(scope="module")
def gpt2(tiny, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    config = tr.GPT2Config(
        vocab_size=261, n_embd=32, n_layer=2, n_head=4, n_positions=2048, eos_token_id=256, bos_token_id=1
    )
    tr.GPT2LMHeadModel(config).save_pretrained(str(folder))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / file, folder)
    assert isinstance(decoders.load(folder, torch.float32), PlainDecoder)
    return folder


@pytest.fixture(scope="module")
def run(gpt2, tmp_path_factory):
    """run(program, **config) -> (result, run folder)."""

    def start(program, name="", **config):
        folder = tmp_path_factory.mktemp("runs") / (name or program)
        folder.mkdir()
        kind, train = PROGRAMS[program]
        said = {"base": str(gpt2), "compute": {"dtype": "float32"}} | config
        return train(from_dict(kind, said), RunFolder(folder)), folder

    return start


@pytest.fixture(scope="module")
def rewarded(run, make_snapshot):
    config = LORA | {"optimizer": {"learning_rate": 2e-3, "head_learning_rate": 1e-2}}
    return run("reward", snapshot=str(make_snapshot(n=80)), epochs=4, pooling="mean", **config)


def test_a_reward_model_learns_the_rule(rewarded):
    result, _ = rewarded
    assert result["valid"]["accuracy"]["mean"] > 0.75  # 20 held-out pairs; chance passes this once in 50
    assert read_jsonl(rewarded[1] / "metrics.jsonl")[0]["loss"] > result["curve"][-1]["log_loss"]


def test_sft_and_dpo_lower_their_loss(run, make_snapshot):
    snapshot = str(make_snapshot(n=24))
    curve = run("sft", snapshot=snapshot, epochs=3, batch_size=8, packing=True, **LORA, **QUICK)[0]["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    _, folder = run("dpo", snapshot=snapshot, **LORA)
    losses = [row["loss"] for row in read_jsonl(folder / "metrics.jsonl") if row["phase"] == "train"]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)  # ln 2: policy and reference are one function


def test_ppo_starts_from_a_policy_and_resumes_bit_for_bit(run, make_snapshot, rewarded, gpt2, monkeypatch):
    snapshot = str(make_snapshot(n=24))
    _, start = run("sft", name="start", snapshot=snapshot, epochs=1, **LORA, **QUICK)
    config = {"snapshot": snapshot, "reward": str(rewarded[1] / "checkpoint"), "start": str(start / "checkpoint")}
    config |= LORA | ONLINE | {"optimizer": {"learning_rate": 3e-3}}
    result, folder = run("ppo", **config)
    assert (result["steps"], result["curve"][0]["kl"]) == (2, 0.0)
    assert result["kl"] != 0
    whole = checkpoint.load_policy(folder / "checkpoint", gpt2)

    with monkeypatch.context() as patch:
        logged = RunFolder.log

        def dies(self, step, *arguments, **figures):
            if step == 2:
                raise KeyboardInterrupt
            return logged(self, step, *arguments, **figures)

        patch.setattr(RunFolder, "log", dies)
        with pytest.raises(KeyboardInterrupt):
            run("ppo", name="killed", **config)
    killed = max(folder.parent.parent.glob("runs*/killed"), key=lambda path: path.stat().st_mtime)
    said = {"base": str(gpt2), "compute": {"dtype": "float32"}} | config
    ppo.train(from_dict(PPOConfig, said), RunFolder(killed))
    again = checkpoint.load_policy(killed / "checkpoint", gpt2)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_grpo_moves_and_score_measures_it(run, make_snapshot, rewarded, gpt2, tmp_path):
    folder = str(rewarded[1] / "checkpoint")
    _, policy = run("grpo", snapshot=str(make_snapshot(n=24)), reward=folder, **LORA, **ONLINE, **QUICK)
    adapter = checkpoint.load_policy(policy / "checkpoint", gpt2)
    assert max(float(b.detach().abs().max()) for b in adapter.b.values()) > 0
    inputs = tmp_path / "in.jsonl"
    inputs.write_text(
        json.dumps({"messages": [{"role": "user", "content": "hi"}], "responses": ["aeiou", "tn"]}) + "\n"
    )
    result, _ = run(
        "score", inputs=str(inputs), measures=["score", "nll", "kl"], reward=folder, policy=str(policy / "checkpoint")
    )
    assert result["n"] == 2
    assert result["nll"] > 3  # a random model over 261 tokens
    assert result["kl"] != 0


def test_full_weights_and_lower_states_are_refused(run, make_snapshot):
    snapshot = str(make_snapshot(n=24))
    for program, config, word in (
        ("sft", {"lora": None}, "train an adapter"),
        ("reward", {"lora": None}, "train an adapter"),
        ("reward", LORA | {"first_layer": 0, "read_layer": 1}, "read_layer to 0"),
    ):
        with pytest.raises(BadInput, match=word):
            run(program, snapshot=snapshot, **config)


def test_the_policy_server_serves_it(gpt2, run, make_snapshot):
    _, folder = run("sft", name="served", snapshot=str(make_snapshot(n=24)), epochs=2, **LORA, **QUICK)
    decoder = decoders.load(gpt2, torch.float32)
    app = create_app(PolicyServer(gpt2, "gpt2", decoder, {"v1": folder / "checkpoint"}))
    ask = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "seed": 1, "n": 2, "logprobs": True}

    async def talk():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://t/v1", timeout=60) as client,
        ):
            answers = await asyncio.gather(
                *(client.post("/chat/completions", json=ask | {"model": model}) for model in ("gpt2", "v1", "gpt2"))
            )
            return [answer.json()["choices"] for answer in answers]

    base, policy, same = asyncio.run(talk())
    assert len(base) == 2
    assert base == same
    ids = [[token["token_id"] for token in choice["logprobs"]["content"]] for choice in policy]
    adapter = checkpoint.load_policy(folder / "checkpoint", gpt2)
    from plaudit.learn.tokens import ChatTokenizer, Rollout, pack, response_logprobs

    data = Rollout([ChatTokenizer.load(gpt2).render(ask["messages"])], ids, [0, 0], [True, True])
    logprobs, counts, _ = response_logprobs(decoder, adapter, pack(data))
    said = [[token["logprob"] for token in choice["logprobs"]["content"]] for choice in policy]
    for row, mask, want in zip(logprobs, counts, said, strict=True):
        torch.testing.assert_close(row[mask], torch.tensor(want), atol=1e-4, rtol=0)
