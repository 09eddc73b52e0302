"""Whether files larger than memory go through `formats/` row by row: a made-up file of the given size is read and written again.

    python benchmarks/formats_stream.py [--gb 2] [--formats hh,trl] [--packed .zst] [--folder DIR]

Each format runs in a process of its own; printed are rows, seconds of CPU (all threads) and the most memory that the process ever had, in MB.
The file repeats a thousand drawn conversations with their number in front, so that no row is another; making it is not counted.
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

from plaudit.formats import catalogue
from plaudit.formats.files import Rejected
from plaudit.formats.records import Record

WORDS = "the answer to a question about support is that you open settings and choose what fits you best today".split()


def make(file: Path, name: str, n_bytes: int) -> None:
    """Lines of the format until the file is that large, one in a thousand of them broken."""
    draw = random.Random(0)
    drawn = [[" ".join(draw.choices(WORDS, k=n)) for n in (30, 70, 70)] for _ in range(1000)]
    written = number = 0
    with file.open("w", encoding="utf-8") as out:
        while written < n_bytes:
            asked, chosen, rejected = drawn[number % 1000]
            if name == "hh":
                start = f"\n\nHuman: {number} {asked}\n\nAssistant: "
                row = {"chosen": start + chosen, "rejected": start + rejected}
            else:
                row = {"prompt": f"{number} {asked}", "chosen": chosen, "rejected": rejected}
            if number % 1000 == 999:
                row["chosen"] = ""
            written += out.write(json.dumps(row) + "\n")
            number += 1


def measure(file: Path, name: str, packed: str) -> dict[str, Any]:
    rejected = 0

    def good() -> Iterator[Record]:
        nonlocal rejected
        for one in catalogue.reader(name)(file, "salt"):
            if isinstance(one, Rejected):
                rejected += 1
            else:
                yield one

    start = time.process_time()
    report = catalogue.writer(name)(good(), file.with_name(f"{name}-again.jsonl{packed}"))
    return {
        "format": name,
        "gb": round(file.stat().st_size / 1e9, 2),
        "written": report.n_written,
        "rejected": rejected,
        "cpu_s": round(time.process_time() - start, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--formats", default="hh,trl", help="of those with a line for each row: hh, trl")
    parser.add_argument("--packed", choices=("", ".gz", ".zst"), default="", help="how what is written is packed")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", help="internal: measure one format in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.folder / f"{given.one}.jsonl", given.one, given.packed)))
        return
    for name in given.formats.split(","):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            make(Path(folder) / f"{name}.jsonl", name, int(given.gb * 1e9))
            options = ["--one", name, "--folder", folder, "--packed", given.packed]
            done = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
        print(done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
