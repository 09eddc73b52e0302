"""What the reward model already knows of a value: its score of the text so far.

A value head that starts from nothing learns too slowly for a short run, and a poor baseline is paid for twice: in steps, and in KL that
buys no score. A reward model reads any beginning of a response, though, and its score there foretells the final one. So with
`critic: reward`

    V(s_t) = beta . [1, u, phi, phi u, first]  +  head(h_t)        u = t / R, phi = score of the tokens before t (0 at t = 0)

where beta is the least-squares fit of the rollout's own final scores, and the head learns what is left. Five numbers fitted on N responses
make the baseline depend on a response's own score by about 5 / N. Related: potential-based shaping (Ng, Harada, Russell 1999), which with
phi as the potential gives the same advantages at beta = [0, 0, 1, 0, 0]. benchmarks/ppo_critic.py measures it.

Shapes: N responses, R tokens of the longest.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-3  # of one token's weight: keeps the fit defined where a column is constant


def expected_scores(prefix: Tensor, scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The final score as each beginning foretells it: before each token (N, R), 0 where none, and after the last one (N,).

    prefix (N, R) scores of the response up to and with each token, scores (N,) final ones, counts (N, R) bool.
    """
    before = torch.cat([torch.zeros(len(prefix), 1), prefix[:, :-1]], dim=1)
    width = counts.shape[1]
    x = columns(before, torch.arange(width), width)  # (N, R, 5)
    rows = x[counts].double()
    goal = scores[:, None].expand_as(prefix)[counts].double()
    gram = rows.T @ rows + RIDGE * torch.eye(rows.shape[1], dtype=torch.double)
    beta = torch.linalg.solve(gram, rows.T @ goal).float()
    lengths = counts.sum(dim=1)
    last = prefix.gather(1, (lengths - 1)[:, None])  # (N, 1)
    ends = columns(last, lengths[:, None], width)[:, 0] @ beta
    return torch.where(counts, x @ beta, 0.0), ends


def columns(before: Tensor, place: Tensor, width: int) -> Tensor:
    """What the fit reads of a beginning.   before (N, T) scores, place (T,) or (N, T) tokens so far -> (N, T, 5)"""
    u = (place / width).expand_as(before)
    return torch.stack([torch.ones_like(before), u, before, before * u, (u == 0).float()], dim=-1)
