"""From votes to soft labels: majority, Dawid-Skene with a prior, one-coin with a left-bias term, and `auto`.

All three models share one EM loop. Every vote falls into a *cell* (worker, label) or (worker, label shown first, label); the counts
(items x cells) are one sparse matrix A, so the E-step is `A @ log_table` and the M-step's expected counts are `A.T @ posterior`.
A model is only the map from expected counts (cells, K) to a table of log P(vote in cell | truth).

Left out: item difficulty (GLAD) and per-item Bradley-Terry; the second says nothing where each response sits in one pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy  # its parts load with their first use: not where a service or a command starts
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput
from plaudit.stats.intervals import Interval, wilson_bounds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Method = Literal["auto", "majority", "dawid-skene", "one-coin"]

# Pseudo-counts (right, wrong): Dirichlet(4, 1) on each row of an annotator's confusion matrix.
PRIOR_RIGHT, PRIOR_WRONG = 4.0, 1.0
# Below this many gold items `auto` does not let them overrule its default.
MIN_GOLD = 20
_SCORING_TOLERANCE = 1e-3
# Cells of all workers' tables together: 20 M doubles are 160 MB, of which a fit holds a handful.
MAX_CELLS = 20_000_000


@dataclass(frozen=True)
class Votes:
    """One row per vote. `item`, `worker`: codes from 0; `label`: 0..n_labels-1; `first`: the label whose option was shown first; `weight`:
    how much each vote counts in `effective_votes`, default 1, and in nothing else (how strongly somebody prefers does not make them right)."""

    item: Ints
    worker: Ints
    label: Ints
    n_labels: int
    first: Ints | None = None
    weight: Floats | None = None

    def __post_init__(self) -> None:
        columns = {"item": self.item, "worker": self.worker, "label": self.label}
        if self.first is not None:
            columns["first"] = self.first
        for name, column in columns.items():
            array = np.asarray(column)
            if array.ndim != 1 or len(array) != len(self.item) or not np.issubdtype(array.dtype, np.integer):
                raise BadInput(
                    f"Votes.{name} has shape {array.shape} and type {array.dtype}; give one integer per vote."
                )
            if len(array) and array.min() < 0:
                raise BadInput(f"Votes.{name} holds {array.min()}; codes start at 0.")
            object.__setattr__(self, name, array.astype(np.int64, copy=False))
        if self.weight is not None and (len(self.weight) != len(self.item) or not (np.asarray(self.weight) >= 0).all()):
            raise BadInput(
                f"Votes.weight has {len(self.weight)} rows for {len(self.item)} votes; give each a number >= 0."
            )
        if len(self.item) == 0:
            raise BadInput("There are no votes; aggregation needs at least one.")
        if self.n_labels < 2 or max(self.label.max(), -1 if self.first is None else self.first.max()) >= self.n_labels:
            raise BadInput(
                f"Labels reach {self.label.max()} but n_labels is {self.n_labels}; it must be at least 2 and above all labels."
            )

    @cached_property
    def n_items(self) -> int:
        return int(self.item.max()) + 1

    @cached_property
    def n_workers(self) -> int:
        return int(self.worker.max()) + 1

    def counts(self) -> Floats:
        """(n_items, n_labels) votes per item and label."""
        flat = np.bincount(self.item * self.n_labels + self.label, minlength=self.n_items * self.n_labels)
        return flat.reshape(self.n_items, self.n_labels).astype(np.float64)


@dataclass(frozen=True)
class CodedVotes:
    """Votes with the names behind the codes: `items[code]`, `workers[code]`, `labels[code]`."""

    votes: Votes
    items: tuple[Hashable, ...]
    workers: tuple[Hashable, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class WorkerRates:
    """One rate per worker with its 95 % interval; all (n_workers,); `n` counts the worker's votes."""

    mean: Floats
    low: Floats
    high: Floats
    n: Ints

    def interval(self, worker: int) -> Interval:
        return Interval(
            float(self.mean[worker]), float(self.low[worker]), float(self.high[worker]), int(self.n[worker])
        )


