"""Anybody's label files, without a store: who is right and who is reliable (`aggregate_file`), and how much people agree (`agreement_file`).

The same functions of stats as `loop.annotate`; here the labels may be any classes. Truth only measures: no method ever sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.errors import BadInput
from plaudit.formats import labels as files
from plaudit.formats.files import Rejected
from plaudit.formats.labels import Answers, LabelFile
from plaudit.stats.aggregate import Aggregate, Method, aggregate, credit, expected_counts, majority
from plaudit.stats.agreement import (
    Agreement,
    GroupAgreement,
    PairwiseKappa,
    agreement,
    group_agreement,
    group_counts,
    pairwise_kappa,
    symmetrised,
)
from plaudit.stats.intervals import Interval, paired_difference, wilson, wilson_bounds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_DISPUTED = 20  # items on which groups differ that are listed
MAX_CONFUSION_ROWS = 2_000_000


@dataclass(frozen=True)
class Read:
    """What was read: good rows, repeats, rejected rows (the first 20 one by one, all counted by reason), and notes."""

    n_rows: int
    n_repeats: int
    n_rejected: int
    rejected_by_reason: Mapping[str, int]
    rejected: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Accuracy:
    """Share of items with a known truth whose likeliest label it is (a tie shares its point), without the gold items. Wilson intervals;
    `gain` is method - majority, paired by item, None with fewer than two items."""

    method: Interval
    majority: Interval
    gain: Interval | None
    n_without_votes: int  # items of the truth file that nobody labelled
    n_gold: int  # left out because the methods were told


@dataclass(frozen=True)
class WorkerRow:
    """One worker. reliability: the estimated probability that a vote is right; under majority, agreement with the item's other votes."""

    worker: str
    n_votes: int
    reliability: Interval
    gold_accuracy: Interval | None
    left_fraction: Interval | None  # how often the chosen label was the one shown first
    left_bias: Interval | None  # what one-coin makes of it: P(chooses the first whatever it is)
    median_seconds: float | None


@dataclass(frozen=True)
class Disputed:
    """An item on which two groups differ: each group's share of votes per label, and half the sum of absolute differences of the widest pair."""

    item: str
    distance: float
    votes: Mapping[str, Mapping[str, int]]  # group -> label -> votes


@dataclass(frozen=True)
class GroupReport:
    """Groups of workers, as the file declares them."""

    groups: tuple[str, ...]
    agreement: GroupAgreement | None
    disputed: tuple[Disputed, ...]


@dataclass(frozen=True)
class AggregateFile:
    """What `plaudit aggregate` says."""

    file: str
    method: str
    reason: str
    labels: tuple[str, ...]
    n_items: int
    n_workers: int
    n_votes: int
    n_gold: int
    n_differ: int  # items whose likeliest label is not the majority's
    effective_votes: float  # mean per item
    accuracy: Accuracy | None
    workers: tuple[WorkerRow, ...]  # the least reliable first
    groups: GroupReport | None
    read: Read
    written: tuple[str, ...]


@dataclass(frozen=True)
class NamedPair:
    """Two workers, the items that both labelled, and their kappa; None where it is undefined."""

    first: str
    second: str
    n_items: int
    kappa: Interval | None


@dataclass(frozen=True)
class KappaReport:
    """Cohen's kappa over pairs of workers: stats.agreement.PairwiseKappa with names."""

    mean: Interval
    pairs: tuple[NamedPair, ...]  # those with the most common items
    n_pairs: int
    n_undefined: int
    min_shared: int


@dataclass(frozen=True)
class AgreementFile:
    """What `plaudit agreement` says. alpha: by level, ordinal and interval only where all labels are numbers. symmetrised: two labels only."""

    file: str
    labels: tuple[str, ...]
    n_items: int
    n_workers: int
    n_votes: int
    raw: Interval
    ac1: Interval
    fleiss: Interval | None
    alpha: Mapping[str, Interval | None]
    cohen_kappa: KappaReport | None
    symmetrised: Mapping[str, Interval | None] | None
    groups: GroupReport | None
    read: Read


