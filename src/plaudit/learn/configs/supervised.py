"""`reward`, `sft`, `dpo`: learning from what people said."""

# ruff: noqa: RUF009  (`option` is dataclasses.field with its documentation, not a shared mutable default)
from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from typing import Literal

from plaudit.errors import ConfigError
from plaudit.learn.configs.fields import at_least, check, option
from plaudit.learn.configs.parts import ComputeConfig, LoraConfig, OptimizerConfig, no_head


@dataclass(frozen=True)
class HeadConfig:
    """The head of one criterion."""

    criterion: str = option(MISSING, "Preferences of this criterion train this head")
    weight: float = option(1.0, "the one score is the sum over heads of weight times the head's score")

    def __post_init__(self) -> None:
        check(self, "criterion", bool(self.criterion), "a criterion's name")
        check(self, "weight", math.isfinite(self.weight), "a finite number")


@dataclass(frozen=True)
class SourceConfig:
    """What one source of Preferences counts."""

    source: str = option(MISSING, "annotation, edit, choice, import, ...: what a Preference says it came from")
    weight: float = option(MISSING, "factor on the weight of its Preferences; 0 leaves them out of training")

    def __post_init__(self) -> None:
        check(self, "source", bool(self.source), "a source's name")
        check(self, "weight", 0 <= self.weight < math.inf, "0 or above")


@dataclass(frozen=True)
class ValidationConfig:
    """How much a reward model is looked at beside its held-out accuracy and calibration."""

    points_per_epoch: int = option(1, "times an epoch that the held-out rows are scored, for the learning curve")
    trap_prompts: int = option(12, "prompts to which trap texts are scored against real answers; 0: none")
    ablations: int = option(6, "held-out answers that are scored again without each of their sentences; 0: none")

    thumbs: int = option(200, "held-out thumbs of users that are scored, for the AUC of score for thumb; 0: none")

    def __post_init__(self) -> None:
        at_least(self, 1, "points_per_epoch")
        at_least(self, 0, "trap_prompts", "ablations", "thumbs")


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
    other_bases: tuple[str, ...] = option(
        (),
        "prepared folders of other bases (other sizes, other tokenizers) on which members stand in turn, the first member on `base`",
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
    source_weights: tuple[SourceConfig, ...] = option(
        (),
        "what each source counts; one that is not named counts 1, but a user's thumb (source thumb, Snapshots only) 0",
    )
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
        at_least(self, 0, "seed", "first_layer", "read_layer", "centring")
        check(
            self,
            "read_layer",
            self.read_layer in (0, max(self.read_layer, self.first_layer + 1)),
            "0 or above first_layer",
        )
        at_least(self, 1, "epochs", "batch_pairs", "members", "max_prompt_tokens", "max_response_tokens")
        check(self, "valid_fraction", 0 <= self.valid_fraction < 1, "in [0, 1)")
        self._check_source()
        self._check_weights()
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

    def _check_weights(self) -> None:
        named = [one.source for one in self.source_weights]
        if len(set(named)) < len(named):
            raise ConfigError(
                f"RewardConfig.source_weights names a source twice ({', '.join(named)}); give each one weight."
            )
        if named and not self.use_weights:
            raise ConfigError("RewardConfig.source_weights is set, but use_weights is false, so no weight is read.")
        if self.preferences and "thumb" in named:
            raise ConfigError(
                "RewardConfig.source_weights names thumb, but a file of preferences holds none; give a snapshot, or leave it out."
            )
        if self.heads and "thumb" in named:
            raise ConfigError(
                "RewardConfig.source_weights names thumb, but a thumb has no criterion, so with heads none could read it; leave one out."
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
            for name, default in (("members_share", "trunk"), ("bootstrap", True), ("other_bases", ())):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"RewardConfig.{name} is {getattr(self, name)!r}, but members is 1: there is no ensemble."
                    )
        elif self.members_share == "trunk" and self.lora is None:
            raise ConfigError(
                "RewardConfig.lora is null, but members that share a trunk are adapters; set members_share to 'body', or use LoRA."
            )
        elif self.other_bases and self.members_share == "body":
            raise ConfigError(
                "RewardConfig.members_share is 'body', but members on other_bases cannot share one; set it to 'trunk'."
            )
        elif self.members <= len(self.other_bases):
            raise ConfigError(
                f"RewardConfig.members is {self.members}, but with {len(self.other_bases)} other_bases the bases are "
                f"{1 + len(self.other_bases)}; take as many members at least, or leave bases out."
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
        at_least(self, 0, "seed", "first_layer")
        at_least(self, 1, "epochs", "batch_size", "max_prompt_tokens", "max_response_tokens")
        no_head(self, "sft")


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
        at_least(self, 0, "seed", "first_layer", "validate_every", "nll_coef")
        at_least(self, 0, "desirable_weight", "undesirable_weight")
        at_least(self, 1, "epochs", "batch_size", "max_prompt_tokens", "max_response_tokens")
        check(self, "beta", self.beta > 0, "above 0")
        check(self, "label_smoothing", 0 <= self.label_smoothing < 0.5, "in [0, .5)")
        check(self, "valid_fraction", 0 <= self.valid_fraction < 1, "in [0, 1)")
        no_head(self, "dpo")
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