@dataclass(frozen=True)
class Aggregate:
    """What the votes say.

    posterior: (n_items, K) P(label is the truth). reliability: P(a vote of this worker is right), at the estimated class mix.
    confusion: (n_workers, K truth, K vote), None for majority. left_bias: P(worker picks what is shown first, whatever it is), only from
    one-coin with an order; negative for those who pick the last. effective_votes: (n_items,) votes that a perfect annotator would have
    needed to cast: each vote counts as the share of the truth's entropy that it removes (mutual information), so spam counts 0; plain
    vote counts for majority; times `Votes.weight`. log_likelihood: of the votes, without the prior; None for majority. reason: why this method.
    """

    posterior: Floats
    reliability: WorkerRates
    confusion: Floats | None
    left_bias: WorkerRates | None
    effective_votes: Floats
    method: str
    iterations: int
    log_likelihood: float | None
    reason: str


def encode_votes(
    items: Sequence[Hashable], workers: Sequence[Hashable], labels: Sequence[str], first: Sequence[str] | None = None
) -> CodedVotes:
    """Codes for named votes: items and workers in order of appearance, labels sorted. `first` names the label shown first."""
    if not len(items) == len(workers) == len(labels) or (first is not None and len(first) != len(labels)):
        raise BadInput(f"Columns have {len(items)}, {len(workers)}, {len(labels)} rows; they must be equally long.")
    names = sorted(set(labels) | set(first or ()))
    if len(names) < 2:
        raise BadInput(
            f"All votes say {names[0]!r}; aggregation needs two labels." if names else "There are no votes to read."
        )
    label_codes: dict[Hashable, int] = {name: code for code, name in enumerate(names)}
    item_codes: dict[Hashable, int] = {}
    worker_codes: dict[Hashable, int] = {}
    votes = Votes(
        _codes(items, item_codes),
        _codes(workers, worker_codes),
        _codes(labels, label_codes),
        len(names),
        None if first is None else _codes(first, label_codes),
    )
    return CodedVotes(votes, tuple(item_codes), tuple(worker_codes), tuple(names))


def aggregate(
    votes: Votes, method: Method = "auto", gold: Mapping[int, int] | None = None, history: ArrayLike | None = None
) -> Aggregate:
    """One of the methods by name. gold: an item's code to its known label.

    history: (n_workers, K truth, K vote) counts of each worker's earlier votes, known or expected (`expected_counts`); they are added to the
    default prior, and majority has no use for them. Raises BadInput where a model of every worker would not fit into memory.
    """
    match method:
        case "auto":
            return auto(votes, gold, history)
        case "majority":
            return majority(votes, gold)
        case "dawid-skene":
            return dawid_skene(votes, gold, prior=_with_history(votes, history))
        case "one-coin":
            return one_coin(votes, gold, prior=_rates_with_history(votes, history))
    raise BadInput(f"Method {method!r} is unknown; choose auto, majority, dawid-skene or one-coin.")


def expected_counts(votes: Votes, posterior: Floats) -> Floats:
    """(n_workers, K truth, K vote) how often each worker gave which label to items of which truth, weighed by `posterior` (n_items, K).

    What an earlier run leaves behind as `history`; with a one-hot posterior it counts the answers to gold.
    """
    k = votes.n_labels
    cells = votes.worker * k + votes.label
    by_truth = [
        np.bincount(cells, weights=posterior[votes.item, truth], minlength=votes.n_workers * k) for truth in range(k)
    ]
    return np.stack([column.reshape(votes.n_workers, k) for column in by_truth], axis=1)


