"""One million annotations from a file: seconds and memory of reading, of each method, and of writing.

    python benchmarks/aggregate_scale.py [--votes 1000000] [--labels 2] [--seed 0]

Simulated: three votes an item, 2,000 workers right with probability .6 to .9, a random order that is stored in `position`, 1,000 gold items.
Each stage runs in a process of its own, so that its peak memory is its own; CPU seconds say what it costs, wall seconds what a busy
machine made of them. Prints a table and one JSON object on the last line; the bound is 5 s of CPU and 1 GB for reading and aggregating.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from plaudit.formats import labels
from plaudit.loop import label_files
from plaudit.stats import aggregate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, default=1_000_000)
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(simulate, folder, options.votes, options.labels, options.seed)
        stages: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "imports only": (nothing, ()),
            "read csv": (labels.read_labels, (folder / "labels.csv",)),
            "read parquet": (labels.read_labels, (folder / "labels.parquet",)),
        }
        for method in ("majority", "dawid-skene", "one-coin", "auto"):
            stages[f"csv, {method}"] = (whole, (folder, method, False, False))
        stages["csv, auto with gold"] = (whole, (folder, "auto", True, False))
        stages["csv, auto, files written"] = (whole, (folder, "auto", False, True))
        stages["csv, agreement"] = (label_files.agreement_file, (folder / "labels.csv",))
        figures = {}
        print(f"{'stage':<28}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}")
        for stage, (act, arguments) in stages.items():
            figures[stage] = alone(act, *arguments)
            cpu, wall, peak = figures[stage].values()
            print(f"{stage:<28}{cpu:>8.2f}{wall:>8.2f}{peak / 1e6:>9.0f}", flush=True)
    print(json.dumps({"votes": options.votes, "labels": options.labels, "stages": figures}))


def alone(act: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """CPU and wall seconds of one call in a fresh process, and the process's peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (act, arguments))


def measured(act: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    act(*arguments)
    return {
        "cpu_s": round(time.process_time() - cpu, 3),
        "wall_s": round(time.perf_counter() - wall, 3),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def nothing() -> None:
    """What the interpreter and its libraries hold."""


def whole(folder: Path, method: aggregate.Method, gold: bool, write: bool) -> None:
    """What `plaudit aggregate` does, without starting Python."""
    label_files.aggregate_file(
        folder / "labels.csv",
        method=method,
        gold=folder / "gold.csv" if gold else None,
        out=folder / "out" if write else None,
    )


def simulate(folder: Path, n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_items, n_workers = -(-n // 3), 2000
    truth = rng.integers(0, k, n_items)
    item = np.repeat(np.arange(n_items), 3)[:n]
    worker = rng.integers(0, n_workers, n)
    right = rng.random(n) < rng.uniform(0.6, 0.9, n_workers)[worker]
    label = np.where(right, truth[item], (truth[item] + rng.integers(1, k, n)) % k)
    names = np.array([f"answer-{code}" for code in range(k)])
    table = pa.table(
        {
            "item": [f"item-{i}" for i in item.tolist()],
            "worker": [f"worker-{i}" for i in worker.tolist()],
            "label": names[label],
            "position": rng.integers(1, k + 1, n),
        }
    )
    pacsv.write_csv(table, folder / "labels.csv")
    pq.write_table(table, folder / "labels.parquet")
    gold = pa.table({"item": [f"item-{i}" for i in range(1000)], "truth": names[truth[:1000]]})
    pacsv.write_csv(gold, folder / "gold.csv")


if __name__ == "__main__":
    main()
