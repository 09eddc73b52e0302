"""`ppo`: actor-critic PPO against a learned reward Checkpoint, in one file. Numbers in brackets are lines of the checklist in docs/training.md.

One step: sample -> one trunk for all passes -> reference, old log-probs, values, scores -> rewards -> GAE -> epochs of clipped updates.
The reference is the policy's own base with the adapter switched off, or the adapter that the run started from [7]. `kl` is the mean over
responses of the summed k1. Before each update the sampled policy's KL is known: within the budget its weights are kept, beyond it the run
stops and the kept ones become the Checkpoint. A last rollout only measures, so the Checkpoint's KL has always been measured.

metrics.jsonl, phase `ppo`, one line a step: see `describe` at the end of this file.
Left out: a separate critic (doubles every pass), several reward models, several processes.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plaudit.artifacts import open_snapshot, sha256_of
from plaudit.errors import BadInput
from plaudit.learn import checkpoint, doctor, losses
from plaudit.learn.advantages import (
    RunningMoments,
    adaptive_kl_coef,
    explained_variance,
    gae,
    token_rewards,
    whiten,
)
from plaudit.learn.batches import extend_trunk
from plaudit.learn.configs import PPOConfig
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.optimizer import AdamW
from plaudit.learn.policies import load_start
from plaudit.learn.rewards import RewardModel, end_values, score_responses, token_values
from plaudit.learn.rollout import Sampling, generate
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.tokens import (
    ChatTokenizer,
    Pack,
    Rollout,
    Trunk,
    hidden_states,
    logprobs_at,
    pack,
    response_logprobs,
)

HELD_PACKS = 2  # graphs that may wait for the advantages; one is in memory at any rate
MAX_MEAN_RATIO = 10.0  # a minibatch beyond it is skipped: its samples say nothing about this policy any more [13]


@dataclass
class Learner:
    """Everything a step needs. What changes is in `state/`: see `state_of`."""

    config: PPOConfig
    decoder: Decoder
    adapter: Adapter
    reference: Adapter | None  # None: the base itself
    value: ScalarHead
    reward: RewardModel
    prompts: list[list[int]]
    adam: AdamW
    generator: torch.Generator
    kl_coef: float
    step: int = 0
    order: list[int] = field(default_factory=list)  # prompts still to come in this pass over them
    moments: RunningMoments = field(default_factory=RunningMoments)
    kept: dict[str, Tensor] = field(default_factory=dict)  # adapter and value head within the KL budget
    kept_step: int = 0
    kept_kl: float = 0.0

    def trained(self) -> dict[str, Tensor]:
        return {
            name: p.detach()
            for name, p in nn.ModuleDict({"policy": self.adapter, "value": self.value}).named_parameters()
        }


@dataclass(frozen=True)
class Old:
    """The policy that sampled: log-probs and values (N, R), values after the last token (N,), and graphs of the first minibatch."""

    logprobs: Tensor
    values: Tensor
    ends: Tensor
    entropy: Tensor | None
    held: list[tuple[Tensor, Tensor]] = field(
        default_factory=list
    )  # (log-probs, values) with gradient, one for each pack


@dataclass(frozen=True)
class Experience:
    """One rollout with all that is known before updating. (N, R) unless said; 0 where `mask` is False."""

    rollout: Rollout
    trunk: Trunk | None
    minibatches: list[list[Pack]]
    mask: Tensor  # bool, what is trained: response tokens, EOS included; none of a truncated response if truncation is `mask`
    counts: Tensor  # bool, response tokens
    old: Old
    reference: Tensor
    advantages: Tensor
    returns: Tensor
    raw_scores: Tensor  # (N,) units of the reference's spread
    scores: Tensor  # (N,) clipped, with penalty
    rewards: Tensor


def train(config: PPOConfig, run: RunFolder) -> dict[str, Any]:
    """Run to the end (or the KL budget) and write the Checkpoint; returns result.json's content."""
    learner = start(config)
    restore(learner, run)
    history = run.resume_metrics(learner.step)
    stopped = any(row["stop"] for row in history)
    while not stopped and learner.step <= config.steps:
        clock = Clock()
        step = learner.step + 1
        measuring = step == config.steps + 1
        experience = collect(learner, step, clock)
        row = describe(learner, experience)
        over = config.kl.budget is not None and row["kl"] > config.kl.budget
        if over:
            load_trained(learner, learner.kept)
        else:
            learner.kept = {name: value.clone() for name, value in learner.trained().items()}
            learner.kept_step, learner.kept_kl = step - 1, row["kl"]
        stopped = over or measuring
        row["stop"] = "budget" if over else "end" if measuring else ""
        if not stopped:
            with clock.phase("update"):
                row |= optimise(learner, experience, step)
            if config.kl.target is not None:
                learner.kl_coef = adaptive_kl_coef(
                    learner.kl_coef, row["kl"], config.kl.target, experience.rollout.n, config.kl.horizon
                )
        learner.step = step
        n_tokens = int(experience.counts.sum())
        row |= {"phases": clock.rounded(), "tokens_per_second": n_tokens / clock.total}
        history.append(run.log(step, config.steps + 1, "ppo", clock.total, **row))
        if step % config.compute.save_every == 0 or stopped:
            save(learner, run)
    return finish(learner, run, history)


