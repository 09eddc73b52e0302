"""`ppo`, `grpo`, `best_of`: a policy and what it samples itself."""

# ruff: noqa: RUF009  (`option` is dataclasses.field with its documentation, not a shared mutable default)
from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal, get_args

from plaudit.errors import ConfigError
from plaudit.learn.configs.fields import at_least, check, option
from plaudit.learn.configs.parts import ComputeConfig, LoraConfig, OptimizerConfig, no_head
from plaudit.learn.configs.rewards import REWARD_DOC, ModelTerm, Reward, check_reward, reward_terms


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
        at_least(self, 1, "prompts_per_step", "samples_per_prompt", "max_new_tokens", "max_prompt_tokens")
        check(self, "temperature", self.temperature > 0, "above 0")


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
        check(self, "coef", self.coef >= 0, "0 or above")
        check(self, "horizon", self.horizon > 0, "above 0")
        for name in ("target", "budget", "base_budget"):
            value = getattr(self, name)
            check(self, name, value is None or value > 0, "above 0, or null")
        if self.target is not None and self.coef == 0:
            raise ConfigError(
                "KLConfig.target is set but coef is 0, which no controller can scale; give coef a start above 0."
            )


@dataclass(frozen=True)
class RolloutConfig:
    """A server that speaks vLLM's protocol and samples for `ppo` and `grpo` as token ids, with the weights of each step (docs/scale.md)."""

    url: str = option(MISSING, "its address with the version, such as http://gpu:8000/v1")
    adapters: str = option(
        "", "folder for each step's adapter, which the server must see under the same path; this or `weights`"
    )
    weights: str = option(
        "",
        "the model folder that the server was started on: each step's whole weights are put there, an adapter merged into them, and the "
        "server reads them again; needed where lora is null",
    )
    logprobs: Literal["raw", "processed"] = option(
        "raw",
        "what its log-probs are of, vLLM's --logprobs-mode: raw are those before the temperature, so that needs to be 1 then",
    )
    cap: float = option(
        2.0, "importance weights trainer/server are cut here (Yao et al. 2025, truncated importance sampling)"
    )
    parallel: int = option(16, "requests at a time, one for each prompt")
    timeout_s: float = option(600.0, "for each request")
    token_variable: str = option("", "environment variable that holds the bearer token; empty: none is sent")

    def __post_init__(self) -> None:
        check(self, "url", self.url.startswith(("http://", "https://")), "an http or https address")
        if bool(self.adapters) == bool(self.weights):
            raise ConfigError(
                f"RolloutConfig.adapters is {self.adapters!r} and weights is {self.weights!r}; name exactly one of them."
            )
        check(self, "cap", self.cap >= 1, "at least 1")
        at_least(self, 1, "parallel")
        check(self, "timeout_s", self.timeout_s > 0, "above 0")


Guard = Literal[
    "kl", "kl_base", "gold", "overoptimisation", "disagreement", "length_change", "length_correlation", "length_share", "format",
    "diversity", "outliers", "traps",
]  # fmt: skip
Limits = tuple[float | None, ...]


