"""Losses and KL estimators: pure functions of tensors.

Shapes: B sequences, T response tokens (right-padded), `mask` (B, T) bool, True = counts. Log-probabilities are fp32 nats.
Token losses divide by a `denominator` that the caller gives: the number of counting tokens of the *whole* minibatch, so that gradients
summed over micro-batches (or processes) of any size are those of one big batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# exp(20) is 5e8: far beyond any ratio that is trained on, and finite in every dtype that is used here.
MAX_LOG_RATIO = 20.0


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over True positions; padding may hold inf or NaN and does not leak, also not into gradients."""
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over True positions of the whole tensor; 0 where nothing counts."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """k1 = log p - log q: unbiased for KL(p || q) under samples of p, may be negative on one. (Schulman, "Approximating KL divergence")"""
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """k3 = exp(log q - log p) - 1 - (log q - log p): unbiased too, never negative; the exponent is clamped first."""
    log_ratio = (reference - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


@dataclass(frozen=True)
class SurrogateStats:
    """Sums over counting tokens (divide by their number), detached; sums so that micro-batches add up."""

    clipped: Tensor
    approx_kl: Tensor  # k3 of old against new
    ratio: Tensor
    max_ratio_error: Tensor  # max |ratio - 1|


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    denominator: Tensor | float,
    dual_clip: float | None = None,
) -> tuple[Tensor, SurrogateStats]:
    """PPO's policy loss  -sum min(r A, clip(r, 1-c, 1+c) A) / denominator,  r = exp(new - old).   (B, T) -> scalar

    Schulman et al. 2017, equation 7. With `dual_clip` c2 > 1 the objective for negative advantages is bounded below by c2 A
    (Ye et al. 2020, equation 5).
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    ratio = torch.exp(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    loss = -masked_sum(objective, mask) / denominator
    with torch.no_grad():
        outside = torch.where(advantages >= 0, ratio > 1 + clip, ratio < 1 - clip)
        stats = SurrogateStats(
            clipped=masked_sum(outside.float(), mask),
            approx_kl=masked_sum(torch.expm1(log_ratio) - log_ratio, mask),
            ratio=masked_sum(ratio, mask),
            max_ratio_error=torch.where(mask, (ratio - 1).abs(), torch.zeros_like(ratio)).max(),
        )
    return loss, stats


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float, denominator: Tensor | float
) -> Tensor:
    """1/2 sum max((V - R)^2, (V_clip - R)^2) / denominator,  V_clip = V_old + clip(V - V_old, -c, c).   (B, T) -> scalar

    The pessimistic maximum of OpenAI baselines' ppo2.
    """
    limited = old_values + (values - old_values).clamp(-clip, clip)
    worst = torch.maximum((values - returns) ** 2, (limited - returns) ** 2)
    return 0.5 * masked_sum(worst, mask) / denominator


def nll(logprobs: Tensor, mask: Tensor, denominator: Tensor | float) -> Tensor:
    """Supervised loss: -sum log p / denominator over response tokens.   (B, T) -> scalar, nats per token"""
    return -masked_sum(logprobs, mask) / denominator


def bradley_terry(chosen: Tensor, rejected: Tensor, probability: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-p log s(D) - (1-p) log s(-D),  D = chosen - rejected - margin.   scores (B,) -> (B,), fp32

    p is the probability that people prefer `chosen`; p = 1 is the usual hard label, p = 1/2 asks for equal scores.
    """
    difference = chosen.float() - rejected.float() - margin
    return -probability * F.logsigmoid(difference) - (1 - probability) * F.logsigmoid(-difference)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(chosen + rejected)^2: differences leave the mean score free, this pins it near 0 (Eisenstein et al. 2023, equation 3).   (B,) -> (B,)"""
    return (chosen.float() + rejected.float()) ** 2


def dpo(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float) -> Tensor:
    """-log s(beta ((c - c_ref) - (r - r_ref))) of summed response log-probs (Rafailov et al. 2023, equation 7).   (B,) -> (B,)"""
    return -F.logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))
