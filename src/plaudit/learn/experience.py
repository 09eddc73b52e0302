"""What the on-policy programs share: sampling, the frozen passes, scores, the KL budget, epochs over a rollout, state and result.

`ppo.py` and `grpo.py` hold what makes each of them what it is (the training graph, the advantages, the loss) and hand it to `run_steps`.
Numbers in brackets are lines of the checklist in docs/training.md.

One step: sample -> one trunk for all passes -> reference and scores -> old log-probs -> advantages -> epochs of updates.
The reference is the policy's own base with the adapter switched off, or the adapter that the run started from [7]. `kl` is the mean over
responses of the summed k1. Before each update the sampled policy's KL is known: within the budget its weights are kept, beyond it the run
stops and the kept ones become the Checkpoint. A last rollout only measures, so the Checkpoint's KL has always been measured.
Guards (guards.py) look at each rollout, and may end the run or send it back to an earlier policy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from plaudit.artifacts import Message, open_snapshot, sha256_of
from plaudit.errors import BadInput
from plaudit.learn import checkpoint, doctor, losses
from plaudit.learn.advantages import RunningMoments, adaptive_kl_coef, token_rewards
from plaudit.learn.batches import extend_trunk
from plaudit.learn.composed import ComposedReward, Scores
from plaudit.learn.configs import OnlineConfig
from plaudit.learn.guards import Floats, Guards, Sampled, spring_traps, text_figures
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.optimizer import AdamW
from plaudit.learn.policies import load_start
from plaudit.learn.rewards import score_responses
from plaudit.learn.rollout import Sampling, generate
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.tokens import ChatTokenizer, Pack, Rollout, Trunk, from_text, pack, response_logprobs

HELD_PACKS = 2  # graphs that may wait for the advantages; one is in memory at any rate
MAX_TRAP_TOKENS = 512  # a padded text is cut here
MAX_MEAN_RATIO = 10.0  # a minibatch beyond it is skipped: its samples say nothing about this policy any more [13]

Config = TypeVar("Config", bound=OnlineConfig)
Config_co = TypeVar("Config_co", bound=OnlineConfig, covariant=True)  # a Learner[PPOConfig] is a Learner[OnlineConfig]
Data = TypeVar("Data", bound="Collected")
Row = dict[str, Any]
Columns = dict[
    str, Tensor
]  # what the training graph says of a pack: "logprobs" (n, R), "entropy" (n, R) where asked, ...


@dataclass(frozen=True)
class Prompt:
    """A conversation, and its ids with the oldest tokens cut off."""

    messages: tuple[Message, ...]
    ids: list[int]


@dataclass
class Learner(Generic[Config_co]):
    """Everything a step needs. What changes is in `state/`: see `save`."""

    config: Config_co
    decoder: Decoder
    adapter: Adapter
    reference: Adapter | None  # None: the base itself
    heads: dict[str, ScalarHead]  # trained beside the adapter: PPO's value head
    reward: ComposedReward
    guards: Guards
    prompts: list[Prompt]
    adam: AdamW
    generator: torch.Generator
    kl_coef: float
    step: int = 0
    order: list[int] = field(default_factory=list)  # prompts still to come in this pass over them
    moments: RunningMoments = field(default_factory=RunningMoments)
    kept: dict[str, Tensor] = field(default_factory=dict)  # what is trained, as it was within the KL budget
    kept_step: int = 0
    kept_kl: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)  # those of them that a guard's alarm goes back to
    best_step: int = 0
    best_kl: float = 0.0

    def trained(self) -> dict[str, Tensor]:
        modules = nn.ModuleDict({"policy": self.adapter, **self.heads})
        return {name: parameter.detach() for name, parameter in modules.named_parameters()}


@dataclass(frozen=True)
class Observed:
    """One rollout and what the frozen models say of it. False in `counts` is 0 in every (N, R)."""

    rollout: Rollout
    trunks: Mapping[int, Trunk | None]  # by depth: the policy's and each reward model's
    trunk: Trunk | None  # the policy's
    minibatches: list[list[Pack]]
    counts: Tensor  # (N, R) bool, response tokens, EOS included
    mask: Tensor  # (N, R) bool, what is trained: none of a truncated response if truncation is `mask`
    finished: Tensor  # (N,) bool
    reference: Tensor  # (N, R) log-probs
    scored: Scores  # as the reward gave them
    scores: Tensor  # (N,) the total normalised and clipped, with penalty
    messages: Sequence[Sequence[Message]] = ()  # of each prompt
    base: Tensor | None = None  # (N, R) log-probs of the base, where the reference is another and its KL has a budget
    gold: Tensor | None = None  # (N,) the held-out judge's scores

    @property
    def packs(self) -> list[Pack]:
        return [batch for minibatch in self.minibatches for batch in minibatch]


@dataclass(frozen=True)
class Old:
    """The policy that sampled: its `columns` over the rollout, (N, R) or (N,), and the graphs of the first minibatch where they are held."""

    columns: Columns
    held: list[Columns]

    @property
    def logprobs(self) -> Tensor:
        return self.columns["logprobs"]


class Collected(Protocol):
    """What a program's `collect` must hold for the guards to look at."""

    @property
    def seen(self) -> Observed: ...

    @property
    def old(self) -> Old: ...


