"""A reward model recovers a hidden rule from noisy comparisons; turned comparisons teach the opposite, random ones nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plaudit.artifacts import open_snapshot, read_manifest
from plaudit.errors import BadInput, ConfigError
from plaudit.learn import checkpoint, reward
from plaudit.learn.configs import RewardConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.rewards import score_responses
from plaudit.learn.run_folder import RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer, from_text, pack

FAST = {"compute": {"threads": 2, "dtype": "float32"}, "first_layer": 1, "lora": {"rank": 8, "alpha": 16}}


def run(folder: Path, **config):
    return reward.train(from_dict(RewardConfig, FAST | config), RunFolder(folder))


def test_a_hidden_rule_is_recovered_from_noisy_comparisons(vowel_reward):
    result = json.loads((vowel_reward / "result.json").read_text())
    assert result["valid"]["accuracy"]["mean"] > 0.85
    assert result["valid"]["log_loss"] < 0.6
    assert abs(result["baselines"]["length_only"]["accuracy"]["mean"] - 0.5) < 0.2
    assert result["difference"]["length_only"]["low"] > 0
    assert [point["epoch"] for point in result["curve"]] == [1, 2, 3]
    assert sum(entry["observed"]["n"] for entry in result["valid"]["bins"]) == result["n_valid"]
    rows = read_jsonl(vowel_reward / "metrics.jsonl")
    assert [row["step"] for row in rows if row["phase"] == "train"] == list(range(1, rows[-1]["of"] + 1))


@pytest.mark.parametrize(("noise", "sign", "low", "high"), [(0.0, -1, 0.8, 1.0), (0.5, 1, 0.25, 0.75)])
def test_a_turned_rule_is_the_opposite_and_noise_is_nothing(tiny, make_snapshot, tmp_path, noise, sign, low, high):
    """Negative controls: held-out rows follow `sign`; scores of the vowel-rich text must fall for -1."""
    snapshot = make_snapshot(n=160, noise=noise, sign=sign, seed=3)
    result = run(
        tmp_path, snapshot=str(snapshot), base=str(tiny), epochs=3, pooling="mean", baselines=False,
        optimizer={"learning_rate": 2e-3, "head_learning_rate": 1e-2},
    )  # fmt: skip
    assert low <= result["valid"]["accuracy"]["mean"] <= high
    if sign == -1:
        model = checkpoint.load_reward(tmp_path / "checkpoint", tiny, Decoder.load(tiny, torch.float32))
        data = from_text(
            ChatTokenizer.load(tiny), [[{"role": "user", "content": "say 1"}]], [("aeiouaeiou", "tnshrdlcmt")]
        )
        vowels, consonants = score_responses(model, pack(data), None).tolist()
        assert consonants > vowels


def test_scores_of_the_checkpoint_are_centred_and_scaled(vowel_reward, tiny):
    manifest = read_manifest(vowel_reward / "checkpoint", "checkpoint")
    assert manifest.body["checkpoint_kind"] == "reward"
    assert manifest.body["parents"]["snapshot"]
    model = checkpoint.load_reward(vowel_reward / "checkpoint", tiny, Decoder.load(tiny, torch.float32))
    config = json.loads((vowel_reward / "result.json").read_text())
    snapshot = next(
        path
        for path in (vowel_reward.parent.parent).glob("snapshots*/*")
        if manifest.body["parents"]["snapshot"].startswith(path.name)
    )
    rows = open_snapshot(snapshot).preferences("train")
    data = from_text(
        ChatTokenizer.load(tiny), [row.messages for row in rows], [(row.chosen, row.rejected) for row in rows]
    )
    scores = score_responses(model, pack(data), None) / model.sd
    reference = scores.view(-1, 2)[:: -(-len(rows) // reward.REFERENCE_PAIRS)]
    assert float(reference.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(reference.std()) == pytest.approx(1.0, abs=1e-3)
    assert abs(config["normalisation"]["mean_before"]) > 1e-2  # there was something to centre
    assert config["normalisation"]["sd"] == pytest.approx(model.sd)


@pytest.mark.parametrize(
    "change", [{"read_layer": 2}, {"lora": None, "first_layer": 2}, {"lora": None, "first_layer": 0}]
)
def test_a_saved_model_scores_as_the_trained_one(tiny, make_snapshot, tmp_path, change, monkeypatch):
    seen = {}
    save = checkpoint.save_reward

    def remember(folder, model, *rest, **named):
        seen["model"] = model
        return save(folder, model, *rest, **named)

    monkeypatch.setattr(checkpoint, "save_reward", remember)
    config = {"pooling": "mean", "baselines": False, "optimizer": {"learning_rate": 1e-3}} | change
    run(tmp_path, snapshot=str(make_snapshot(n=24)), base=str(tiny), **config)
    data = from_text(ChatTokenizer.load(tiny), [[{"role": "user", "content": "hi"}]] * 2, [("one", "two"), ("three",)])
    loaded = checkpoint.load_reward(tmp_path / "checkpoint", tiny, Decoder.load(tiny, torch.float32))
    torch.testing.assert_close(
        score_responses(loaded, pack(data), None), score_responses(seen["model"], pack(data), None), atol=1e-6, rtol=0
    )
    untrained = replace(loaded, adapter=None, decoder=Decoder.load(tiny, torch.float32))
    assert (score_responses(untrained, pack(data), None) - score_responses(loaded, pack(data), None)).abs().max() > 1e-4


def test_a_large_split_without_a_kept_trunk_trains_alike(tiny, make_snapshot, tmp_path, monkeypatch):
    snapshot, results = str(make_snapshot(n=40)), []
    for name, limit in (("kept", 1 << 30), ("again", 0)):
        monkeypatch.setattr("plaudit.learn.batches.TRUNK_CACHE_BYTES", limit)
        (tmp_path / name).mkdir()
        results.append(run(tmp_path / name, snapshot=snapshot, base=str(tiny), baselines=False))
    assert results[0]["valid"]["log_loss"] == pytest.approx(results[1]["valid"]["log_loss"], abs=1e-4)
    assert results[0]["normalisation"]["sd"] == pytest.approx(results[1]["normalisation"]["sd"], rel=1e-3)


def test_micro_batches_do_not_change_the_model(tiny, make_snapshot, tmp_path):
    snapshot, results = str(make_snapshot(n=40)), []
    for tokens in (4096, 100):
        folder = tmp_path / str(tokens)
        folder.mkdir()
        compute = {"threads": 2, "dtype": "float32", "micro_tokens": tokens}
        results.append(run(folder, snapshot=snapshot, base=str(tiny), baselines=False, compute=compute))
    assert results[0]["valid"]["log_loss"] == pytest.approx(results[1]["valid"]["log_loss"], abs=1e-4)


def test_what_cannot_be_trained_is_refused(tiny, make_snapshot, tmp_path):
    snapshot = str(make_snapshot(n=24))
    with pytest.raises(BadInput, match="'helpfulness'"):
        run(tmp_path, snapshot=snapshot, base=str(tiny), criterion="helpfulness")
    with pytest.raises(ConfigError, match="first_layer is 4"):
        run(tmp_path, snapshot=snapshot, base=str(tiny), first_layer=4)
    with pytest.raises(ConfigError, match="read_layer is 9"):
        run(tmp_path, snapshot=snapshot, base=str(tiny), read_layer=9)
    with pytest.raises(ConfigError, match="bfloat16"):
        run(tmp_path, snapshot=snapshot, base=str(tiny), lora=None, compute={"dtype": "bfloat16"})
