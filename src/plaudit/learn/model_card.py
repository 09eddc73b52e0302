"""README.md of an exported Checkpoint: its card with Hugging Face's metadata on top (https://huggingface.co/docs/hub/model-cards), so that the folder
can be put on a hub, or read by whatever reads cards there.

The figures of `model-index` are those of the manifest; of a policy whose gate has spoken also those of its newest Evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plaudit import artifacts

Json = Mapping[str, Any]
LICENCES = ("LICENSE", "NOTICE", "COPYING")  # beginnings of the files of the base that go along


def readme(manifest: artifacts.Manifest, card: str, form: str, how: str, evaluation: Json | None = None) -> str:
    """Metadata, then `card` (card.md of the Checkpoint), its evaluation, lineage and licence, and `how` to load it.

    `form`: peft | merged. `evaluation`: an Evaluation of the ledger as {id, suite, gate, reasons, figures}.
    """
    kept = [line for line in card.splitlines() if not line.startswith("manifest.json names")]
    parts = [f"---\n{metadata(manifest, form, evaluation)}\n---", "\n".join(kept).strip()]
    if evaluation is not None:
        parts.append(_evaluation(evaluation))
    parts += [_lineage(manifest), f"## How to load it\n\n`{how}`"]
    return "\n\n".join(parts) + "\n"


def metadata(manifest: artifacts.Manifest, form: str, evaluation: Json | None = None) -> str:
    """The YAML between the dashes."""
    from huggingface_hub import EvalResult, ModelCardData

    body = manifest.body
    kind, spec, parents = str(body["checkpoint_kind"]), str(body["base"]["spec"]), body["parents"]
    task = "text-classification" if kind == "reward" else "text-generation"
    rows = [(name, value, "train", "held-out rows of its Snapshot") for name, value in _numbers(body["metrics"])]
    if evaluation is not None:
        found = _intervals(evaluation["figures"])
        rows += [(name, part["mean"], "evaluation", str(evaluation["suite"])) for name, part in found]
    known: dict[str, Any] = {}
    if "/" in spec:  # a name on the hub, not a folder
        known |= {"base_model": spec, "base_model_relation": "adapter" if form == "peft" else "finetune"}
    if parents.get("snapshot"):
        known |= {"datasets": [f"plaudit-snapshot-{parents['snapshot'][:12]}"]}
    if rows:
        known |= {"metrics": sorted({row[0] for row in rows})}
    data = ModelCardData(
        license=body["license"],
        library_name="peft" if form == "peft" else "transformers",
        pipeline_tag=task,
        **known,
        tags=["plaudit", "rlhf", "reward-model" if kind == "reward" else "policy"],
        model_name=f"{kind}-{manifest.id[:12]}",
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=f"plaudit-{source}",
                dataset_name=dataset,
                metric_type=name,
                metric_value=value,
            )
            for name, value, source, dataset in rows
        ],
    )
    return data.to_yaml()


def _numbers(value: Json, path: str = "") -> Iterator[tuple[str, float]]:
    for name, part in value.items():
        if isinstance(part, Mapping):
            yield from _numbers(part, f"{path}{name}.")
        elif isinstance(part, int | float) and not isinstance(part, bool):
            yield f"{path}{name}", part


def _intervals(value: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """(dotted name, {mean, low, high, n}) of everything in an evaluation's figures that has an interval."""
    for name, part in value.items():
        if isinstance(part, Mapping) and {"mean", "low", "high"} <= set(part):
            yield f"{path}{name}", part
        elif isinstance(part, Mapping):
            yield from _intervals(part, f"{path}{name}.")


def _evaluation(found: Json) -> str:
    rows = [
        f"| {name} | {one['mean']:.3f} | {one['low']:.3f} to {one['high']:.3f} |"
        for name, one in _intervals(found["figures"])
    ]
    verdict = f"The gate says **{found['gate']}**" if found["gate"] else "No gate has judged it"
    because = f": {'; '.join(found['reasons'])}." if found["reasons"] else "."
    return "\n".join(
        [
            "## Evaluation before release",
            "",
            f"{verdict}{because} Suite {found['suite']}, Evaluation {found['id']}; intervals are 95 %, over prompts.",
            "",
            "| figure | mean | interval |",
            "|---|---|---|",
            *rows,
        ]
    )


def _lineage(manifest: artifacts.Manifest) -> str:
    body = manifest.body
    unknown = " Nobody has said it: find out before you use this." if body["license"] == "unknown" else ""
    return "\n".join(
        [
            "## Lineage and licence",
            "",
            f"- Checkpoint {manifest.id}",
            f"- base {body['base']['spec']}, weights {body['base']['sha256']}",
            *(f"- {role} {id}" for role, id in body["parents"].items()),
            "",
            f"The base's licence is {body['license']}; its files ({', '.join(LICENCES)}) lie beside this card where it has some.{unknown}",
        ]
    )
