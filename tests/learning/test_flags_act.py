"""Every accepted flag of `reward`, `sft` and `dpo` acts or raises (checklist 15; PPO's are in test_ppo_checklist.py): one that is ignored gives
the stock run again, bit for bit."""

import pytest
import torch

from plaudit.learn import checkpoint, dpo, reward, sft
from plaudit.learn.configs import DPOConfig, RewardConfig, SFTConfig, describe, from_dict
from plaudit.learn.run_folder import RunFolder, read_jsonl

OPTIMIZER = [
    {"optimizer": {name: value}}
    for name, value in (
        ("learning_rate", 1e-4), ("weight_decay", 0.5), ("warmup_fraction", 0.6), ("schedule", "constant"),
        ("max_grad_norm", 1e-3), ("adam_eps", 1.0), ("beta1", 0.5), ("beta2", 0.5),
    )
]  # fmt: skip
SHARED = [
    *OPTIMIZER,
    {"seed": 1},
    {"lora": {"rank": 4}},
    {"lora": {"alpha": 4.0}},
    {"lora": {"targets": ["o_proj"]}},
    {"first_layer": 2},
    {"epochs": 1},
    {"max_prompt_tokens": 4},
    {"max_response_tokens": 5},
    {"compute": {"dtype": "bfloat16"}},
]
REWARD = [
    *SHARED,
    {"optimizer": {"head_learning_rate": 1e-4}},
    {"lora": None},
    {"read_layer": 2},
    {"pooling": "mean"},
    {"pooling": "both"},
    {"probe": True},
    {"batch_pairs": 4},
    {"centring": 1.0},
    {"use_weights": False},
    {"members": 2},
    {"validation": {"points_per_epoch": 2}},
]
SFT = [*SHARED, {"lora": None}, {"source": "chosen"}, {"source": "both"}, {"batch_size": 4}, {"packing": True}]
DPO = [
    *SHARED,
    {"lora": None},
    {"loss": "ipo"},
    {"loss": "kto"},
    {"beta": 1.0},
    {"label_smoothing": 0.2},
    {"soft_labels": False},
    {"use_weights": False},
    {"length_normalised": True},
    {"nll_coef": 1.0},
    {"batch_size": 4},
    {"validate_every": 1},
    {"packing": True},
]
STOCK = {
    "first_layer": 1,
    "epochs": 2,
    "lora": {"rank": 8, "alpha": 16.0},
    "compute": {"threads": 2, "dtype": "float32"},
    "optimizer": {"learning_rate": 2e-3},
}
PROGRAMS = {
    "reward": (
        reward,
        RewardConfig,
        {"baselines": False, "batch_pairs": 8, "validation": {"trap_prompts": 0, "ablations": 0}},
    ),
    "sft": (sft, SFTConfig, {"batch_size": 8}),
    "dpo": (dpo, DPOConfig, {"batch_size": 8}),
}


def run(program, folder, tiny, snapshot, flag):
    module, kind, extra = PROGRAMS[program]
    config = {"base": str(tiny), "snapshot": str(snapshot), **STOCK, **extra}
    for key, value in flag.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    folder.mkdir()
    module.train(from_dict(kind, config), RunFolder(folder))
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(folder / "metrics.jsonl")]
    return rows, checkpoint.load_state(folder / "state")["trained"]


@pytest.fixture(scope="module")
def stock(tiny, make_snapshot, tmp_path_factory):
    snapshot = make_snapshot(n=32)
    folder = tmp_path_factory.mktemp("flags")
    return snapshot, {program: run(program, folder / program, tiny, snapshot, {}) for program in PROGRAMS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flag"),
    [("reward", flag) for flag in REWARD] + [("sft", flag) for flag in SFT] + [("dpo", flag) for flag in DPO],
    ids=str,
)
def test_line_15_every_accepted_flag_acts(tiny, stock, tmp_path, program, flag):
    snapshot, runs = stock
    rows, weights = runs[program]
    new_rows, new_weights = run(program, tmp_path / "run", tiny, snapshot, flag)
    same = new_weights.keys() == weights.keys() and all(
        new_weights[name].shape == weights[name].shape and torch.equal(new_weights[name], weights[name])
        for name in weights
    )
    assert not (same and new_rows == rows)


@pytest.mark.parametrize(("program", "flags"), [("reward", REWARD), ("sft", SFT), ("dpo", DPO)])
def test_line_15_no_flag_is_left_out_of_that_test(program, flags):
    # Tested by name in test_{reward,sft,dpo}_learning.py, test_reward_from_files.py or tests/unit/learn/test_{reward,sft,dpo}.py.
    elsewhere = {"snapshot", "base", "start", "criterion", "baselines", "turns"}
    elsewhere |= {"preferences", "valid_preferences", "valid_fraction", "unpaired"}
    elsewhere |= {"desirable_weight", "undesirable_weight"} if program == "dpo" else set()
    elsewhere |= {"heads", "heads.criterion", "heads.weight", "members_share", "bootstrap", "use_margins"}
    elsewhere |= {"source_weights", "source_weights.source", "source_weights.weight"}  # test_questions.py
    elsewhere |= {"validation.trap_prompts", "validation.ablations", "validation.thumbs"}  # test_closer_look.py
    elsewhere |= {"other_bases"}  # test_readers.py
    layout = {"compute.threads", "compute.micro_tokens", "compute.save_every"}  # must not change results
    heads = {"optimizer.head_learning_rate"} if program in ("sft", "dpo") else set()  # refused: test_configs.py
    known = {name for name, _, _ in describe(PROGRAMS[program][1])} - elsewhere - layout - heads
    tried = {
        f"{key}.{inner}" if inner else key
        for flag in flags
        for key, value in flag.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert tried - {"lora"} == known - {"lora", "optimizer", "compute", "validation"}
