"""SFT lowers the loss of what it imitates, touches responses only, and resumes bit for bit."""

import pytest
import torch

from plaudit.errors import BadInput, TrainingStopped
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


def test_full_weights_are_learnt_resumed_and_become_a_base(tiny, make_snapshot, tmp_path, monkeypatch):
    config = {
        "snapshot": str(make_snapshot(n=32)), "base": str(tiny), "lora": None, "first_layer": 2, "batch_size": 8,
        "epochs": 3, "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip
    result = run(tmp_path / "whole", **config)
    assert result["curve"][-1]["loss"] < result["curve"][0]["loss"] - 0.1
    log = RunFolder.log

    def killed(self, step, of, phase, *rest, **named):
        if step == 5 and phase == "train":
            raise KeyboardInterrupt
        return log(self, step, of, phase, *rest, **named)

    monkeypatch.setattr(RunFolder, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **config)
    monkeypatch.undo()
    run(tmp_path / "cut", **config)
    files = [(tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    base = tmp_path / "whole" / "checkpoint"
    trained, untouched = Decoder.load(base, torch.float32), Decoder.load(tiny, torch.float32)
    assert torch.equal(trained.layer(1).qkv, untouched.layer(1).qkv)
    assert not torch.equal(trained.layer(2).qkv, untouched.layer(2).qkv)
    # The next run takes it as its base and begins where this one ended.
    run(tmp_path / "next", snapshot=config["snapshot"], base=str(base), batch_size=24, epochs=1)
    first = read_jsonl(tmp_path / "next" / "metrics.jsonl")[0]["loss"]
    assert first == pytest.approx(result["loss"], abs=0.15)
    with pytest.raises(BadInput, match="give the folder itself as the base"):
        run(tmp_path / "wrong", snapshot=config["snapshot"], base=str(tiny), start=str(base))


def test_packing_changes_nothing_but_the_layout(tiny, make_snapshot, tmp_path):
    """One batch holds all rows, so that only their layout differs."""
    config = {"snapshot": str(make_snapshot(n=48)), "base": str(tiny), "source": "chosen", "batch_size": 36}
    for packing in (False, True):
        run(tmp_path / str(packing), packing=packing, **config)
    rows = [read_jsonl(tmp_path / str(packing) / "metrics.jsonl") for packing in (False, True)]
    for one, other in zip(*rows, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert other.get("tokens") == one.get("tokens")


def test_a_loss_that_is_not_a_number_stops_and_names_its_rows(tiny, make_snapshot, tmp_path, monkeypatch):
    nll = sft.losses.nll
    monkeypatch.setattr(sft.losses, "nll", lambda *arguments: nll(*arguments) * float("nan"))
    with pytest.raises(TrainingStopped, match=r"loss of update 1 is nan \(rows 'a e i o u"):
        run(tmp_path / "run", snapshot=str(make_snapshot(n=32)), base=str(tiny))
    assert not (tmp_path / "run" / "checkpoint").exists()