def majority(votes: Votes, gold: Mapping[int, int] | None = None) -> Aggregate:
    """Share of votes per label, ties split; an item without votes is uniform. Reliability: agreement with the item's *other* votes."""
    counts = votes.counts()
    totals = counts.sum(axis=1)
    posterior = np.where(totals[:, None] > 0, counts / np.maximum(totals, 1.0)[:, None], 1.0 / votes.n_labels)
    others = totals[votes.item] - 1
    agreeing = (counts[votes.item, votes.label] - 1) / np.maximum(others, 1.0)
    n_seen = np.bincount(votes.worker[others > 0], minlength=votes.n_workers)
    right = np.bincount(votes.worker, weights=agreeing, minlength=votes.n_workers)
    low, high = wilson_bounds(np.minimum(right, n_seen), n_seen)
    mean = np.where(n_seen > 0, right / np.maximum(n_seen, 1), 0.5)
    reliability = WorkerRates(mean, low, high, n_seen.astype(np.int64))
    items, labels = _gold_arrays(votes, gold)
    posterior[items] = np.eye(votes.n_labels)[labels]
    weighted = totals if votes.weight is None else _per_item(votes, np.ones(len(votes.item)))
    return Aggregate(posterior, reliability, None, None, weighted, "majority", 0, None, "asked for")


def dawid_skene(
    votes: Votes,
    gold: Mapping[int, int] | None = None,
    *,
    prior: ArrayLike | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
) -> Aggregate:
    """Dawid & Skene (1979) with Dirichlet pseudo-counts on every worker's confusion rows and gold items clamped.

    prior: (K, K) for all workers or (n_workers, K, K) with each one's history (truth x vote pseudo-counts; EM forgets an initial value,
    it cannot forget a prior); default 4 on the diagonal and 1 beside it; zeros give the plain method. The M-step takes the mean of the
    Dirichlet posterior (which is its mode under one count more in each cell): on three votes an item the mode itself is as accurate but
    claims .99 confidence at .84. Stops when the mean change of a posterior falls under `tolerance`.
    """
    k = votes.n_labels
    _check_size(votes, places=1)
    pseudo = _default_prior(k) if prior is None else np.asarray(prior)
    if pseudo.shape not in ((k, k), (votes.n_workers, k, k)) or not (pseudo >= 0).all():
        raise BadInput(f"prior has shape {pseudo.shape}; give ({k}, {k}) or ({votes.n_workers}, {k}, {k}) counts >= 0.")
    pseudo = np.broadcast_to(pseudo, (votes.n_workers, k, k)).astype(np.float64)

    def confusion_of(expected: Floats) -> Floats:
        rows = expected.reshape(votes.n_workers, k, k).transpose(0, 2, 1) + pseudo  # (W, truth, vote)
        confusion: Floats = rows / np.maximum(rows.sum(axis=2, keepdims=True), 1e-12)
        return confusion

    def table(expected: Floats) -> Floats:
        return confusion_of(expected).transpose(0, 2, 1).reshape(-1, k)

    cells = votes.worker * k + votes.label
    fit = _fit(votes, cells, votes.n_workers * k, table, gold, tolerance, max_iterations, class_prior=None)
    confusion = confusion_of(fit.expected)
    mean: Floats = np.diagonal(confusion, axis1=1, axis2=2) @ fit.class_mix
    variance = _reliability_variance(votes, fit.posterior, confusion, gold, mean, pseudo.sum(axis=(1, 2)))
    return Aggregate(
        fit.posterior,
        _beta_rates(votes, mean, variance),
        confusion,
        None,
        _effective_votes(votes, confusion, fit.class_mix),
        "dawid-skene",
        fit.iterations,
        fit.log_likelihood,
        "asked for",
    )


