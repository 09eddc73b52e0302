"""The demo over several seeds: does the promoted policy please held-out (simulated) users more than the base, and do the twins claim nothing?

    python benchmarks/demo_seeds.py --seeds 10                    the real model, about 10 minutes a seed on two cores
    python benchmarks/demo_seeds.py --tiny --twin equal-candidate --seeds 10
    python benchmarks/demo_seeds.py --seeds 10 --out seeds.jsonl   two hours can be cut: seeds that the file holds are not run again

Prints one line a seed and one JSON object last. Every figure about people is of simulated people.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(seed: int, home: Path, options: list[str]) -> dict[str, Any]:
    """One demo's summary. A demo that ends with an error ends the benchmark: nothing is left out of the table."""
    command = [
        sys.executable,
        "-m",
        "plaudit.cli",
        "demo",
        "--home",
        str(home),
        "--seed",
        str(seed),
        "--json",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"seed {seed} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return summary


def read_kept(path: Path | None, options: list[str]) -> dict[int, dict[str, Any]]:
    """Rows of an earlier call by seed. A file that was made with other options is refused: one table, one setting."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []
    if any(row["options"] != options for row in rows):
        sys.exit(f"{path} holds seeds of other options than {options}: name another --out")
    return {row["seed"]: row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=200, help="the first seed; below 200 all have been looked at")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--twin")
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--data", help="accepted for uniformity; this benchmark reads no data")
    parser.add_argument(
        "--out", type=Path, help="a JSONL file that gets a row a seed, and is continued by the same command"
    )
    arguments = parser.parse_args()
    options = ["--tiny"] * arguments.tiny + ["--baselines"] * arguments.baselines
    options += ["--twin", arguments.twin] if arguments.twin else []
    rows = []
    kept = read_kept(arguments.out, options)
    print("seed  seconds  reward model  gate  promoted  win rate             users' hidden difference (simulated)")
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        if seed in kept:
            one = kept[seed]
        else:
            with tempfile.TemporaryDirectory(prefix="plaudit-seeds-") as folder:
                one = run(seed, Path(folder) / "home", options) | {"seed": seed, "options": options}
            if arguments.out:
                with arguments.out.open("a") as out:
                    out.write(json.dumps(one) + "\n")
        hidden, rate = one["hidden_preference"]["difference"], one["win_rate"]
        print(
            f"{seed:4}  {one['seconds']:7.0f}  {one['reward_model']['accuracy']:12.2f}  {one['gate']:4}  {one['promoted']!s:8}  "
            f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]    "
            f"{hidden['mean']:+.3f} [{hidden['low']:+.3f}, {hidden['high']:+.3f}]",
            flush=True,
        )
        rows.append({name: value for name, value in one.items() if name not in ("extra", "options")})
    above = sum(row["promoted"] and row["hidden_preference"]["difference"]["low"] > 0 for row in rows)
    claimed = {
        "options": options,
        "n_seeds": len(rows),
        "n_promoted": sum(row["promoted"] for row in rows),
        "n_promoted_and_above_zero": above,
        "hardware": f"{platform.machine()}, {platform.processor() or 'unnamed processor'}",
        "python": platform.python_version(),
        "rows": rows,
    }
    print(json.dumps(claimed))


if __name__ == "__main__":
    main()