# --- start ------------------------------------------------------------------------------------------------------------------


def start(config: Config, heads: Sequence[str] = ()) -> Learner[Config]:
    """Load base, start, reward and prompts; `heads` names fresh scalar heads. Raises PlauditErrors where they do not fit together."""
    torch.manual_seed(config.seed)
    base = Path(config.base)
    decoder, adapter = load_start(
        config.base, config.start, config.lora, config.first_layer, config.seed, config.compute
    )
    reference = copy.deepcopy(adapter).requires_grad_(False) if config.start else None
    fresh = {name: ScalarHead(decoder.config.d_model, seed=config.seed) for name in heads}
    for head in fresh.values():
        nn.init.zeros_(head.weight)  # starts as "no idea": noise of the head would swamp the first advantages
    tokenizer = ChatTokenizer.load(base)
    body, scalars = list(adapter.parameters()), [p for head in fresh.values() for p in head.parameters()]
    doctor.check_trainable(nn.ModuleList([decoder, adapter, *fresh.values()]), [*body, *scalars], decoder.dtype)
    doctor.check_off(decoder)
    reward = ComposedReward.load(config.reward, base, decoder, tokenizer)
    learner = Learner(
        config=config,
        decoder=decoder,
        adapter=adapter,
        reference=reference,
        heads=fresh,
        reward=reward,
        guards=Guards.load(config.guards, config.kl, base, decoder, list(reward.parents().values())),
        prompts=read_prompts(config, tokenizer),
        adam=AdamW(config.optimizer, body, scalars),
        generator=torch.Generator().manual_seed(config.seed),
        kl_coef=config.kl.coef,
    )
    learner.kept = {name: tensor.clone() for name, tensor in learner.trained().items()}
    learner.best = learner.kept
    return learner


def read_prompts(config: OnlineConfig, tokenizer: ChatTokenizer) -> list[Prompt]:
    """The training split's different prompts, in an order that does not depend on the file's. Raises BadInput where there are too few."""
    snapshot = open_snapshot(Path(config.snapshot))
    rows = snapshot.prompts("train") if config.sampling.prompts == "prompts" else snapshot.preferences("train")
    different = {sha256_of(list(row.messages)): row.messages for row in rows}
    if len(different) < config.sampling.prompts_per_step:
        raise BadInput(
            f"{config.snapshot} has {len(different)} different training {config.sampling.prompts}, one step takes "
            f"{config.sampling.prompts_per_step}; lower sampling.prompts_per_step or freeze a larger Snapshot."
        )
    limit = config.sampling.max_prompt_tokens
    return [Prompt(different[key], tokenizer.render(different[key])[-limit:]) for key in sorted(different)]


# --- one rollout ------------------------------------------------------------------------------------------------------------


