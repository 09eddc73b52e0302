"""Each offline loss raises what people liked on the tiny policy in seconds, a wrong sign does the opposite, and a kill changes nothing."""

import json
import random
import statistics

import pytest
import torch

from plaudit.errors import TrainingStopped
from plaudit.learn import checkpoint, dpo, losses
from plaudit.learn.configs import DPOConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.rollout import Sampling, generate
from plaudit.learn.run_folder import RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer

FAST = {"compute": {"threads": 1, "dtype": "float32"}, "first_layer": 2, "lora": {"rank": 8, "alpha": 16}}
RATE = {"optimizer": {"learning_rate": 6e-3}, "batch_size": 16, "epochs": 2}
LOSSES = {
    "dpo": {"loss": "dpo"},
    "ipo": {"loss": "ipo", "beta": 0.02},
    "kto": {"loss": "kto", "epochs": 1},
    "normalised": {"loss": "dpo", "length_normalised": True, "beta": 2.0},
}


def run(folder, **config):
    folder.mkdir(exist_ok=True)
    return dpo.train(from_dict(DPOConfig, FAST | config), RunFolder(folder))


def vowels(tiny, adapter, n=128):
    """Mean share of vowels in what the policy samples for prompts it has not seen."""
    tokenizer = ChatTokenizer.load(tiny)
    prompts = [tokenizer.render([{"role": "user", "content": f"unseen {i}"}]) for i in range(8)]
    rollout = generate(Decoder.load(tiny, torch.float32), prompts, n // 8, Sampling(max_new_tokens=24), adapter).rollout
    texts = [tokenizer.decode(ids) for ids in rollout.response_ids]
    return statistics.fmean(sum(c in "aeiou" for c in text) / max(len(text), 1) for text in texts)


@pytest.fixture(scope="module")
def liked(make_snapshot):
    """Noisy pairs of people who like vowels."""
    return str(make_snapshot(n=120, noise=0.1))


@pytest.fixture(scope="module")
def few(make_snapshot):
    return str(make_snapshot(n=32))


@pytest.fixture(scope="module")
def base_vowels(tiny):
    return vowels(tiny, None)


@pytest.mark.parametrize("name", LOSSES)
def test_what_people_like_becomes_likelier(tiny, liked, base_vowels, tmp_path, name):
    result = run(tmp_path / "run", snapshot=liked, base=str(tiny), **(RATE | LOSSES[name]))
    assert vowels(tiny, checkpoint.load_policy(tmp_path / "run" / "checkpoint", tiny)) > base_vowels + 0.1
    assert result["valid"]["margin"] > 0
    assert result["valid"]["accuracy"] > 0.55
    interval = result["valid"]["accuracy_interval"]
    assert interval["low"] < result["valid"]["accuracy"] < interval["high"]


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_wrong_sign_fails(tiny, liked, base_vowels, tmp_path, monkeypatch, name):
    dpo_loss, kto_loss = losses.dpo, losses.kto
    monkeypatch.setattr(losses, "dpo", lambda chosen, rejected, *rest: dpo_loss(rejected, chosen, *rest))
    monkeypatch.setattr(losses, "kto", lambda ratio, point, p, *rest: kto_loss(ratio, point, 1 - p, *rest))
    result = run(tmp_path / "run", snapshot=liked, base=str(tiny), **(RATE | LOSSES[name]))
    assert vowels(tiny, checkpoint.load_policy(tmp_path / "run" / "checkpoint", tiny)) < base_vowels - 0.1
    assert result["valid"]["margin"] < 0


def test_thumbs_alone_are_enough(tiny, base_vowels, tmp_path):
    rng, rows = random.Random(0), []
    for i in range(160):
        text = "".join(rng.choice("aeiou" if i % 2 else "tnshrdlcm ") for _ in range(rng.randint(8, 20)))
        rows.append({"prompt": f"say {i % 40}", "completion": text, "label": i % 2 == 1})
    rows[7]["label"] = "up"
    file = tmp_path / "thumbs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(tmp_path / "run", unpaired=str(file), base=str(tiny), loss="kto", **(RATE | {"epochs": 1}))
    assert vowels(tiny, checkpoint.load_policy(tmp_path / "run" / "checkpoint", tiny)) > base_vowels + 0.1
    assert result["n_rejected"] == 1
    (rejected,) = read_jsonl(tmp_path / "run" / "rejected.jsonl")
    assert (rejected["line"], rejected["reason"]) == (8, 'it needs "label", true or false')
    assert result["n_liked"] + result["n_disliked"] == result["n_train"] == 159 - result["n_valid"]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ({"loss": "dpo"}, 0.6931472),
        ({"loss": "ipo"}, 16.0),
        (
            {"loss": "kto", "desirable_weight": 2.0, "undesirable_weight": 3.0, "use_weights": False, "batch_size": 48},
            1.25,
        ),
    ],
)
def test_the_reference_is_what_the_run_starts_from(tiny, few, tmp_path, first, expected):
    """Closed forms of the first loss, for labels of .9: ln 2; (.8 / (2 x .1))^2; the mean of half the weights, 2 and 3."""
    run(tmp_path / "one", snapshot=few, base=str(tiny), batch_size=12)
    start = str(tmp_path / "one" / "checkpoint")
    run(tmp_path / "two", snapshot=few, base=str(tiny), start=start, epochs=2, **({"batch_size": 12} | first))
    rows = [row for row in read_jsonl(tmp_path / "two" / "metrics.jsonl") if row["phase"] == "train"]
    assert rows[0]["loss"] == pytest.approx(expected, rel=1e-6)
    assert rows[0]["kl"] == rows[0]["margin"] == rows[0].get("reference_point", 0) == 0
    assert rows[1]["kl"] > 0
    if first["loss"] == "dpo":  # the same batch, seen by another policy
        assert rows[0]["nll"] != read_jsonl(tmp_path / "one" / "metrics.jsonl")[0]["nll"]


