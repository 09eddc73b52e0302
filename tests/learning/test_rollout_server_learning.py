"""grpo and ppo learn from what a server samples; where the server's distribution is another, the weights say so and correct for it."""

from __future__ import annotations

import shutil
import threading

import pytest
import torch

from plaudit.errors import ConfigError
from plaudit.learn import advantages, grpo, losses, ppo
from plaudit.learn.configs import GRPOConfig, PPOConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.run_folder import Clock, RunFolder, read_jsonl

LETTERS = """
def share(messages, responses, token_ids, meta):
    return [5 * sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in responses]
"""


@pytest.fixture(scope="module")
def serve(tiny):
    """serve(decoder): the address of a policy server with these weights, until the module's tests are done."""
    import uvicorn

    from plaudit.policy_server.app import PolicyServer, create_app

    running = []

    def start(decoder, folder=tiny):
        server = PolicyServer(folder, "tiny", decoder, reload_weights=folder != tiny)
        web = uvicorn.Server(uvicorn.Config(create_app(server), log_level="error"))
        listener = uvicorn.Config(None, port=0, log_level="error").bind_socket()
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((web, thread, listener))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    yield start
    for web, thread, listener in running:
        web.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def config(tiny, make_snapshot, tmp_path, monkeypatch):
    (tmp_path / "own_served.py").write_text(LETTERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {
        "snapshot": str(make_snapshot(n=24)),
        "base": str(tiny),
        "reward": "own_served:share",
        "compute": {"threads": 1, "dtype": "float32"},
        "first_layer": 1,
        "lora": {"rank": 8, "alpha": 16},
        "truncation": "none",
        "sampling": {"prompts_per_step": 5, "samples_per_prompt": 6, "max_new_tokens": 10},
        "optimizer": {"learning_rate": 1e-2},
        "kl": {"coef": 0.02, "budget": None},
    }


def rollout(url, tmp_path, **more):
    return {"rollout": {"url": url, "adapters": str(tmp_path / "adapters"), **more}}


def test_a_policy_learns_from_a_server_s_tokens(config, serve, tiny, tmp_path):
    url = serve(Decoder.load(tiny, torch.float32))
    for name, program, kind in (("grpo", grpo, GRPOConfig), ("ppo", ppo, PPOConfig)):
        run = RunFolder(tmp_path / name)
        run.folder.mkdir()
        steps = {"steps": 5 if name == "grpo" else 1}
        result = program.train(from_dict(kind, config | steps | rollout(url, tmp_path)), run)
        rows = read_jsonl(run.metrics)
        # The server has each step's adapter: its probabilities are the trainer's.
        assert all(row["tis_ratio_mean"] == pytest.approx(1.0, abs=1e-4) for row in rows)
        assert all(row["tis_clipped_fraction"] == 0.0 for row in rows)
        if name == "grpo":
            assert result["score"] > result["score_first"] + 0.4


@pytest.mark.parametrize("lora", [None, {"rank": 8, "alpha": 16}])
def test_whole_weights_reach_the_server_at_each_step(config, serve, tiny, tmp_path, lora):
    """Full weights, and a merged adapter: after updates that moved the policy, the server samples with what the trainer has."""
    folder = tmp_path / "served"
    shutil.copytree(tiny, folder)
    url = serve(Decoder.load(folder, torch.float32), folder)
    run = RunFolder(tmp_path / "grpo")
    run.folder.mkdir()
    more = {"lora": lora, "steps": 2, "rollout": {"url": url, "weights": str(folder)}}
    grpo.train(from_dict(GRPOConfig, config | more), run)
    rows = read_jsonl(run.metrics)
    assert rows[-1]["kl"] > 0.05  # it is another policy by now
    assert all(row["tis_ratio_mean"] == pytest.approx(1.0, abs=1e-4) for row in rows)
    assert all(row["tis_clipped_fraction"] == 0.0 for row in rows)


def test_advantages_are_weighted_where_the_server_has_other_weights(config, serve, tiny, tmp_path):
    other = Decoder.load(tiny, torch.float32)
    with torch.no_grad():
        other.get_parameter("head").mul_(1.5)
    asked = config | rollout(serve(other), tmp_path, cap=1.5)
    learner = grpo.start(from_dict(GRPOConfig, asked))
    data = grpo.collect(learner, 1, Clock())
    row = grpo.describe(learner, data)
    assert abs(row["tis_ratio_mean"] - 1.0) > 0.02
    assert row["tis_clipped_fraction"] > 0.01
    seen = data.seen
    weights = (data.old.logprobs - seen.sampler).exp().clamp(max=1.5)
    plain = advantages.group_advantages(data.rewards, seen.mask, torch.tensor(seen.rollout.group), "leave_one_out")
    torch.testing.assert_close(data.advantages, torch.where(seen.counts, plain * weights, 0.0))
    assert not torch.allclose(data.advantages, plain, atol=0.1)
    actor = ppo.start(from_dict(PPOConfig, asked))
    made = ppo.collect(actor, 1, Clock())
    weights = (made.old.logprobs - made.seen.sampler).exp().clamp(max=1.5)
    estimated, _ = advantages.gae(made.rewards, made.values, made.seen.counts, 1.0, 0.95)
    plain = advantages.whiten(estimated, made.seen.mask, shift_mean=True)
    torch.testing.assert_close(made.advantages, torch.where(made.seen.counts, plain * weights, 0.0))


def test_weighted_advantages_give_the_trainer_s_gradient_under_the_sampler_s_tokens():
    """Simulated: policy gradient from q's samples, with and without weights, against p's own in closed form."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    p, q = logits.log_softmax(0), (logits * torch.tensor([0.6, 1.0, 1.3, 1.0])).log_softmax(0)
    values = torch.tensor([1.0, -1.0, 2.0, 0.0])
    exact = p.exp() * (values - (p.exp() * values).sum())  # d/d logits of E_p[values]
    tokens = torch.multinomial(q.exp(), 200_000, replacement=True, generator=generator)
    found = {}
    for cap in (1e9, None):
        weights = torch.ones(len(tokens))
        if cap is not None:
            mask = torch.ones(1, len(tokens), dtype=torch.bool)
            weights = losses.truncated_importance(p[tokens][None], q[tokens][None], mask, cap)[0][0]
        scores = torch.nn.functional.one_hot(tokens, 4) - p.exp()
        found[cap] = (weights[:, None] * values[tokens][:, None] * scores).mean(dim=0)
    assert float((found[1e9] - exact).abs().max()) < 0.01
    assert float((found[None] - exact).abs().max()) > 0.03  # uncorrected it is another gradient


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora": None}, "lora is null, so there is no adapter"),
        (
            {"rollout": {"url": "http://g/v1", "weights": "../x/b"}, "base": "../x/./b"},
            "own base, whose weights would be lost",
        ),
        ({"rollout": {"url": "http://g/v1", "weights": "w", "adapters": "a"}}, "name exactly one"),
        ({"rollout": {"url": "http://g/v1"}}, "name exactly one"),
        ({"sampling": {"temperature": 0.7}}, "log-probs are raw, of temperature 1"),
        ({"rollout": {"url": "gpu:8000", "adapters": "a"}}, "RolloutConfig.url"),
        ({"rollout": {"url": "http://g/v1", "adapters": "a", "cap": 0.5}}, "RolloutConfig.cap"),
    ],
)
def test_what_a_server_cannot_do_is_said_before_anything_is_loaded(changes, says):
    base = {"snapshot": "s", "base": "b", "reward": "r", "rollout": {"url": "http://g/v1", "adapters": "a"}}
    with pytest.raises(ConfigError, match=says):
        from_dict(GRPOConfig, base | changes)
    processed = base | {"sampling": {"temperature": 0.7}}
    processed["rollout"] = processed["rollout"] | {"logprobs": "processed"}
    from_dict(GRPOConfig, processed)