def one_coin(
    votes: Votes,
    gold: Mapping[int, int] | None = None,
    *,
    prior: ArrayLike = (PRIOR_RIGHT, PRIOR_WRONG),
    tolerance: float = 1e-5,
    max_iterations: int = 200,
) -> Aggregate:
    """One reliability per worker; where `votes.first` is stored, two: right when the truth stands first, right when it does not.

    Their difference is the left bias: someone who clicks the first option with probability b and otherwise is right with probability a
    has b + (1 - b) a and (1 - b) a. prior: (right, wrong) pseudo-counts, (2,) or (n_workers, 2). Label switching is held off by the
    prior and a uniform class mix; where the result still contradicts the majority on most items, the majority is returned, and says so.
    """
    k = votes.n_labels
    places = 1 if votes.first is None else k
    _check_size(votes, places)
    pseudo = np.broadcast_to(np.asarray(prior, dtype=np.float64), (votes.n_workers, 2))
    if not (pseudo >= 0).all():
        raise BadInput("prior holds a negative pseudo-count; give (right, wrong) counts >= 0.")
    place = np.zeros_like(votes.label) if votes.first is None else votes.first
    cells = (votes.worker * places + place) * k + votes.label
    shape = (votes.n_workers, places, k, k)  # (W, label shown first, vote, truth)
    is_right = np.broadcast_to(np.eye(k, dtype=bool), (places, k, k))
    ordered = votes.first is not None
    truth_first = np.broadcast_to(
        np.eye(k, dtype=bool)[:, None, :] if ordered else np.ones((1, 1, k), bool), (places, k, k)
    )
    picks_first = np.broadcast_to(
        np.eye(k, dtype=bool)[:, :, None] if ordered else np.zeros((1, k, 1), bool), (places, k, k)
    )
    # Each (first, vote, truth) is one kind of event; within a kind the probability is shared evenly by the votes that it holds.
    when_first = (truth_first & is_right, truth_first & ~is_right)
    when_later = (
        ~truth_first & is_right,
        ~truth_first & ~is_right & picks_first,
        ~truth_first & ~is_right & ~picks_first,
    )

    def outcome_counts(expected: Floats, kinds: tuple[NDArray[np.bool_], ...]) -> Floats:
        counts = expected.reshape(shape)
        rows = [counts[:, kind].sum(axis=1) + pseudo[:, min(i, 1)] for i, kind in enumerate(kinds) if kind.any()]
        return np.stack(rows, axis=1)  # (W, kinds)

    def table(expected: Floats) -> Floats:
        out = np.ones(shape)
        for kinds in (when_first, when_later):
            held = tuple(kind for kind in kinds if kind.any())
            if not held:
                continue
            counts = outcome_counts(expected, held)
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
            for i, kind in enumerate(held):
                n_sharing = kind.sum(axis=1).max()
                out[:, kind] = shares[:, i, None] / n_sharing
        return out.reshape(-1, k)

    fit = _fit(votes, cells, votes.n_workers * places * k, table, gold, tolerance, max_iterations, np.full(k, 1 / k))
    plain = majority(votes, gold)
    if _contradicts(fit.posterior, plain.posterior):
        return replace(
            plain, reason="one-coin collapsed: it contradicted the majority on most items, so the majority is returned"
        )
    first_counts = outcome_counts(fit.expected, when_first)
    right_first, var_first = _beta_moments(first_counts)
    mean, left_bias = right_first, None
    if ordered:
        right_later, var_later = _beta_moments(outcome_counts(fit.expected, when_later))
        mean = (right_first + right_later) / 2
        bias, half = right_first - right_later, 1.96 * np.sqrt(var_first + var_later)
        n = np.bincount(votes.worker, minlength=votes.n_workers)
        left_bias = WorkerRates(bias, np.maximum(bias - half, -1), np.minimum(bias + half, 1), n.astype(np.int64))
    confusion = (
        table(fit.expected).reshape(shape).mean(axis=1).transpose(0, 2, 1)
    )  # the order is random: average over it
    n_pseudo = pseudo.sum(axis=1) * (2 if ordered else 1)
    variance = _reliability_variance(votes, fit.posterior, confusion, gold, mean, n_pseudo)
    return Aggregate(
        fit.posterior,
        _beta_rates(votes, mean, variance),
        confusion,
        left_bias,
        _effective_votes(votes, confusion, np.full(k, 1 / k)),
        "one-coin",
        fit.iterations,
        fit.log_likelihood,
        "asked for",
    )


