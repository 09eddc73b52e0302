"""SFT lowers the loss of what it imitates, touches responses only, and resumes bit for bit."""

import pytest
import torch

from plaudit.errors import BadInput
from plaudit.learn import checkpoint, sft
from plaudit.learn.configs import SFTConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.run_folder import RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer, from_text, pack, response_logprobs

FAST = {"compute": {"threads": 2, "dtype": "float32"}, "first_layer": 1, "lora": {"rank": 8, "alpha": 16}}


def run(folder, **config):
    folder.mkdir(exist_ok=True)
    return sft.train(from_dict(SFTConfig, FAST | config), RunFolder(folder))


def nll_of(tiny, adapter, text):
    data = from_text(ChatTokenizer.load(tiny), [[{"role": "user", "content": "unseen"}]], [(text,)])
    logprobs, counts, _ = response_logprobs(Decoder.load(tiny, torch.float32), adapter, pack(data))
    return -float(logprobs.sum() / counts.sum())


def test_demonstrations_are_learnt(tiny, make_snapshot, tmp_path):
    result = run(
        tmp_path / "run", snapshot=str(make_snapshot(n=60)), base=str(tiny), epochs=4, batch_size=8, optimizer={"learning_rate": 3e-3}
    )  # fmt: skip
    adapter = checkpoint.load_policy(tmp_path / "run" / "checkpoint", tiny)
    said = "a e i o u a e i o u "
    assert nll_of(tiny, adapter, said) < 0.6 * nll_of(tiny, None, said)
    assert nll_of(tiny, adapter, "zqxwj") > nll_of(
        tiny, adapter, said
    )  # what nobody demonstrated did not become likely
    losses = [point["loss"] for point in result["curve"]]
    assert losses == sorted(losses, reverse=True)


def test_nothing_to_imitate_is_refused(tiny, tmp_path):
    from plaudit.artifacts import write_snapshot

    empty = write_snapshot(tmp_path, [], [], [], {}, {}).folder
    with pytest.raises(BadInput, match="no training rows for source 'chosen'"):
        run(tmp_path / "run", snapshot=str(empty), base=str(tiny), source="chosen")


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tiny, make_snapshot, tmp_path, monkeypatch):
    config = {"snapshot": str(make_snapshot(n=60)), "base": str(tiny), "source": "chosen", "batch_size": 16}
    run(tmp_path / "whole", **config)
    log = RunFolder.log

    def killed(self, step, of, phase, *rest, **named):
        if step == 4 and phase == "train":
            raise KeyboardInterrupt
        return log(self, step, of, phase, *rest, **named)

    monkeypatch.setattr(RunFolder, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **config)
    monkeypatch.undo()
    run(tmp_path / "cut", **config)
    files = [(tmp_path / name / "checkpoint" / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    steps = [row["step"] for row in read_jsonl(tmp_path / "cut" / "metrics.jsonl") if row["phase"] == "train"]
    assert steps == list(range(1, steps[-1] + 1))


def test_a_start_is_continued(tiny, make_snapshot, tmp_path):
    config = {
        "snapshot": str(make_snapshot(n=40)),
        "base": str(tiny),
        "epochs": 1,
        "optimizer": {"learning_rate": 3e-3},
    }
    run(tmp_path / "first", **config)
    run(tmp_path / "second", start=str(tmp_path / "first" / "checkpoint"), **config)
    first, second = (read_jsonl(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("first", "second"))
    assert second < first - 0.05
