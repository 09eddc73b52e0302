"""Experiments under continuous watching: errors where nothing is different, power and stopping times where something is.

    python benchmarks/experiments.py [--runs 2000] [--seed 1]

Type I: A/A experiments for an event rate of .5, .02 and .98, half or a twentieth of the users in the candidate, users alike ("iid"), under
drift and a ramp, or with events of one user clustered; 1,500 users at .5, 6,000 elsewhere. Beside the e-process and the bounds of a rate
(arms of equal size only), both read after every user: a z-test read after every user from the 100th on, the same read at ten looks with
O'Brien-Fleming bounds, and read once at the end.
Power: thumbs-down of 5 % of users, half of them in the candidate, 6,000 users at most. Prints two tables and one JSON object on the last line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from plaudit.stats import sequential
from plaudit.stats.group_sequential import obrien_fleming
from plaudit.stats.intervals import wilson

ALPHA, BLOCK, BURN_IN, GROUP_LOOKS = 0.05, 100, 100, 10
GRID = list(itertools.product([0.5, 0.02, 0.98], [0.5, 0.05], ["iid", "drift+ramp", "clustered"]))
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
# (which users are in the candidate, which have an event, probability of the candidate), each (runs, users)
Experiments = tuple[Bools, Bools, Floats]
Z_TWO_SIDED = float(special.ndtri(1 - ALPHA / 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began, cpu = time.perf_counter(), time.process_time()
    rng = np.random.default_rng(options.seed)
    tests = methods()
    nothing = []
    print(f"{'rate':>5}{'share':>7}  {'scenario':<12}" + "".join(f"{name:>18}" for name in tests))
    for p, share, scenario in GRID:
        n_users = 1500 if p == 0.5 else 6000

        def draw(
            n: int, p: float = p, share: float = share, how: str = scenario, n_users: int = n_users
        ) -> Experiments:
            return under_null(rng, n, n_users, p, share, how)

        stops = stopped(draw, tests, options.runs)
        rates = {
            name: wilson(int(np.isfinite(found).sum()), options.runs)
            for name, found in stops.items()
            if not np.isnan(found).any()
        }
        cells = "".join(f"{rates[name].mean:>18.3f}" if name in rates else f"{'-':>18}" for name in tests)
        print(f"{p:>5}{share:>7}  {scenario:<12}{cells}")
        nothing.append(
            {"rate": p, "share": share, "scenario": scenario} | {name: rate.to_dict() for name, rate in rates.items()}
        )
    something = []
    print(f"\n{'effect':>7}{'test':>20}{'found':>9}{'median users':>15}{'p95 users':>12}")
    for factor in (1.25, 1.5, 2.0):

        def draw_harm(n: int, factor: float = factor) -> Experiments:
            chosen = rng.random((n, 6000)) < 0.5
            return chosen, rng.random((n, 6000)) < 0.05 * np.where(chosen, factor, 1.0), np.full((n, 6000), 0.5)

        for name, found in stopped(draw_harm, tests, max(options.runs // 4, 50)).items():
            power = wilson(int(np.isfinite(found).sum()), len(found))
            # A run that found nothing counts as longer than any other.
            median, p95 = np.quantile(np.minimum(found, 6001), [0.5, 0.95], method="higher")
            users = [f"{value:.0f}" if value <= 6000 else "-" for value in (median, p95)]
            print(f"{factor:>7}{name:>20}{power.mean:>9.2f}{users[0]:>15}{users[1]:>12}")
            something.append({"factor": factor, "test": name, "power": power.to_dict(), "users": users})
    spent = {"wall_s": round(time.perf_counter() - began, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    print(json.dumps({"runs": options.runs, "type_1": nothing, "power": something, **spent}))


def under_null(rng: np.random.Generator, runs: int, n: int, p: float, share: float, scenario: str) -> Experiments:
    """Both arms have the same event rates throughout."""
    w = np.full(n, share)
    rate: Floats = np.full((runs, n), p)
    if scenario == "drift+ramp":
        w[: n // 2] = share / 4
        rate = np.broadcast_to(special.expit(special.logit(p) + np.linspace(-1.5, 1.5, n)), (runs, n))
    elif scenario == "clustered":
        rate = 1 - (1 - rng.beta(p * 2, (1 - p) * 2, (runs, n))) ** rng.geometric(0.3, (runs, n))
    return rng.random((runs, n)) < w, rng.random((runs, n)) < rate, np.broadcast_to(w, (runs, n))


def methods() -> dict[str, Callable[[Experiments], Floats]]:
    """name -> users after which each run stops, infinite where it does not."""
    bounds = obrien_fleming(GROUP_LOOKS, ALPHA)

    def e_process(experiments: Experiments) -> Floats:
        chosen, event, w = experiments
        n = chosen.shape[1]
        order = np.argsort(~event, axis=1, kind="stable")[:, : max(int(event.sum(axis=1).max()), 1)]  # events first
        path = sequential.harm_e_path(np.take_along_axis(chosen, order, 1), np.take_along_axis(w, order, 1))
        path[np.arange(path.shape[1]) >= event.sum(axis=1)[:, None]] = 0.0
        crossed = path >= 1 / ALPHA
        when = np.take_along_axis(order, crossed.argmax(axis=1)[:, None], 1)[:, 0] + 1.0
        return np.where(crossed.any(axis=1), np.minimum(when, n), np.inf)

    def rate_bounds(experiments: Experiments) -> Floats:
        """As a file is analysed: two-sided, from 200 users in each arm, arms of equal size only."""
        chosen, event, w = experiments
        if (w != 0.5).any():
            return np.full(len(chosen), np.nan)
        n = np.arange(1, chosen.shape[1] + 1)
        n_b, k, k_b = (np.cumsum(x, axis=1, dtype=np.int32) for x in (chosen, event, chosen & event))
        n_a, k_a = n - n_b, k - k_b
        ready = np.minimum(n_a, n_b) >= 200
        n_a, n_b = np.maximum(n_a, 2), np.maximum(n_b, 2)
        p_a, p_b = k_a / n_a, k_b / n_b
        # The plug-in variance, and one event more in each arm: `user_metrics.with_one_more_event`.
        variance = p_a * (1 - p_a) / (n_a - 1) + p_b * (1 - p_b) / (n_b - 1) + 1 / n_a**2 + 1 / n_b**2
        half = sequential.half_width(np.sqrt(variance), n, sequential.tuned_rho(800), ALPHA)
        return _first(ready & (np.abs(p_b - p_a) > half), n)

    def z_watched(experiments: Experiments) -> Floats:
        n = experiments[0].shape[1]
        return _first(np.abs(z_path(experiments, np.arange(BURN_IN, n + 1))) > Z_TWO_SIDED, np.arange(BURN_IN, n + 1))

    def z_grouped(experiments: Experiments) -> Floats:
        looks = np.linspace(0, experiments[0].shape[1], GROUP_LOOKS + 1)[1:].astype(int)
        return _first(np.abs(z_path(experiments, looks)) > np.array(bounds), looks)

    def z_once(experiments: Experiments) -> Floats:
        looks = np.array([experiments[0].shape[1]])
        return _first(np.abs(z_path(experiments, looks)) > Z_TWO_SIDED, looks)

    return {
        "e-process": e_process,
        "rate bounds": rate_bounds,
        "z every user": z_watched,
        "OBF, 10 looks": z_grouped,
        "z once": z_once,
    }


def z_path(experiments: Experiments, looks: NDArray[np.int64]) -> Floats:
    """(runs, looks) pooled two-proportion statistic after so many users."""
    chosen, event, _ = experiments
    n_b = np.cumsum(chosen, axis=1, dtype=np.int32)[:, looks - 1]
    k = np.cumsum(event, axis=1, dtype=np.int32)[:, looks - 1]
    k_b = np.cumsum(event & chosen, axis=1, dtype=np.int32)[:, looks - 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = k_b / n_b - (k - k_b) / (looks - n_b)
        z = gap / np.sqrt(k / looks * (1 - k / looks) * (1 / n_b + 1 / (looks - n_b)))
    return np.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0)


def stopped(
    draw: Callable[[int], Experiments], tests: dict[str, Callable[[Experiments], Floats]], runs: int
) -> dict[str, Floats]:
    """test -> (runs,) users after which it stopped; every test sees the same draws, in blocks that fit into memory."""
    parts: dict[str, list[Any]] = {name: [] for name in tests}
    for start in range(0, runs, BLOCK):
        experiments = draw(min(BLOCK, runs - start))
        for name, test in tests.items():
            parts[name].append(test(experiments))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _first(crossed: Bools, looks: NDArray[np.int64]) -> Floats:
    return np.where(crossed.any(axis=1), looks[crossed.argmax(axis=1)], np.inf)


if __name__ == "__main__":
    main()
