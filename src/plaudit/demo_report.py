"""The demo's report: one summary in; one self-contained HTML page, one JSON file and the same figures for the terminal out.

The summary's keys are those of docs/demo.md; what only the page needs (curves, tables, answers) stands under `extra`, every part of
which may be missing where a step was skipped. A figure of simulated people is labelled so wherever it is shown: in `Figure.simulated`
here, by the word itself on the page and in the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from plaudit.artifacts import write_atomic
from plaudit.loop import charts

Json = dict[str, Any]
# Parts of `extra` that a run leaves out where a step was skipped.
OPTIONAL = (
    *(
        "aggregation",
        "annotators",
        "reward_model",
        "ppo",
        "gate",
        "gate_reasons",
        "utilities",
        "baselines",
        "examples",
        "canary",
        "ledger",
    ),
    *("alerts", "due"),
)
NARROW = 328  # a telephone's 360 pixels less the page's margin


@dataclass(frozen=True)
class Figure:
    """One line of the table that terminal and page share."""

    name: str
    text: str
    simulated: bool  # it comes from simulated people


@dataclass(frozen=True)
class Picture:
    """A chart in two widths (the page shows the one that fits), its caption, and its numbers."""

    wide: str
    narrow: str
    caption: str
    simulated: bool
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Stage:
    """One stop of the loop's picture."""

    name: str
    figure: str
    detail: str


def write(summary: Json, folder: Path, drawn: Mapping[str, Picture] | None = None) -> tuple[Path, Path]:
    """`report.html` and `summary.json` in `folder`; returns both paths. `drawn`: pictures that were made of this summary before."""
    page, numbers = folder / "report.html", folder / "summary.json"
    write_atomic(page, render(summary, drawn))
    write_atomic(numbers, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return page, numbers


def render(summary: Json, drawn: Mapping[str, Picture] | None = None) -> str:
    """The page. It loads nothing from anywhere and needs no script."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plaudit"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["interval"] = interval
    extra = dict.fromkeys(OPTIONAL) | summary["extra"]
    return environment.get_template("report.html").render(
        summary=summary,
        extra=extra,
        headline=headline(summary),
        figures=figures(summary),
        stages=stages(summary),
        pictures={**pictures(summary, frozenset(drawn or ())), **(drawn or {})},
        made_at=extra.get("made_at", ""),
        hardware=hardware_line(extra.get("hardware", {})),
    )


# --- words ---------------------------------------------------------------------------------------------------------------


def number(value: Any, digits: int = 2) -> str:
    """A figure as a reader wants it; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.{digits}f}".replace("-", "−")
    return str(value)


def interval(value: Mapping[str, Any] | None, digits: int = 2) -> str:
    """`0.61 [0.57, 0.65]`: a mean and its 95 % interval."""
    if not value or value.get("mean") is None:
        return "–"
    if value.get("low") is None or value.get("high") is None:
        return number(float(value["mean"]), digits)
    low, high = number(float(value["low"]), digits), number(float(value["high"]), digits)
    return f"{number(float(value['mean']), digits)} [{low}, {high}]"


def gained(summary: Json) -> bool:
    """Whether the run may claim a gain: gate, users and promotion all say yes, and the hidden difference is above zero for certain."""
    difference = (summary["hidden_preference"] or {}).get("difference") or {}
    return bool(summary["gate"] == "pass" and summary["promoted"] and difference.get("low", 0.0) > 0)


def headline(summary: Json) -> str:
    """What happened, in one or two sentences, by the figures alone."""
    hidden, gate, canary = summary["hidden_preference"], summary["gate"], summary["canary"]
    measured = ""
    if hidden and hidden.get("difference"):
        measured = (
            f" Simulated held-out users' utility: {number(hidden['base'])} before, {number(hidden['candidate'])} after, "
            f"difference {interval(hidden['difference'], 3)}."
        )
    if gate != "pass":
        return f"No gain is claimed: the gate refused the candidate ({'; '.join(summary['gate_reasons'])}).{measured}"
    if not summary["promoted"]:
        why = "; ".join(canary.get("reasons", ())) or "no reason recorded"
        return f"No gain is claimed: the canary said {canary['decision']} ({why}).{measured}"
    if not gained(summary):
        return f"No gain is claimed: the candidate passed gate and canary, but the hidden difference includes zero.{measured}"
    return f"The candidate passed its gate and its canary and was promoted.{measured}"


