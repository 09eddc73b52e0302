"""What each training program accepts: frozen dataclasses, standard library only (anyone may import this module; it loads no torch).

A run folder's `config.json` holds the fields of one of these. `from_dict` refuses unknown names (with the nearest valid one), wrong types
and values out of range; `to_dict` gives back the resolved config, which the program saves. **Every accepted field acts or raises.**
Each field carries its meaning, unit and the source of its default in `metadata["doc"]`; `describe` lists them for documentation.

Sources: [HF] Huang et al. 2024, "The N+ implementation details of RLHF with PPO" (summarize_from_feedback_details); [Z] Ziegler et al. 2019;
[S] Schulman et al. 2017; [L] LoRA, Hu et al. 2021; [own] measured on SmolLM2-135M by this project (docs/log.md).
"""

# ruff: noqa: RUF009  (`option` is dataclasses.field with its documentation, not a shared mutable default)
from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from plaudit.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16"]
Measure = Literal["score", "nll", "kl"]

KIND = "which of the terms it is"
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def option(default: Any, doc: str) -> Any:
    """A field with its documentation; `MISSING` makes it required."""
    if default is MISSING:
        return field(metadata={"doc": doc})
    if isinstance(default, type) or callable(default):
        return field(default_factory=default, metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapter on the layers that are trained."""

    rank: int = option(16, "rank of the update A B; 8 to 64 are usual [L]")
    alpha: float = option(32.0, "the update is scaled by alpha / rank; twice the rank keeps the usual scale of 2 [L]")
    targets: tuple[str, ...] = option(
        LINEAR_LAYERS, "linear layers of a block that are adapted; all of them by default"
    )

    def __post_init__(self) -> None:
        _check(self, "rank", self.rank >= 1, "at least 1")
        _check(self, "alpha", self.alpha > 0, "above 0")
        _check(self, "targets", len(self.targets) > 0, "at least one layer name")
        for target in self.targets:
            if target not in LINEAR_LAYERS:
                raise ConfigError(f"LoraConfig.targets names {target!r}, {_nearest(target, LINEAR_LAYERS)}.")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and a linear decay to 0."""

    learning_rate: float = option(2e-4, "peak rate of the adapter (full weights want about a tenth of it) [own]")
    head_learning_rate: float = option(
        1e-3, "peak rate of a fresh scalar head (reward or value), which starts from noise [own]"
    )
    weight_decay: float = option(0.0, "decoupled, on all trained weights; 0 as in [HF]")
    warmup_fraction: float = option(0.1, "share of all updates over which the rate climbs from 0 to its peak")
    schedule: Literal["linear", "constant"] = option("linear", "after warm-up: linear to 0, or constant")
    max_grad_norm: float = option(1.0, "the gradient of one update is scaled down to this norm")
    adam_eps: float = option(1e-5, "1e-5 as in [HF], not torch's 1e-8")
    beta1: float = option(0.9, "decay of Adam's first moment")
    beta2: float = option(
        0.95, "decay of Adam's second moment; .95 because runs are short (as in GPT-3, Brown et al. 2020)"
    )

    def __post_init__(self) -> None:
        for name in ("learning_rate", "head_learning_rate", "max_grad_norm", "adam_eps"):
            _check(self, name, getattr(self, name) > 0, "above 0")
        _check(self, "weight_decay", self.weight_decay >= 0, "0 or above")
        for name in ("warmup_fraction", "beta1", "beta2"):
            _check(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")


@dataclass(frozen=True)
class ComputeConfig:
    """How the work is laid out on this machine; changes speed and memory, and results only by rounding."""

    dtype: Dtype = option(
        "auto", "weights and activations; auto measures a small product both ways and takes the faster"
    )
    threads: int = option(0, "torch threads; 0 is one for each physical core")
    micro_tokens: int = option(
        2048, "tokens (with padding) of one forward pass; bounds memory, gradients do not depend on it"
    )
    save_every: int = option(1, "updates between two saved states; a killed run repeats at most this many")

    def __post_init__(self) -> None:
        _check(self, "threads", self.threads >= 0, "0 or above")
        _check(self, "micro_tokens", self.micro_tokens >= 1, "at least 1")
        _check(self, "save_every", self.save_every >= 1, "at least 1")


@dataclass(frozen=True)
class HeadConfig:
    """The head of one criterion."""

    criterion: str = option(MISSING, "Preferences of this criterion train this head")
    weight: float = option(1.0, "the one score is the sum over heads of weight times the head's score")

    def __post_init__(self) -> None:
        _check(self, "criterion", bool(self.criterion), "a criterion's name")
        _check(self, "weight", math.isfinite(self.weight), "a finite number")


@dataclass(frozen=True)
class ValidationConfig:
    """How much a reward model is looked at beside its held-out accuracy and calibration."""

    points_per_epoch: int = option(1, "times an epoch that the held-out rows are scored, for the learning curve")
    trap_prompts: int = option(12, "prompts to which trap texts are scored against real answers; 0: none")
    ablations: int = option(6, "held-out answers that are scored again without each of their sentences; 0: none")

    def __post_init__(self) -> None:
        _at_least(self, 1, "points_per_epoch")
        _at_least(self, 0, "trap_prompts", "ablations")


@dataclass(frozen=True)
class RewardConfig:
    """`reward`: a Bradley-Terry model on Preferences with soft labels."""

    base: str = option(MISSING, "prepared base model folder (`prepare` makes it)")
    snapshot: str = option("", "Snapshot folder; this or `preferences`")
    preferences: str = option("", "JSONL file of chosen and rejected answers, plain or gzipped; this or `snapshot`")
    valid_preferences: str = option("", "JSONL file that is held out; empty: a part of `preferences` is")
    valid_fraction: float = option(
        0.1, "share of the prompt families of `preferences` that is held out, by a hash of the family; 0: nothing is"
    )
    criterion: str = option("", "read Preferences of this criterion only; empty reads all")
    heads: tuple[HeadConfig, ...] = option(
        (), "one head for each criterion on one body, each Preference trains its own; empty: one head for all"
    )
    members: int = option(1, "an ensemble of this many models in one Checkpoint, which differ by seed and bootstrap")
    members_share: Literal["trunk", "body"] = option(
        "trunk", "trunk: each member has an adapter of its own above first_layer; body: all but the head is one"
    )
    bootstrap: bool = option(True, "each member sees prompt families drawn with replacement (an ensemble only)")
    seed: int = option(0, "initial weights and order of the data")
    lora: LoraConfig | None = option(
        LoraConfig, "adapter; null trains the full weights of the layers from first_layer on"
    )
    first_layer: int = option(0, "layers below run once, frozen; their hidden states are kept for all epochs")
    read_layer: int = option(0, "the head reads the hidden state after this many layers; fewer are faster, 0 is all")
    pooling: Literal["last", "mean", "both"] = option(
        "last", "the hidden state the head reads: last response token, the mean over all, or one beside the other"
    )
    probe: bool = option(
        False,
        "start the head from a logistic regression on the frozen base's states, not from noise (LP-FT, Kumar et al. 2022): "
        "for a few hundred pairs [own]",
    )
    epochs: int = option(1, "passes over the training split; more than one overfits on large sets [HF]")
    batch_pairs: int = option(16, "pairs per update")
    centring: float = option(
        0.01, "coefficient of (r_chosen + r_rejected)^2, which pins the free constant (Eisenstein et al. 2023)"
    )
    use_weights: bool = option(True, "weight each pair by its effective number of votes, mean 1")
    use_margins: bool = option(
        True, "where a row has a margin, chosen must lead by more than it (Touvron et al. 2023, 3.2.2)"
    )
    max_prompt_tokens: int = option(1024, "longer conversations lose their oldest tokens")
    max_response_tokens: int = option(512, "longer responses lose their end and count as unfinished")
    baselines: bool = option(True, "fit the length-only and bag-of-words baselines on the same split and compare")
    validation: ValidationConfig | None = option(
        ValidationConfig, "what the card reports beside held-out accuracy and calibration; null: nothing"
    )
    optimizer: OptimizerConfig = option(OptimizerConfig, "AdamW")
    compute: ComputeConfig = option(ComputeConfig, "layout on this machine")

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed", "first_layer", "read_layer", "centring")
        _check(
            self,
            "read_layer",
            self.read_layer in (0, max(self.read_layer, self.first_layer + 1)),
            "0 or above first_layer",
        )
        _at_least(self, 1, "epochs", "batch_pairs", "members", "max_prompt_tokens", "max_response_tokens")
        _check(self, "valid_fraction", 0 <= self.valid_fraction < 1, "in [0, 1)")
        self._check_source()
        self._check_heads()

    def _check_source(self) -> None:
        if bool(self.snapshot) == bool(self.preferences):
            raise ConfigError(
                f"RewardConfig.snapshot is {self.snapshot!r} and preferences is {self.preferences!r}; name exactly one of them."
            )
        if self.valid_preferences and self.snapshot:
            raise ConfigError(
                f"RewardConfig.valid_preferences is {self.valid_preferences!r}, but a Snapshot has splits of its own; leave it out."
            )
        if self.valid_fraction != 0.1 and (self.snapshot or self.valid_preferences):
            raise ConfigError(
                f"RewardConfig.valid_fraction is {self.valid_fraction}, but only a single file of preferences is split; leave it out."
            )

    def _check_heads(self) -> None:
        names = [head.criterion for head in self.heads]
        if len(set(names)) < len(names):
            raise ConfigError(f"RewardConfig.heads names a criterion twice ({', '.join(names)}); give each one head.")
        if self.heads and self.criterion:
            raise ConfigError(
                f"RewardConfig.criterion is {self.criterion!r}, but heads name the criteria that are read; leave it out."
            )
        if self.heads and all(head.weight == 0 for head in self.heads):
            raise ConfigError("RewardConfig.heads all have weight 0, so every score would be 0; give one a weight.")
        if self.members == 1:
            for name, default in (("members_share", "trunk"), ("bootstrap", True)):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"RewardConfig.{name} is {getattr(self, name)!r}, but members is 1: there is no ensemble."
                    )
        elif self.members_share == "trunk" and self.lora is None:
            raise ConfigError(
                "RewardConfig.lora is null, but members that share a trunk are adapters; set members_share to 'body', or use LoRA."
            )


@dataclass(frozen=True)
class SFTConfig:
    """`sft`: next-token loss on responses only (prompt tokens are never trained)."""

    snapshot: str = option(MISSING, "Snapshot folder")
    base: str = option(MISSING, "prepared base model folder")
    source: Literal["demonstrations", "chosen", "both"] = option(
        "demonstrations", "what is imitated: approved responses, the chosen side of Preferences, or both"
    )
    turns: Literal["last", "all"] = option(
        "last",
        "last: the response only; all: every earlier assistant message of the conversation too, as a row of its own",
    )
    start: str = option("", "policy Checkpoint to start from; empty starts from the base")
    seed: int = option(0, "initial weights and order of the data")
    lora: LoraConfig | None = option(
        LoraConfig, "adapter; null trains the full weights of the layers from first_layer on, which makes a new base"
    )
    first_layer: int = option(0, "layers below run once, frozen")
    epochs: int = option(2, "passes over the training split")
    batch_size: int = option(16, "responses per update; the loss is the mean over all their tokens")
    packing: bool = option(
        False,
        "batches at random, not of similar length: short conversations fill up the rows of longer ones, apart by mask and positions",
    )
    max_prompt_tokens: int = option(1024, "longer conversations lose their oldest tokens")
    max_response_tokens: int = option(512, "longer responses lose their end and teach no EOS")
    optimizer: OptimizerConfig = option(OptimizerConfig, "AdamW")
    compute: ComputeConfig = option(ComputeConfig, "layout on this machine")

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed", "first_layer")
        _at_least(self, 1, "epochs", "batch_size", "max_prompt_tokens", "max_response_tokens")
        _no_head(self, "sft")


@dataclass(frozen=True)
class DPOConfig:
    """`dpo`: a policy straight from Preferences (DPO, IPO) or from thumbs (KTO); no reward model, nothing is sampled.

    [D] DPO, Rafailov et al. 2023; [I] IPO, Azar et al. 2023; [K] KTO, Ethayarajh et al. 2024.
    """

    base: str = option(MISSING, "prepared base model folder")
    snapshot: str = option("", "Snapshot folder whose Preferences are read; this or `preferences`")
    preferences: str = option("", "JSONL file of chosen and rejected answers; this or `snapshot`")
    valid_preferences: str = option("", "JSONL file of held-out pairs; empty holds out valid_fraction of `preferences`")
    unpaired: str = option(
        "", "kto: JSONL file of single answers with a thumb, rows {prompt | messages, completion, label}"
    )
    valid_fraction: float = option(0.1, "share of a file's prompt families that is held out; Snapshots have splits")
    criterion: str = option("", "read Preferences of this criterion only; empty reads all")
    loss: Literal["dpo", "ipo", "kto"] = option(
        "dpo", "dpo: logistic [D]; ipo: squared, does not run off on hard labels [I]; kto: each answer by itself [K]"
    )
    beta: float = option(0.1, "strength of the pull to the reference; .1 in [D] and [K]")
    label_smoothing: float = option(0.0, "share of labels taken to be wrong: p becomes (1 - e) p + e (1 - p) (cDPO)")
    soft_labels: bool = option(
        True, "read each Preference's probability p; false takes the majority for certain and leaves ties out"
    )
    use_weights: bool = option(True, "weight each row by its effective number of votes, mean 1")
    length_normalised: bool = option(
        False, "log-ratios are means over tokens, not sums; wants beta about 20 times as large"
    )
    nll_coef: float = option(
        0.0, "adds this times the nll of chosen answers, per token (RPO, Pang et al. 2024); 1 there"
    )
    desirable_weight: float = option(1.0, "kto: weight of liked answers [K]")
    undesirable_weight: float = option(1.0, "kto: weight of disliked answers; lower it where they are the more [K]")
    start: str = option("", "policy Checkpoint to start from, which then is the reference; empty: the base is both")
    seed: int = option(0, "initial weights and order of the data")
    lora: LoraConfig | None = option(
        LoraConfig, "adapter; null trains the full weights of the layers from first_layer on, which makes a new base"
    )
    first_layer: int = option(0, "layers below run once, frozen; their hidden states are kept for all epochs")
    epochs: int = option(1, "passes over the training split; 1 to 3 are usual")
    batch_size: int = option(16, "pairs (kto: answers) per update")
    validate_every: int = option(0, "updates between two measurements on held-out rows; 0: after each epoch")
    packing: bool = option(
        False,
        "batches at random, not of similar length: short conversations fill up the rows of longer ones, apart by mask and positions",
    )
    max_prompt_tokens: int = option(1024, "longer conversations lose their oldest tokens")
    max_response_tokens: int = option(512, "longer responses lose their end and count as unfinished")
    optimizer: OptimizerConfig = option(OptimizerConfig, "AdamW")
    compute: ComputeConfig = option(ComputeConfig, "layout on this machine")

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed", "first_layer", "validate_every", "nll_coef")
        _at_least(self, 0, "desirable_weight", "undesirable_weight")
        _at_least(self, 1, "epochs", "batch_size", "max_prompt_tokens", "max_response_tokens")
        _check(self, "beta", self.beta > 0, "above 0")
        _check(self, "label_smoothing", 0 <= self.label_smoothing < 0.5, "in [0, .5)")
        _check(self, "valid_fraction", 0 <= self.valid_fraction < 1, "in [0, 1)")
        _no_head(self, "dpo")
        if self.snapshot and self.preferences:
            raise ConfigError("DPOConfig.snapshot and preferences are both set; pairs come from one of them.")
        if not (self.snapshot or self.preferences or (self.unpaired and self.loss == "kto")):
            raise ConfigError(
                f"DPOConfig.loss is {self.loss!r} and there is nothing to read; set snapshot or preferences"
                + (", or unpaired." if self.loss == "kto" else ".")
            )
        for name, off in (("unpaired", ""), ("desirable_weight", 1.0), ("undesirable_weight", 1.0)):
            if self.loss != "kto" and getattr(self, name) != off:
                raise ConfigError(
                    f"DPOConfig.{name} is {getattr(self, name)!r}, but only the loss 'kto' reads it, and loss is {self.loss!r}."
                )
        if self.valid_preferences and not self.preferences:
            raise ConfigError("DPOConfig.valid_preferences is set without preferences; a Snapshot has its own splits.")
        if self.criterion and not (self.snapshot or self.preferences):
            raise ConfigError(f"DPOConfig.criterion is {self.criterion!r}, but unpaired answers have none.")


@dataclass(frozen=True)
class SamplingConfig:
    """How `ppo` and `grpo` sample. There is one temperature for sampling and every log-probability; top-k and top-p do not exist here because
    log-probabilities of a truncated distribution would need correcting."""

    prompts: Literal["prompts", "preferences"] = option(
        "prompts", "where prompts come from: that table's training split"
    )
    prompts_per_step: int = option(12, "different prompts in one rollout")
    samples_per_prompt: int = option(4, "responses to each of them")
    max_new_tokens: int = option(40, "tokens; a response without EOS by then is truncated")
    max_prompt_tokens: int = option(512, "longer conversations lose their oldest tokens")
    temperature: float = option(1.0, "divides the logits in sampling, old, reference and training alike")

    def __post_init__(self) -> None:
        _at_least(self, 1, "prompts_per_step", "samples_per_prompt", "max_new_tokens", "max_prompt_tokens")
        _check(self, "temperature", self.temperature > 0, "above 0")


@dataclass(frozen=True)
class KLConfig:
    """How far the policy may go from its reference, in nats per response."""

    coef: float = option(0.05, "reward of each token is -coef * kl_k1; .05 in [HF]")
    target: float | None = option(None, "mean KL the adaptive controller steers to [Z]; null keeps coef fixed")
    horizon: float = option(
        2000.0, "responses over which the controller reacts: coef *= 1 + clip(kl/target - 1, -.2, .2) n/horizon [Z]"
    )
    budget: float | None = option(
        8.0, "mean KL beyond which training stops and returns to the last policy within; null: none [own]"
    )
    base_budget: float | None = option(
        24.0,
        "with `start`: mean KL to the base itself, which turns add up to; the guard kl_base watches it; null: it is not measured [own]",
    )

    def __post_init__(self) -> None:
        _check(self, "coef", self.coef >= 0, "0 or above")
        _check(self, "horizon", self.horizon > 0, "above 0")
        for name in ("target", "budget", "base_budget"):
            value = getattr(self, name)
            _check(self, name, value is None or value > 0, "above 0, or null")
        if self.target is not None and self.coef == 0:
            raise ConfigError(
                "KLConfig.target is set but coef is 0, which no controller can scale; give coef a start above 0."
            )


Guard = Literal[
    "kl", "kl_base", "gold", "disagreement", "length_change", "length_correlation", "length_share", "format", "diversity", "outliers", "traps"
]  # fmt: skip
Limits = tuple[float | None, ...]


@dataclass(frozen=True)
class GuardsConfig:
    """What watches a policy for signs that it fools its reward (docs/guards.md). Limits are [warn, critical]: null for one of them leaves it
    out, null for both switches the guard off. Defaults are those of the monitoring table in docs/monitoring.md."""

    judge: str = option(
        "",
        "reward Checkpoint of another seed or other data, never trained against, that scores every rollout; empty: none",
    )
    on_critical: Literal["warn", "stop", "best"] = option(
        "best",
        "warn: say so; stop: end with the policy of now; best: end with the judge's best, or with the last before the alarm",
    )
    act_on: tuple[Guard, ...] = option(
        ("kl_base", "gold"), "guards for which on_critical counts; the others only say what they see"
    )
    patience: int = option(
        2, "rollouts in a row that a condition must hold: one is noise, three are a quarter of a short run"
    )
    kl_patience: int = option(3, "the same for kl and kl_base, whose limits are no differences and need no test")
    kl: Limits | None = option((0.8, 1.0), "mean KL to the start, as a share of kl.budget, which by itself ends a run")
    kl_base: Limits | None = option((0.8, 1.0), "with `start`: mean KL to the base, as a share of kl.base_budget")
    gold: Limits | None = option(
        (0.2, 2.0),
        "the judge while the score rises. warn: it gains less than this share of the score's gain; critical: it is this many standard "
        "errors below its peak",
    )
    disagreement: Limits | None = option((1.5, 2.0), "an ensemble's, over that of the first rollout")
    length_change: Limits | None = option(
        (0.25, 0.5), "growth of the mean response in tokens, relative to the first rollout"
    )
    length_correlation: Limits | None = option((0.4, 0.6), "rank correlation of score and tokens within a rollout")
    length_share: Limits | None = option((0.3, 0.6), "share of the score's gain that longer responses explain")
    format: Limits | None = option(
        (1.5, 2.0), "each format figure over that of the first rollout; critical only where the score is up"
    )
    diversity: Limits | None = option(
        (0.15, 0.3), "fall of distinct-1/2/3 and of entropy, relative to the first rollout"
    )
    outliers: Limits | None = option((0.01, 0.05), "share of scores above the first rollout's 99.9 % quantile")
    traps: int = option(4, "prompts to which trap texts are scored once, at the start; 0: none")

    def __post_init__(self) -> None:
        _at_least(self, 1, "patience", "kl_patience")
        _at_least(self, 0, "traps")
        for name in get_args(Guard)[:-1]:
            limits = getattr(self, name)
            numbers = [limit for limit in limits or () if limit is not None]
            fits = limits is None or (len(limits) == 2 and all(limit > 0 for limit in numbers))
            rising = name == "gold" or numbers == sorted(numbers)
            _check(self, name, fits and rising, "null or [warn, critical], above 0 and rising, each may be null")


@dataclass(frozen=True, kw_only=True)
class RewardTerm:
    """What every term of a composed reward has. The reward is the sum over terms of weight * clip(normalise(value))."""

    kind: str = option(MISSING, KIND)
    name: str = option(MISSING, "small letters, digits, underscores; its metrics are term_<name> and term_<name>_sd")
    weight: float = option(1.0, "factor in the sum; below 0 turns the term round, 0 only measures it")
    clip: float | None = option(None, "the value, normalised where asked, is clipped to +- this; null: not")
    normalise: Literal["none", "reference"] = option(
        "none", "reference: minus the mean and over the sd of the run's first samples, which are the reference's own"
    )

    def __post_init__(self) -> None:
        _check(self, "name", re.fullmatch(r"[a-z][a-z0-9_]*", self.name) is not None, "like polite_2")
        _check(self, "weight", math.isfinite(self.weight), "a finite number")
        _check(self, "clip", self.clip is None or self.clip > 0, "above 0, or null")


@dataclass(frozen=True, kw_only=True)
class ModelTerm(RewardTerm):
    """One reward model, or an ensemble; each member's score is in units of its own reference spread."""

    kind: Literal["model"] = option("model", KIND)
    checkpoints: tuple[str, ...] = option(MISSING, "reward Checkpoint folders on this base; all their members together")
    combine: Literal["mean", "minimum", "mean_minus_sd"] = option(
        "mean", "one score from the members' (Coste et al. 2023); the others than mean need two members"
    )
    sd_coef: float = option(1.0, "mean_minus_sd subtracts this many sd over the members")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "checkpoints", len(self.checkpoints) > 0, "at least one folder")
        _check(self, "checkpoints", len(set(self.checkpoints)) == len(self.checkpoints), "each folder once")
        _check(self, "sd_coef", self.sd_coef > 0, "above 0")
        if self.combine != "mean_minus_sd" and self.sd_coef != 1.0:
            raise ConfigError(
                f"ModelTerm.sd_coef is {self.sd_coef}, but combine is {self.combine!r}; only mean_minus_sd reads it."
            )


