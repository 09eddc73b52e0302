"""How often the guards inside training are wrong, and how often they see what is planted: the tables of docs/guards.md.

    python benchmarks/guard_alarms.py

Made-up rollouts (tests/unit/learn/rollouts.py), seeds 1000 and on: a policy that stands still, hacks planted from the second rollout on, and
the law of overoptimisation. A few minutes; no model is loaded.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from plaudit.learn.configs import GuardsConfig, KLConfig, from_dict
from plaudit.learn.guards import Guards

HACKS = {
    "gold": {"score": 1.5, "gold": -1.0},
    "length_change": {"length": 14},
    "format": {"hedges": 0.8, "score": 0.5},
    "diversity": {"words": 20},
    "outliers": {"score": 4.0},
}
LAWS = {  # (a, b) in sd of the judge; the peak lies at exp((a - b) / b)
    "peak at 2, b 1": (1.0 + math.log(2), 1.0),
    "peak at 1.5, b .7": (0.7 * (1.0 + math.log(1.5)), 0.7),
    "peak at 2, b .5": (0.5 * (1.0 + math.log(2)), 0.5),
    "stands still": (0.0, 0.0),
    "rises": (0.6, 0.05),
}


def rollouts() -> ModuleType:
    file = Path(__file__).parents[1] / "tests" / "unit" / "learn" / "rollouts.py"
    spec = importlib.util.spec_from_file_location("rollouts", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def watching() -> Guards:
    return Guards(from_dict(GuardsConfig, {"judge": "j"}), KLConfig(), judge=object())


def main() -> None:
    rollout = rollouts().rollout
    print("a policy that stands still, 13 rollouts, 4 samples a prompt")
    print("prompts  runs  false critical  any alarm  acted  which")
    for prompts, runs in ((12, 300), (4, 200)):
        critical = alarmed = acted = 0
        which: Counter[str] = Counter()
        for seed in range(1000, 1000 + runs):
            guards, rng = watching(), np.random.default_rng(seed)
            acts = [guards.look(step, rollout(rng, prompts=prompts))[1] for step in range(1, 14)]
            levels = {name: one["level"] for name, one in guards.verdicts.items()}
            critical += "critical" in levels.values()
            alarmed += bool(levels)
            acted += any(acts)
            which.update(f"{name} {level}" for name, level in levels.items())
        print(f"{prompts:7d}  {runs:4d}  {critical:14d}  {alarmed:9d}  {acted:5d}  {dict(which)}", flush=True)

    print("\nplanted from the second rollout on: critical after two of them, of 20 runs")
    for name, planted in HACKS.items():
        seen = 0
        for seed in range(1000, 1020):
            guards, rng = watching(), np.random.default_rng(seed)
            guards.look(1, rollout(rng))
            for step in (2, 3):
                guards.look(step, rollout(rng, **planted))
            seen += guards.standing(name) == 2
        print(f"{name:14s} {seen}", flush=True)

    print("\nthe law of overoptimisation, sqrt(KL) growing evenly to 4 over 13 rollouts of 12 prompts, of 200 runs")
    for name, (a, b) in LAWS.items():
        found: Counter[str] = Counter()
        for seed in range(1000, 1200):
            guards, rng = watching(), np.random.default_rng(seed)
            for step in range(13):
                d = step / 3
                now = rollout(rng, score=d, gold=d * (a - b * math.log(d)) if d else 0.0)
                kl = [max(0.0, d**2 + one - statistics.mean(now.figures["kl"])) for one in now.figures["kl"]]
                guards.look(step + 1, replace(now, figures=now.figures | {"kl": kl if step else [0.0] * len(kl)}))
            found[guards.verdicts.get("overoptimisation", {}).get("level", "ok")] += 1
        print(f"{name:18s} critical {found['critical']:3d}, only a warning {found['warn']:3d}", flush=True)


if __name__ == "__main__":
    main()
