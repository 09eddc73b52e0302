"""PPO with a critic that starts from nothing against one that starts from the reward model: how much score for how much KL?

    plaudit demo --home demo-home            # or any finished run folder of `ppo`
    python benchmarks/ppo_critic.py --run demo-home/runs/<the ppo run> --seeds 3

The same config, Snapshot, reward model and seeds; only `critic` differs, runs interleaved. Prints a line a run and one JSON object last:
for each critic, over seeds, the explained variance of the first rollout's returns, and the score where the run first passes each of some
KLs (linear between rollouts). Scores are the reward model's own, in units of the reference's spread: what people think of
the answers is what the demo measures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CRITICS = ("head", "reward")
KLS = (1.0, 2.0, 4.0, 6.0)  # nats per response


def run(config: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The rollouts of one run. Its KL budget is taken away, so that every run goes to its end."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "plaudit.learn", "ppo", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{folder} failed:\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "ppo"]


def score_at(rows: list[dict[str, Any]], kl: float) -> float | None:
    """The score where the run first passes `kl`, linear between the two rollouts around it; None where it never does."""
    for before, after in itertools.pairwise(rows):
        if before["kl"] <= kl <= after["kl"]:
            share = (kl - before["kl"]) / max(after["kl"] - before["kl"], 1e-9)
            return float(before["score"] + share * (after["score"] - before["score"]))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="finished run folder of ppo; without one the benchmark is skipped")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=100, help="the first seed")
    parser.add_argument("--steps", type=int, default=0, help="rollouts; 0: as in the config")
    parser.add_argument("--data", help="accepted for uniformity; this benchmark reads no data")
    arguments = parser.parse_args()
    if arguments.run is None:
        print("Skipped: give --run, a finished ppo run folder (a demo's home has one).")
        return
    config = json.loads((arguments.run / "config.resolved.json").read_text())
    config["kl"]["budget"] = None
    config["steps"] = arguments.steps or config["steps"]
    found: dict[str, list[list[dict[str, Any]]]] = {critic: [] for critic in CRITICS}
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for critic in CRITICS:
            with tempfile.TemporaryDirectory(prefix="plaudit-critic-") as folder:
                rows = run(config | {"seed": seed, "critic": critic}, Path(folder) / "run")
            found[critic].append(rows)
            curve = "  ".join(f"{row['score']:+.2f}@{row['kl']:.1f}" for row in rows)
            print(
                f"seed {seed}  {critic:6}  explained {rows[0]['explained_variance']:.2f}  score@KL {curve}", flush=True
            )
    out: dict[str, Any] = {
        "n_seeds": arguments.seeds,
        "hardware": platform.machine(),
        "python": platform.python_version(),
    }
    for critic, runs in found.items():
        at = {kl: [score for rows in runs if (score := score_at(rows, kl)) is not None] for kl in KLS}
        out[critic] = {
            "explained_variance_first": statistics.median(rows[0]["explained_variance"] for rows in runs),
            "score_at_kl": {str(kl): {"mean": statistics.mean(s), "n": len(s)} for kl, s in at.items() if s},
        }
    print(json.dumps(out))


if __name__ == "__main__":
    main()