def start(config: PPOConfig) -> Learner:
    """Load base, start, reward model and prompts. Raises PlauditErrors where they do not fit together."""
    torch.manual_seed(config.seed)
    base = Path(config.base)
    decoder, adapter = load_start(
        config.base, config.start, config.lora, config.first_layer, config.seed, config.compute
    )
    reference = copy.deepcopy(adapter).requires_grad_(False) if config.start else None
    value = ScalarHead(decoder.config.d_model, seed=config.seed)
    nn.init.zeros_(value.weight)  # starts as "no idea": noise of the head would swamp the first advantages
    reward = checkpoint.load_reward(Path(config.reward), base, decoder)
    body, head = list(adapter.parameters()), list(value.parameters())
    adam = AdamW(config.optimizer, body, head)
    doctor.check_trainable(nn.ModuleList([decoder, adapter, value]), [*body, *head], decoder.dtype)
    doctor.check_off(decoder)
    learner = Learner(
        config=config,
        decoder=decoder,
        adapter=adapter,
        reference=reference,
        value=value,
        reward=reward,
        prompts=read_prompts(config, ChatTokenizer.load(base)),
        adam=adam,
        generator=torch.Generator().manual_seed(config.seed),
        kl_coef=config.kl.coef,
    )
    learner.kept = {name: tensor.clone() for name, tensor in learner.trained().items()}
    return learner


def read_prompts(config: PPOConfig, tokenizer: ChatTokenizer) -> list[list[int]]:
    """Ids of the training split's different prompts, in an order that does not depend on the file's. Raises BadInput where there are too few."""
    snapshot = open_snapshot(Path(config.snapshot))
    rows = snapshot.prompts("train") if config.sampling.prompts == "prompts" else snapshot.preferences("train")
    different = {sha256_of(list(row.messages)): row.messages for row in rows}
    if len(different) < config.sampling.prompts_per_step:
        raise BadInput(
            f"{config.snapshot} has {len(different)} different training {config.sampling.prompts}, one step takes "
            f"{config.sampling.prompts_per_step}; lower sampling.prompts_per_step or freeze a larger Snapshot."
        )
    limit = config.sampling.max_prompt_tokens
    return [tokenizer.render(different[key])[-limit:] for key in sorted(different)]


def next_prompts(learner: Learner) -> list[list[int]]:
    """The next prompts of a random pass over all of them; a pass ends when too few are left."""
    n = learner.config.sampling.prompts_per_step
    if len(learner.order) < n:
        learner.order = torch.randperm(len(learner.prompts), generator=learner.generator).tolist()
    chosen, learner.order = learner.order[:n], learner.order[n:]
    return [learner.prompts[index] for index in chosen]


def sample(learner: Learner, step: int) -> Rollout:
    """Responses of the current policy to the next prompts. fp32 weights sample with the adapter folded in, which costs no more than the base."""
    config = learner.config.sampling
    choice = Sampling(config.max_new_tokens, config.temperature, seed=learner.config.seed * 1_000_003 + step)
    prompts = next_prompts(learner)
    if learner.decoder.dtype == torch.float32:
        folded = learner.decoder.folded(learner.adapter)
        return generate(folded, prompts, config.samples_per_prompt, choice).rollout
    return generate(learner.decoder, prompts, config.samples_per_prompt, choice, learner.adapter).rollout


