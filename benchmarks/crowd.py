"""Accuracy of vote aggregation on real crowds with known answers, beside majority and published figures.

    python benchmarks/crowd.py --data DIR [--seeds 20]

DIR holds one folder per set with label.csv (item,worker,label) and truth.csv (item,truth), as in yuan-li/truth-inference-at-scale.
`auto` sees no gold; `auto+gold` is told a random fifth of the truths and judged on the others, averaged over the seeds, beside majority
on the same items. Published figures (the notebooks of that repository and crowd-kit 1.4.2) come from tests/golden/stats.json.
Prints a table and one JSON object on the last line. Exits with 1 where the majority is not the published one to four digits, or where
`auto`, with or without gold, is worse than majority by more than one standard error. Time and memory: aggregate_scale.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.stats import aggregate

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "stats.json"
METHODS: tuple[aggregate.Method, ...] = ("majority", "dawid-skene", "one-coin", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    published = json.loads(GOLDEN.read_text(encoding="utf-8"))["crowd_accuracy"]

    folders = sorted(path.parent for path in options.data.glob("*/truth.csv"))
    rows = [evaluate(folder, published.get(folder.name), options.seeds) for folder in folders]
    columns = [
        *METHODS,
        "auto_gold",
        "majority_rest",
        "published_mv",
        "published_ds",
        "published_ibcc",
        "published_bwa",
    ]
    print(f"{'set':<10}{'items':>7}{'votes':>8}{'se':>7}" + "".join(f"{name:>16}" for name in columns))
    for row in rows:
        figures = "".join(f"{row[name]:>16.4f}" if row[name] is not None else f"{'-':>16}" for name in columns)
        print(f"{row['set']:<10}{row['items']:>7}{row['votes']:>8}{row['se']:>7.4f}{figures}")
    broken = [f"{row['set']}: {fault}" for row in rows for fault in faults(row)]
    print("\n".join(broken) or "majority is as published; auto is never worse than it by more than one standard error")
    print(json.dumps({"sets": rows, "faults": broken}))
    sys.exit(1 if broken else 0)


def faults(row: dict[str, Any]) -> list[str]:
    """What this row breaks of the promises above."""
    found = []
    if row["published_mv"] is not None and abs(row["majority"] - row["published_mv"]) > 5.1e-5:
        found.append(f"majority {row['majority']:.4f} is not the published {row['published_mv']:.4f}")
    if row["auto"] < row["majority"] - row["se"]:
        found.append(f"auto {row['auto']:.4f} is worse than majority {row['majority']:.4f}")
    if row["auto_gold"] < row["majority_rest"] - row["se"]:
        found.append(f"auto with gold {row['auto_gold']:.4f} is worse than majority {row['majority_rest']:.4f}")
    return found


def evaluate(folder: Path, published: list[float] | None, n_seeds: int) -> dict[str, Any]:
    """One row of the table; `se` is the standard error of majority's accuracy."""
    votes, truth = load(folder)
    known = np.flatnonzero(truth >= 0)
    row: dict[str, Any] = {"set": folder.name, "items": votes.n_items, "votes": len(votes.item)}
    for method in METHODS:
        row[method] = accuracy(aggregate.aggregate(votes, method), truth, known)
    row["se"] = float(np.sqrt(row["majority"] * (1 - row["majority"]) / len(known)))

    by_majority, by_auto, chosen = [], [], []
    plain = aggregate.majority(votes)
    for seed in range(n_seeds):
        shuffled = np.random.default_rng(seed).permutation(known)
        told, rest = shuffled[: len(known) // 5], shuffled[len(known) // 5 :]
        result = aggregate.auto(votes, {int(i): int(truth[i]) for i in told})
        by_auto.append(accuracy(result, truth, rest))
        by_majority.append(accuracy(plain, truth, rest))
        chosen.append(result.method)
    row["auto_gold"], row["majority_rest"] = float(np.mean(by_auto)), float(np.mean(by_majority))
    row["auto_gold_chose"] = {method: chosen.count(method) for method in sorted(set(chosen))}
    for name, figure in zip(("mv", "ds", "ibcc", "bwa"), published[5:] if published else (None,) * 4, strict=True):
        row[f"published_{name}"] = figure
    return row


def load(folder: Path) -> tuple[aggregate.Votes, NDArray[np.int64]]:
    """Votes, and the truth per item code (-1 where unknown)."""
    rows = np.loadtxt(folder / "label.csv", delimiter=",", skiprows=1, dtype=np.int64)
    answers = dict(np.loadtxt(folder / "truth.csv", delimiter=",", skiprows=1, dtype=np.int64).tolist())
    items, item = np.unique(rows[:, 0], return_inverse=True)
    _, worker = np.unique(rows[:, 1], return_inverse=True)
    n_labels = max(int(rows[:, 2].max()), *answers.values()) + 1
    truth = np.array([answers.get(int(name), -1) for name in items])
    return aggregate.Votes(item, worker, rows[:, 2], n_labels), truth


def accuracy(result: aggregate.Aggregate, truth: NDArray[np.int64], items: NDArray[np.int64]) -> float:
    return float(aggregate.credit(result.posterior[items], truth[items]).mean())


if __name__ == "__main__":
    main()