@dataclass(frozen=True, kw_only=True)
class RegexTerm(RewardTerm):
    """1 where the pattern is found in the response, else 0."""

    kind: Literal["regex"] = option("regex", KIND)
    pattern: str = option(MISSING, "Python regular expression; flags go inside, such as (?i)")
    whole: bool = option(False, "the whole response must match")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(
                f"RegexTerm.pattern is {self.pattern!r}, which is no regular expression: {error}."
            ) from error


@dataclass(frozen=True, kw_only=True)
class JsonTerm(RewardTerm):
    """1 where the response is JSON (RFC 8259), white space around it aside, else 0."""

    kind: Literal["json"] = option("json", KIND)
    keys: tuple[str, ...] = option((), "it must be an object that has these keys; empty: any JSON value")


@dataclass(frozen=True, kw_only=True)
class LengthTerm(RewardTerm):
    """0 inside the band, minus 1 for each `scale` units outside it."""

    kind: Literal["length"] = option("length", KIND)
    low: int = option(0, "shortest response that costs nothing")
    high: int | None = option(None, "longest response that costs nothing; null: no upper end")
    unit: Literal["tokens", "words", "characters"] = option("tokens", "what is counted; tokens include the stop token")
    scale: float = option(10.0, "units outside the band that cost 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "low")
        _check(self, "high", self.high is None or self.high >= max(self.low, 1), "at least low and 1, or null")
        _check(self, "scale", self.scale > 0, "above 0")
        if self.low == 0 and self.high is None:
            raise ConfigError("LengthTerm has neither low nor high, so it would never act; give one of them.")


@dataclass(frozen=True, kw_only=True)
class RepetitionTerm(RewardTerm):
    """Minus the share of the response's token n-grams that occurred earlier in it: 0 to -1."""

    kind: Literal["repetition"] = option("repetition", KIND)
    n: int = option(4, "tokens of an n-gram (rep-4, Welleck et al. 2020)")

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "n")