def figures(summary: Json) -> list[Figure]:
    """The figures of this run, in the order of the loop."""
    agreement, reward, hidden = summary["agreement"], summary["reward_model"], summary["hidden_preference"] or {}
    readable, canary, gate = summary["readability"] or {}, summary["canary"], summary["gate"]
    spans = summary["extra"].get("agreement", {})
    difference = hidden.get("difference")
    kl = f"{number(summary['kl'])} of a budget of {number(summary['kl_budget'])} nats per response"
    return [
        Figure("Time", f"{number(summary['seconds'], 0)} s", False),
        Figure("Peak memory, process tree", f"{summary['peak_memory_bytes'] / 1e9:.2f} GB", False),
        *(
            Figure(f"Agreement, {name}", interval(spans[key]) if spans.get(key) else number(agreement[key]), True)
            for key, name in (("raw", "raw"), ("ac1", "Gwet's AC1"), ("alpha", "Krippendorff's alpha"))
        ),
        Figure("Reward model, accuracy", f"{number(reward['accuracy'])} on {number(reward['n'])} held-out pairs", True),
        Figure("Bag of words, accuracy", number(reward["bag_of_words"]), True),
        Figure("Length only, accuracy", number(reward["length_only"]), True),
        Figure("Reward model − bag of words", interval(reward["difference"], 3), True),
        Figure("Win rate against base, ties half", interval(summary["win_rate"]), True),
        Figure("KL to base", kl, False),
        Figure(
            "Readability, base model's nats per token",
            f"{number(readable.get('base_nll'))} before, {number(readable.get('candidate_nll'))} after",
            False,
        ),
        Figure("Gate", gate + (f": {'; '.join(summary['gate_reasons'])}" if summary["gate_reasons"] else ""), True),
        Figure(
            "Held-out users' utility",
            f"{number(hidden.get('base'))} before, {number(hidden.get('candidate'))} after",
            True,
        ),
        Figure("Difference, paired by prompt", interval(difference, 3), True),
        Figure("Share of the headroom to best-of-16", number(hidden.get("headroom_fraction")), True),
        Figure("Canary", f"{canary['decision'] or 'not run'}, {number(canary['n_users'])} users", True),
        Figure("Promoted", number(summary["promoted"]), False),
        Figure("Rolled back", number(summary["rolled_back"]), False),
    ]


def hardware_line(hardware: Mapping[str, Any]) -> str:
    """CPU, cores, memory, system, Python: what the seconds above depend on."""
    if not hardware:
        return ""
    memory = hardware.get("memory_bytes", 0) / 1e9
    return (
        f"{hardware.get('cpu', 'unknown CPU')}, {hardware.get('cores', '?')} cores, {memory:.0f} GB, {hardware.get('system', '')}, "
        f"Python {hardware.get('python', '')}; no GPU was used"
    )


def stages(summary: Json) -> list[Stage]:
    """The stops of the loop, each with what this run put through it."""
    counts: Mapping[str, Any] = summary["extra"].get("counts", {})
    canary, gate = summary["canary"], summary["gate"]

    def of(name: str) -> str:
        return number(counts.get(name))

    end = "promoted" if summary["promoted"] else "not promoted"
    return [
        Stage("Collect", f"{of('interactions')} interactions", f"{of('feedback')} pieces of feedback"),
        Stage(
            "Annotate",
            f"{of('annotations')} answers",
            f"to {of('comparisons')} comparisons by {of('annotators')} people",
        ),
        Stage("Snapshot", f"{of('preferences')} preferences", f"{of('prompts')} prompts, hashed and frozen"),
        Stage(
            "Train",
            f"{number(summary['reward_model']['accuracy'])} accuracy",
            f"then PPO, KL {number(summary['kl'])} nats",
        ),
        Stage(
            "Evaluate",
            f"{number((summary['win_rate'] or {}).get('mean'))} win rate",
            f"the gate says {gate}",
        ),
        Stage("Release", f"{of('approvals')} named approvals", f"{of('refusals')} refusals shown"),
        Stage("Experiment", f"{number(canary['n_users'])} users", f"{canary['decision'] or 'not run'}; {end}"),
        Stage(
            "Monitor", f"{of('measurements')} measurements", f"{of('alerts')} alerts fired, {of('resolved')} resolved"
        ),
    ]


