"""`ppo`: actor-critic PPO. Here is what makes it that: the value head beside the policy, GAE, and the clipped losses of both.

Sampling, the frozen passes and epochs are in experience.py, the KL budget, state and result in online_run.py. Numbers in brackets are lines
of the checklist in docs/training.md.

metrics.jsonl, phase `ppo`, one line a step: `experience.figures_of`, `describe` and `gradient`.
Left out: a separate critic (doubles every pass).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import ConfigError
from plaudit.learn import distributed, experience, losses, online_run
from plaudit.learn.advantages import explained_variance, gae, whiten
from plaudit.learn.configs import PPOConfig
from plaudit.learn.critic import expected_scores
from plaudit.learn.experience import Columns, Learner, Observed, Old
from plaudit.learn.rewards import end_values, token_values
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.tokens import Pack, Trunk, hidden_states, logprobs_at


@dataclass(frozen=True)
class Experience:
    """One rollout with all that is known before updating. (N, R), 0 where nothing counts."""

    seen: Observed
    old: Old  # with values, and V(s_T) after the last token
    rewards: Tensor
    prior: Tensor  # what the critic knows before its head: the expected score, or 0
    values: Tensor  # prior and head
    advantages: Tensor
    returns: Tensor


def train(config: PPOConfig, run: RunFolder) -> dict[str, Any]:
    """Run to the end (or the KL budget) and write the Checkpoint; returns result.json's content."""
    return online_run.run_steps(start(config), run, "ppo", collect, describe, optimise)


def start(config: PPOConfig) -> Learner[PPOConfig]:
    """Load all parts, a fresh value head among them. Raises PlauditErrors where they do not fit together."""
    learner = experience.start(config, heads=("value",))
    if config.critic == "reward" and not learner.reward.reads_prefixes:
        raise ConfigError(
            "critic is 'reward', but no term of the reward is a model, which alone can score a beginning, or a model stands on another base, "
            "whose tokens end elsewhere; set critic to 'head'."
        )
    return learner


def collect(learner: Learner[PPOConfig], step: int, clock: Clock) -> Experience:
    """Sample, run every pass that needs no gradient, and turn scores into advantages."""
    config = learner.config
    seen = experience.observe(learner, step, clock)
    with clock.phase("old"):
        old = old_pass(learner, seen.minibatches, seen.trunk, seen.counts, hold=step <= config.steps)
    rewards = experience.rewards_of(seen, old, step, learner.kl_coef)
    if config.whiten_rewards:
        rewards = whiten(rewards, seen.counts, shift_mean=False)
    prior, prior_ends = torch.zeros_like(rewards), torch.zeros(len(rewards))
    if config.critic == "reward":
        with clock.phase("score"):
            prefixes = distributed.assembled(learner.reward.prefix_scores(seen.packs, seen.trunks), seen.counts.shape)
            prior, prior_ends = expected_scores(prefixes, seen.scores, seen.counts)
    values, ends = old.columns["values"] + prior, old.columns["ends"] + prior_ends
    bootstrap = torch.where(seen.finished, 0.0, ends) if config.truncation == "bootstrap" else None
    advantages, returns = gae(rewards, values, seen.counts, config.gamma, config.lam, bootstrap)  # [10]
    if config.whiten_advantages:
        advantages = whiten(advantages, seen.mask, shift_mean=True)
    advantages = experience.corrected(learner, seen, old, advantages)
    return Experience(seen, old, rewards, prior, values, advantages, returns)


def old_pass(
    learner: Learner[PPOConfig], minibatches: list[list[Pack]], trunk: Trunk | None, counts: Tensor, hold: bool
) -> Old:
    """Log-probs, values and ends of the policy that sampled, by the training graph itself [6]."""
    return experience.old_pass(minibatches, counts, lambda batch: forward(learner, batch, trunk), hold)


def forward(learner: Learner[PPOConfig], batch: Pack, trunk: Trunk | None) -> Columns:
    """The one training graph: `logprobs` and `values` (n, R) of a pack, `ends` V(s_T) (n,), `entropy` (n, R) where asked."""
    config, value = learner.config, learner.heads["value"]
    hidden = hidden_states(learner.decoder, learner.adapter, batch, trunk)
    logprobs, entropy = logprobs_at(learner.decoder, hidden, batch, config.sampling.temperature, config.entropy)
    values = token_values(value, hidden, batch, config.value_detach)  # [11]
    columns = {"logprobs": logprobs, "values": values, "ends": end_values(value, hidden.detach(), batch)}
    return columns if entropy is None else columns | {"entropy": entropy}


def optimise(learner: Learner[PPOConfig], data: Experience, step: int) -> dict[str, Any]:
    """Epochs of clipped updates on one rollout; returns their figures."""
    return experience.run_epochs(
        learner, data.seen, data.old, step, lambda packs, held: gradient(learner, data, packs, held)
    )


def gradient(
    learner: Learner[PPOConfig], data: Experience, packs: list[Pack], held: list[Columns]
) -> tuple[dict[str, float], float]:
    """Add up the gradient of one minibatch over its micro-batches: token means over the whole minibatch [12].

    Returns masked means over its tokens, and the largest |ratio - 1|.
    """
    config = learner.config
    members = experience.members_of(packs)
    n = data.seen.mask[members].sum().clamp(min=1)
    sums = {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio": 0.0, "policy_loss": 0.0, "value_loss": 0.0}
    worst = 0.0
    for number, batch in enumerate(packs):
        rows, width = batch.response, batch.counts.shape[1]
        mask = data.seen.mask[rows, :width]
        new = held[number] if held else forward(learner, batch, data.seen.trunk)
        policy_loss, stats = losses.clipped_surrogate(
            new["logprobs"],
            data.old.logprobs[rows, :width],
            data.advantages[rows, :width],
            mask,
            config.clip,
            n,
            config.dual_clip,
        )
        values = new["values"] + data.prior[rows, :width]
        old_values, returns = data.values[rows, :width], data.returns[rows, :width]
        value_loss = losses.clipped_value_loss(values, old_values, returns, mask, config.value_clip, n)
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


def describe(learner: Learner[PPOConfig], data: Experience) -> dict[str, Any]:
    """The shared figures, and explained_variance of the returns by the values."""
    explained = explained_variance(data.values, data.returns, data.seen.mask)
    return {
        **experience.figures_of(learner, data.seen, data.old, data.rewards),
        "explained_variance": explained,
    }
