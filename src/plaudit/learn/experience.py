"""What the on-policy programs share: sampling, the frozen passes, scores, the KL budget, epochs over a rollout, state and result.

`ppo.py` and `grpo.py` hold what makes each of them what it is (the training graph, the advantages, the loss) and hand it to
`online_run.run_steps`.
Numbers in brackets are lines of the checklist in docs/training.md.

One step: sample -> one trunk for all passes -> reference and scores -> old log-probs -> advantages -> epochs of updates.
The reference is the policy's own base with the adapter switched off, or the adapter that the run started from [7]; where full weights are
trained (`lora: null`), the base beside a copy of what is trained. `kl` is the mean over responses of the summed k1. Before each update the
sampled policy's KL is known: within the budget its weights are kept, beyond it the run stops and the kept ones become the Checkpoint. A last
rollout only measures, so the Checkpoint's KL has always been measured.
Guards (guards.py) look at each rollout, and may end the run or send it back to an earlier policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from plaudit.artifacts import Message, open_snapshot, sha256_of
from plaudit.errors import BadInput, TrainingStopped
from plaudit.learn import checkpoint, distributed, doctor, losses, remote_rollout
from plaudit.learn.advantages import RunningMoments, token_rewards
from plaudit.learn.batches import extend_trunk
from plaudit.learn.composed import ComposedReward, Scores
from plaudit.learn.configs import OnlineConfig
from plaudit.learn.guards import Guards
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.optimizer import AdamW
from plaudit.learn.policies import Policy, load_online
from plaudit.learn.readers import Readers, texts_of
from plaudit.learn.rewards import score_responses
from plaudit.learn.rollout import Sampling, generate
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.tokens import ChatTokenizer, Pack, Rollout, Trunk, pack, response_logprobs

HELD_PACKS = 2  # graphs that may wait for the advantages; one is in memory at any rate
NAMED = 5  # prompts that a message names
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
    decoder: Decoder  # the policy's
    adapter: Adapter | None  # None: the decoder's own weights are trained
    base: Decoder  # frozen, what every other model stands on; the policy's own where it is an adapter
    reference: Policy  # frozen: where the run started
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
        modules = nn.ModuleDict({"policy": self.adapter or self.decoder, **self.heads})
        return {name: p.detach() for name, p in modules.named_parameters() if p.requires_grad}

    def copies(self, run: RunFolder) -> dict[str, Tensor]:
        """Of what is trained. Full weights are set aside on the disk: memory holds policy, reference and optimizer, and no third model."""
        if self.adapter is None:
            return checkpoint.set_aside(run.state, self.trained())
        return {name: tensor.clone() for name, tensor in self.trained().items()}


@dataclass(frozen=True)
class Observed:
    """One rollout and what the frozen models say of it. False in `counts` is 0 in every (N, R)."""

    rollout: Rollout
    trunks: Mapping[int, Trunk | None]  # by depth: the policy's and each reward model's
    trunk: Trunk | None  # the policy's
    minibatches: list[list[Pack]]  # of each this process's share
    counts: Tensor  # (N, R) bool, response tokens, EOS included
    mask: Tensor  # (N, R) bool, what is trained: none of a truncated response if truncation is `mask`
    finished: Tensor  # (N,) bool
    reference: Tensor  # (N, R) log-probs
    scored: Scores  # as the reward gave them
    scores: Tensor  # (N,) the total normalised and clipped, with penalty
    messages: Sequence[Sequence[Message]] = ()  # of each prompt
    base: Tensor | None = None  # (N, R) log-probs of the base, where the reference is another and its KL has a budget
    gold: Tensor | None = None  # (N,) the held-out judge's scores
    sampler: Tensor | None = None  # (N, R) log-probs of a server that sampled

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
    begun = load_online(config.base, config.start, config.lora, config.first_layer, config.seed, config.compute)
    decoder, adapter = begun.policy.decoder, begun.policy.adapter
    fresh = {name: ScalarHead(decoder.config.d_model, seed=config.seed) for name in heads}
    for head in fresh.values():
        nn.init.zeros_(head.weight)  # starts as "no idea": noise of the head would swamp the first advantages
    tokenizer = ChatTokenizer.load(base)
    body, scalars = list(begun.policy.trained().values()), [p for head in fresh.values() for p in head.parameters()]
    parts = [decoder, *([adapter] if adapter is not None else []), *fresh.values()]
    doctor.check_trainable(nn.ModuleList(parts), [*body, *scalars], decoder.dtype)
    doctor.check_off(decoder)
    readers = Readers([Path(other) for other in config.bases], base, begun.base.dtype, config.compute.micro_tokens)
    reward = ComposedReward.load(config.reward, base, begun.base, tokenizer, readers=readers)
    rewards = list(reward.parents().values())
    return Learner(
        config=config,
        decoder=decoder,
        adapter=adapter,
        base=begun.base,
        reference=begun.reference,
        heads=fresh,
        reward=reward,
        guards=Guards.load(config.guards, config.kl, base, begun.base, rewards, readers),
        prompts=read_prompts(config, tokenizer),
        adam=AdamW(config.optimizer, body, scalars),
        generator=torch.Generator().manual_seed(config.seed),
        kl_coef=config.kl.coef,
    )


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
    """n responses to each prompt. fp32 weights sample with the adapter folded in, which costs no more than the base.

    Each process samples for its share of the prompts and gets the responses to all of them.
    """
    ids, mine = [prompt.ids for prompt in prompts], distributed.share(range(len(prompts)))
    if adapter is not None and decoder.dtype == torch.float32:
        decoder, adapter = decoder.for_sampling(adapter), None
    own = generate(decoder, [ids[place] for place in mine], n, sampling, adapter, places=mine).rollout
    groups = [mine[group] for group in own.group]
    rows = distributed.gathered(list(zip(groups, range(own.n), own.response_ids, own.finished, strict=True)))
    rows.sort()
    return Rollout(ids, [row[2] for row in rows], [row[0] for row in rows], [row[3] for row in rows])


def sample_anywhere(
    learner: Learner[OnlineConfig], prompts: Sequence[Prompt], sampling: Sampling, step: int
) -> tuple[Rollout, Tensor | None]:
    """A rollout from here or from a server; of the latter also the log-probs (N, R) that it sampled with."""
    config, n = learner.config, learner.config.sampling.samples_per_prompt
    if config.rollout is None:
        return sample(learner.decoder, learner.adapter, prompts, n, sampling), None
    shape = learner.decoder.config
    server = remote_rollout.load(config.rollout, shape.stop_ids, shape.vocab_size)
    weights = (learner.decoder, learner.adapter)
    return remote_rollout.sample(server, weights, [prompt.ids for prompt in prompts], n, sampling, step)


def observe(learner: Learner[OnlineConfig], step: int, clock: Clock) -> Observed:
    """Sample, and run every pass of a model that does not learn."""
    config = learner.config
    prompts, asked = next_prompts(learner), config.sampling
    choice = Sampling(asked.max_new_tokens, asked.temperature, seed=config.seed * 1_000_003 + step)
    with clock.phase("sample"):
        sampled, sampler = sample_anywhere(learner, prompts, choice, step)
    minibatches = split(learner, sampled)
    packs = [batch for minibatch in minibatches for batch in minibatch]
    with clock.phase("trunk"):
        judge = learner.guards.judge
        judged_at = [judge.first_layer] if judge is not None and judge.reads_ids else []
        depths = (config.first_layer, *learner.reward.depths, *judged_at)
        mine = torch.cat([batch.response for batch in packs]).sort().values.tolist()
        trunks = run_trunks(learner.base, sampled, depths, config.compute.micro_tokens, mine)
    trunk = trunks[config.first_layer]
    with clock.phase("reference"):
        began = learner.reference
        reference, counts, _ = response_logprobs(began.decoder, began.adapter, packs, trunk, asked.temperature)
        shape = (sampled.n, max(map(len, sampled.response_ids)))
        reference, counts = distributed.assembled(reference, shape), distributed.assembled(counts, shape)
        from_base = None
        if config.start and config.guards.kl_base is not None and config.kl.base_budget is not None:
            from_base, _, _ = response_logprobs(learner.base, None, packs, trunk, asked.temperature)
            from_base = distributed.assembled(from_base, shape)
    with clock.phase("score"):
        scored = learner.reward.score(sampled, packs, trunks, [prompt.messages for prompt in prompts])
        gold = None
        if judge is not None:
            texts = None
            if judge.reads_text:
                texts = texts_of(sampled, [prompt.messages for prompt in prompts], learner.reward.tokenizer)
            below = trunks[judge.first_layer] if judge.reads_ids else None
            found = score_responses(judge, packs, below, texts) / judge.sd
            gold = distributed.assembled(found, (sampled.n,))
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
        sampler=sampler,
    )


def run_trunks(
    decoder: Decoder,
    sampled: Rollout,
    depths: Iterable[int],
    micro_tokens: int,
    responses: Sequence[int] | None = None,
) -> Mapping[int, Trunk | None]:
    """The frozen layers at each depth that a model freezes (0: none), every layer once; for these responses, or all."""
    trunks: dict[int, Trunk | None] = {0: None}
    below: Trunk | None = None
    for depth in sorted(set(depths) - {0}):
        below = trunks[depth] = extend_trunk(decoder, sampled, below, depth, micro_tokens, responses)
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
    log-probs come from the same products [6, 12]. Groups are dealt out to the processes in turn, so each has its part of every minibatch
    and at least one group."""
    n_groups, n = len(sampled.prompt_ids), learner.config.minibatches
    order = torch.randperm(n_groups, generator=learner.generator).tolist()
    dealt = [group for i in range(n) for group in order[i::n]]
    mine = set(distributed.share(dealt))
    parts = [mine.intersection(order[i::n]) for i in range(n)]
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
    return Old({name: distributed.assembled(whole, whole.shape) for name, whole in columns.items()}, held)