def test_the_doctor_stops_a_run_whose_reference_is_another(tiny, few, tmp_path, monkeypatch):
    monkeypatch.setattr(dpo, "fill_references", lambda *_: None)
    with pytest.raises(TrainingStopped, match=r"differ by .* nats before the first update"):
        run(tmp_path / "run", snapshot=few, base=str(tiny), **RATE)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tiny, few, tmp_path, monkeypatch, name):
    config = {"snapshot": few, "base": str(tiny), "validate_every": 3, "loss": name, "batch_size": 12, "epochs": 3}
    run(tmp_path / "whole", **config)
    log, passes = RunFolder.log, dpo.fill_references

    def killed(self, step, of, phase, *rest, **named):
        if step == 4 and phase == "train":
            raise KeyboardInterrupt
        return log(self, step, of, phase, *rest, **named)

    monkeypatch.setattr(RunFolder, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **config)
    monkeypatch.undo()
    assert dpo.fill_references is passes
    run(tmp_path / "cut", **config)
    files = [(tmp_path / part / "checkpoint" / "adapter_model.safetensors").read_bytes() for part in ("whole", "cut")]
    assert files[0] == files[1]
    lines = [read_jsonl(tmp_path / part / "metrics.jsonl") for part in ("whole", "cut")]
    assert [{**row, "seconds": 0} for row in lines[0]] == [{**row, "seconds": 0} for row in lines[1]]
    assert next(row["step"] for row in lines[0] if row["phase"] == "validate") == 3


def test_reference_log_probs_are_computed_once(tiny, few, tmp_path, monkeypatch):
    config = {"snapshot": few, "base": str(tiny), "batch_size": 24}
    run(tmp_path / "run", **config)
    (tmp_path / "run" / "checkpoint" / "manifest.json").unlink()
    monkeypatch.setattr(dpo, "token_logprobs", None)  # nothing may be computed again
    monkeypatch.setattr(dpo, "accuracy_interval", lambda *_: None)
    assert run(tmp_path / "run", **config)["n_train"] == 24


def test_a_loss_that_is_not_a_number_stops_and_names_its_rows(tiny, few, tmp_path, monkeypatch):
    whole, calls = losses.dpo, []

    def broken(*arguments):
        calls.append(1)
        return whole(*arguments) * (float("nan") if len(calls) > 1 else 1.0)

    monkeypatch.setattr(losses, "dpo", broken)
    with pytest.raises(TrainingStopped, match=r"loss of update 2 is nan \(rows p\d+"):
        run(tmp_path / "run", snapshot=few, base=str(tiny), batch_size=8)
    state = checkpoint.load_state(tmp_path / "run" / "state")
    assert state["update"] == 1
    assert all(torch.isfinite(part).all() for part in state["trained"].values())
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("dpo", {"compute": FAST["compute"] | {"micro_tokens": 64}}),
        ("dpo", {"packing": True}),
        ("kto", {"packing": True}),
    ],
)
def test_layout_does_not_change_the_run(tiny, few, tmp_path, name, layout):
    """One batch holds all rows, so that packing, which draws other batches, shows its layout only."""
    plain = {"snapshot": few, "base": str(tiny), "loss": name, "batch_size": 48, "nll_coef": 0.5, "epochs": 2}
    run(tmp_path / "plain", **plain)
    run(tmp_path / "other", **(plain | layout))
    rows = [read_jsonl(tmp_path / part / "metrics.jsonl") for part in ("plain", "other")]
    for one, other in zip(*rows, strict=True):
        for key in ("loss", "kl", "nll", "margin"):
            assert other[key] == pytest.approx(one[key], rel=2e-3, abs=1e-4)
        if "gradient_norm" in one:
            assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=2e-3)