def auto(votes: Votes, gold: Mapping[int, int] | None = None, history: ArrayLike | None = None) -> Aggregate:
    """Dawid-Skene with its prior, unless at least 20 gold items show another method to be better by more than one standard error.

    Each method is scored on the gold items *without seeing them*; the winner then runs with the gold clamped. Where the workers' tables
    would not fit into memory it is the majority.
    """
    items, labels = _gold_arrays(votes, gold)
    if _n_cells(votes, 1) > MAX_CELLS:
        reason = f"{votes.n_workers} workers with {votes.n_labels} labels are too many for a model of each worker"
        return replace(majority(votes, gold), reason=reason)
    prior, rates = _with_history(votes, history), _rates_with_history(votes, history)
    chosen, reason = "dawid-skene", f"default: {len(items)} gold items are fewer than {MIN_GOLD}"
    if len(items) >= MIN_GOLD:
        # Scoring needs no last digits: with this tolerance all three runs and the final one fit the time of two.
        default = credit(dawid_skene(votes, prior=prior, tolerance=_SCORING_TOLERANCE).posterior[items], labels)
        reason, best = (
            f"right on {default.mean():.3f} of {len(items)} gold items; no other method beats it by a standard error",
            0.0,
        )
        rivals = {"majority": majority(votes)}
        if _n_cells(votes, 1 if votes.first is None else votes.n_labels) <= MAX_CELLS:
            rivals["one-coin"] = one_coin(votes, prior=rates, tolerance=_SCORING_TOLERANCE)
        for name, rival in rivals.items():
            gain = credit(rival.posterior[items], labels) - default
            margin = float(gain.mean() - gain.std(ddof=1) / math.sqrt(len(gain)))
            if rival.method == name and margin > best:
                chosen, best = name, margin
                reason = (
                    f"beats dawid-skene by {gain.mean():.3f} on {len(items)} gold items, more than one standard error"
                )
    match chosen:
        case "majority":
            result = majority(votes, gold)
        case "one-coin":
            result = one_coin(votes, gold, prior=rates)
        case _:
            result = dawid_skene(votes, gold, prior=prior)
    return replace(result, reason=reason)


def credit(posterior: Floats, truth: Ints) -> Floats:
    """(n,) 1 where the likeliest label is the truth, 1/t where it shares the top with t-1 others, else 0. posterior (n, K), truth (n,)."""
    top = posterior >= posterior.max(axis=1, keepdims=True) - 1e-9
    hit: Floats = top[np.arange(len(truth)), truth] / top.sum(axis=1)
    return hit


@dataclass(frozen=True)
class _Fit:
    posterior: Floats
    expected: Floats
    class_mix: Floats
    log_likelihood: float
    iterations: int


def _fit(
    votes: Votes,
    cells: Ints,
    n_cells: int,
    table: Callable[[Floats], Floats],
    gold: Mapping[int, int] | None,
    tolerance: float,
    max_iterations: int,
    class_prior: Floats | None,
) -> _Fit:
    """EM from the majority's shares. `table`: expected counts (n_cells, K) -> P(vote falls in cell | truth) (n_cells, K).

    Inside, labels are rows (K, n_items), and one sparse product per label but the last: what the last one holds is the rest (M-step), and only
    differences to it decide (E-step). At a million votes that takes a quarter of the time of products with (n, K) matrices.
    """
    k = votes.n_labels
    counts: Any = scipy.sparse.csr_matrix((np.ones(len(cells)), (votes.item, cells)), shape=(votes.n_items, n_cells))
    cell_sizes = np.bincount(cells, minlength=n_cells).astype(np.float64)
    gold_items, gold_labels = _gold_arrays(votes, gold)
    clamp = np.eye(k)[:, gold_labels]
    posterior = np.ascontiguousarray(majority(votes, gold).posterior.T)  # (K, n_items)
    scores = np.empty_like(posterior)
    iterations = 0

    def expected_of(posterior: Floats) -> Floats:
        columns = [counts.T @ row for row in posterior[:-1]]
        rest = np.maximum(cell_sizes - sum(columns), 0.0)
        return np.stack([*columns, rest], axis=1)

    while True:
        class_mix = posterior.mean(axis=1) if class_prior is None else class_prior
        # A class or a cell of probability 0 stays at 0; the floor only keeps 0 * log 0 out of the sum.
        log_table = np.log(np.maximum(table(expected_of(posterior)), 1e-100))
        log_mix = np.log(np.maximum(class_mix, 1e-100))
        for label in range(k - 1):
            scores[label] = counts @ (log_table[:, label] - log_table[:, -1]) + (log_mix[label] - log_mix[-1])
        scores[-1] = 0.0
        top = scores.max(axis=0)
        updated = np.exp(scores - top)
        mass = updated.sum(axis=0)
        updated /= mass
        updated[:, gold_items] = clamp
        change = float(np.abs(updated - posterior).sum()) / votes.n_items
        posterior = updated
        iterations += 1
        if change < tolerance or iterations >= max_iterations:
            evidence = top + np.log(mass)
            evidence[gold_items] = scores[gold_labels, gold_items]
            log_likelihood = float(evidence.sum() + cell_sizes @ log_table[:, -1]) + votes.n_items * float(log_mix[-1])
            return _Fit(
                np.ascontiguousarray(posterior.T), expected_of(posterior), class_mix, log_likelihood, iterations
            )