def next_prompts(learner: Learner[OnlineConfig]) -> list[Prompt]:
    """The next prompts of a random pass over all of them; a pass ends when too few are left."""
    n = learner.config.sampling.prompts_per_step
    if len(learner.order) < n:
        learner.order = torch.randperm(len(learner.prompts), generator=learner.generator).tolist()
    chosen, learner.order = learner.order[:n], learner.order[n:]
    return [learner.prompts[index] for index in chosen]


def sample(decoder: Decoder, adapter: Adapter | None, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Rollout:
    """n responses to each prompt. fp32 weights sample with the adapter folded in, which costs no more than the base."""
    ids = [prompt.ids for prompt in prompts]
    if adapter is not None and decoder.dtype == torch.float32:
        return generate(decoder.folded(adapter), ids, n, sampling).rollout
    return generate(decoder, ids, n, sampling, adapter).rollout


def observe(learner: Learner[OnlineConfig], step: int, clock: Clock) -> Observed:
    """Sample, and run every pass of a model that does not learn."""
    config = learner.config
    prompts, asked = next_prompts(learner), config.sampling
    choice = Sampling(asked.max_new_tokens, asked.temperature, seed=config.seed * 1_000_003 + step)
    with clock.phase("sample"):
        sampled = sample(learner.decoder, learner.adapter, prompts, asked.samples_per_prompt, choice)
    with clock.phase("trunk"):
        judge = learner.guards.judge
        depths = (config.first_layer, *learner.reward.depths, *([judge.first_layer] if judge else []))
        trunks = run_trunks(learner.decoder, sampled, depths, config.compute.micro_tokens)
    minibatches = split(learner, sampled)
    packs = [batch for minibatch in minibatches for batch in minibatch]
    trunk = trunks[config.first_layer]
    with clock.phase("reference"):
        reference, counts, _ = response_logprobs(learner.decoder, learner.reference, packs, trunk, asked.temperature)
        from_base = None
        if learner.reference is not None and config.guards.kl_base is not None and config.kl.base_budget is not None:
            from_base, _, _ = response_logprobs(learner.decoder, None, packs, trunk, asked.temperature)
    with clock.phase("score"):
        scored = learner.reward.score(sampled, packs, trunks, [prompt.messages for prompt in prompts])
        gold = score_responses(judge, packs, trunks[judge.first_layer]) / judge.sd if judge else None
    doctor.check_masks(counts, sampled.lengths().tolist())
    finished = torch.tensor(sampled.finished)
    scores = normalise(learner, scored.total)
    if config.truncation == "penalty":
        scores = scores - config.missing_eos_penalty * (~finished).float()
    return Observed(
        rollout=sampled,
        trunks=trunks,
        trunk=trunk,
        minibatches=minibatches,
        counts=counts,
        mask=counts & finished[:, None] if config.truncation == "mask" else counts,
        finished=finished,
        reference=reference,
        scored=scored,
        scores=scores,
        messages=[prompt.messages for prompt in prompts],
        base=from_base,
        gold=gold,
    )


def run_trunks(
    decoder: Decoder, sampled: Rollout, depths: Iterable[int], micro_tokens: int
) -> Mapping[int, Trunk | None]:
    """The frozen layers at each depth that a model freezes (0: none), every layer once."""
    trunks: dict[int, Trunk | None] = {0: None}
    below: Trunk | None = None
    for depth in sorted(set(depths) - {0}):
        below = trunks[depth] = extend_trunk(decoder, sampled, below, depth, micro_tokens)
    return trunks


def normalise(learner: Learner[OnlineConfig], raw: Tensor) -> Tensor:
    """Scores in units of the reference's spread (already so), or of all scores seen so far; clipped. [9]   (N,) -> (N,)"""
    scores = raw
    if learner.config.running_normaliser:
        learner.moments = learner.moments.update(raw)
        scores = (raw - learner.moments.mean) / max(learner.moments.sd, 1e-6)
    limit = learner.config.score_clip
    return scores if limit is None else scores.clamp(-limit, limit)


def split(learner: Learner[OnlineConfig], sampled: Rollout) -> list[list[Pack]]:
    """Random minibatches of whole prompt groups, each in micro-batches that stay the same in every epoch, so that old and new
    log-probs come from the same products [6, 12]."""
    n_groups, n = len(sampled.prompt_ids), learner.config.minibatches
    order = torch.randperm(n_groups, generator=learner.generator).tolist()
    parts = [set(order[i::n]) for i in range(n)]
    return [
        pack(sampled, [i for i in range(sampled.n) if sampled.group[i] in part], learner.config.compute.micro_tokens)
        for part in parts
    ]


def old_pass(minibatches: list[list[Pack]], counts: Tensor, forward: Callable[[Pack], Columns], hold: bool) -> Old:
    """What the policy that sampled says, by the training graph itself [6].

    The first minibatch is trained on next, with weights that have not changed: where its graph is small it is held, and that pass is
    not run again.
    """
    hold = hold and len(minibatches[0]) <= HELD_PACKS
    columns: Columns = {}
    held: list[Columns] = []
    for number, packs in enumerate(minibatches):
        for batch in packs:
            with torch.set_grad_enabled(hold and number == 0):
                made = forward(batch)
            for name, values in made.items():
                whole = columns.setdefault(name, torch.zeros(counts.shape[: values.dim()]))
                if values.dim() == 1:
                    whole[batch.response] = values.detach()
                else:
                    whole[batch.response, : values.shape[1]] = torch.where(batch.counts, values.detach(), 0.0)
            if hold and number == 0:
                held.append(made)
    return Old(columns, held)


def rewards_of(seen: Observed, old: Old, step: int, kl_coef: float) -> Tensor:
    """The reward of each token: -kl_coef k1, and the score at the last. The doctor looks at both. [6, 8]   -> (N, R)"""
    if step == 1:
        doctor.check_start_is_reference(old.logprobs, seen.reference, seen.counts)
    kl = losses.kl_k1(old.logprobs, seen.reference)
    rewards = token_rewards(seen.scores, kl, seen.counts, kl_coef)
    doctor.check_score_position(rewards, torch.where(seen.counts, -kl_coef * kl, 0.0), seen.scores, seen.counts)
    return rewards


# --- updates ----------------------------------------------------------------------------------------------------------------


def run_epochs(
    learner: Learner[OnlineConfig],
    seen: Observed,
    old: Old,
    step: int,
    gradient: Callable[[list[Pack], list[Columns]], tuple[dict[str, float], float]],
) -> Row:
    """Epochs of updates on one rollout; returns the means of their figures.

    `gradient` adds up the gradient of one minibatch, from held graphs where it is given some, and returns its figures (among them
    `approx_kl` and the mean `ratio`) and the largest |ratio - 1|. Epochs stop when a minibatch's approximate KL passes 1.5 x target
    (before its update), and a minibatch whose mean ratio exceeds MAX_MEAN_RATIO is skipped and counted [13].
    """
    config = learner.config
    of = config.steps * config.epochs * config.minibatches
    sums: dict[str, float] = {}
    done, skipped, rate, early = 0, 0, 0.0, False
    for epoch in range(config.epochs):
        # The first epoch keeps the order of `split`, which is random already, so that the doctor knows which minibatch is first.
        n_parts = len(seen.minibatches)
        order = torch.randperm(n_parts, generator=learner.generator).tolist() if epoch else range(n_parts)
        for place, index in enumerate(order):
            first = epoch == 0 and index == 0
            figures, worst = gradient(seen.minibatches[index], old.held if first else [])
            if first:
                doctor.check_first_ratio(worst, step)
                sums = dict.fromkeys((*figures, "gradient_norm"), 0.0)
                del sums["ratio"]
            early = config.target_approx_kl is not None and figures["approx_kl"] > 1.5 * config.target_approx_kl
            broken = figures.pop("ratio") > MAX_MEAN_RATIO
            if early or broken:
                learner.adam.clear()
                skipped += broken
                if early:
                    break
                continue
            position = ((step - 1) * config.epochs + epoch) * config.minibatches + place
            norm, rate = learner.adam.step(position, of)
            for name, value in (figures | {"gradient_norm": norm}).items():
                sums[name] += value
            done += 1
        if early:
            break
    means = {name: value / max(done, 1) for name, value in sums.items()}
    return {**means, "updates": done, "skipped": skipped, "early_stop": early, "learning_rate": rate}


def figures_of(learner: Learner[OnlineConfig], seen: Observed, old: Old, rewards: Tensor) -> Row:
    """The figures of a rollout, before its updates.

    reward                 mean over responses of the summed reward (score, and KL penalty where it is in the reward)
    score, score_sd        the reward's total; of a reward model in units of the reference's spread, 0 = the reference's mean
    term_<name>, ..._sd    each term before its weight; disagreement: mean over responses of the sd over an ensemble's members
    kl, kl_k3              nats per response, mean; k1 (unbiased, may be negative) and k3 (never)
    kl_se                  standard error of `kl`
    kl_coef                of this step
    entropy                nats per token, where asked
    response_tokens        mean; eos_fraction: share of responses that ended by themselves
    n                      responses
    The updates add: clip_fraction, approx_kl (k3 of old against new, nats per token), gradient_norm, learning_rate, updates, skipped,
    early_stop, and the losses of each program. Every line: phases (seconds), tokens_per_second, stop ("" | "budget" | "guard" | "end"), and what the
    guards say (guards.py): guard_<name>, guards (those that do not stand at ok).
    """
    kl = torch.where(seen.counts, losses.kl_k1(old.logprobs, seen.reference), 0.0).sum(dim=1)
    kl_k3 = torch.where(seen.counts, losses.kl_k3(old.logprobs, seen.reference), 0.0).sum(dim=1)
    n = seen.rollout.n
    row: Row = {
        "reward": float(rewards.sum(dim=1).mean()),
        "score": float(seen.scored.total.mean()),
        "score_sd": _sd(seen.scored.total),
        "kl": float(kl.mean()),
        "kl_se": _sd(kl) / n**0.5,
        "kl_k3": float(kl_k3.mean()),
        "kl_coef": learner.kl_coef,
        "response_tokens": float(seen.counts.sum()) / n,
        "eos_fraction": sum(seen.rollout.finished) / n,
        "n": n,
    }
    for name, values in seen.scored.terms.items():
        row |= {f"term_{name}": float(values.mean()), f"term_{name}_sd": _sd(values)}
    if seen.scored.disagreement is not None:
        row["disagreement"] = float(seen.scored.disagreement.mean())
    if "entropy" in old.columns:
        row["entropy"] = float(losses.masked_mean(old.columns["entropy"], seen.counts))
    return row


def _sd(x: Tensor) -> float:
    return float(x.std()) if len(x) > 1 else 0.0


# --- guards -----------------------------------------------------------------------------------------------------------------


def sampled_of(learner: Learner[OnlineConfig], seen: Observed, old: Old) -> Sampled:
    """A rollout as guards see it."""

    def kl_to(reference: Tensor) -> list[float]:
        return torch.where(seen.counts, losses.kl_k1(old.logprobs, reference), 0.0).sum(dim=1).tolist()

    figures: dict[str, list[float]] = {
        "score": seen.scored.total.tolist(),
        "tokens": seen.rollout.lengths().float().tolist(),
        "kl": kl_to(seen.reference),
    }
    if seen.base is not None:
        figures["kl_base"] = kl_to(seen.base)
    for name, values in (("gold", seen.gold), ("disagreement", seen.scored.disagreement)):
        if values is not None:
            figures[name] = values.tolist()
    if "entropy" in old.columns:
        entropy = torch.where(seen.counts, old.columns["entropy"], 0.0)
        figures["entropy"] = (entropy.sum(dim=1) / seen.counts.sum(dim=1)).tolist()
    ids = seen.rollout.response_ids
    texts = [learner.reward.tokenizer.decode(one) for one in ids]
    return Sampled(list(seen.rollout.group), [list(one) for one in ids], figures | text_figures(texts, ids))


def watch(learner: Learner[Config], seen: Observed, old: Old, step: int) -> tuple[Row, bool]:
    """Let the guards look; on the first rollout, which is the reference's own, at trap texts too. Returns what metrics.jsonl says of it, and
    whether a guard that acts alarms."""
    guards, config = learner.guards, learner.config
    tokenizer = learner.reward.tokenizer

    def score(prompts: Sequence[Sequence[Mapping[str, Any]]], texts: Sequence[Sequence[str]]) -> list[Floats]:
        longest = max(MAX_TRAP_TOKENS, config.sampling.max_new_tokens)
        asked = from_text(tokenizer, prompts, texts, None, config.sampling.max_prompt_tokens, longest)
        packs = pack(asked, token_budget=config.compute.micro_tokens)
        trunks = run_trunks(learner.decoder, asked, learner.reward.depths, config.compute.micro_tokens)
        found = learner.reward.score(asked, packs, trunks, prompts).total
        return [np.asarray(part, dtype=np.float64) for part in torch.split(found, [len(row) for row in texts])]

    if step == 1 and config.guards.traps:
        n = min(config.guards.traps, len(seen.messages))
        answers = [tokenizer.decode(seen.rollout.response_ids[seen.rollout.group.index(i)]) for i in range(n)]
        total = seen.scored.total.tolist()
        guards.traps = spring_traps(score, seen.messages[:n], answers, total, tokenizer.eos_id is not None)
    row, alarms = guards.look(step, sampled_of(learner, seen, old))
    if not alarms or config.guards.on_critical == "warn":
        return row, False
    went = {
        "stop": f"ended after {step - 1} steps",
        "best": f"went back to the policy after {max(guards.best_step - 1, 0)} steps",
    }
    guards.done = f"Because of {' and '.join(alarms)}, rollout {step}, the run {went[config.guards.on_critical]}."
    return row, True


# --- the run ----------------------------------------------------------------------------------------------------------------


def run_steps(
    learner: Learner[Config],
    run: RunFolder,
    program: str,
    collect: Callable[[Learner[Config], int, Clock], Data],
    describe: Callable[[Learner[Config], Data], Row],
    optimise: Callable[[Learner[Config], Data, int], Row],
) -> dict[str, Any]:
    """Run to the end or the KL budget, from the last saved state where there is one, and write the Checkpoint; returns result.json's content.

    `collect` samples and observes, `describe` gives its figures (`kl` among them), `optimise` updates.
    """
    config = learner.config
    restore(learner, run)
    history = run.resume_metrics(learner.step)
    stopped = any(row["stop"] for row in history)
    while not stopped and learner.step <= config.steps:
        clock = Clock(run)
        step = learner.step + 1
        measuring = step == config.steps + 1
        data = collect(learner, step, clock)
        row = describe(learner, data)
        with clock.phase("guards"):
            said, alarm = watch(learner, data.seen, data.old, step)
        row |= said
        over = config.kl.budget is not None and row["kl"] > config.kl.budget
        if not over:
            learner.kept = {name: value.clone() for name, value in learner.trained().items()}
            learner.kept_step, learner.kept_kl = step - 1, row["kl"]
            if learner.guards.best_step == step:
                learner.best, learner.best_step, learner.best_kl = learner.kept, step - 1, row["kl"]
        if alarm and config.guards.on_critical == "best":
            learner.kept, learner.kept_step, learner.kept_kl = learner.best, learner.best_step, learner.best_kl
        if over or alarm:
            load_trained(learner, learner.kept)
        stopped = over or alarm or measuring
        row["stop"] = "guard" if alarm else "budget" if over else "end" if measuring else ""
        if not stopped:
            with clock.phase("update"):
                row |= optimise(learner, data, step)
            if config.kl.target is not None:
                learner.kl_coef = adaptive_kl_coef(
                    learner.kl_coef, row["kl"], config.kl.target, row["n"], config.kl.horizon
                )
        learner.step = step
        n_tokens = row["response_tokens"] * row["n"]
        row |= {"phases": clock.rounded(), "tokens_per_second": n_tokens / clock.total}
        history.append(run.log(step, config.steps + 1, program, clock.total, **row))
        if step % config.compute.save_every == 0 or stopped:
            save(learner, run)
    return finish(learner, run, program, history)


def load_trained(learner: Learner[OnlineConfig], weights: Mapping[str, Tensor]) -> None:
    """Put adapter and heads back to these weights."""
    for name, parameter in learner.trained().items():
        parameter.copy_(weights[name])


def save(learner: Learner[OnlineConfig], run: RunFolder) -> None:
    """All that `restore` needs for the next step to be, bit for bit, what it would have been [16]."""
    checkpoint.save_state(
        run.state,
        {
            "step": learner.step,
            "trained": {name: tensor.clone() for name, tensor in learner.trained().items()},
            "kept": learner.kept,
            "kept_step": learner.kept_step,
            "kept_kl": learner.kept_kl,
            "best": learner.best,
            "best_step": learner.best_step,
            "best_kl": learner.best_kl,
            "guards": learner.guards.state(),
            "optimizer": learner.adam.state(),
            "generator": learner.generator.get_state(),
            "order": learner.order,
            "kl_coef": learner.kl_coef,
            "moments": asdict(learner.moments),
            "reward": learner.reward.state(),
        },
    )


def restore(learner: Learner[OnlineConfig], run: RunFolder) -> None:
    """Continue from the last saved state, if there is one."""
    state = checkpoint.load_state(run.state)
    if state is None:
        return
    load_trained(learner, state["trained"])
    learner.adam.load(state["optimizer"])
    learner.generator.set_state(state["generator"])
    learner.step, learner.order, learner.kl_coef = state["step"], state["order"], state["kl_coef"]
    learner.moments = RunningMoments(**state["moments"])
    learner.reward.restore(state["reward"])
    learner.kept, learner.kept_step, learner.kept_kl = state["kept"], state["kept_step"], state["kept_kl"]
    learner.best, learner.best_step, learner.best_kl = state["best"], state["best_step"], state["best_kl"]
    learner.guards.restore(state["guards"])


CURVE = (
    "step",
    "reward",
    "score",
    "score_sd",
    "kl",
    "kl_se",
    "kl_k3",
    "response_tokens",
    "eos_fraction",
    "explained_variance",
)


def finish(learner: Learner[OnlineConfig], run: RunFolder, program: str, history: list[Row]) -> dict[str, Any]:
    """Write result.json, then the Checkpoint of the kept weights, its manifest last."""
    config = learner.config
    load_trained(learner, learner.kept)
    kept = history[learner.kept_step]  # the rollout that measured the kept weights
    phases: dict[str, float] = {}
    for row in history:
        for name, seconds in row["phases"].items():
            phases[name] = phases.get(name, 0.0) + seconds
    result = {
        "program": program,
        "stop": history[-1]["stop"],
        "steps": learner.kept_step,
        "kl": kept["kl"],
        "kl_se": kept["kl_se"],
        "kl_budget": config.kl.budget,
        "score_first": history[0]["score"],
        "score": kept["score"],
        "seconds": sum(row["seconds"] for row in history),
        "phases": {name: round(seconds, 3) for name, seconds in phases.items()},
        "reward": learner.reward.lineage(),
        "guards": learner.guards.result(),
        "curve": [{name: row[name] for name in CURVE if name in row} for row in history],
    }
    run.write_result(result)
    checkpoint.save_policy(
        run.checkpoint,
        learner.adapter,
        Path(config.base),
        parents={
            "snapshot": config.snapshot,
            "start": config.start,
            **learner.reward.parents(),
            "judge": config.guards.judge,
        },
        metrics={name: result[name] for name in ("kl", "score", "steps")},
        value_head=learner.heads.get("value"),
        card=learner.guards.card(),
    )
    return result