@dataclass(frozen=True, kw_only=True)
class PhrasesTerm(RewardTerm):
    """What block_list and require share: phrases, found without regard to case."""

    phrases: tuple[str, ...] = option(MISSING, "texts to look for; upper and lower case are the same")
    whole_words: bool = option(True, "a phrase inside a longer word does not count; false for scripts without spaces")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "phrases", len(self.phrases) > 0 and all(map(str.strip, self.phrases)), "texts, none empty")


@dataclass(frozen=True, kw_only=True)
class BlockListTerm(PhrasesTerm):
    """Minus the number of listed phrases that occur."""

    kind: Literal["block_list"] = option("block_list", KIND)


@dataclass(frozen=True, kw_only=True)
class RequireTerm(PhrasesTerm):
    """Share of the listed phrases that occur."""

    kind: Literal["require"] = option("require", KIND)


@dataclass(frozen=True, kw_only=True)
class FunctionTerm(RewardTerm):
    """Your own function f(messages, responses, token_ids, meta) -> scores."""

    kind: Literal["function"] = option("function", KIND)
    function: str = option(MISSING, "package.module:function, found from the working directory and PYTHONPATH")
    timeout_s: float = option(60.0, "seconds for one call, which scores a whole rollout; over it the run stops")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "function", is_function_name(self.function), "like package.module:function")
        _check(self, "timeout_s", self.timeout_s > 0, "above 0")