def aggregate_file(
    labels: Path,
    *,
    gold: Path | None = None,
    truth: Path | None = None,
    history: Path | None = None,
    method: Method = "auto",
    keep_repeats: bool = False,
    out: Path | None = None,
) -> AggregateFile:
    """Aggregate the votes of a file; write posteriors, workers and confusion into `out`. Raises BadInput, NotFound."""
    told = files.read_answers(gold) if gold else None
    held = files.read_labels(labels, sorted(set(told.by_item.values())) if told else (), keep_repeats=keep_repeats)
    known = files.read_answers(truth) if truth else None
    coded, votes = held.coded, held.coded.votes
    notes: list[str] = list(held.notes)
    gold_codes = _gold_codes(held, told, notes)
    past = files.read_history(history, _names(coded.workers), coded.labels) if history else None
    result = aggregate(votes, method, gold_codes, past)
    plain = majority(votes, gold_codes)
    if (np.bincount(votes.item) < 2).all():
        notes.append("No item has two votes, so the votes say nothing about who is reliable.")
    differ = result.posterior.argmax(axis=1) != plain.posterior.argmax(axis=1)
    clear = (plain.posterior >= plain.posterior.max(axis=1, keepdims=True) - 1e-9).sum(axis=1) == 1
    written = _write(out, held, result, gold_codes, notes) if out else []
    answers = [one for one in (told, known) if one is not None]
    return AggregateFile(
        file=str(labels),
        method=result.method,
        reason=result.reason,
        labels=coded.labels,
        n_items=votes.n_items,
        n_workers=votes.n_workers,
        n_votes=len(votes.item),
        n_gold=len(gold_codes),
        n_differ=int((differ & clear).sum()),
        effective_votes=float(result.effective_votes.mean()),
        accuracy=_accuracy(held, known, gold_codes, result, plain) if known else None,
        workers=_worker_rows(held, result, gold_codes),
        groups=_groups(held),
        read=_read(held, answers, notes),
        written=tuple(str(path) for path in written),
    )


def agreement_file(labels: Path, *, keep_repeats: bool = False, seed: int = 0) -> AgreementFile:
    """Every measure of agreement of a file's votes. Raises BadInput (fewer than two items have two votes), NotFound."""
    held = files.read_labels(labels, keep_repeats=keep_repeats)
    coded, votes = held.coded, held.coded.votes
    rng = np.random.default_rng(seed)
    nominal = agreement(votes, rng)
    alpha = {"nominal": nominal.alpha}
    if held.values is not None:
        alpha["ordinal"] = agreement(votes, rng, level="ordinal").alpha
        alpha["interval"] = agreement(votes, rng, level="interval", values=held.values).alpha
    return AgreementFile(
        file=str(labels),
        labels=coded.labels,
        n_items=nominal.n_items,
        n_workers=votes.n_workers,
        n_votes=nominal.n_votes,
        raw=nominal.raw,
        ac1=nominal.ac1,
        fleiss=nominal.fleiss,
        alpha=alpha,
        cohen_kappa=_kappa(pairwise_kappa(votes, rng), _names(coded.workers)),
        symmetrised=_frame(agreement(symmetrised(votes, coded.items), rng)) if votes.n_labels == 2 else None,
        groups=_groups(held),
        read=_read(held, (), held.notes),
    )


# --- parts -------------------------------------------------------------------------------------------------------------


def _gold_codes(held: LabelFile, told: Answers | None, notes: list[str]) -> dict[int, int]:
    """Item code -> label code of the gold items that somebody labelled."""
    if told is None:
        return {}
    items = {name: code for code, name in enumerate(_names(held.coded.items))}
    labels = {name: code for code, name in enumerate(held.coded.labels)}
    codes = {items[item]: labels[label] for item, label in told.by_item.items() if item in items}
    if not codes:
        raise BadInput(f"None of the {len(told.by_item)} gold items was labelled; do both files use the same item ids?")
    if len(codes) < len(told.by_item):
        notes.append(f"{len(told.by_item) - len(codes)} gold items have no vote and teach nothing.")
    return codes


