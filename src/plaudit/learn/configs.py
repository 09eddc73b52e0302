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
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from plaudit.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16"]
Measure = Literal["score", "nll", "kl"]

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
class RewardConfig:
    """`reward`: a Bradley-Terry model on Preferences with soft labels."""

    snapshot: str = option(MISSING, "Snapshot folder")
    base: str = option(MISSING, "prepared base model folder (`prepare` makes it)")
    criterion: str = option("", "read Preferences of this criterion only; empty reads all")
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
    max_prompt_tokens: int = option(1024, "longer conversations lose their oldest tokens")
    max_response_tokens: int = option(512, "longer responses lose their end and count as unfinished")
    baselines: bool = option(True, "fit the length-only and bag-of-words baselines on the same split and compare")
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
        _at_least(self, 1, "epochs", "batch_pairs", "max_prompt_tokens", "max_response_tokens")


@dataclass(frozen=True)
class SFTConfig:
    """`sft`: next-token loss on responses only (prompt tokens are never trained)."""

    snapshot: str = option(MISSING, "Snapshot folder")
    base: str = option(MISSING, "prepared base model folder")
    source: Literal["demonstrations", "chosen", "both"] = option(
        "demonstrations", "what is imitated: approved responses, the chosen side of Preferences, or both"
    )
    start: str = option("", "policy Checkpoint to start from; empty starts from the base")
    seed: int = option(0, "initial weights and order of the data")
    lora: LoraConfig = option(LoraConfig, "adapter")
    first_layer: int = option(0, "layers below run once, frozen")
    epochs: int = option(2, "passes over the training split")
    batch_size: int = option(16, "responses per update; the loss is the mean over all their tokens")
    max_prompt_tokens: int = option(1024, "longer conversations lose their oldest tokens")
    max_response_tokens: int = option(512, "longer responses lose their end and teach no EOS")
    optimizer: OptimizerConfig = option(OptimizerConfig, "AdamW")
    compute: ComputeConfig = option(ComputeConfig, "layout on this machine")

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed", "first_layer")
        _at_least(self, 1, "epochs", "batch_size", "max_prompt_tokens", "max_response_tokens")
        if self.optimizer.head_learning_rate != OptimizerConfig().head_learning_rate:
            raise ConfigError(
                f"SFTConfig.optimizer.head_learning_rate is {self.optimizer.head_learning_rate}, but sft trains no head; "
                "set learning_rate instead."
            )


@dataclass(frozen=True)
class SamplingConfig:
    """How PPO samples. There is one temperature for sampling and every log-probability; top-k and top-p do not exist here because
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

    def __post_init__(self) -> None:
        _check(self, "coef", self.coef >= 0, "0 or above")
        _check(self, "horizon", self.horizon > 0, "above 0")
        for name in ("target", "budget"):
            value = getattr(self, name)
            _check(self, name, value is None or value > 0, "above 0, or null")
        if self.target is not None and self.coef == 0:
            raise ConfigError(
                "KLConfig.target is set but coef is 0, which no controller can scale; give coef a start above 0."
            )


@dataclass(frozen=True)
class PPOConfig:
    """`ppo`: actor-critic PPO against a learned reward Checkpoint."""

    snapshot: str = option(MISSING, "Snapshot folder that holds the prompts")
    base: str = option(MISSING, "prepared base model folder")
    reward: str = option(MISSING, "reward Checkpoint folder, trained on the same base")
    start: str = option("", "policy Checkpoint to start from, which then is the reference; empty: the base is both")
    seed: int = option(0, "order of prompts, sampling, initial weights")
    lora: LoraConfig = option(LoraConfig, "adapter; with `start` its shape is the starting adapter's and must agree")
    first_layer: int = option(
        0, "layers below run once a rollout, frozen, for policy, reference, value and reward alike"
    )
    steps: int = option(12, "rollouts, each followed by its updates; a last rollout only measures")
    sampling: SamplingConfig = option(SamplingConfig, "prompts and sampling")
    kl: KLConfig = option(KLConfig, "penalty and budget")
    epochs: int = option(2, "passes over a rollout; 4 in [HF]")
    minibatches: int = option(1, "updates in one epoch; each is a mean over all its tokens")
    clip: float = option(0.2, "the ratio new/old counts within 1 +- clip [S]")
    dual_clip: float | None = option(
        None, "for negative advantages the loss is bounded at this ratio (Ye et al. 2020, 3); null: off"
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
        _at_least(self, 0, "seed", "first_layer", "value_coef", "missing_eos_penalty")
        _at_least(self, 1, "steps", "epochs", "minibatches")
        for name in ("clip", "value_clip"):
            _check(self, name, getattr(self, name) > 0, "above 0")
        for name in ("gamma", "lam"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        _check(self, "dual_clip", self.dual_clip is None or self.dual_clip > 1, "above 1, or null")
        for name in ("score_clip", "target_approx_kl"):
            value = getattr(self, name)
            _check(self, name, value is None or value > 0, "above 0, or null")
        rollout = self.sampling.prompts_per_step
        _check(self, "minibatches", self.minibatches <= rollout, f"at most the {rollout} prompts of a rollout")


@dataclass(frozen=True)
class ScoreConfig:
    """`score`: measure given responses. Reads JSONL rows {"id"?, "messages", "response" | "responses", "finished"?}, writes scores.jsonl."""

    inputs: str = option(MISSING, "JSONL file of conversations with one or several responses")
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


Config = RewardConfig | SFTConfig | PPOConfig | ScoreConfig
PROGRAMS: dict[str, type[Config]] = {"reward": RewardConfig, "sft": SFTConfig, "ppo": PPOConfig, "score": ScoreConfig}
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
        return _convert(next(part for part in arguments if part is not type(None)), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}, {_nearest(str(value), [str(a) for a in arguments])}.")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}; it must be a list.")
        return tuple(_convert(arguments[0], part, where) for part in value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be a value of type {hint.__name__}.")


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


def _check(config: Any, name: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}; it must be {wanted}.")


def _at_least(config: Any, low: float, *names: str) -> None:
    for name in names:
        _check(config, name, getattr(config, name) >= low, f"{low} or above")