@dataclass(frozen=True, kw_only=True)
class HttpTerm(RewardTerm):
    """A scorer over HTTP: POST {"messages", "responses", "meta"} -> {"scores": [...]}."""

    kind: Literal["http"] = option("http", KIND)
    url: str = option(MISSING, "address of the scorer, http or https")
    token_variable: str = option("", "environment variable that holds a bearer token; empty sends none")
    batch: int = option(64, "responses of one request")
    timeout_s: float = option(30.0, "seconds for one whole answer")
    attempts: int = option(5, "failures in a row that open the circuit breaker; each pause is twice the one before")
    backoff_s: float = option(0.5, "pause after the first failure; a Retry-After that asks for more is kept to")
    pause_s: float = option(
        60.0, "the breaker's pause, and the longest of any; then one last attempt, or the run stops"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = urlsplit(self.url)
        _check(self, "url", parts.scheme in ("http", "https") and bool(parts.hostname), "like https://host/path")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                "HttpTerm.url holds a name or a password; put a bearer token in a token_variable instead."
            )
        _at_least(self, 1, "batch", "attempts")
        for name in ("timeout_s", "backoff_s", "pause_s"):
            _check(self, name, getattr(self, name) > 0, "above 0")


Term = (
    ModelTerm
    | RegexTerm
    | JsonTerm
    | LengthTerm
    | RepetitionTerm
    | BlockListTerm
    | RequireTerm
    | FunctionTerm
    | HttpTerm
)
TERMS: dict[str, type[Term]] = {kind.kind: kind for kind in get_args(Term)}
Reward = str | tuple[Term, ...]
REWARD_DOC = (
    "what the policy learns to please: a reward Checkpoint folder on the same base, your own package.module:function, "
    "or a list of terms"
)