def _accuracy(
    held: LabelFile, known: Answers, gold: Mapping[int, int], result: Aggregate, plain: Aggregate
) -> Accuracy:
    items = {name: code for code, name in enumerate(_names(held.coded.items))}
    labels = {name: code for code, name in enumerate(held.coded.labels)}
    voted = [(items[item], labels.get(label, -1)) for item, label in known.by_item.items() if item in items]
    judged = [pair for pair in voted if pair[0] not in gold]
    if not judged:
        raise BadInput(
            f"Of the {len(known.by_item)} items in the truth file, {len(voted)} were labelled and all of those are gold; "
            "give the truth of items that the methods were not told."
            if voted
            else f"None of the {len(known.by_item)} items in the truth file was labelled; do both files use the same item ids?"
        )
    at, truth = np.array(judged).T
    # A label that nobody gave cannot be found, whatever the method.
    reachable = truth >= 0
    hits = [np.where(reachable, credit(one.posterior[at], np.maximum(truth, 0)), 0.0) for one in (result, plain)]
    return Accuracy(
        method=wilson(float(hits[0].sum()), len(at)),
        majority=wilson(float(hits[1].sum()), len(at)),
        gain=paired_difference(hits[0], hits[1]) if len(at) > 1 else None,
        n_without_votes=len(known.by_item) - len(voted),
        n_gold=len(voted) - len(judged),
    )


def _worker_rows(held: LabelFile, result: Aggregate, gold: Mapping[int, int]) -> tuple[WorkerRow, ...]:
    votes, n_workers = held.coded.votes, held.coded.votes.n_workers
    n_votes = np.bincount(votes.worker, minlength=n_workers)
    left = _rates(votes.worker, held.place == 0, held.place >= 0, n_workers) if held.place is not None else None
    truth = np.full(votes.n_items, -1)
    truth[list(gold)] = list(gold.values())
    of_item = truth[votes.item]
    on_gold = _rates(votes.worker, votes.label == of_item, of_item >= 0, n_workers)
    seconds = _medians(votes.worker, held.seconds, n_workers) if held.seconds is not None else [None] * n_workers
    rows = [
        WorkerRow(
            worker=name,
            n_votes=int(n_votes[code]),
            reliability=result.reliability.interval(code),
            gold_accuracy=on_gold[code],
            left_fraction=left[code] if left else None,
            left_bias=result.left_bias.interval(code) if result.left_bias else None,
            median_seconds=seconds[code],
        )
        for code, name in enumerate(_names(held.coded.workers))
    ]
    return tuple(sorted(rows, key=lambda row: (row.reliability.high, row.worker)))


def _rates(worker: Ints, hit: NDArray[np.bool_], counts: NDArray[np.bool_], n_workers: int) -> list[Interval | None]:
    """Per worker, the share of hits among the votes that count; None where none does."""
    n = np.bincount(worker[counts], minlength=n_workers)
    hits = np.bincount(worker[counts & hit], minlength=n_workers)
    low, high = wilson_bounds(hits, n)
    return [
        Interval(hits[i] / n[i], float(low[i]), float(high[i]), int(n[i])) if n[i] else None for i in range(n_workers)
    ]