def _default_prior(k: int) -> Floats:
    """(K truth, K vote) Dirichlet(4, 1) pseudo-counts."""
    prior: Floats = np.full((k, k), PRIOR_WRONG) + np.eye(k) * (PRIOR_RIGHT - PRIOR_WRONG)
    return prior


def _with_history(votes: Votes, history: ArrayLike | None) -> Floats | None:
    """The default prior and the history as Dawid-Skene's pseudo-counts; None for the default alone."""
    return None if history is None else _checked_history(votes, history) + _default_prior(votes.n_labels)


def _rates_with_history(votes: Votes, history: ArrayLike | None) -> Floats:
    """(n_workers, 2) or (2,) right and wrong pseudo-counts of one-coin; where the order is stored its two rates share the history."""
    default = np.array([PRIOR_RIGHT, PRIOR_WRONG])
    if history is None:
        return default
    counts = _checked_history(votes, history)
    right = np.trace(counts, axis1=1, axis2=2)
    rates = np.stack([right, counts.sum(axis=(1, 2)) - right], axis=1)
    pseudo: Floats = default + (rates if votes.first is None else rates / 2)
    return pseudo


def _checked_history(votes: Votes, history: ArrayLike) -> Floats:
    counts = np.asarray(history, dtype=np.float64)
    expected = (votes.n_workers, votes.n_labels, votes.n_labels)
    if counts.shape != expected or not (counts >= 0).all():
        raise BadInput(f"history has shape {counts.shape}; give {expected} counts >= 0: worker, truth, vote.")
    return counts


def _n_cells(votes: Votes, places: int) -> int:
    return votes.n_workers * places * votes.n_labels**2


def _check_size(votes: Votes, places: int) -> None:
    cells = _n_cells(votes, places)
    if cells > MAX_CELLS:
        raise BadInput(
            f"{votes.n_workers} workers with {votes.n_labels} labels need {cells:,} figures, more than {MAX_CELLS:,}; use majority."
        )


def _codes(column: Sequence[Hashable], codes: dict[Hashable, int]) -> Ints:
    return np.fromiter((codes.setdefault(value, len(codes)) for value in column), np.int64, len(column))


def _gold_arrays(votes: Votes, gold: Mapping[int, int] | None) -> tuple[Ints, Ints]:
    items = np.array(list(gold or {}), dtype=np.int64)
    labels = np.array(list((gold or {}).values()), dtype=np.int64)
    if len(items) and (
        items.min() < 0 or items.max() >= votes.n_items or labels.min() < 0 or labels.max() >= votes.n_labels
    ):
        raise BadInput("gold names an item or a label that the votes do not have; give item code -> label code.")
    return items, labels


def _contradicts(posterior: Floats, shares: Floats) -> bool:
    """Whether two posteriors disagree on more than half of the items where the votes have a clear winner."""
    ranked = np.sort(shares, axis=1)
    clear = ranked[:, -1] > ranked[:, -2] + 1e-9
    return bool(clear.any() and np.mean(posterior[clear].argmax(axis=1) != shares[clear].argmax(axis=1)) > 0.5)