def members_of(packs: Sequence[Pack]) -> Tensor:
    """The responses of a minibatch, of which each process holds some packs.   -> (n,) long"""
    return torch.cat(distributed.gathered([batch.response for batch in packs]))


def rewards_of(seen: Observed, old: Old, step: int, kl_coef: float) -> Tensor:
    """The reward of each token: -kl_coef k1, and the score at the last. The doctor looks at both. [6, 8]   -> (N, R)"""
    if step == 1:
        doctor.check_start_is_reference(old.logprobs, seen.reference, seen.counts)
    kl = losses.kl_k1(old.logprobs, seen.reference)
    rewards = token_rewards(seen.scores, kl, seen.counts, kl_coef)
    doctor.check_score_position(rewards, torch.where(seen.counts, -kl_coef * kl, 0.0), seen.scores, seen.counts)
    return rewards


def corrected(learner: Learner[OnlineConfig], seen: Observed, old: Old, advantages: Tensor) -> Tensor:
    """Advantages times the importance weight of each token, where a server sampled: a surrogate is homogeneous in them.   (N, R) -> (N, R)"""
    if seen.sampler is None or learner.config.rollout is None:
        return advantages
    weights, _, _ = losses.truncated_importance(old.logprobs, seen.sampler, seen.counts, learner.config.rollout.cap)
    return advantages * weights