def collect(learner: Learner, step: int, clock: Clock) -> Experience:
    """Sample, run every pass that needs no gradient, and turn scores into advantages."""
    config = learner.config
    with clock.phase("sample"):
        sampled = sample(learner, step)
    with clock.phase("trunk"):
        trunk, reward_trunk = run_trunks(learner, sampled)
    minibatches = split(learner, sampled)
    packs = [batch for minibatch in minibatches for batch in minibatch]
    with clock.phase("reference"):
        reference, counts, _ = response_logprobs(
            learner.decoder, learner.reference, packs, trunk, config.sampling.temperature
        )
    with clock.phase("old"):
        old = old_pass(learner, minibatches, trunk, counts, hold=step <= config.steps)
    with clock.phase("score"):
        raw = score_responses(learner.reward, packs, reward_trunk) / learner.reward.sd
    doctor.check_masks(counts, sampled.lengths().tolist())
    if step == 1:
        doctor.check_start_is_reference(old.logprobs, reference, counts)

    finished = torch.tensor(sampled.finished)
    scores = normalise(learner, raw)
    if config.truncation == "penalty":
        scores = scores - config.missing_eos_penalty * (~finished).float()
    mask = counts & finished[:, None] if config.truncation == "mask" else counts
    kl = losses.kl_k1(old.logprobs, reference)
    rewards = token_rewards(scores, kl, counts, learner.kl_coef)
    doctor.check_score_position(rewards, torch.where(counts, -learner.kl_coef * kl, 0.0), scores, counts)
    if config.whiten_rewards:
        rewards = whiten(rewards, counts, shift_mean=False)
    bootstrap = torch.where(finished, 0.0, old.ends) if config.truncation == "bootstrap" else None
    advantages, returns = gae(rewards, old.values, counts, config.gamma, config.lam, bootstrap)  # [10]
    if config.whiten_advantages:
        advantages = whiten(advantages, mask, shift_mean=True)
    return Experience(
        rollout=sampled,
        trunk=trunk,
        minibatches=minibatches,
        mask=mask,
        counts=counts,
        old=old,
        reference=reference,
        advantages=advantages,
        returns=returns,
        raw_scores=raw,
        scores=scores,
        rewards=rewards,
    )


def run_trunks(learner: Learner, sampled: Rollout) -> tuple[Trunk | None, Trunk | None]:
    """The frozen layers of policy and of reward model, each as deep as it freezes; what both freeze runs once."""
    depths = (learner.config.first_layer, learner.reward.first_layer)
    trunks: dict[int, Trunk | None] = {0: None}
    below: Trunk | None = None
    for depth in sorted(set(depths) - {0}):
        below = extend_trunk(learner.decoder, sampled, below, depth, learner.config.compute.micro_tokens)
        trunks[depth] = below
    return trunks[depths[0]], trunks[depths[1]]


def normalise(learner: Learner, raw: Tensor) -> Tensor:
    """Scores in units of the reference's spread (already so), or of all scores seen so far; clipped. [9]   (N,) -> (N,)"""
    scores = raw
    if learner.config.running_normaliser:
        learner.moments = learner.moments.update(raw)
        scores = (raw - learner.moments.mean) / max(learner.moments.sd, 1e-6)
    limit = learner.config.score_clip
    return scores if limit is None else scores.clamp(-limit, limit)


def split(learner: Learner, sampled: Rollout) -> list[list[Pack]]:
    """Random minibatches of whole prompt groups, each in micro-batches that stay the same in every epoch, so that old and new
    log-probs come from the same products [6, 12]."""
    n_groups, n = len(sampled.prompt_ids), learner.config.minibatches
    order = torch.randperm(n_groups, generator=learner.generator).tolist()
    parts = [set(order[i::n]) for i in range(n)]
    return [
        pack(sampled, [i for i in range(sampled.n) if sampled.group[i] in part], learner.config.compute.micro_tokens)
        for part in parts
    ]