def _beta_moments(counts: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of the first share of a Dirichlet with these counts (W, kinds)."""
    total = np.maximum(counts.sum(axis=1), 1e-12)
    mean = counts[:, 0] / total
    return mean, mean * (1 - mean) / (total + 1)


def _beta_rates(votes: Votes, mean: Floats, variance: Floats) -> WorkerRates:
    """95 % bounds of the Beta distribution with this mean and variance, per worker."""
    inside = np.clip(mean, 1e-6, 1 - 1e-6)
    total = np.maximum(inside * (1 - inside) / np.maximum(variance, 1e-12) - 1, 1e-3)
    low = scipy.special.betaincinv(inside * total, (1 - inside) * total, 0.025)
    high = scipy.special.betaincinv(inside * total, (1 - inside) * total, 0.975)
    n = np.bincount(votes.worker, minlength=votes.n_workers)
    return WorkerRates(mean, low, high, n.astype(np.int64))


def _reliability_variance(
    votes: Votes,
    posterior: Floats,
    confusion: Floats,
    gold: Mapping[int, int] | None,
    mean: Floats,
    n_pseudo: Floats,
) -> Floats:
    """(n_workers,) variance of each worker's reliability: 1 / (information of the votes + of the prior).

    A vote whose item the others leave open says little about who cast it, so expected counts must not pass for observed ones. With p the
    probability from the *other* votes that this one is right, a vote has likelihood a p + (1 - a) (1 - p) / (K - 1), and carries the squared
    derivative of its logarithm by a. Where p is 0 or 1, as on gold, that is the binomial's. The other workers' tables are taken as known.
    """
    k = votes.n_labels
    others = posterior[votes.item] / np.maximum(confusion[votes.worker, :, votes.label], 1e-12)
    right = others[np.arange(len(votes.item)), votes.label] / np.maximum(others.sum(axis=1), 1e-300)
    truth = np.full(votes.n_items, -1)
    items, labels = _gold_arrays(votes, gold)
    truth[items] = labels
    known = truth[votes.item]
    right = np.where(known >= 0, known == votes.label, right)
    accuracy = np.clip(mean, 1e-3, 1 - 1e-3)
    elsewhere = (1 - right) / (k - 1)
    likelihood = accuracy[votes.worker] * right + (1 - accuracy[votes.worker]) * elsewhere
    slopes = (right - elsewhere) / np.maximum(likelihood, 1e-12)
    # Capped at what a vote of known correctness can carry: a nearly impossible vote would count without bound.
    most = 1 / np.minimum(accuracy, 1 - accuracy)
    information = np.bincount(votes.worker, np.minimum(slopes**2, most[votes.worker] ** 2), minlength=votes.n_workers)
    variance: Floats = 1 / (information + (n_pseudo + 1) / (accuracy * (1 - accuracy)))
    return variance


def _effective_votes(votes: Votes, confusion: Floats, class_mix: Floats) -> Floats:
    """(n_items,) sum over votes of I(vote; truth) / H(truth) for the worker who cast it, times the vote's weight."""
    joint = class_mix[None, :, None] * confusion  # (W, truth, vote)
    marginal = joint.sum(axis=1, keepdims=True)
    independent = class_mix[None, :, None] * marginal
    information = scipy.special.rel_entr(joint, independent).sum(axis=(1, 2))
    entropy = float(scipy.special.entr(class_mix).sum())
    share = information / entropy if entropy > 0 else np.zeros(votes.n_workers)
    return _per_item(votes, share[votes.worker])


def _per_item(votes: Votes, worth: Floats) -> Floats:
    """(n_items,) sum over votes of what each is worth (n_votes,), times its weight."""
    weighted = worth if votes.weight is None else worth * votes.weight
    return np.bincount(votes.item, weights=weighted, minlength=votes.n_items).astype(np.float64)
