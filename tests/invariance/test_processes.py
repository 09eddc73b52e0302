"""Two processes train what one trains: every program, weights and metrics within 1e-5, and a resumed run bit for bit.

The processes meet as torchrun makes them meet. One pair of them runs all cases, because each would import torch anew.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
import torch

from plaudit.artifacts import DemonstrationRow, PreferenceRow, PromptRow, write_snapshot
from plaudit.learn import base_models, checkpoint
from plaudit.learn.__main__ import main
from plaudit.learn.run_folder import read_jsonl

CLOSE = 1e-5
TIMES = ("seconds", "phases", "tokens_per_second")
FUNCTION = """
def letters(messages, responses, token_ids, meta):
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in responses]
"""
# argv: JSON lines of [program, folder, step after which the first attempt is ended (0: not)]
PAIR = """
import sys, json
from plaudit.learn import distributed
from plaudit.learn.__main__ import main
from plaudit.learn.run_folder import RunFolder

log = RunFolder.log

class Ended(BaseException):
    pass

def run(program, folder, end):
    def ending(self, step, *rest, **values):
        if step > end:
            raise Ended
        return log(self, step, *rest, **values)
    if end:
        RunFolder.log = ending
        try:
            main([program, folder])
        except Ended:
            pass
        RunFolder.log = log
    assert main([program, folder]) == 0, (program, folder)

with distributed.joined():
    assert distributed.size() == 2
    for line in sys.argv[1:]:
        run(*json.loads(line))
"""


def write(rng):
    return "".join(rng.choice("aeioutnshrdl ") for _ in range(rng.randint(3, 20)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(tiny base, Snapshot): 13 rows to train on, so that batches of 4 leave one of 1 that a process has nothing of."""
    rng, rows, shown, asked = random.Random(0), [], [], []
    for i in range(16):
        messages = ({"role": "user", "content": f"say {write(rng)}"},)
        names = {"family": f"f{i}", "split": "train" if i < 13 else "valid", "messages": messages}
        rows.append(
            PreferenceRow(
                preference_id=f"p{i}", comparison_id=f"c{i}", criterion="overall", chosen=write(rng),
                rejected=write(rng), probability=0.9, weight=1.0 + i % 3, source="annotation", **names
            )
        )  # fmt: skip
        shown.append(DemonstrationRow(demonstration_id=f"d{i}", response=write(rng), source="edit", **names))
        asked.append(PromptRow(prompt_id=f"q{i}", **names))
    folder = tmp_path_factory.mktemp("processes")
    (folder / "own_letters_too.py").write_text(FUNCTION)
    return base_models.prepare("tiny", folder), write_snapshot(folder, rows, shown, asked, {}, {}).folder, folder


SHARED = {"compute": {"threads": 1, "dtype": "float32", "micro_tokens": 128}, "lora": {"rank": 4, "alpha": 8}}
ONLINE = SHARED | {
    "first_layer": 1,
    "steps": 2,
    "sampling": {"prompts_per_step": 5, "samples_per_prompt": 3, "max_new_tokens": 8},
    "optimizer": {"learning_rate": 2e-3},
    "kl": {"budget": None},
    "entropy": True,
}
REWARD = SHARED | {"first_layer": 1, "batch_pairs": 4, "baselines": False, "validation": None}
# name -> (program, config): the odd ways through each program
CASES = {
    "judge": ("reward", REWARD | {"seed": 1, "members": 2, "members_share": "trunk"}),
    "reward": ("reward", REWARD | {"pooling": "mean", "epochs": 2}),
    "sft": ("sft", SHARED | {"first_layer": 1, "source": "both", "batch_size": 4, "epochs": 1, "packing": True}),
    "sft-full": ("sft", SHARED | {"lora": None, "source": "demonstrations", "batch_size": 4, "epochs": 1}),
    "dpo": ("dpo", SHARED | {"first_layer": 1, "batch_size": 4, "epochs": 2, "nll_coef": 0.1}),
    "kto": ("dpo", SHARED | {"loss": "kto", "batch_size": 4, "epochs": 1}),
    "grpo": ("grpo", ONLINE | {"epochs": 2, "minibatches": 2, "loss_norm": "sequence", "kl_in": "loss"}),
    "batch": ("grpo", ONLINE | {"baseline": "batch", "running_normaliser": True}),
    "ppo": ("ppo", ONLINE | {"epochs": 2, "minibatches": 5, "whiten_rewards": True, "truncation": "mask"}),
    "critic": ("ppo", ONLINE | {"critic": "reward", "truncation": "bootstrap"}),
}
LETTERS = {"kind": "function", "name": "letters", "function": "own_letters_too:letters", "normalise": "reference"}


@pytest.fixture(scope="module")
def runs(world):
    """name -> (folder of one process, folder of two, folder of two that were ended after the first step)."""
    base, snapshot, place = world
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        for name, (program, fields) in CASES.items():
            config = {"snapshot": str(snapshot), "base": str(base)} | fields
            folders = [place / f"{name}-{how}" for how in ("one", "two", "cut")]
            for folder in folders:
                said = dict(config)
                if program in ("grpo", "ppo"):
                    model = str(place / "reward-one" / "checkpoint")
                    said["reward"] = model
                    if name == "grpo":
                        said["reward"] = [{"kind": "model", "name": "people", "checkpoints": [model]}, LETTERS]
                        said["guards"] = {"judge": str(place / "judge-one" / "checkpoint")}
                folder.mkdir()
                (folder / "config.json").write_text(json.dumps(said))
            assert main([program, str(folders[0])]) == 0
            made[name] = folders
    lines = [json.dumps([CASES[name][0], str(two), 0]) for name, (_, two, _) in made.items()]
    lines += [json.dumps([CASES[name][0], str(made[name][2]), 1]) for name in ("dpo", "grpo", "ppo")]
    (place / "pair.py").write_text(PAIR)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(place / "pair.py"), *lines],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return made


def weights(folder):
    state = checkpoint.load_state(folder / "state")
    parts = [*state.get("done", []), state["trained"]]
    return {f"{i} {name}": tensor for i, part in enumerate(parts) for name, tensor in part.items()}


def figures(folder):
    """Every number of metrics.jsonl but the times, by line and name."""
    lines = read_jsonl(folder / "metrics.jsonl")
    return [
        {name: value for name, value in line.items() if name not in TIMES and isinstance(value, int | float | str)}
        for line in lines
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(runs, name):
    one, two, _ = runs[name]
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=CLOSE, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    before, after = figures(one), figures(two)
    assert len(before) == len(after) > 1
    for line, (a, b) in enumerate(zip(before, after, strict=True)):
        assert a.keys() == b.keys()
        for key, value in a.items():
            close = pytest.approx(value, abs=CLOSE, rel=CLOSE) if isinstance(value, float) else value
            assert b[key] == close, (line, key)
    assert (two / "checkpoint" / "manifest.json").is_file()
    assert not list(two.glob("**/*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "grpo", "ppo"])
def test_two_processes_that_were_ended_go_on_bit_for_bit(runs, name):
    _, two, cut = runs[name]
    expected, found = weights(two), weights(cut)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert figures(cut) == figures(two)


@pytest.mark.slow
def test_programs_that_share_nothing_refuse_several_processes(world, tmp_path):
    base, snapshot, _ = world
    config = {"base": str(base), "snapshot": str(snapshot), "reward": "own:f"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*launch, "plaudit.learn", "best_of", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "best_of runs in one process, not in 2" in done.stderr
