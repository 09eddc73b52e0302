"""Losses and KL estimators: pure functions of tensors.

Shapes: B sequences, T response tokens (right-padded), `mask` (B, T) bool, True = counts. Log-probabilities are fp32 nats.
Token losses divide by a `denominator` that the caller gives: the number of counting tokens of the *whole* minibatch, so that gradients
summed over micro-batches (or processes) of any size are those of one big batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# exp(20) is 5e8: far beyond any ratio that is trained on, and finite in every dtype that is used here.
MAX_LOG_RATIO = 20.0
LossNorm = Literal["token", "sequence", "constant"]


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


def truncated_importance(logprobs: Tensor, sampler: Tensor, mask: Tensor, cap: float) -> tuple[Tensor, Tensor, Tensor]:
    """min(p / q, cap) of each token, where p trains and q sampled.   (B, T) -> weights (B, T), 1 on padding; mean ratio; share cut

    Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training": a surrogate times these weights is the
    trainer's policy gradient under the sampler's tokens, but for the cut, which bounds its variance. No gradient.
    """
    log_ratio = torch.where(mask, logprobs - sampler, torch.zeros_like(logprobs)).detach()
    ratio = torch.exp(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    return ratio.clamp(max=cap), masked_mean(ratio, mask), masked_mean((ratio > cap).float(), mask)


def response_weights(mask: Tensor, norm: LossNorm, length: int) -> Tensor:
    """What one token of each response counts in a minibatch's loss.   mask (n, T) -> (n,)

        token       1 / tokens of the minibatch: long responses count more (DAPO, Yu et al. 2025)
        sequence    1 / (n tokens of the response): a long wrong response is punished less per token (GRPO, Shao et al. 2024, equation 3)
        constant    1 / (n length): free of both biases (Dr. GRPO, Liu et al. 2025); up to the factor RLOO's sum over tokens

    n counts responses of which anything is trained. A surrogate is homogeneous in its advantages, so weighting these is weighting it.
    """
    tokens = mask.sum(dim=1)
    n = (tokens > 0).sum().clamp(min=1)
    match norm:
        case "token":
            weights = torch.ones_like(tokens) / tokens.sum().clamp(min=1)
        case "sequence":
            weights = 1.0 / (n * tokens.clamp(min=1))
        case "constant":
            weights = torch.ones_like(tokens) / (n * length)
    return weights.float()


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


def dpo(chosen: Tensor, rejected: Tensor, beta: float, probability: Tensor | float = 1.0) -> Tensor:
    """-p log s(D) - (1-p) log s(-D),  D = beta (chosen - rejected), of log-ratios log policy/reference.   (B,) -> (B,)

    Rafailov et al. 2023, equation 7, for p = 1; p = 1 - e is conservative DPO with label smoothing e (Mitchell 2023). Its minimum
    lies at D = logit(p), so a soft label also says how far the policy may go.
    """
    difference = beta * (chosen.float() - rejected.float())
    return -probability * F.logsigmoid(difference) - (1 - probability) * F.logsigmoid(-difference)


def ipo(chosen: Tensor, rejected: Tensor, beta: float, probability: Tensor | float = 1.0) -> Tensor:
    """(chosen - rejected - (2p - 1) / (2 beta))^2 of log-ratios (Azar et al. 2023, equation 17, where p = 1).   (B,) -> (B,)

    Up to a constant the mean over labels drawn with probability p.
    """
    return (chosen.float() - rejected.float() - (2 * probability - 1) / (2 * beta)) ** 2


def kto(
    ratio: Tensor,
    reference_point: Tensor | float,
    desirable: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w+ (1 - s(beta (r - z))) of a desirable, w- (1 - s(beta (z - r))) of an undesirable log-ratio r.   (B,) -> (B,)

    Ethayarajh et al. 2024, section 4; z is `kto_reference_point`. `desirable` is the probability of the label, so p = .8 is .8 of the
    one and .2 of the other.
    """
    gain = beta * (ratio.float() - reference_point)
    return desirable * desirable_weight * torch.sigmoid(-gain) + (1 - desirable) * undesirable_weight * torch.sigmoid(
        gain
    )


def kto_reference_point(mismatched: Tensor) -> Tensor:
    """max(0, mean log-ratio of responses to *other* prompts): the KL a response is compared with, without gradient.   (B,) -> scalar

    Ethayarajh et al. 2024, section 4: biased, but one response a prompt is enough and nothing has to be sampled.
    """
    return mismatched.detach().float().mean().clamp(min=0)
