"""`score`: each measure against a computation of its own, and a killed run repeats nothing that it wrote."""

import json

import pytest
import torch

from plaudit.learn import checkpoint, score
from plaudit.learn.configs import ScoreConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.rewards import score_responses
from plaudit.learn.run_folder import RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer, Rollout, pack, response_logprobs

ROWS = [
    {"id": "a", "messages": [{"role": "user", "content": "hi"}], "responses": ["aeiou", "tnshr"], "finished": [True, False]},
    {"messages": [{"role": "user", "content": "there\u2028now"}], "response": "oui oui"},
]  # fmt: skip


@pytest.fixture
def inputs(tmp_path):
    path = tmp_path / "inputs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="session")
def policy(tiny, make_snapshot, tmp_path_factory):
    from plaudit.learn import sft
    from plaudit.learn.configs import SFTConfig

    folder = tmp_path_factory.mktemp("sft") / "run"
    folder.mkdir()
    config = {
        "snapshot": str(make_snapshot(n=24)),
        "base": str(tiny),
        "first_layer": 2,
        "compute": {"dtype": "float32"},
    }
    sft.train(from_dict(SFTConfig, config), RunFolder(folder))
    return folder / "checkpoint"


def measure(folder, **config):
    folder.mkdir(exist_ok=True)
    return score.measure(from_dict(ScoreConfig, {"compute": {"dtype": "float32"}} | config), RunFolder(folder))


def test_each_measure_is_what_it_says(tiny, inputs, vowel_reward, policy, tmp_path):
    result = measure(
        tmp_path / "run", inputs=str(inputs), base=str(tiny), measures=["score", "nll", "kl"],
        reward=str(vowel_reward / "checkpoint"), policy=str(policy),
    )  # fmt: skip
    lines = read_jsonl(tmp_path / "run" / "scores.jsonl")
    assert [(line["id"], line["index"], line["n_tokens"]) for line in lines] == [("a", 0, 6), ("a", 1, 5), (2, 0, 8)]
    tokenizer, decoder = ChatTokenizer.load(tiny), Decoder.load(tiny, torch.float32)
    model = checkpoint.load_reward(vowel_reward / "checkpoint", tiny, decoder)
    adapter = checkpoint.load_policy(policy, tiny)
    for line, (row, text, end) in zip(
        lines, [(0, "aeiou", True), (0, "tnshr", False), (1, "oui oui", True)], strict=True
    ):
        ids = tokenizer.encode(text) + ([tokenizer.eos_id] if end else [])
        alone = pack(Rollout([tokenizer.render(ROWS[row]["messages"])], [ids], [0], [end]))
        base = response_logprobs(decoder, None, alone)[0]
        assert line["score"] == pytest.approx(float(score_responses(model, alone, None)) / model.sd, abs=1e-4)
        assert line["nll"] == pytest.approx(-float(base.mean()), abs=1e-4)
        assert line["kl"] == pytest.approx(
            float((response_logprobs(decoder, adapter, alone)[0] - base).sum()), abs=1e-4
        )
        assert abs(line["kl"]) > 1e-3
    assert result["nll"] == pytest.approx(sum(line["nll"] for line in lines) / 3)
    assert result["n"] == 3


def test_kl_only_of_what_the_policy_wrote(tiny, policy, tmp_path):
    """Marked or not, an own answer has the same KL; of the others there is none, and the mean is over those that there are."""
    lines = {}
    for name, marks in (("all", {}), ("own", {"by_policy": [False, True]}), ("none", {"by_policy": False})):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({**ROWS[0], "id": i, **marks}) + "\n" for i in range(3)))
        config = {"inputs": str(path), "base": str(tiny), "measures": ["nll", "kl"], "policy": str(policy)}
        result = measure(tmp_path / name, **config)
        lines[name] = read_jsonl(tmp_path / name / "scores.jsonl")
        own = [line["kl"] for line in lines[name] if "kl" in line]
        assert result["kl"] == pytest.approx(sum(own) / len(own) if own else 0)
    for everything, own, none in zip(lines["all"], lines["own"], lines["none"], strict=True):
        assert ("kl" in own) == (own["index"] == 1)
        assert "kl" not in none
        assert own["nll"] == pytest.approx(everything["nll"], abs=1e-5)
        if "kl" in own:
            assert own["kl"] == pytest.approx(everything["kl"], abs=1e-4)


def test_resume_repeats_only_the_last_block(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "BLOCK", 2)
    path = tmp_path / "inputs.jsonl"
    path.write_text("".join(json.dumps(ROWS[0] | {"id": i}) + "\n" for i in range(5)))
    config = {"inputs": str(path), "base": str(tiny), "measures": ["nll"]}
    whole = measure(tmp_path / "whole", **config)
    lines = (tmp_path / "whole" / "scores.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "scores.jsonl").write_text("".join(lines[:7]) + lines[7][:5])  # killed within the second block
    seen = []
    block = score.measure_block
    monkeypatch.setattr(score, "measure_block", lambda *given: seen.append(len(given[-1])) or block(*given))
    assert measure(tmp_path / "cut", **config) == whole
    assert seen == [2, 1]
    assert (tmp_path / "cut" / "scores.jsonl").read_text() == "".join(lines)
