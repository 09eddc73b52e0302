"""`reward`: a Bradley-Terry reward model on Preferences with soft labels.

Chosen and rejected lie in one row behind their shared prompt; layers below `first_layer` run once for the whole training split. Nothing
is chosen by looking at held-out rows: they are scored once an epoch for the curve, and at the end beside the two baselines.

metrics.jsonl: phase `train` (loss, accuracy, learning_rate, gradient_norm, pairs, epoch), phase `validate` (accuracy, log_loss, epoch).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plaudit.artifacts import PreferenceRow, open_snapshot
from plaudit.errors import BadInput, ConfigError
from plaudit.learn import baselines, checkpoint, losses
from plaudit.learn.batches import Batcher, group_lengths, length_buckets
from plaudit.learn.configs import RewardConfig
from plaudit.learn.doctor import check_off, check_trainable
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.optimizer import AdamW
from plaudit.learn.policies import choose_dtype, load_base
from plaudit.learn.probe import fit_probe
from plaudit.learn.rewards import RewardModel, head_width, pack_scores, pooled, score_responses
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.tokens import ChatTokenizer, from_text
from plaudit.stats import calibration, intervals

Floats = NDArray[np.float64]
REFERENCE_PAIRS = 64


@dataclass
class Training:
    """Everything that changes while training; what `state/` holds."""

    model: RewardModel
    adam: AdamW
    generator: torch.Generator
    update: int = 0
    order: list[list[int]] = field(default_factory=list)  # this epoch's batches of pairs
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def module(self) -> nn.Module:
        """What is trained: the head, and the adapter or the decoder's upper layers."""
        return nn.ModuleDict({"body": self.model.adapter or self.model.decoder, "head": self.model.head})

    def trained(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.module.named_parameters() if p.requires_grad}


