"""What it costs to freeze many Preferences: CPU time and memory for 10 k, 100 k and 1 M of them, without filters and with near duplicates and
personal data looked for.

    python benchmarks/snapshot_scale.py [--sizes 10000,100000,1000000] [--folder DIR]

Each Preference has a prompt of about 100 bytes and two answers of 400 bytes; one in a hundred repeats an earlier one but for a word, one in two
hundred holds an e-mail address. Measured is everything after the store's rows are read: screening, signatures, duplicates, splits, hashing,
sorting, Parquet, card, and the verification of the finished folder. Times are of the process (`time.process_time`, all threads), less
what making the rows takes by itself, so a busy machine does not lengthen them; each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plaudit.artifacts import write_snapshot
from plaudit.loop.prompts import question_sha256
from plaudit.loop.snapshots import card
from plaudit.loop.snapshots.pool import Candidate, Curation, HeldOut, Pool

FILTERS = {
    "without filters": Curation(),
    "near duplicates and personal data": Curation(
        near_duplicates=0.8,
        personal_data=dict.fromkeys(("email", "iban", "card", "phone", "ip", "secret"), "redact"),
    ),
}


def rows(n: int, seed: int = 0) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """Random phrases, so that nothing is alike but what is made so; they are cheap to make, because their cost is taken off."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    phrases = [(" ".join(draw.choices(words, k=9)) + " padding")[:50] for _ in range(65_536)]
    earlier = ("", "", "")
    for number in range(n):
        if number % 100 == 99:
            prompt, chosen, rejected = earlier
            chosen = f"{chosen[:-5]} word"
        else:
            at = draw.getrandbits(16 * 18)
            drawn = [phrases[(at >> 16 * place) & 65_535] for place in range(18)]
            prompt, chosen, rejected = " ".join(drawn[:2]), " ".join(drawn[2:10]), " ".join(drawn[10:])
            if number % 200 == 7:
                rejected = f"{rejected[:-30]} somebody{number}@example.org"
            earlier = prompt, chosen, rejected
        messages = ({"role": "user", "content": prompt},)
        id = f"prf_{number:012d}"
        yield (
            Candidate(
                id=id,
                family=f"family {number // 4}",
                question=question_sha256(messages),
                source="annotation",
                method="annotation/x",
                weight=3.0,
                probability=0.9,
            ),
            {
                "preference_id": id,
                "comparison_id": f"cmp_{number:012d}",
                "criterion": "overall",
                "family": f"family {number // 4}",
                "messages": messages,
                "chosen": chosen,
                "rejected": rejected,
                "probability": 0.9,
                "weight": 3.0,
                "source": "annotation",
                "chosen_finished": True,
                "rejected_finished": True,
            },
        )


def measure(n: int, name: str, folder: Path) -> dict[str, Any]:
    start = time.process_time()
    for _ in rows(n):
        pass
    making = time.process_time() - start
    curation = FILTERS[name]
    start = time.process_time()
    with Pool(folder, curation) as pool:
        pool.take("preferences", rows(n))
        taken = time.process_time() - start
        pool.decide(HeldOut(), 0, (0.7, 0.1, 0.2))
        decided = time.process_time() - start
        body: dict[str, Any] = {
            "by_split": {"preferences": {"train": 1, "valid": 0, "test": 0}},
            "filters": dict(pool.tally.removed),
            "found": dict(pool.tally.found),
            "lineage": {"interactions": {}, "guideline_versions": [], "n_held_out_families": 0, "code_version": ""},
        }
        config = {"curation": curation.to_json()}
        pages = card.pages(body, config, card.figures(pool.kept()))
        made = write_snapshot(folder, pool.rows("preferences"), [], [], config, body, pages=pages)
    total = time.process_time() - start - making
    return {
        "rows": n,
        "filters": name,
        "cpu_s": round(total, 2),
        "taking_s": round(taken - making, 2),
        "deciding_s": round(decided - taken, 2),
        "writing_s": round(total + making - decided, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "removed": body["filters"],
        "found": body["found"],
        "kept": made.manifest.body["counts"]["preferences"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", help="internal: measure one size with one set of filters, in this process")
    given = parser.parse_args()
    if given.one:
        n, name = given.one.split(":")
        print(json.dumps(measure(int(n), name, given.folder)))
        return
    for size in given.sizes.split(","):
        for name in FILTERS:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                command = [sys.executable, __file__, "--one", f"{size}:{name}", "--folder", folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