def old_pass(learner: Learner, minibatches: list[list[Pack]], trunk: Trunk | None, counts: Tensor, hold: bool) -> Old:
    """What the policy that sampled says, by the training graph itself [6].

    The first minibatch is trained on next, with weights that have not changed: where its graph is small it is held, and that pass is
    not run again.
    """
    config = learner.config
    hold = hold and len(minibatches[0]) <= HELD_PACKS
    old = Old(
        logprobs=torch.zeros(counts.shape),
        values=torch.zeros(counts.shape),
        ends=torch.zeros(len(counts)),
        entropy=torch.zeros(counts.shape) if config.entropy else None,
    )
    for number, packs in enumerate(minibatches):
        for batch in packs:
            with torch.set_grad_enabled(hold and number == 0):
                logprobs, values, ends, entropy = forward(learner, batch, trunk)
            width = batch.counts.shape[1]
            old.logprobs[batch.response, :width] = logprobs.detach()
            old.values[batch.response, :width] = torch.where(batch.counts, values.detach(), 0.0)
            old.ends[batch.response] = ends.detach()
            if old.entropy is not None and entropy is not None:
                old.entropy[batch.response, :width] = entropy
            if hold and number == 0:
                old.held.append((logprobs, values))
    return old


def forward(learner: Learner, batch: Pack, trunk: Trunk | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The one training graph: log-probs and values (n, R) of a pack, V(s_T) (n,), entropy (n, R) where asked."""
    config = learner.config
    hidden = hidden_states(learner.decoder, learner.adapter, batch, trunk)
    logprobs, entropy = logprobs_at(learner.decoder, hidden, batch, config.sampling.temperature, config.entropy)
    values = token_values(learner.value, hidden, batch, config.value_detach)  # [11]
    return logprobs, values, end_values(learner.value, hidden.detach(), batch), entropy


def optimise(learner: Learner, data: Experience, step: int) -> dict[str, Any]:
    """Epochs of clipped updates on one rollout; returns their figures.

    Epochs stop when a minibatch's approximate KL passes 1.5 x target (before its update), and a minibatch whose mean ratio exceeds
    MAX_MEAN_RATIO is skipped and counted [13].
    """
    config = learner.config
    of = config.steps * config.epochs * config.minibatches
    sums = {"clip_fraction": 0.0, "approx_kl": 0.0, "policy_loss": 0.0, "value_loss": 0.0, "gradient_norm": 0.0}
    done, skipped, rate, early = 0, 0, 0.0, False
    for epoch in range(config.epochs):
        # The first epoch keeps the order of `split`, which is random already, so that the doctor knows which minibatch is first.
        n_parts = len(data.minibatches)
        order = torch.randperm(n_parts, generator=learner.generator).tolist() if epoch else range(n_parts)
        for place, index in enumerate(order):
            held = data.old.held if epoch == 0 and index == 0 else []
            figures, worst = gradient(learner, data, data.minibatches[index], held)
            if epoch == 0 and index == 0:
                doctor.check_first_ratio(worst, step)
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


def gradient(
    learner: Learner, data: Experience, packs: list[Pack], held: list[tuple[Tensor, Tensor]]
) -> tuple[dict[str, float], float]:
    """Add up the gradient of one minibatch over its micro-batches: token means over the whole minibatch [12].

    Returns masked means over its tokens, and the largest |ratio - 1|.
    """
    config = learner.config
    members = torch.cat([batch.response for batch in packs])
    n = data.mask[members].sum().clamp(min=1)
    sums = {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio": 0.0, "policy_loss": 0.0, "value_loss": 0.0}
    worst = 0.0
    for number, batch in enumerate(packs):
        rows, width = batch.response, batch.counts.shape[1]
        mask = data.mask[rows, :width]
        logprobs, values = held[number] if held else forward(learner, batch, data.trunk)[:2]
        policy_loss, stats = losses.clipped_surrogate(
            logprobs,
            data.old.logprobs[rows, :width],
            data.advantages[rows, :width],
            mask,
            config.clip,
            n,
            config.dual_clip,
        )
        value_loss = losses.clipped_value_loss(
            values, data.old.values[rows, :width], data.returns[rows, :width], mask, config.value_clip, n
        )
        (policy_loss + config.value_coef * value_loss).backward()  # type: ignore[no-untyped-call]
        for name, value in (
            ("clip_fraction", stats.clipped / n),
            ("approx_kl", stats.approx_kl / n),
            ("ratio", stats.ratio / n),
            ("policy_loss", policy_loss.detach()),
            ("value_loss", value_loss.detach()),
        ):
            sums[name] += float(value)
        worst = max(worst, float(stats.max_ratio_error))
    return sums, worst


def describe(learner: Learner, data: Experience) -> dict[str, Any]:
    """The figures of a rollout, before its updates.

    reward                 mean over responses of the summed reward (score and KL penalty)
    score, score_sd        raw scores, in units of the reference's spread, 0 = the reference's mean
    kl, kl_k3              nats per response, mean; k1 (unbiased, may be negative) and k3 (never)
    kl_se                  standard error of `kl`
    kl_coef                of this step
    entropy                nats per token, where asked
    explained_variance     of the returns by the values
    response_tokens        mean; eos_fraction: share of responses that ended by themselves
    n                      responses
    The updates add: clip_fraction, approx_kl (k3 of old against new, nats per token), policy_loss, value_loss, gradient_norm,
    learning_rate, updates, skipped, early_stop. Every line: phases (seconds), tokens_per_second, stop ("" | "budget" | "end").
    """
    kl = torch.where(data.counts, losses.kl_k1(data.old.logprobs, data.reference), 0.0).sum(dim=1)
    kl_k3 = torch.where(data.counts, losses.kl_k3(data.old.logprobs, data.reference), 0.0).sum(dim=1)
    n = data.rollout.n
    row: dict[str, Any] = {
        "reward": float(data.rewards.sum(dim=1).mean()),
        "score": float(data.raw_scores.mean()),
        "score_sd": float(data.raw_scores.std()) if n > 1 else 0.0,
        "kl": float(kl.mean()),
        "kl_se": float(kl.std()) / n**0.5 if n > 1 else 0.0,
        "kl_k3": float(kl_k3.mean()),
        "kl_coef": learner.kl_coef,
        "explained_variance": explained_variance(data.old.values, data.returns, data.mask),
        "response_tokens": float(data.counts.sum()) / n,
        "eos_fraction": sum(data.rollout.finished) / n,
        "n": n,
    }
    if data.old.entropy is not None:
        row["entropy"] = float(losses.masked_mean(data.old.entropy, data.counts))
    return row


def load_trained(learner: Learner, weights: dict[str, Tensor]) -> None:
    """Put adapter and value head back to these weights."""
    for name, parameter in learner.trained().items():
        parameter.copy_(weights[name])


def save(learner: Learner, run: RunFolder) -> None:
    """All that `restore` needs for the next step to be, bit for bit, what it would have been [16]."""
    checkpoint.save_state(
        run.state,
        {
            "step": learner.step,
            "trained": {name: tensor.clone() for name, tensor in learner.trained().items()},
            "kept": learner.kept,
            "kept_step": learner.kept_step,
            "kept_kl": learner.kept_kl,
            "optimizer": learner.adam.state(),
            "generator": learner.generator.get_state(),
            "order": learner.order,
            "kl_coef": learner.kl_coef,
            "moments": asdict(learner.moments),
        },
    )


def restore(learner: Learner, run: RunFolder) -> None:
    """Continue from the last saved state, if there is one."""
    state = checkpoint.load_state(run.state)
    if state is None:
        return
    load_trained(learner, state["trained"])
    learner.adam.load(state["optimizer"])
    learner.generator.set_state(state["generator"])
    learner.step, learner.order, learner.kl_coef = state["step"], state["order"], state["kl_coef"]
    learner.moments = RunningMoments(**state["moments"])
    learner.kept, learner.kept_step, learner.kept_kl = state["kept"], state["kept_step"], state["kept_kl"]


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


def finish(learner: Learner, run: RunFolder, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Write result.json, then the Checkpoint of the kept weights, its manifest last."""
    config = learner.config
    load_trained(learner, learner.kept)
    kept = history[learner.kept_step]  # the rollout that measured the kept weights
    phases: dict[str, float] = {}
    for row in history:
        for name, seconds in row["phases"].items():
            phases[name] = phases.get(name, 0.0) + seconds
    result = {
        "program": "ppo",
        "stop": history[-1]["stop"],
        "steps": learner.kept_step,
        "kl": kept["kl"],
        "kl_se": kept["kl_se"],
        "kl_budget": config.kl.budget,
        "score_first": history[0]["score"],
        "score": kept["score"],
        "seconds": sum(row["seconds"] for row in history),
        "phases": {name: round(seconds, 3) for name, seconds in phases.items()},
        "curve": [{name: row[name] for name in CURVE} for row in history],
    }
    run.write_result(result)
    checkpoint.save_policy(
        run.checkpoint,
        learner.adapter,
        Path(config.base),
        parents={"snapshot": config.snapshot, "reward": config.reward, "start": config.start},
        metrics={name: result[name] for name in ("kl", "score", "steps")},
        value_head=learner.value,
    )
    return result