@dataclass(frozen=True)
class GuardsConfig:
    """What watches a policy for signs that it fools its reward (docs/guards.md). Limits are [warn, critical]: null for one of them leaves it
    out, null for both switches the guard off. Defaults are those of the monitoring table in docs/monitoring.md."""

    judge: str = option(
        "",
        "reward Checkpoint of another seed, other data or another base, never trained against, that scores every rollout; empty: none",
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
    overoptimisation: Limits | None = option(
        (0.8, 1.0),
        "with a judge: sqrt(KL) as a share of where the law d (a - b ln d), fitted to the judge's scores so far, has its peak (Gao et al. 2022)",
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
        (0.15, 0.3),
        "fall of distinct-1/2/3, of entropy, of embedding distance and of 1 - Self-BLEU, relative to the first rollout",
    )
    outliers: Limits | None = option((0.01, 0.05), "share of scores above the first rollout's 99.9 % quantile")
    traps: int = option(4, "prompts to which trap texts are scored once, at the start; 0: none")

    def __post_init__(self) -> None:
        at_least(self, 1, "patience", "kl_patience")
        at_least(self, 0, "traps")
        for name in get_args(Guard)[:-1]:
            limits = getattr(self, name)
            numbers = [limit for limit in limits or () if limit is not None]
            fits = limits is None or (len(limits) == 2 and all(limit > 0 for limit in numbers))
            rising = name == "gold" or numbers == sorted(numbers)
            check(self, name, fits and rising, "null or [warn, critical], above 0 and rising, each may be null")


@dataclass(frozen=True)
class OnlineConfig:
    """What `ppo` and `grpo` share: a policy that is trained on what it samples itself, within a KL budget."""

    snapshot: str = option(MISSING, "Snapshot folder that holds the prompts")
    base: str = option(MISSING, "prepared base model folder")
    reward: Reward = option(MISSING, REWARD_DOC)
    bases: tuple[str, ...] = option(
        (), "prepared folders of other bases that reward models or the judge stand on; those beside `base` are found"
    )
    start: str = option("", "policy Checkpoint to start from, which then is the reference; empty: the base is both")
    seed: int = option(0, "order of prompts, sampling, initial weights")
    lora: LoraConfig | None = option(
        LoraConfig,
        "adapter; with `start` its shape is the starting adapter's and must agree; null trains the full weights of the layers from "
        "first_layer on, beside a frozen reference",
    )
    first_layer: int = option(
        0, "layers below run once a rollout, frozen, for policy, reference, value and reward alike"
    )
    steps: int = option(12, "rollouts, each followed by its updates; a last rollout only measures")
    sampling: SamplingConfig = option(SamplingConfig, "prompts and sampling")
    rollout: RolloutConfig | None = option(None, "a server that samples instead of this process")
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
        check_reward(self)
        at_least(self, 0, "seed", "first_layer", "missing_eos_penalty")
        at_least(self, 1, "steps", "epochs", "minibatches")
        check(self, "clip", self.clip > 0, "above 0")
        check(self, "dual_clip", self.dual_clip is None or self.dual_clip > 1, "above 1, or null")
        for name in ("score_clip", "target_approx_kl"):
            value = getattr(self, name)
            check(self, name, value is None or value > 0, "above 0, or null")
        rollout = self.sampling.prompts_per_step
        check(self, "minibatches", self.minibatches <= rollout, f"at most the {rollout} prompts of a rollout")
        if self.rollout is not None and self.rollout.adapters and self.lora is None:
            raise ConfigError(
                f"rollout.adapters is {self.rollout.adapters!r}, but lora is null, so there is no adapter; name the model folder of the server "
                "in rollout.weights instead."
            )
        weights = self.rollout.weights if self.rollout is not None else ""
        if weights and Path(weights).resolve() == Path(self.base).resolve():
            raise ConfigError(
                f"rollout.weights is {weights!r}, the run's own base, whose weights would be lost; copy it, start the server on the copy, and "
                "name that."
            )
        if self.rollout is not None and self.rollout.logprobs == "raw" and self.sampling.temperature != 1:
            raise ConfigError(
                f"sampling.temperature is {self.sampling.temperature}, but the server's log-probs are raw, of temperature 1; start it with "
                "--logprobs-mode processed_logprobs and set rollout.logprobs to 'processed', or sample at 1."
            )
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
        at_least(self, 0, "value_coef")
        check(self, "value_clip", self.value_clip > 0, "above 0")
        for name in ("gamma", "lam"):
            check(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")


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
        no_head(self, "grpo")


@dataclass(frozen=True)
class BestOfConfig:
    """`best_of`: sample n responses to each prompt and keep the one that the reward model scores highest."""

    base: str = option(MISSING, "prepared base model folder")
    reward: Reward = option(MISSING, REWARD_DOC)
    bases: tuple[str, ...] = option(
        (), "prepared folders of other bases that reward models or the judge stand on; those beside `base` are found"
    )
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
        check_reward(self)
        at_least(self, 0, "seed", "missing_eos_penalty")
        at_least(self, 1, "n", "max_new_tokens", "max_prompt_tokens")
        check(self, "temperature", self.temperature > 0, "above 0")
        if bool(self.snapshot) == bool(self.inputs):
            raise ConfigError(
                f"BestOfConfig.snapshot is {self.snapshot!r} and inputs is {self.inputs!r}; name exactly one of them."
            )
        if self.inputs and self.split != "train":
            raise ConfigError(f"BestOfConfig.split is {self.split!r}, but the file {self.inputs} has no splits.")
