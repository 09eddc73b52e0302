"""From scores to advantages: token rewards, GAE, group baselines, whitening, the KL controller. Pure; shapes as in losses.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plaudit.learn.losses import masked_mean

Baseline = Literal["leave_one_out", "group_mean", "group_mean_sd", "batch"]
SD_FLOOR = 1e-4  # added to a group's sd, as TRL does: equal rewards give advantages of 0, not of rounding


def last_index(mask: Tensor) -> Tensor:
    """Position of the last counting token of each row.   (B, T) bool -> (B,) int64; every row must have one."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, positions, positions.new_tensor(-1)).max(dim=1).values


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef * kl on every response token, plus the score on the last *real* one (EOS where there is one), never on padding.

    scores (B,), kl (B, T) nats per token -> (B, T), 0 on padding
    """
    rewards = torch.where(mask, -kl_coef * kl, torch.zeros_like(kl))
    rows = torch.arange(mask.shape[0], device=mask.device)
    rewards[rows, last_index(mask)] += scores
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16), backwards over each row.

        delta_t = r_t + gamma V_{t+1} - V_t          A_t = delta_t + gamma lam A_{t+1}          R_t = A_t + V_t

    Masked positions carry: V_{t+1} and A_{t+1} of a counting token are those of the next *counting* token, whatever lies between.
    `bootstrap` (B,) is V after the last token (0 where the response ended by itself). Returns are formed from unwhitened advantages.
    rewards, values (B, T) -> advantages, returns (B, T), 0 on padding
    """
    next_value = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap.to(values.dtype)
    next_advantage = torch.zeros_like(next_value)
    advantages = torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        counts = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_value = torch.where(counts, values[:, t], next_value)
        next_advantage = torch.where(counts, advantage, next_advantage)
        advantages[:, t] = torch.where(counts, advantage, torch.zeros_like(advantage))
    returns = torch.where(mask, advantages + values, torch.zeros_like(values))
    return advantages, returns


def group_advantages(rewards: Tensor, mask: Tensor, group: Tensor, baseline: Baseline) -> Tensor:
    """What each token of a response earned beyond its baseline. The family of `grpo` differs here and nowhere else.

        leave_one_out    R_i - mean of the R_j of its prompt's other responses      RLOO: Kool et al. 2019; Ahmadian et al. 2024
        group_mean       R_i - mean of its prompt's R                               Dr. GRPO: Liu et al. 2025
        group_mean_sd    the same over their sd (n - 1, as in TRL and verl)         GRPO: Shao et al. 2024, section 4.1.2
        batch            G_it = sum of the rewards from token t on, whitened over the rollout     REINFORCE++: Hu et al. 2025

    R is a response's summed reward, the same for all its tokens. rewards (N, R), mask (N, R) what is trained, group (N,) long: the prompt
    a response answers, at least two of each but for `batch`. Masked responses take part in their group's baseline.   -> (N, R), 0 where
    not masked
    """
    if baseline == "batch":
        return whiten(rewards.flip(1).cumsum(1).flip(1), mask, shift_mean=True)
    totals = rewards.sum(dim=1)
    n = _group_sums(torch.ones_like(totals), group)
    centred = totals - _group_sums(totals, group) / n
    if baseline == "leave_one_out":
        centred = centred * n / (n - 1)  # R - mean of the others = n/(n-1) (R - mean of all)
    elif baseline == "group_mean_sd":
        centred = centred / ((_group_sums(centred**2, group) / (n - 1)).sqrt() + SD_FLOOR)
    return torch.where(mask, centred[:, None], torch.zeros_like(rewards))


def _group_sums(x: Tensor, group: Tensor) -> Tensor:
    """The sum over a value's group, beside each value.   (N,), (N,) -> (N,)"""
    return x.new_zeros(int(group.max()) + 1).index_add_(0, group, x)[group]


def whiten(x: Tensor, mask: Tensor, shift_mean: bool) -> Tensor:
    """Variance 1 over the counting positions of the whole tensor; mean 0 if `shift_mean`, else the mean is kept.   (B, T) -> (B, T), 0 on padding

    The biased variance, as in summarize_from_feedback. Advantages shift their mean, rewards do not.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    scaled = (x - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        scaled = scaled + mean
    return torch.where(mask, scaled, torch.zeros_like(x))


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - var(R - V) / var(R) over counting tokens: 1 perfect, 0 no better than a constant; NaN-free (0 where R is constant)."""
    error = (returns - values)[mask]
    target = returns[mask]
    spread = float(target.var(unbiased=False)) if target.numel() else 0.0
    return 0.0 if spread < 1e-12 else 1.0 - float(error.var(unbiased=False)) / spread


def adaptive_kl_coef(coef: float, kl: float, target: float, n: int, horizon: float) -> float:
    """coef * (1 + clip(kl/target - 1, -.2, .2) * n / horizon): the proportional controller of Ziegler et al. 2019, section 2.2."""
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * n / horizon)


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of everything seen, merged batch by batch (Chan et al. 1979)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, batch: Tensor) -> RunningMoments:
        """The moments after also seeing `batch` (any shape, not empty)."""
        x = batch.double().flatten()
        n, mean = x.numel(), float(x.mean())
        total = self.n + n
        delta = mean - self.mean
        squares = self.squares + float(((x - mean) ** 2).sum()) + delta**2 * self.n * n / total
        return RunningMoments(n=total, mean=self.mean + delta * n / total, squares=squares)

    @property
    def sd(self) -> float:
        """Standard deviation with n - 1; 1 while fewer than two values were seen."""
        return (self.squares / (self.n - 1)) ** 0.5 if self.n > 1 else 1.0