def train(config: RewardConfig, run: RunFolder) -> dict[str, Any]:
    """Train, validate and write the Checkpoint; returns result.json's content. Raises PlauditErrors (see errors.py) a user can fix."""
    clock = Clock()
    torch.manual_seed(config.seed)
    train_rows, held_out = read_rows(config)
    tokenizer = ChatTokenizer.load(Path(config.base))
    training = start(config)
    weights = torch.tensor([row.weight if config.use_weights else 1.0 for row in train_rows], dtype=torch.float32)
    weights = weights / weights.mean()
    probabilities = torch.tensor([row.probability for row in train_rows], dtype=torch.float32)
    with clock.phase("trunk"):
        data = encode(tokenizer, train_rows, config, training.model.decoder)
        test = encode(tokenizer, held_out, config, training.model.decoder) if held_out else None

    n_updates = config.epochs * -(-len(train_rows) // config.batch_pairs)
    per_epoch = n_updates // config.epochs
    if not restore(training, run) and config.probe:
        with clock.phase("probe"):
            probe_head(training.model, data, train_rows, probabilities, weights)
    run.resume_metrics(training.update)
    predicted: Floats | None = None
    while training.update < n_updates:
        step_clock = Clock()
        if training.update % per_epoch == 0:
            training.order = length_buckets(group_lengths(data.data), config.batch_pairs, training.generator)
        pairs = training.order[training.update % per_epoch]
        figures = update(training, config, data, pairs, probabilities, weights, n_updates)
        training.update += 1
        epoch = -(-training.update // per_epoch)
        run.log(training.update, n_updates, "train", step_clock.total, epoch=epoch, pairs=len(pairs), **figures)
        if training.update % per_epoch == 0 and test is not None:
            step_clock = Clock()
            predicted = predictions(training.model, test)
            point = curve_point(predicted, held_out)
            training.curve.append({"epoch": epoch, **point})
            run.log(training.update, n_updates, "validate", step_clock.total, epoch=epoch, **point)
        if training.update % config.compute.save_every == 0 or training.update == n_updates:
            save(training, run)
    with clock.phase("normalise"):
        mean, sd = centre(training.model, data)
        model = replace(training.model, sd=sd)
    with clock.phase("validate"):
        if test is not None and predicted is None:  # a run that was killed after its last update
            predicted = predictions(model, test)
        result = {
            "program": "reward",
            "n_train": len(train_rows),
            "n_valid": len(held_out),
            "epochs": config.epochs,
            "normalisation": {"mean_before": mean, "sd": sd},
            "curve": training.curve,
            **validate(predicted, train_rows, held_out, config),
        }
    finish(config, run, model, result, clock)
    return result


def read_rows(config: RewardConfig) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    """(training split, held-out splits `valid` and `test`) of the criterion. Raises BadInput where nothing is left to train on."""
    rows = [
        row for row in open_snapshot(Path(config.snapshot)).preferences() if config.criterion in ("", row.criterion)
    ]
    train_rows = [row for row in rows if row.split == "train"]
    if not train_rows:
        raise BadInput(
            f"{config.snapshot} has no training Preferences"
            + (f" for the criterion {config.criterion!r}" if config.criterion else "")
            + "; collect annotations and freeze a new Snapshot."
        )
    return train_rows, [row for row in rows if row.split in ("valid", "test")]


def start(config: RewardConfig) -> Training:
    """Fresh weights and optimizer. Raises ConfigError for full training in bf16, where small updates would be rounded away."""
    if config.lora is None and config.compute.dtype == "bfloat16":
        raise ConfigError(
            "compute.dtype is 'bfloat16' with full weights (lora null); train them in float32, or use LoRA."
        )
    dtype = torch.float32 if config.lora is None else choose_dtype(config.compute)
    decoder = load_base(config.base, config.first_layer, dtype)
    read_layer = config.read_layer or decoder.config.n_layers
    if read_layer > decoder.config.n_layers:
        raise ConfigError(
            f"RewardConfig.read_layer is {read_layer}, but {config.base} has {decoder.config.n_layers} layers; 0 means all of them."
        )
    adapter = None
    if config.lora is not None:
        adapter = Adapter(
            decoder.config,
            config.lora.rank,
            config.lora.alpha,
            config.first_layer,
            config.lora.targets,
            seed=config.seed,
        )
    else:
        upper = [decoder.layer(index) for index in range(config.first_layer, read_layer)]
        for parameter in (p for layer in upper for p in layer.parameters()):
            parameter.requires_grad_(True)
        if config.first_layer == 0:
            decoder.embedding.requires_grad_(True)
    head = ScalarHead(head_width(config.pooling, decoder.config.d_model), seed=config.seed)
    model = RewardModel(decoder, adapter, head, config.pooling, config.first_layer, read_layer=read_layer)
    body = [p for p in (adapter or decoder).parameters() if p.requires_grad]
    adam = AdamW(config.optimizer, body, list(head.parameters()))
    training = Training(model, adam, torch.Generator().manual_seed(config.seed))
    check_trainable(nn.ModuleList([decoder, head]), [*body, *head.parameters()], dtype)
    check_off(decoder)
    return training


def encode(tokenizer: ChatTokenizer, rows: Sequence[PreferenceRow], config: RewardConfig, decoder: Decoder) -> Batcher:
    """Pair i as responses 2i (chosen) and 2i + 1 (rejected) to prompt i."""
    data = from_text(
        tokenizer,
        [row.messages for row in rows],
        [(row.chosen, row.rejected) for row in rows],
        [(row.chosen_finished, row.rejected_finished) for row in rows],
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    return Batcher(decoder, data, config.first_layer, config.compute.micro_tokens)


@torch.no_grad()
def probe_head(
    model: RewardModel, data: Batcher, rows: Sequence[PreferenceRow], probabilities: Tensor, weights: Tensor
) -> None:
    """Set the head to a logistic regression on the states it will read, before anything is trained."""
    states: list[Tensor] = []
    for block in data.blocks():
        packs, trunk, names = data.packs(block)
        found = torch.cat([pooled(model, batch, trunk) for batch in packs])
        states.append(found[names[torch.cat([batch.response for batch in packs])].argsort()])
    pairs = np.asarray(torch.cat(states).double()).reshape(len(rows), 2, -1)
    families = [row.family for row in rows]
    weight, _ = fit_probe(pairs[:, 0], pairs[:, 1], probabilities.double().numpy(), weights.double().numpy(), families)
    model.head.weight.copy_(torch.from_numpy(weight))


def update(
    training: Training,
    config: RewardConfig,
    data: Batcher,
    pairs: Sequence[int],
    probabilities: Tensor,
    weights: Tensor,
    n_updates: int,
) -> dict[str, float]:
    """One optimizer step on `pairs`: the weighted mean over all of them, whatever the micro-batches."""
    packs, trunk, names = data.packs(pairs)
    total = float(weights[list(pairs)].sum())
    loss_sum, right = 0.0, 0.0
    for batch in packs:
        scores = pack_scores(training.model, batch, trunk)
        index = names[batch.response]
        by_response = dict(zip(index.tolist(), range(len(index)), strict=True))
        here = sorted({int(i) // 2 for i in index})
        chosen = scores[[by_response[2 * pair] for pair in here]]
        rejected = scores[[by_response[2 * pair + 1] for pair in here]]
        share = weights[here] / total
        loss = (share * losses.bradley_terry(chosen, rejected, probabilities[here])).sum()
        centred = (share * losses.centring(chosen, rejected)).sum()
        (loss + config.centring * centred).backward()  # type: ignore[no-untyped-call]
        loss_sum += float(loss.detach())
        right += float(((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).sum())
    norm, rate = training.adam.step(training.update, n_updates)
    return {"loss": loss_sum, "accuracy": right / len(pairs), "learning_rate": rate, "gradient_norm": norm}


def all_scores(model: RewardModel, data: Batcher, groups: Sequence[int] | None = None) -> Tensor:
    """Raw scores of the responses of these groups (all, if not told), in order.   -> (N,)"""
    scores = []
    for block in data.blocks(groups):
        packs, trunk, names = data.packs(block)
        values = score_responses(model, packs, trunk)
        present = torch.cat([batch.response for batch in packs])
        scores.append(values[present[names[present].argsort()]])
    return torch.cat(scores)


def centre(model: RewardModel, data: Batcher) -> tuple[float, float]:
    """Set the head's bias so that the mean score on reference completions is 0; returns (mean before, sd).

    These are the responses of every k-th training pair, at most REFERENCE_PAIRS: enough for an error of the mean under .1 sd.
    """
    n = len(data.data.prompt_ids)
    scores = all_scores(model, data, range(0, n, -(-n // REFERENCE_PAIRS)))
    mean = float(scores.mean())
    with torch.no_grad():
        model.head.bias -= mean  # type: ignore[misc]
    return mean, float(scores.std()) or 1.0


def predictions(model: RewardModel, data: Batcher) -> Floats:
    """P(chosen beats rejected) of each pair.   -> (n,)"""
    scores = all_scores(model, data).view(-1, 2)
    return np.asarray(torch.sigmoid(scores[:, 0] - scores[:, 1]), dtype=np.float64)


def correct(predicted: Floats, rows: Sequence[PreferenceRow]) -> tuple[Floats, list[str]]:
    """(1 right, .5 tie, 0 wrong against the majority label, prompt family) of each row that has a majority."""
    truth = np.array([row.probability for row in rows])
    decided = truth != 0.5
    agree = np.where(predicted == 0.5, 0.5, ((predicted > 0.5) == (truth > 0.5)).astype(np.float64))
    return agree[decided], [row.family for row, keep in zip(rows, decided, strict=True) if keep]


def curve_point(predicted: Floats, rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    hits, _ = correct(predicted, rows)
    truth = np.array([row.probability for row in rows])
    return {
        "accuracy": float(hits.mean()) if len(hits) else 0.5,
        "log_loss": calibration.log_loss(predicted, truth),
        "n": len(hits),
    }


def validate(
    predicted: Floats | None,
    train_rows: Sequence[PreferenceRow],
    rows: Sequence[PreferenceRow],
    config: RewardConfig,
) -> dict[str, Any]:
    """Held-out figures, the baselines' beside them, and paired differences with 95 % intervals over prompt families."""
    if predicted is None:
        return {"valid": None, "baselines": {}, "difference": {}}
    truth = np.array([row.probability for row in rows])
    hits, families = correct(predicted, rows)
    out: dict[str, Any] = {"valid": figures(predicted, truth, hits, families, rows), "baselines": {}, "difference": {}}
    if not config.baselines:
        return out
    train_pairs, test_pairs = as_pairs(train_rows, config), as_pairs(rows, config)
    for name, fit in (("length_only", baselines.length_only), ("bag_of_words", baselines.bag_of_words)):
        guess = fit(train_pairs)(test_pairs)
        guess_hits, _ = correct(guess, rows)
        out["baselines"][name] = figures(guess, truth, guess_hits, families, rows)
        if len(set(families)) >= 2:
            out["difference"][name] = intervals.paired_difference(hits, guess_hits, families).to_dict()
    return out


def figures(
    predicted: Floats, truth: Floats, hits: Floats, families: Sequence[str], rows: Sequence[PreferenceRow]
) -> dict[str, Any]:
    """Accuracy (with interval over families where there are two), log loss, calibration. Half of the rows are turned round (by a hash
    of their id), because `chosen` is always the majority's and a reliability curve needs both outcomes."""
    turned = np.array([hashlib.sha256(row.preference_id.encode()).digest()[0] % 2 == 1 for row in rows])
    p, y = np.where(turned, 1 - predicted, predicted), np.where(turned, 1 - truth, truth)
    return {
        "accuracy": intervals.mean_interval(hits, families).to_dict()
        if len(set(families)) >= 2
        else {"mean": float(hits.mean()) if len(hits) else 0.5, "low": 0.0, "high": 1.0, "n": len(hits)},
        "n": len(hits),
        "log_loss": calibration.log_loss(p, y),
        "ece": calibration.expected_calibration_error(p, y),
        "bins": [asdict(entry) for entry in calibration.reliability_bins(p, y)],
    }


def as_pairs(rows: Sequence[PreferenceRow], config: RewardConfig) -> baselines.Pairs:
    return baselines.Pairs(
        [row.chosen for row in rows],
        [row.rejected for row in rows],
        np.array([row.probability for row in rows]),
        np.array([row.weight if config.use_weights else 1.0 for row in rows]),
    )


def save(training: Training, run: RunFolder) -> None:
    checkpoint.save_state(
        run.state,
        {
            "update": training.update,
            "trained": training.trained(),
            "optimizer": training.adam.state(),
            "generator": training.generator.get_state(),
            "order": training.order,
            "curve": training.curve,
        },
    )


def restore(training: Training, run: RunFolder) -> bool:
    """Continue from the last saved state; False where there is none."""
    state = checkpoint.load_state(run.state)
    if state is None:
        return False
    for name, tensor in training.trained().items():
        tensor.copy_(state["trained"][name])
    training.adam.load(state["optimizer"])
    training.generator.set_state(state["generator"])
    training.update, training.order, training.curve = state["update"], state["order"], state["curve"]
    return True


def finish(config: RewardConfig, run: RunFolder, model: RewardModel, result: dict[str, Any], clock: Clock) -> None:
    """result.json, then the Checkpoint, its manifest last."""
    result["seconds"], result["phases"] = round(clock.total, 3), clock.rounded()
    run.write_result(result)
    checkpoint.save_reward(
        run.checkpoint,
        model,
        Path(config.base),
        parents={"snapshot": config.snapshot},
        metrics={"accuracy": result["valid"]["accuracy"]["mean"] if result["valid"] else None},
    )