# --- updates ----------------------------------------------------------------------------------------------------------------


def run_epochs(
    learner: Learner[OnlineConfig],
    seen: Observed,
    old: Old,
    step: int,
    gradient: Callable[[list[Pack], list[Columns]], tuple[dict[str, float], float]],
) -> Row:
    """Epochs of updates on one rollout; returns the means of their figures.

    `gradient` adds up the gradient of this process's packs of one minibatch, from held graphs where it is given some, and returns their
    part of the minibatch's figures (among them
    `approx_kl` and the mean `ratio`) and the largest |ratio - 1|. Epochs stop when a minibatch's approximate KL passes 1.5 x target
    (before its update), and a minibatch whose mean ratio exceeds MAX_MEAN_RATIO is skipped and counted [13]. Raises TrainingStopped naming the
    minibatch whose loss or gradient is not a number; no weight has moved by it.
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
            figures = distributed.totals(figures)
            here = f"Rollout {step}, epoch {epoch + 1}, minibatch {index + 1}, {_named(seen, index)}"
            if any(math.isnan(value) for value in figures.values()):
                raise TrainingStopped(
                    f"{here}: its loss is not a number; lower the learning rate or look at these prompts and their scores; the last saved "
                    "state stays as it is."
                )
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
            try:
                norm, rate = learner.adam.step(position, of)
            except TrainingStopped as error:
                raise TrainingStopped(f"{here}: {error.message}") from error
            for name, value in (figures | {"gradient_norm": norm}).items():
                sums[name] += value
            done += 1
        if early:
            break
    means = {name: value / max(done, 1) for name, value in sums.items()}
    return {**means, "updates": done, "skipped": skipped, "early_stop": early, "learning_rate": rate}


def _named(seen: Observed, minibatch: int) -> str:
    """Whose responses a minibatch holds (this process's): the beginnings of the first prompts."""
    index = {seen.rollout.group[row] for batch in seen.minibatches[minibatch] for row in batch.response.tolist()}
    some = sorted(index)[:NAMED]
    texts = [repr(str(seen.messages[group][-1]["content"])[:40]) for group in some if group < len(seen.messages)]
    return f"{len(index)} prompts ({', '.join(texts)}{' ...' if len(index) > NAMED else ''})"


def figures_of(learner: Learner[OnlineConfig], seen: Observed, old: Old, rewards: Tensor) -> Row:
    """The figures of a rollout, before its updates.

    reward                 mean over responses of the summed reward (score, and KL penalty where it is in the reward)
    score, score_sd        the reward's total; of a reward model in units of the reference's spread, 0 = the reference's mean
    term_<name>, ..._sd    each term before its weight; disagreement: mean over responses of the sd over an ensemble's members
    kl, kl_k3              nats per response, mean; k1 (unbiased, may be negative) and k3 (never)
    kl_se                  standard error of `kl`
    kl_per_token           nats per token, k1: the same at any length; kl_p95: 95 % of responses are nearer than this, nats per response
    kl_coef                of this step
    entropy                nats per token, where asked
    tis_ratio_mean         of a server's rollout: trainer's over server's probability, mean over tokens; tis_clipped_fraction: share cut
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
        "kl_per_token": float(kl.sum() / seen.counts.sum()),
        "kl_p95": float(torch.quantile(kl, 0.95)),
        "kl_coef": learner.kl_coef,
        "response_tokens": float(seen.counts.sum()) / n,
        "eos_fraction": sum(seen.rollout.finished) / n,
        "n": n,
    }
    for name, values in seen.scored.terms.items():
        row |= {f"term_{name}": float(values.mean()), f"term_{name}_sd": _sd(values)}
    if seen.scored.disagreement is not None:
        row["disagreement"] = float(seen.scored.disagreement.mean())
    if seen.sampler is not None and learner.config.rollout is not None:
        cap = learner.config.rollout.cap
        _, ratio, cut = losses.truncated_importance(old.logprobs, seen.sampler, seen.counts, cap)
        row |= {"tis_ratio_mean": float(ratio), "tis_clipped_fraction": float(cut)}
    if "entropy" in old.columns:
        row["entropy"] = float(losses.masked_mean(old.columns["entropy"], seen.counts))
    return row


def _sd(x: Tensor) -> float:
    return float(x.std()) if len(x) > 1 else 0.0