def is_function_name(text: str) -> bool:
    """Whether a text names an own function, `package.module:function`, rather than a folder."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text) is not None


def reward_terms(reward: Reward) -> tuple[Term, ...]:
    """The terms of a `reward` field: a text is one term of weight 1, a reward model or an own function."""
    if not isinstance(reward, str):
        return reward
    if is_function_name(reward):
        return (FunctionTerm(name="function", function=reward),)
    return (ModelTerm(name="model", checkpoints=(reward,)),)


def _check_reward(config: Any) -> None:
    """Raises ConfigError where a list of terms is empty, repeats a name, or weighs nothing."""
    if isinstance(config.reward, str):
        return
    where, names = f"{type(config).__name__}.reward", [term.name for term in config.reward]
    if not names:
        raise ConfigError(f"{where} is an empty list; give a Checkpoint folder or at least one term.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{where} has two terms named {twice[0]!r}; each metric needs a name of its own.")
    if all(term.weight == 0 for term in config.reward):
        raise ConfigError(f"{where} has weight 0 in all its terms, so there is nothing to learn; give one a weight.")


@dataclass(frozen=True)
class OnlineConfig:
    """What `ppo` and `grpo` share: a policy that is trained on what it samples itself, within a KL budget."""

    snapshot: str = option(MISSING, "Snapshot folder that holds the prompts")
    base: str = option(MISSING, "prepared base model folder")
    reward: Reward = option(MISSING, REWARD_DOC)
    start: str = option("", "policy Checkpoint to start from, which then is the reference; empty: the base is both")
    seed: int = option(0, "order of prompts, sampling, initial weights")
    lora: LoraConfig = option(LoraConfig, "adapter; with `start` its shape is the starting adapter's and must agree")
    first_layer: int = option(
        0, "layers below run once a rollout, frozen, for policy, reference, value and reward alike"
    )
    steps: int = option(12, "rollouts, each followed by its updates; a last rollout only measures")
    sampling: SamplingConfig = option(SamplingConfig, "prompts and sampling")
    kl: KLConfig = option(KLConfig, "penalty and budgets")
    guards: GuardsConfig = option(GuardsConfig, "what watches for a policy that fools its reward")
    epochs: int = option(2, "passes over a rollout; 4 in [HF]")
    minibatches: int = option(1, "updates in one epoch; each is a mean over all its tokens")
    clip: float = option(0.2, "the ratio new/old counts within 1 +- clip [S]")
    dual_clip: float | None = option(
        None, "for negative advantages the loss is bounded at this ratio (Ye et al. 2020, 3); null: off"
    )
    score_clip: float | None = option(5.0, "normalised scores are clipped to +- this; null: not")
    running_normaliser: bool = option(
        False, "normalise scores by all seen so far instead of the reference's statistics"
    )
    truncation: Literal["none", "penalty", "mask", "bootstrap"] = option(
        "penalty",
        "a response without EOS: score as it is, minus the penalty, left out of the loss, or V(s_T) added at the end",
    )
    missing_eos_penalty: float = option(1.0, "in units of the normalised score; used where truncation is penalty")
    target_approx_kl: float | None = option(
        0.02, "nats per token; epochs stop at 1.5 times it (Spinning Up); null: never"
    )
    entropy: bool = option(False, "report the policy's entropy, which costs another pass over the logits")
    optimizer: OptimizerConfig = option(OptimizerConfig, "AdamW")
    compute: ComputeConfig = option(ComputeConfig, "layout on this machine")

    def __post_init__(self) -> None:
        _check_reward(self)
        _at_least(self, 0, "seed", "first_layer", "missing_eos_penalty")
        _at_least(self, 1, "steps", "epochs", "minibatches")
        _check(self, "clip", self.clip > 0, "above 0")
        _check(self, "dual_clip", self.dual_clip is None or self.dual_clip > 1, "above 1, or null")
        for name in ("score_clip", "target_approx_kl"):
            value = getattr(self, name)
            _check(self, name, value is None or value > 0, "above 0, or null")
        rollout = self.sampling.prompts_per_step
        _check(self, "minibatches", self.minibatches <= rollout, f"at most the {rollout} prompts of a rollout")
        judge = self.guards.judge
        if judge and any(
            judge in term.checkpoints for term in reward_terms(self.reward) if isinstance(term, ModelTerm)
        ):
            raise ConfigError(
                f"guards.judge is {judge}, which is also the reward; a judge must not be what is trained against."
            )


@dataclass(frozen=True)
class PPOConfig(OnlineConfig):
    """`ppo`: actor-critic PPO against a learned reward Checkpoint."""

    critic: Literal["head", "reward"] = option(
        "head",
        "what values start from: nothing, or the reward model's score of the text so far, the head learning the rest; "
        "for short runs [own]",
    )
    value_coef: float = option(0.1, "weight of the value loss [HF]")
    value_clip: float = option(0.2, "values move at most this far from the old ones [HF]")
    value_detach: bool = option(
        True, "the value loss trains the head only; false lets it shape the policy's hidden states"
    )
    gamma: float = option(1.0, "discount per token [HF]")
    lam: float = option(0.95, "lambda of generalised advantage estimation [HF]")
    whiten_advantages: bool = option(True, "mean 0, variance 1 over the tokens of the whole rollout [HF]")
    whiten_rewards: bool = option(False, "variance 1 with the mean kept, before GAE [HF]")

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "value_coef")
        _check(self, "value_clip", self.value_clip > 0, "above 0")
        for name in ("gamma", "lam"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")


@dataclass(frozen=True)
class GRPOConfig(OnlineConfig):
    """`grpo`: the group-baseline family; no value head. Its members differ in `baseline`."""

    baseline: Literal["leave_one_out", "group_mean", "group_mean_sd", "batch"] = option(
        "leave_one_out",
        "what a response is compared with: the mean of its prompt's other samples (RLOO, Ahmadian et al. 2024), of all its "
        "samples (Dr. GRPO, Liu et al. 2025), the same over their sd (GRPO, Shao et al. 2024), or the whole rollout "
        "(REINFORCE++, Hu et al. 2025)",
    )
    kl_in: Literal["reward", "loss"] = option(
        "reward",
        "where the penalty acts: k1 in the reward, or k3 in the loss as in the GRPO paper, whose gradient is that of "
        "KL(reference || policy) on-policy and of neither KL off-policy",
    )
    loss_norm: Literal["token", "sequence", "constant"] = option(
        "token",
        "the loss is divided by the minibatch's tokens (DAPO), by each response's own length (GRPO), or by "
        "sampling.max_new_tokens whatever the length (Dr. GRPO)",
    )
    truncation: Literal["none", "penalty", "mask"] = option(
        "penalty", "a response without EOS: score as it is, minus the penalty, or left out of the loss"
    )
    epochs: int = option(1, "passes over a rollout; 1 with one minibatch is on-policy: the ratio is 1")
    target_approx_kl: float | None = option(
        None, "nats per token; epochs stop at 1.5 times it (Spinning Up); null: never"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        samples = self.sampling.samples_per_prompt
        if self.baseline != "batch" and samples < 2:
            raise ConfigError(
                f"GRPOConfig.baseline is {self.baseline!r}, which compares samples of one prompt, but "
                f"sampling.samples_per_prompt is {samples}; take at least 2, or the baseline 'batch'."
            )
        if self.epochs * self.minibatches == 1:
            for name, off in (("clip", 0.2), ("dual_clip", None), ("target_approx_kl", None)):
                if getattr(self, name) != off:
                    raise ConfigError(
                        f"GRPOConfig.{name} is {getattr(self, name)}, but one epoch of one minibatch is on-policy: its ratio "
                        "is 1, so nothing is clipped or stopped; leave it out, or raise epochs or minibatches."
                    )
        _no_head(self, "grpo")


@dataclass(frozen=True)
class BestOfConfig:
    """`best_of`: sample n responses to each prompt and keep the one that the reward model scores highest."""

    base: str = option(MISSING, "prepared base model folder")
    reward: Reward = option(MISSING, REWARD_DOC)
    snapshot: str = option("", "Snapshot folder that holds the prompts; this or `inputs`")
    inputs: str = option("", 'JSONL file of prompts, rows {"messages", "id"?}; this or `snapshot`')
    split: Literal["train", "valid", "test"] = option("train", "which split of the Snapshot's prompts")
    policy: str = option("", "policy Checkpoint that samples; empty: the base")
    n: int = option(8, "responses to each prompt, of which one is kept; KL <= ln n - (n-1)/n")
    max_new_tokens: int = option(40, "tokens; a response without EOS by then is truncated")
    max_prompt_tokens: int = option(512, "longer conversations lose their oldest tokens")
    temperature: float = option(1.0, "divides the logits in sampling")
    missing_eos_penalty: float = option(0.0, "taken from the score of a truncated response, in units of the score")
    seed: int = option(0, "sampling")
    compute: ComputeConfig = option(ComputeConfig, "layout on this machine")

    def __post_init__(self) -> None:
        _check_reward(self)
        _at_least(self, 0, "seed", "missing_eos_penalty")
        _at_least(self, 1, "n", "max_new_tokens", "max_prompt_tokens")
        _check(self, "temperature", self.temperature > 0, "above 0")
        if bool(self.snapshot) == bool(self.inputs):
            raise ConfigError(
                f"BestOfConfig.snapshot is {self.snapshot!r} and inputs is {self.inputs!r}; name exactly one of them."
            )
        if self.inputs and self.split != "train":
            raise ConfigError(f"BestOfConfig.split is {self.split!r}, but the file {self.inputs} has no splits.")


@dataclass(frozen=True)
class ScoreConfig:
    """`score`: measure given responses. Reads JSONL rows {"id"?, "messages", "response" | "responses", "finished"?}, or pairs of chosen and
    rejected answers; writes scores.jsonl."""

    inputs: str = option(MISSING, "JSONL file of conversations with responses, or of chosen and rejected answers")
    base: str = option(MISSING, "prepared base model folder")
    measures: tuple[Measure, ...] = option(
        ("score",), "score: reward model; nll: base model, nats per token; kl: log p_policy - log p_base"
    )
    reward: str = option("", "reward Checkpoint, needed by `score`")
    policy: str = option("", "policy Checkpoint, needed by `kl`")
    max_prompt_tokens: int = option(1024, "longer conversations lose their oldest tokens")
    max_response_tokens: int = option(512, "longer responses lose their end and count as unfinished")
    compute: ComputeConfig = option(ComputeConfig, "layout on this machine")

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_prompt_tokens", "max_response_tokens")
        _check(self, "measures", len(self.measures) > 0, "at least one of score, nll, kl")
        for measure, name in (("score", "reward"), ("kl", "policy")):
            if (measure in self.measures) != bool(getattr(self, name)):
                raise ConfigError(
                    f"ScoreConfig.measures is {list(self.measures)} and {name} is {getattr(self, name)!r}: "
                    f"{measure!r} needs a {name} Checkpoint, and nothing else reads one."
                )


Config = RewardConfig | SFTConfig | DPOConfig | PPOConfig | GRPOConfig | BestOfConfig | ScoreConfig
PROGRAMS: dict[str, type[Config]] = {
    "reward": RewardConfig,
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "best_of": BestOfConfig,
    "score": ScoreConfig,
}
T = TypeVar("T")


def from_dict(kind: type[T], raw: Mapping[str, Any]) -> T:
    """Build a config from parsed JSON. Raises ConfigError: unknown or missing name, wrong type, value out of range."""
    built: T = _build(kind, raw, kind.__name__)
    return built


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values; `from_dict(type(config), to_dict(config)) == config`."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def describe(kind: type[Any], prefix: str = "") -> list[tuple[str, str, Any]]:
    """(dotted name, documentation, default) of every field, nested ones included; a required field has the default `...`."""
    rows: list[tuple[str, str, Any]] = []
    hints = get_type_hints(kind)
    for entry in fields(kind):
        nested = [part for part in (hints[entry.name], *get_args(hints[entry.name])) if is_dataclass(part)]
        name = f"{prefix}{entry.name}"
        factory: Callable[[], Any] | Any = entry.default_factory
        default = _plain(asdict(factory())) if factory is not MISSING else entry.default
        rows.append((name, entry.metadata["doc"], ... if default is MISSING else default))
        if nested and isinstance(nested[0], type):
            rows += describe(nested[0], f"{name}.")
    return rows


def _build(kind: type[Any], raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is {raw!r}; it must be an object with the fields of {kind.__name__}.")
    names = [entry.name for entry in fields(kind)]
    for name in raw:
        if name not in names:
            raise ConfigError(f"{where} has no field {name!r}, {_nearest(str(name), names)}.")
    for entry in fields(kind):
        if entry.default is MISSING and entry.default_factory is MISSING and entry.name not in raw:
            raise ConfigError(f"{where} lacks the required field {entry.name!r}: {entry.metadata['doc']}.")
    hints = get_type_hints(kind)
    return kind(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in raw.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(_choose([part for part in arguments if part is not type(None)], value, where), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}, {_nearest(str(value), [str(a) for a in arguments])}.")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}; it must be a list.")
        return tuple(_convert(arguments[0], part, f"{where}[{index}]") for index, part in enumerate(value))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be a value of type {hint.__name__}.")


def _choose(parts: list[Any], value: Any, where: str) -> Any:
    """Which member of a union a value is meant for: by its `kind` among dataclasses, else a text or the other one."""
    if len(parts) == 1:
        return parts[0]
    if not all(is_dataclass(part) for part in parts):
        return next(part for part in parts if (part is str) == isinstance(value, str))
    kinds = {part.kind: part for part in parts}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; it must be an object with a kind, one of {', '.join(kinds)}.")
    if "kind" not in value:
        raise ConfigError(f"{where} lacks the required field 'kind': one of {', '.join(kinds)}.")
    kind = str(value["kind"])
    if kind not in kinds:
        raise ConfigError(f"{where}.kind is {value['kind']!r}, {_nearest(kind, kinds)}.")
    return kinds[kind]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def _nearest(name: str, valid: Any) -> str:
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    choices = ", ".join(valid)
    return f"did you mean {close[0]!r}? (valid: {choices})" if close else f"valid are: {choices}"


def _no_head(config: Any, program: str) -> None:
    rate = config.optimizer.head_learning_rate
    if rate != OptimizerConfig().head_learning_rate:
        raise ConfigError(
            f"{type(config).__name__}.optimizer.head_learning_rate is {rate}, but {program} trains no head; "
            "set learning_rate instead."
        )


def _check(config: Any, name: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}; it must be {wanted}.")


def _at_least(config: Any, low: float, *names: str) -> None:
    for name in names:
        _check(config, name, getattr(config, name) >= low, f"{low} or above")
