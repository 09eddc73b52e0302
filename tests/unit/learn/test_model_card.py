"""README.md of an export, read by Hugging Face's own parser: its figures are those of the manifest and of the ledger."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import ModelCard

from plaudit import artifacts
from plaudit.learn import base_models, checkpoint, model_card
from plaudit.learn.export import export
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.rewards import RewardModel

SHA = "5" * 64
EVALUATION = {
    "id": "evl_1",
    "suite": "held-out",
    "gate": "fail",
    "reasons": ["too long"],
    "figures": {
        "n_prompts": 9,
        "win_rate": {"mean": 0.61, "low": 0.55, "high": 0.67, "n": 9},
        "suites": {"refusals": {"de": {"mean": 0.125, "low": 0.0, "high": 0.3, "n": 8}}},
        "safety": None,
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("card"))


def results(card):
    return {(one.dataset_type, one.metric_type): one.metric_value for one in card.data.eval_results}


def test_a_reward_models_figures_pictures_and_licence(base, tmp_path):
    decoder = Decoder.load(base, torch.float32)
    model = RewardModel(
        decoder, Adapter(decoder.config, 4, 8, 2, ["q_proj"], seed=1), ScalarHead(64), "last", 2, 1.0, read_layer=4
    )
    metrics = {"accuracy": 0.7125, "log_loss": 0.58, "by": {"ece": 0.031}, "loss": "dpo", "none": None, "stopped": True}
    parents = {"snapshot": SHA}
    checkpoint.save_reward(
        tmp_path / "r", model, base, parents, metrics, "## Known limits\n\n![c](c.svg)", {"c.svg": "<svg/>"}
    )
    for name in ("LICENSE", "NOTICE", "COPYING"):
        (base / f"{name}.md").write_text(name)
    export(tmp_path / "r", base, "merged", tmp_path / "out")
    assert {"LICENSE.md", "NOTICE.md", "COPYING.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
    card = ModelCard.load(tmp_path / "out" / "README.md", ignore_metadata_errors=False)
    assert results(card) == {("plaudit-train", name): value for name, value in
                             {"accuracy": 0.7125, "log_loss": 0.58, "by.ece": 0.031}.items()}  # fmt: skip
    said = card.data
    manifest = artifacts.read_manifest(tmp_path / "r")
    assert (said.license, said.pipeline_tag, said.library_name) == ("apache-2.0", "text-classification", "transformers")
    assert (said.datasets, said.model_name) == (["plaudit-snapshot-555555555555"], f"reward-{manifest.id[:12]}")
    assert "reward-model" in said.tags
    assert said.base_model is None, "tiny is no name on the hub"
    assert "Nobody has said it" not in card.text
    assert (tmp_path / "out" / "c.svg").read_text() == "<svg/>"
    assert "## Known limits\n\n![c](c.svg)" in card.text, "the whole card, not only its beginning"
    assert f"- snapshot {SHA}" in card.text
    assert "manifest.json" not in card.text, "which is not in the export"


def test_what_the_gate_saw_of_a_policy(base, tmp_path):
    body = {
        "checkpoint_kind": "policy",
        "base": {"spec": "HuggingFaceTB/SmolLM2-135M", "sha256": SHA},
        "parents": {"start": SHA},
        "metrics": {"kl": 1.5, "score": -0.25},
        "license": "unknown",
    }
    manifest = artifacts.Manifest("checkpoint", SHA, {}, body)
    card = ModelCard(model_card.readme(manifest, "# A policy Checkpoint\n", "peft", "how", EVALUATION))
    assert results(card) == {
        ("plaudit-train", "kl"): 1.5, ("plaudit-train", "score"): -0.25,
        ("plaudit-evaluation", "win_rate"): 0.61, ("plaudit-evaluation", "suites.refusals.de"): 0.125,
    }  # fmt: skip
    assert card.data.metrics == ["kl", "score", "suites.refusals.de", "win_rate"]
    assert {(one.dataset_type, one.dataset_name) for one in card.data.eval_results} == {
        ("plaudit-train", "held-out rows of its Snapshot"), ("plaudit-evaluation", "held-out")
    }  # fmt: skip
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-generation", "peft")
    assert "policy" in card.data.tags
    assert "Suite held-out, Evaluation evl_1;" in card.text
    assert "| win_rate | 0.610 | 0.550 to 0.670 |" in card.text
    assert f"- Checkpoint {SHA}\n- base HuggingFaceTB/SmolLM2-135M, weights {SHA}\n- start {SHA}\n" in card.text
    assert card.text.endswith("## How to load it\n\n`how`\n")
    assert (card.data.base_model, card.data.base_model_relation) == ("HuggingFaceTB/SmolLM2-135M", "adapter")
    assert card.data.datasets is None
    assert "The gate says **fail**: too long." in card.text
    assert "| suites.refusals.de | 0.125 | 0.000 to 0.300 |" in card.text
    assert "Nobody has said it" in card.text
    assert "## Evaluation" not in model_card.readme(manifest, "", "peft", "how")
    open_still = model_card.readme(manifest, "", "merged", "how", EVALUATION | {"gate": "", "reasons": []})
    assert "No gate has judged it. Suite" in open_still
    assert "base_model_relation: finetune" in open_still
