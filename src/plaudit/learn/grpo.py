"""`grpo`: the group-baseline family, RLOO, GRPO, Dr. GRPO and REINFORCE++. No value head: a response is compared with other samples.

Its members differ in the advantage function (advantages.group_advantages) and in nothing else that is fixed: where the KL penalty acts
and what the loss is divided by are options of all of them. One epoch of one minibatch, the default, is on-policy: the loss is trained
on the very graph that gave the log-probs, where that is small enough to be held, and the ratio is exactly 1.

Sampling, the frozen passes and epochs are in experience.py, the KL budget, state and result in online_run.py. Numbers in brackets are lines
of the checklist in docs/training.md. metrics.jsonl, phase `grpo`, one line a step: `experience.figures_of`, `describe` and `gradient`.
Left out: asymmetric clipping, dropping prompts whose samples score alike (they are counted).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plaudit.learn import experience, losses, online_run
from plaudit.learn.advantages import group_advantages
from plaudit.learn.configs import GRPOConfig
from plaudit.learn.experience import Columns, Learner, Observed, Old
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.tokens import Pack, Trunk, hidden_states, logprobs_at


@dataclass(frozen=True)
class Experience:
    """One rollout with all that is known before updating. (N, R), 0 where nothing counts."""

    seen: Observed
    old: Old
    rewards: Tensor
    advantages: Tensor


def train(config: GRPOConfig, run: RunFolder) -> dict[str, Any]:
    """Run to the end (or the KL budget) and write the Checkpoint; returns result.json's content."""
    return online_run.run_steps(start(config), run, "grpo", collect, describe, optimise)


def start(config: GRPOConfig) -> Learner[GRPOConfig]:
    """Load all parts. Raises PlauditErrors where they do not fit together."""
    return experience.start(config)


def collect(learner: Learner[GRPOConfig], step: int, clock: Clock) -> Experience:
    """Sample, run the frozen passes and the policy's own, and compare each response with the others."""
    config = learner.config
    seen = experience.observe(learner, step, clock)
    with clock.phase("old"):
        old = experience.old_pass(
            seen.minibatches,
            seen.counts,
            lambda batch: forward(learner, batch, seen.trunk),
            hold=step <= config.steps,
        )
    rewards = experience.rewards_of(seen, old, step, learner.kl_coef if config.kl_in == "reward" else 0.0)
    advantages = group_advantages(rewards, seen.mask, torch.tensor(seen.rollout.group), config.baseline)
    return Experience(seen, old, rewards, experience.corrected(learner, seen, old, advantages))


def forward(learner: Learner[GRPOConfig], batch: Pack, trunk: Trunk | None) -> Columns:
    """The one training graph: `logprobs` (n, R) of a pack, `entropy` (n, R) where asked."""
    config = learner.config
    hidden = hidden_states(learner.decoder, learner.adapter, batch, trunk)
    logprobs, entropy = logprobs_at(learner.decoder, hidden, batch, config.sampling.temperature, config.entropy)
    return {"logprobs": logprobs} if entropy is None else {"logprobs": logprobs, "entropy": entropy}


def optimise(learner: Learner[GRPOConfig], data: Experience, step: int) -> dict[str, Any]:
    """The rollout's updates; returns their figures."""
    return experience.run_epochs(
        learner, data.seen, data.old, step, lambda packs, held: gradient(learner, data, packs, held)
    )


def gradient(
    learner: Learner[GRPOConfig], data: Experience, packs: list[Pack], held: list[Columns]
) -> tuple[dict[str, float], float]:
    """Add up the gradient of one minibatch over its micro-batches; what a token counts is known from the whole minibatch [12].

    With `kl_in: loss` the loss has kl_coef k3(policy, reference) of each token (GRPO, Shao et al. 2024, equation 4). On-policy its
    gradient is in the mean that of KL(reference || policy), the other direction than the budget's; off-policy nothing corrects for who
    sampled, and it is the gradient of neither.

    Returns masked means over its tokens, and the largest |ratio - 1|.
    """
    config, seen = learner.config, data.seen
    members = experience.members_of(packs)
    n = seen.mask[members].sum().clamp(min=1)
    weights = torch.zeros(seen.rollout.n)
    weights[members] = losses.response_weights(seen.mask[members], config.loss_norm, config.sampling.max_new_tokens)
    sums = {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio": 0.0, "policy_loss": 0.0, "kl_loss": 0.0}
    worst = 0.0
    for number, batch in enumerate(packs):
        rows, width = batch.response, batch.counts.shape[1]
        mask, weight = seen.mask[rows, :width], weights[rows, None]
        logprobs = (held[number] if held else forward(learner, batch, seen.trunk))["logprobs"]
        policy_loss, stats = losses.clipped_surrogate(
            logprobs,
            data.old.logprobs[rows, :width],
            data.advantages[rows, :width] * weight,
            mask,
            config.clip,
            1.0,
            config.dual_clip,
        )
        kl_loss = torch.zeros(())
        if config.kl_in == "loss":
            k3 = losses.kl_k3(logprobs, seen.reference[rows, :width])
            kl_loss = learner.kl_coef * losses.masked_sum(k3 * weight, mask)
        (policy_loss + kl_loss).backward()  # type: ignore[no-untyped-call]
        for name, value in (
            ("clip_fraction", stats.clipped / n),
            ("approx_kl", stats.approx_kl / n),
            ("ratio", stats.ratio / n),
            ("policy_loss", policy_loss.detach()),
            ("kl_loss", kl_loss.detach()),
        ):
            sums[name] += float(value)
        worst = max(worst, float(stats.max_ratio_error))
    return sums, worst


def describe(learner: Learner[GRPOConfig], data: Experience) -> dict[str, Any]:
    """The shared figures, and how far the samples of one prompt differ: what a group baseline learns from.

    group_sd               sd of the scores of one prompt's responses, mean over prompts
    flat_group_fraction    share of prompts whose responses all score the same
    """
    groups = data.seen.scores.view(-1, learner.config.sampling.samples_per_prompt)
    return {
        **experience.figures_of(learner, data.seen, data.old, data.rewards),
        "group_sd": float(groups.std(dim=1, correction=min(1, groups.shape[1] - 1)).mean()),
        "flat_group_fraction": float((groups == groups[:, :1]).all(dim=1).float().mean()),
    }
