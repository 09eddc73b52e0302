"""Best of n: what is kept, what is reported, resume, and prompts that cannot be read. The reward is a rule, so every score is known."""

import itertools
import json
import math

import pytest
import torch

from plaudit.artifacts import PromptRow, write_snapshot
from plaudit.errors import BadInput, NotFound
from plaudit.learn import base_models, best_of, checkpoint
from plaudit.learn.configs import BestOfConfig, from_dict
from plaudit.learn.nets import Adapter, DecoderConfig
from plaudit.learn.run_folder import RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    rows = [
        PromptRow(f"q{i}", f"f{i}", "test" if i == 5 else "train", ({"role": "user", "content": f"say {i}"},))
        for i in range(6)
    ]
    return write_snapshot(tmp_path_factory.mktemp("snapshots"), [], [], rows, {}, {}).folder


SHORT = {"kind": "length", "name": "short", "high": 1, "scale": 1.0}  # 1 - tokens: the shortest response is the best


def config(base, **changes):
    stock = {"base": str(base), "reward": [SHORT], "n": 6, "max_new_tokens": 40, "seed": 3}
    return from_dict(BestOfConfig, stock | {"compute": {"threads": 1, "dtype": "float32"}} | changes)


def select(folder, some):
    folder.mkdir(exist_ok=True)
    return best_of.select(some, RunFolder(folder)), read_jsonl(folder / "best.jsonl")


def test_the_best_by_the_reward_is_kept(base, snapshot, tmp_path):
    result, lines = select(tmp_path / "run", config(base, snapshot=str(snapshot)))
    assert sorted(line["id"] for line in lines) == [f"q{i}" for i in range(5)]
    tokenizer = ChatTokenizer.load(base)
    for line in lines:
        assert len(line["scores"]) == 6
        assert line["score"] == max(line["scores"]) == line["scores"][line["index"]]
        assert line["score"] == 1 - line["n_tokens"]
        assert len(tokenizer.encode(line["response"])) <= line["n_tokens"]
        assert line["finished"] == (line["n_tokens"] < 40)
    assert len({line["index"] for line in lines}) > 1
    means = [sum(line["scores"]) / 6 for line in lines]
    assert result["score"] == pytest.approx(sum(line["score"] for line in lines) / 5)
    assert result["score_mean"] == pytest.approx(sum(means) / 5)
    assert result["gain"] == pytest.approx(result["score"] - result["score_mean"])
    assert result["gain"] > 0 < result["gain_se"]
    assert [point["n"] for point in result["curve"]] == [1, 2, 4, 6]
    scores = [point["score"] for point in result["curve"]]
    assert scores[0] == pytest.approx(result["score_mean"])
    assert scores[-1] == pytest.approx(result["score"])
    assert scores == sorted(scores)
    assert result["kl_bound"] == pytest.approx(math.log(6) - 5 / 6)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


def test_a_missing_end_costs_what_the_config_says(base, snapshot, tmp_path):
    plain = {"snapshot": str(snapshot), "split": "test", "max_new_tokens": 12, "n": 24}
    reward = [{"kind": "length", "name": "long", "low": 12, "scale": 1.0}]  # likes what is cut off
    _, (free,) = select(tmp_path / "free", config(base, reward=reward, **plain))
    _, (dear,) = select(tmp_path / "dear", config(base, reward=reward, missing_eos_penalty=50.0, **plain))
    assert free["id"] == "q5"
    assert not free["finished"]
    assert dear["finished"]
    assert min(dear["scores"]) == -50.0


def test_every_choice_of_the_sampler_acts(base, snapshot, tmp_path):
    adapter = Adapter(DecoderConfig.read(base), rank=4, alpha=64.0, seed=1)
    for weight in adapter.b.values():
        weight.data.normal_(generator=torch.Generator().manual_seed(1))
    checkpoint.save_policy(tmp_path / "policy", adapter, base, {}, {})
    stock = {"snapshot": str(snapshot), "n": 2, "max_new_tokens": 6}
    _, expected = select(tmp_path / "stock", config(base, **stock))
    flags = (
        {"seed": 4}, {"n": 3}, {"max_new_tokens": 5}, {"max_prompt_tokens": 3}, {"temperature": 0.5},
        {"policy": str(tmp_path / "policy")}, {"compute": {"dtype": "bfloat16"}},
    )  # fmt: skip
    for number, flag in enumerate(flags):
        _, lines = select(tmp_path / str(number), config(base, **stock | flag))
        assert lines != expected, flag


def test_prompts_of_a_file(base, tmp_path):
    path = tmp_path / "prompts.jsonl"
    asked = [{"role": "user", "content": "hello"}]
    path.write_text(json.dumps({"messages": asked}) + "\n\n" + json.dumps({"messages": asked, "id": "b"}) + "\n")
    _, lines = select(tmp_path / "run", config(base, inputs=str(path), n=2, max_new_tokens=3))
    assert [(line["id"], line["messages"]) for line in lines] == [(1, asked), ("b", asked)]
    for text, words in (('{"prompt": "hello"}', "line 1"), ('{"messages": []}', "not empty"), ("{", "line 1")):
        path.write_text(text + "\n")
        with pytest.raises(BadInput, match=words):
            best_of.read_prompts(config(base, inputs=str(path)))
    path.write_text("\n")
    with pytest.raises(BadInput, match="no prompt in"):
        best_of.read_prompts(config(base, inputs=str(path)))
    with pytest.raises(NotFound, match=r"nowhere\.jsonl"):
        best_of.read_prompts(config(base, inputs=str(tmp_path / "nowhere.jsonl")))


def test_an_empty_split_is_named(base, snapshot):
    with pytest.raises(BadInput, match="valid split"):
        best_of.read_prompts(config(base, snapshot=str(snapshot), split="valid"))


@pytest.mark.parametrize("stage", ["log", "state"])
def test_killed_and_resumed_is_uninterrupted(base, snapshot, tmp_path, monkeypatch, stage):
    """Blocks of two prompts; the kill comes in the second block, after its lines were written."""
    monkeypatch.setattr(best_of, "ROWS", 12)
    some = config(base, snapshot=str(snapshot), reward=[SHORT | {"normalise": "reference"}])
    result, whole = select(tmp_path / "whole", some)
    place, name = {"log": (RunFolder, "log"), "state": (best_of.checkpoint, "save_state")}[stage]
    act, calls = getattr(place, name), []

    def killed(*given, **named):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return act(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, killed)
        with pytest.raises(KeyboardInterrupt):
            select(tmp_path / "cut", some)
    assert len(read_jsonl(tmp_path / "cut" / "best.jsonl")) == 4
    again, lines = select(tmp_path / "cut", some)
    assert (again, lines) == (result, whole)
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]
    assert [row["n"] for row in rows[0]] == [12, 12, 6]


def test_expected_best_is_the_mean_over_all_subsets():
    scores = [0.3, -1.0, 2.5, 0.3, 7.0]
    for k in range(1, 6):
        tops = [max(part) for part in itertools.combinations(scores, k)]
        assert best_of.expected_best(scores, k) == pytest.approx(sum(tops) / len(tops))


def test_kl_bound():
    """ln n - (n-1)/n: 0 for one sample, ln 2 - 1/2 for two."""
    assert best_of.kl_bound(1) == 0.0
    assert best_of.kl_bound(2) == pytest.approx(0.1931471805599453)
