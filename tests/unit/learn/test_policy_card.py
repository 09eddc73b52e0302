from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from plaudit.learn import policy_card
from plaudit.learn.configs import DPOConfig, PPOConfig, SFTConfig, from_dict

SVG = "{http://www.w3.org/2000/svg}"
ONLINE = {
    "program": "ppo",
    "stop": "budget",
    "steps": 2,
    "kl": 1.9,
    "kl_budget": 2.0,
    "score_first": 0.5,
    "score": 0.25,
    "curve": [{"step": i, "score": 0.5 - i / 8, "kl": float(i), "eos_fraction": 1.0} for i in range(3)],
}


def config(kind, **other):
    return from_dict(kind, {"snapshot": "/data/snap-7", "base": "b", **other})


def test_an_online_policy_with_its_guards_and_the_limits_that_its_figures_show() -> None:
    text, pictures = policy_card.write(ONLINE, config(PPOConfig, reward="r", seed=4), "## Guards\n\nNothing fired.")
    assert "snap-7" in text
    assert "/data" not in text, "no paths of this machine"
    assert "a LoRA adapter of rank 16 on all layers; seed 4" in text
    assert "2 rollouts of 2 (ended by its KL budget)" in text
    assert "0.500 before, 0.250 kept, at 1.900 nats" in text
    assert "| kl | 0.000 | 2.000 |" in text
    assert text.index("![learning curve](curve.svg)") < text.index("Nothing fired.") < text.index("## Known limits")
    assert "used up its KL budget" in text
    assert "no higher than before" in text
    calm, _ = policy_card.write({**ONLINE, "kl": 1.0, "score": 0.75}, config(PPOConfig, reward="r"))
    assert "KL budget:" not in calm
    assert "no higher" not in calm
    same, _ = policy_card.write(
        {**ONLINE, "stop": "guard", "kl_budget": None, "score": 0.5}, config(PPOConfig, reward="r")
    )
    assert "(ended by a guard)" in same
    assert "(budget none)" in same
    assert "no higher than before" in same
    unknown, _ = policy_card.write({**ONLINE, "score": None}, config(PPOConfig, reward="r"))
    assert "0.500 before,  kept" in unknown
    assert "no higher" not in unknown
    svg = ET.fromstring(pictures["curve.svg"])
    assert [len(line.get("points", "").split()) for line in svg.iter(f"{SVG}polyline")] == [3, 3, 3, 3]
    dots = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in svg.iter(f"{SVG}circle")]
    assert [x for x, _ in dots[:3]] == [60.0, 280.0, 500.0], "steps 0, 1, 2 over the whole width"
    written = ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]
    assert written == ["score", "0.5", "0.25", "0", "2", "kl", "2", "0", "0", "2"], "the ends of both axes"
    assert "seed 4 is one draw" in text
    assert dots[0][1] < dots[1][1] < dots[2][1], "the score falls, and y grows downwards"
    assert dots[3][1] > dots[4][1] > dots[5][1], "the KL rises"


def test_supervised_policies_say_what_was_held_out() -> None:
    curve = [
        {"update": 4, "epoch": 1, "loss": 0.5, "accuracy": 0.6},
        {"update": 8, "epoch": 2, "loss": 0.25, "accuracy": 0.6},
        {"update": 12, "epoch": 2, "loss": None, "accuracy": 0.6},
        {"update": 16, "epoch": 2, "loss": 0.375, "accuracy": {"mean": 0.625}},
    ]
    result = {"program": "dpo", "n_train": 40, "n_valid": 8, "curve": curve, "valid": {}}
    text, pictures = policy_card.write(result, config(DPOConfig, epochs=2))
    assert "dpo on 40 rows of snap-7" in text
    assert "; 2 epoch(s)" in text
    assert "8 rows were held out" in text
    assert "lower before the end" in text
    assert "| accuracy | 0.600 | 0.625 |" in text
    svg = ET.fromstring(pictures["curve.svg"])
    assert [float(dot.get("cx", 0)) for dot in svg.iter(f"{SVG}circle")][:3] == pytest.approx([60, 206.7, 500], abs=0.1)
    again = config(SFTConfig, start="/runs/last", lora=None, first_layer=3)
    text, pictures = policy_card.write({"program": "sft", "n_train": 40, "curve": []}, again)
    assert "full weights of layers from 3 on, starting from last; seed 0" in text
    assert pictures == {}
    assert "Nothing was held out" in text
    pairs = from_dict(DPOConfig, {"preferences": "/data/pairs.jsonl", "base": "b"})
    assert "40 rows of pairs.jsonl" in policy_card.write({**result, "curve": curve[:2]}, pairs)[0]
    assert "lower before" not in policy_card.write({**result, "curve": curve[:2]}, pairs)[0]