def _medians(worker: Ints, seconds: Floats, n_workers: int) -> list[float | None]:
    known = np.isfinite(seconds)
    order = np.lexsort((seconds[known], worker[known]))
    values = seconds[known][order]
    ends = np.cumsum(np.bincount(worker[known], minlength=n_workers))
    starts = np.concatenate([[0], ends[:-1]])
    return [
        float(values[(a + b - 1) // 2] + values[(a + b) // 2]) / 2 if b > a else None
        for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _groups(held: LabelFile) -> GroupReport | None:
    """Where declared groups differ; items count from two votes of each of two groups."""
    if held.group is None or len(held.groups) < 2:
        return None
    counts = group_counts(held.coded.votes, held.group)  # (n_items, G, K)
    size = counts.sum(axis=2, keepdims=True)
    shares = counts / np.maximum(size, 1)
    enough = size[:, :, 0] >= 2
    distance = np.zeros(len(counts))
    for one in range(len(held.groups)):
        for other in range(one):
            apart = np.abs(shares[:, one] - shares[:, other]).sum(axis=1) / 2
            distance = np.maximum(distance, np.where(enough[:, one] & enough[:, other], apart, 0.0))
    widest = np.lexsort((-size.sum(axis=(1, 2)), -distance))[:MAX_DISPUTED]
    items, labels = _names(held.coded.items), held.coded.labels
    disputed = tuple(
        Disputed(
            item=items[i],
            distance=float(distance[i]),
            votes={
                name: {labels[k]: int(n) for k, n in enumerate(counts[i, g]) if n}
                for g, name in enumerate(held.groups)
                if size[i, g, 0]
            },
        )
        for i in widest.tolist()
        if distance[i] > 0
    )
    return GroupReport(held.groups, group_agreement(held.coded.votes, held.group), disputed)


def _kappa(found: PairwiseKappa | None, workers: Sequence[str]) -> KappaReport | None:
    if found is None:
        return None
    pairs = tuple(NamedPair(workers[p.first], workers[p.second], p.n_items, p.kappa) for p in found.pairs)
    return KappaReport(found.mean, pairs, found.n_pairs, found.n_undefined, found.min_shared)


def _frame(found: Agreement) -> dict[str, Interval | None]:
    return {"ac1": found.ac1, "fleiss": found.fleiss, "alpha": found.alpha}


def _read(held: LabelFile, answers: Sequence[Answers], notes: Sequence[str]) -> Read:
    rejected: list[Rejected] = [*held.rejected, *(row for one in answers for row in one.rejected)]
    return Read(
        n_rows=held.n_rows,
        n_repeats=held.n_repeats,
        n_rejected=len(rejected),
        rejected_by_reason=files.by_reason(rejected),
        rejected=tuple(str(row) for row in rejected[: files.MAX_SHOWN]),
        notes=(*notes, *(note for one in answers for note in one.notes)),
    )


def _write(out: Path, held: LabelFile, result: Aggregate, gold: Mapping[int, int], notes: list[str]) -> list[Path]:
    """posteriors, annotators and confusion, each as Parquet and CSV."""
    coded, votes = held.coded, held.coded.votes
    is_gold = np.zeros(votes.n_items, dtype=bool)
    is_gold[list(gold)] = True
    best = result.posterior.argmax(axis=1)
    posteriors: dict[str, Any] = {
        "item": list(coded.items),
        "label": np.array(coded.labels)[best],
        "probability": result.posterior.max(axis=1),
        **{f"p_{name}": result.posterior[:, code] for code, name in enumerate(coded.labels)},
        "effective_votes": result.effective_votes,
        "n_votes": np.bincount(votes.item, minlength=votes.n_items),
        "is_gold": is_gold,
    }
    paths = files.write_table(out, "posteriors", posteriors)
    paths += files.write_table(out, "annotators", _worker_columns(_worker_rows(held, result, gold)))
    n_cells = votes.n_workers * votes.n_labels**2
    if n_cells > MAX_CONFUSION_ROWS:
        notes.append(f"confusion would have {n_cells:,} rows and is not written.")
        return paths
    counts = expected_counts(votes, result.posterior)
    worker, truth, label = (axis.ravel() for axis in np.indices(counts.shape))
    names = np.array(coded.labels)
    confusion: dict[str, Any] = {
        "worker": np.array(coded.workers)[worker],
        "truth": names[truth],
        "label": names[label],
        "n": counts.ravel(),
    }
    if result.confusion is not None:
        confusion["probability"] = result.confusion.ravel()
    return paths + files.write_table(out, "confusion", confusion)


def _worker_columns(rows: Sequence[WorkerRow]) -> dict[str, list[Any]]:
    """Intervals become three columns: the figure, _low and _high; `n` of the gold answers is its own."""
    columns: dict[str, list[Any]] = {
        "worker": [row.worker for row in rows],
        "n_votes": [row.n_votes for row in rows],
    }
    for name in ("reliability", "gold_accuracy", "left_fraction", "left_bias"):
        found: list[Interval | None] = [getattr(row, name) for row in rows]
        columns[name] = [one.mean if one else None for one in found]
        columns[f"{name}_low"] = [one.low if one else None for one in found]
        columns[f"{name}_high"] = [one.high if one else None for one in found]
    columns["n_gold"] = [row.gold_accuracy.n if row.gold_accuracy else 0 for row in rows]
    columns["median_seconds"] = [row.median_seconds for row in rows]
    return columns


def _names(codes: Sequence[Any]) -> list[str]:
    return [str(name) for name in codes]
