"""Reward models from files of pairs: heads per criterion, ensembles, resuming, and `score` on another file of pairs."""

from __future__ import annotations

import json
import random

import pytest
import torch

from plaudit.artifacts import read_manifest
from plaudit.errors import BadInput, NotFound
from plaudit.learn import checkpoint, reward, score
from plaudit.learn.configs import RewardConfig, ScoreConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.rewards import criterion_scores, member_scores, score_responses
from plaudit.learn.run_folder import RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer, from_text, pack

from .conftest import vowel_share, write_text

FAST = {
    "compute": {"threads": 2, "dtype": "float32"}, "first_layer": 1, "lora": {"rank": 8, "alpha": 16}, "pooling": "mean",
    "optimizer": {"learning_rate": 2e-3, "head_learning_rate": 1e-2}, "baselines": False,
}  # fmt: skip
PLAIN = {"validation": None}


def write_pairs(path, n, seed=0, sign=1, criteria=("vowels",), **extra):
    """Pairs of which `vowels` likes vowels and `consonants` the opposite; HH transcripts."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for i in range(n):
            texts = [write_text(rng, rng.randint(8, 24)).strip() or "a" for _ in range(2)]
            criterion = criteria[i % len(criteria)]
            chosen, rejected = sorted(texts, key=vowel_share, reverse=(criterion == "vowels") == (sign > 0))
            head = f"\n\nHuman: say {i % 50}\n\nAssistant: "
            file.write(
                json.dumps({"chosen": head + chosen, "rejected": head + rejected, "criterion": criterion, **extra})
                + "\n"
            )
    return str(path)


def run(folder, **config):
    folder.mkdir(exist_ok=True)
    return reward.train(from_dict(RewardConfig, FAST | config), RunFolder(folder))


@pytest.fixture(scope="module")
def two_headed(tiny, tmp_path_factory):
    """An ensemble of two members with two heads each, from a file with a bad line; (folder, result)."""
    folder = tmp_path_factory.mktemp("two") / "run"
    path = folder.parent / "pairs.jsonl"
    write_pairs(path, 160, criteria=("vowels", "consonants"), category="toy")
    with path.open("a") as file:
        file.write("{}\n")
    heads = [{"criterion": "vowels", "weight": 1.0}, {"criterion": "consonants", "weight": 0.25}]
    config = {"base": str(tiny), "preferences": str(path), "valid_fraction": 0.3, "heads": heads, "members": 2}
    return folder, run(folder, epochs=3, **config)


def test_each_head_learns_its_own_criterion(two_headed, tiny):
    folder, result = two_headed
    assert result["one_score"]["vowels"]["own_head"]["mean"] > 0.8
    assert result["one_score"]["consonants"]["own_head"]["mean"] > 0.8
    model = checkpoint.load_reward(folder / "checkpoint", tiny, Decoder.load(tiny, torch.float32))
    data = from_text(
        ChatTokenizer.load(tiny), [[{"role": "user", "content": "say 3"}]], [("aeiou aeiou", "tnshr tnshr")]
    )
    heads = criterion_scores(model, pack(data), None)
    assert heads["vowels"][0] > heads["vowels"][1]
    assert heads["consonants"][0] < heads["consonants"][1]
    whole = score_responses(model, pack(data), None)
    torch.testing.assert_close(whole, heads["vowels"] + 0.25 * heads["consonants"], atol=1e-5, rtol=0)


def test_members_differ_and_their_mean_is_the_score(two_headed, tiny):
    folder, result = two_headed
    assert len(result["ensemble"]["accuracy"]) == 2
    assert result["ensemble"]["logit_sd"] > 0.01
    assert {point["member"] for point in result["curve"]} == {0, 1}
    steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if row["phase"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    model = checkpoint.load_reward(folder / "checkpoint", tiny, Decoder.load(tiny, torch.float32))
    data = from_text(ChatTokenizer.load(tiny), [[{"role": "user", "content": "say 3"}]], [("aeiou", "tnshr")])
    each = member_scores(model, pack(data), None)
    assert (each[0] - each[1]).abs().max() > 1e-2
    raw = each * torch.tensor([[member.sd] for member in model.members])
    torch.testing.assert_close(score_responses(model, pack(data), None), raw.mean(dim=0))


def test_the_result_and_the_card_tell_of_everything(two_headed):
    folder, result = two_headed
    assert (result["n_rejected"], result["rejected"]) == (1, {'it needs "chosen" and "rejected"': 1})
    assert json.loads((folder / "rejected.jsonl").read_text())["line"] == 161
    assert result["n_train"] + result["n_valid"] == 160
    assert result["n_shared_families"] == 0
    assert {"criterion", "length", "longer", "category"} == set(result["slices"])
    assert result["categories"]["score"] == pytest.approx(result["valid"]["accuracy"]["mean"])
    assert set(result["traps"]["by"]) >= {"empty", "padded_10x"}
    assert result["valid"]["temperature"]["n"] > 0
    card = (folder / "checkpoint" / "card.md").read_text()
    assert "## Known limits" in card
    assert {"accuracy.svg", "reliability.svg", "curve.svg", "traps.svg"} <= read_manifest(
        folder / "checkpoint"
    ).files.keys()


@pytest.mark.parametrize("share", ["trunk", "body"])
def test_a_killed_ensemble_goes_on_bit_for_bit(tiny, tmp_path, monkeypatch, share):
    path = write_pairs(tmp_path / "p.jsonl", 40)
    config = {
        "base": str(tiny),
        "preferences": path,
        "members": 2,
        "members_share": share,
        "epochs": 2,
        "batch_pairs": 8,
    } | PLAIN
    whole = run(tmp_path / "whole", **config)
    n = len([row for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl") if row["phase"] == "train"])
    kill_at, saves = (n * 3) // 4, []  # with a body for each, within the second member
    save = reward.save

    def killed(*given):
        save(*given)
        saves.append(1)
        if len(saves) == kill_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(reward, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **config)
    monkeypatch.setattr(reward, "save", save)
    again = run(tmp_path / "cut", **config)
    for name in ("curve", "valid", "ensemble", "normalisation"):
        assert again[name] == whole[name]
    files = {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole" / "checkpoint").rglob("*.safetensors")}
    assert len(files) == (4 if share == "trunk" else 3)
    for file in files:
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_the_wrong_sign_is_learnt_as_such(tiny, two_headed, tmp_path):
    """Negative control for the files: the same letters with the sides exchanged score below a coin on the right ones."""
    path = write_pairs(tmp_path / "p.jsonl", 100, seed=1, sign=-1)
    right = write_pairs(tmp_path / "v.jsonl", 60, seed=2)
    result = run(tmp_path / "r", base=str(tiny), preferences=path, valid_preferences=right, epochs=3, **PLAIN)
    assert result["valid"]["accuracy"]["mean"] < 0.25
    assert result["n_shared_families"] == 50


def test_score_reads_files_of_pairs(two_headed, tiny, tmp_path):
    folder, _ = two_headed
    path = tmp_path / "other.jsonl"
    write_pairs(path, 40, seed=9, subset="s1")
    with path.open("a") as file:
        file.write('{"prompt": "q", "chosen": "same", "rejected": "same"}\n')
    config = {
        "inputs": str(path),
        "base": str(tiny),
        "reward": str(folder / "checkpoint"),
        "compute": {"dtype": "float32"},
    }
    (tmp_path / "run").mkdir()
    result = score.measure(from_dict(ScoreConfig, config), RunFolder(tmp_path / "run"))
    lines = read_jsonl(tmp_path / "run" / "scores.jsonl")
    assert len(lines) == result["n"] == 80
    wins = [lines[i]["score"] > lines[i + 1]["score"] for i in range(0, 80, 2)]
    assert result["accuracy"]["mean"] == pytest.approx(sum(wins) / 40)
    assert result["accuracy"]["low"] < result["accuracy"]["mean"] < result["accuracy"]["high"]
    assert (result["n_pairs"], result["n_rejected"]) == (40, 1)
    assert json.loads((tmp_path / "run" / "rejected.jsonl").read_text())["line"] == 41
    assert set(result["slices"]["subset"]) == {"s1"}
    assert result["categories"]["field"] == "subset"
    sd = read_manifest(folder / "checkpoint").body["reward"]["sd"]
    gaps = torch.tensor([lines[i]["score"] - lines[i + 1]["score"] for i in range(0, 80, 2)], dtype=torch.float64) * sd
    assert result["pairs"]["log_loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(gaps).mean()))
    assert all(line["score_sd"] > 0 and set(line["criteria"]) == {"vowels", "consonants"} for line in lines)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


def test_what_cannot_be_scored_is_a_sentence(two_headed, tiny, tmp_path):
    folder, _ = two_headed
    (tmp_path / "run").mkdir()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "q", "chosen": "", "rejected": "x"}\n')
    fixed = {"base": str(tiny), "compute": {"dtype": "float32"}, "reward": str(folder / "checkpoint")}
    run_folder = RunFolder(tmp_path / "run")
    with pytest.raises(BadInput, match="no usable row"):
        score.measure(from_dict(ScoreConfig, fixed | {"inputs": str(bad)}), run_folder)
    with pytest.raises(NotFound, match="does not exist"):
        score.measure(from_dict(ScoreConfig, fixed | {"inputs": str(tmp_path / "gone")}), run_folder)
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "q" * 99999, "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(BadInput, match="reads at most"):
        score.measure(from_dict(ScoreConfig, fixed | {"inputs": str(long), "max_prompt_tokens": 99999}), run_folder)