# --- pictures ------------------------------------------------------------------------------------------------------------


def pictures(summary: Json, without: Collection[str] = ()) -> dict[str, Picture]:
    """Every chart that this run has rows for, by name. Drawn in threads: the renderer is native code."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        plans = _plans(summary["extra"]).items()
        drawn = {name: pool.submit(make) for name, make in plans if name not in without}
        return {name: future.result() for name, future in drawn.items()}


def _plans(extra: Json) -> dict[str, Callable[[], Picture]]:
    plans: dict[str, Callable[[], Picture]] = {}
    if extra.get("annotators"):
        plans["annotators"] = lambda: _annotators(extra["annotators"])
    reward = extra.get("reward_model") or {}
    if reward.get("rows"):
        plans["accuracy"] = lambda: _accuracy(reward["rows"])
    if reward.get("bins"):
        plans["calibration"] = lambda: _calibration(reward["bins"])
    if extra.get("ppo"):
        for key, title in _CURVES.items():
            plans[f"ppo_{key}"] = lambda key=key, title=title: _curve(extra["ppo"], key, title, extra.get("kl_budget"))  # type: ignore[misc]
    if extra.get("utilities"):
        plans["utilities"] = lambda: _utilities(extra["utilities"])
    looks = (extra.get("canary") or {}).get("looks")
    if looks:
        plans["canary"] = lambda: _canary(looks, extra["canary"]["threshold"])
    if (extra.get("alerts") or {}).get("rows"):
        plans["alerts"] = lambda: _alerts(extra["alerts"])
    if extra.get("steps"):
        plans["steps"] = lambda: _steps(extra["steps"])
    if extra.get("baselines"):
        plans["baselines"] = lambda: _baselines(extra["baselines"])
    return plans


def _picture(
    draw: Callable[..., str],
    caption: str,
    simulated: bool,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *arguments: Any,
    **options: Any,
) -> Picture:
    drawn = [draw(*arguments, about=caption, width=width, **options) for width in (charts.WIDTH, NARROW)]
    table = tuple(tuple(number(value, 3) for value in row) for row in rows)
    return Picture(drawn[0], drawn[1], caption, simulated, tuple(columns), table)


def _annotators(people: Sequence[Json]) -> Picture:
    rows = [{"label": p["name"], "mean": p["reliability"], "low": p["low"], "high": p["high"]} for p in people]
    return _picture(
        charts.spans,
        "Estimated reliability of each simulated annotator (probability of the consensus answer), 95 % interval; dashed: guessing.",
        True,
        ("annotator", "answers", "reliability", "low", "high", "truth (simulated)"),
        [(p["name"], p["n"], p["reliability"], p["low"], p["high"], p["truth"]) for p in people],
        rows,
        x_title="reliability, probability of agreeing with the consensus",
        rule=0.5,
        domain=(0.0, 1.0),
    )


def _accuracy(rows: Sequence[Json]) -> Picture:
    return _picture(
        charts.spans,
        "Accuracy on held-out preferences of simulated annotators, 95 % interval over prompt families; dashed: chance.",
        True,
        ("model", "accuracy", "low", "high", "pairs"),
        [(r["label"], r["mean"], r["low"], r["high"], r["n"]) for r in rows],
        rows,
        x_title="accuracy, share of held-out pairs",
        rule=0.5,
    )


def _calibration(bins: Sequence[Json]) -> Picture:
    return _picture(
        charts.calibration,
        "Calibration of the reward model on held-out pairs (simulated annotators): on the dashed line a promise of 70 % comes true in 70 %.",
        True,
        ("predicted", "observed", "pairs"),
        [(b["predicted"], b["observed"], b["n"]) for b in bins],
        bins,
        x_title="predicted probability that the answer is preferred",
        y_title="share that was preferred",
    )


_CURVES: Mapping[str, str] = {
    "score": "score of the reward model, standard deviations of the base's",
    "kl": "KL to the base, nats per response",
    "length": "response length, tokens",
}


def _curve(rows: Sequence[Json], key: str, title: str, budget: float | None) -> Picture:
    shown = [{"step": row["step"], key: row[key]} for row in rows]
    rule = {"rule": budget, "rule_label": f"budget {budget:g}"} if key == "kl" and budget else {}
    return _picture(
        charts.lines,
        f"PPO: {title}, by step.",
        key == "score",
        ("step", title),
        [(row["step"], row[key]) for row in rows],
        shown,
        x="step",
        y=key,
        x_title="PPO step (one rollout each)",
        y_title=title,
        height=120,
        **rule,
    )


def _utilities(utilities: Mapping[str, Json]) -> Picture:
    rows = [
        {"label": label, **{key: utilities[name]["difference"][key] for key in ("mean", "low", "high", "n")}}
        for name, label in (("users", "users' utility"), ("guideline", "guideline utility"))
    ]
    return _picture(
        charts.spans,
        "Candidate minus base in both simulated utilities (0 to 1), paired by held-out prompt, 95 % interval; dashed: no difference.",
        True,
        ("utility", "difference", "low", "high", "prompts"),
        [(r["label"], r["mean"], r["low"], r["high"], r["n"]) for r in rows],
        rows,
        x_title="candidate − base, on a scale of 0 to 1",
        rule=0.0,
    )


def _canary(looks: Sequence[Json], threshold: float) -> Picture:
    rows = [{"look": look["look"], "e": max(1e-3, look["e_value"])} for look in looks]
    return _picture(
        charts.lines,
        "Evidence of harm at each look at the canary (e-value of first thumbs-down, simulated users): at the dashed line it is rolled back.",
        True,
        ("look", "e-value", "candidate users", "control users", "verdict"),
        [(look["look"], look["e_value"], look["n_candidate"], look["n_control"], look["verdict"]) for look in looks],
        rows,
        x="look",
        y="e",
        x_title="look",
        y_title="e-value (1 = no evidence), log scale",
        rule=threshold,
        rule_label=f"rolls back at {threshold:g}",
        log=True,
        height=130,
    )


def _alerts(alerts: Json) -> Picture:
    return _picture(
        charts.lines,
        f"Satisfaction by window of production, and the alert {alerts['rule']['name']}, which fires where it falls by "
        f"{-alerts['rule']['warn']:g} against the windows before (simulated traffic over HTTP).",
        True,
        ("seconds", alerts["title"], "thumbs"),
        [(row["seconds"], row["value"], row["n"]) for row in alerts["rows"]],
        alerts["rows"],
        x="seconds",
        y="value",
        x_title="seconds since the first measurement; bands: the alert fires",
        y_title=alerts["title"],
        bands=alerts["bands"],
        height=120,
    )


def _steps(steps: Sequence[Json]) -> Picture:
    rows = [{"label": f"{at} {step['name']}", "value": step["seconds"]} for at, step in enumerate(steps, start=1)]
    return _picture(
        charts.bars,
        "Where the time went.",
        False,
        ("step", "seconds", "what came of it"),
        [(row["label"], row["value"], step["said"]) for row, step in zip(rows, steps, strict=True)],
        rows,
        x_title="seconds",
    )


def _baselines(rows: Sequence[Json]) -> Picture:
    shown = [
        {"label": row["label"], **{key: row["difference"][key] for key in ("mean", "low", "high")}} for row in rows
    ]
    return _picture(
        charts.spans,
        "Simulated held-out users' utility against the base's, PPO beside what is simpler, paired by prompt, 95 % interval.",
        True,
        ("method", "utility", "difference", "low", "high", "mean words"),
        [
            (
                r["label"],
                r["utility"],
                r["difference"]["mean"],
                r["difference"]["low"],
                r["difference"]["high"],
                r["words"],
            )
            for r in rows
        ],
        shown,
        x_title="method − base, on a scale of 0 to 1",
        rule=0.0,
    )
