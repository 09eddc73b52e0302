"""A policy's card: what was done to make it, how its figures went, and what they cannot tell. Markdown that follows the facts in card.md.

The evaluation that a gate reads comes later and belongs to the ledger; `plaudit export` adds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit.learn.card import BLUE, GREY, INK
from plaudit.learn.configs import DPOConfig, OnlineConfig, SFTConfig

Json = Mapping[str, Any]
SHOWN = ("score", "kl", "response_tokens", "loss", "accuracy", "margin")  # of a curve, in this order
CURVE = "curve.svg"
ENDS = {"end": "to its end", "budget": "ended by its KL budget", "guard": "ended by a guard"}
WIDTH, HEIGHT = 520, 120  # of one chart, in px


def write(result: Json, config: OnlineConfig | SFTConfig | DPOConfig, guards: str = "") -> tuple[str, dict[str, str]]:
    """(Markdown, name -> SVG) of a finished run's result.json; `guards` is their part in words."""
    parts = [_online(result, config) if isinstance(config, OnlineConfig) else _supervised(result, config)]
    pictures: dict[str, str] = {}
    shown = [name for name in SHOWN if any(_is_number(point.get(name)) for point in result["curve"])]
    if shown:
        pictures[CURVE] = draw(result["curve"], shown)
        first, last = result["curve"][0], result["curve"][-1]
        rows = [f"| {_words(name)} | {_figure(first.get(name))} | {_figure(last.get(name))} |" for name in shown]
        table = "\n".join(("| figure | first | last |", "|---|---|---|", *rows))
        parts.append(f"## Learning curve\n\n![learning curve]({CURVE})\n\n{table}")
    if guards:
        parts.append(guards)
    parts.append(_limits(result, config))
    return "\n\n".join(parts), pictures


def _source(config: OnlineConfig | SFTConfig | DPOConfig) -> str:
    named = config.snapshot or getattr(config, "preferences", "")
    start = f", starting from {Path(config.start).name}" if config.start else ""
    layers = f"layers from {config.first_layer} on" if config.first_layer else "all layers"
    how = f"a LoRA adapter of rank {config.lora.rank} on {layers}" if config.lora else f"full weights of {layers}"
    return f"{Path(named).name or 'prompts of its own'}, {how}{start}; seed {config.seed}"


def _online(result: Json, config: OnlineConfig) -> str:
    kl, budget = _figure(result["kl"]), _figure(result["kl_budget"]) or "none"
    return (
        "## How it was trained\n\n"
        f"{result['program']} on {_source(config)}. The weights kept are those after the updates of {result['steps']} rollouts of "
        f"{len(result['curve']) - 1} ({ENDS[result['stop']]}). Score of the reward it was trained against, in sd of the reference: "
        f"{_figure(result['score_first'])} before, {_figure(result['score'])} kept, at {kl} nats from where it started (budget {budget})."
    )


def _supervised(result: Json, config: SFTConfig | DPOConfig) -> str:
    held_out = f"; {result['n_valid']} rows were held out" if result.get("n_valid") else ""
    return f"## How it was trained\n\n{result['program']} on {result['n_train']} rows of {_source(config)}; {config.epochs} epoch(s){held_out}."


def _limits(result: Json, config: OnlineConfig | SFTConfig | DPOConfig) -> str:
    out = []
    if isinstance(config, OnlineConfig):
        out.append(
            "The score is that of the reward it was trained against: it may rise while people like the answers less. Only a judge that it "
            "has not seen, and people, tell."
        )
        if result["kl_budget"] and result["kl"] > 0.9 * result["kl_budget"]:
            out.append("It used up its KL budget: the reward would have pulled it further.")
        if (
            result["score"] is not None
            and result["score_first"] is not None
            and result["score"] <= result["score_first"]
        ):
            out.append("Its score is no higher than before: it did not learn what it was trained for.")
    else:
        if not result["curve"]:
            out.append("Nothing was held out: no figure here says how good it is.")
        losses = [point["loss"] for point in result["curve"] if point.get("loss") is not None]
        if losses and losses[-1] > min(losses):
            out.append("Its held-out loss was lower before the end: fewer epochs would do.")
    out += [
        "It was not evaluated for safety, facts, or languages and topics other than those of its data unless an evaluation below says so.",
        f"Whatever its base gets wrong, it may get wrong too; seed {config.seed} is one draw.",
    ]
    return "## Known limits\n\n" + "\n".join(f"- {line}" for line in out)


def draw(points: Sequence[Json], shown: Sequence[str]) -> str:
    """One small chart below the other as SVG text. By hand: every training run ends with it, and Vega would take longer than a short run."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT * len(shown)}" font-family="system-ui, sans-serif" font-size="11">',
        f"<title>{', '.join(map(_words, shown))} over the run</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, name in enumerate(shown):
        found = [
            (float(point.get("step", point.get("update", 0))), float(point[name]))
            for point in points
            if _is_number(point.get(name))
        ]
        (left, right), (low, high) = _ends([at for at, _ in found]), _ends([value for _, value in found])
        top, bottom = HEIGHT * row + 24, HEIGHT * (row + 1) - 22
        places = [
            (60 + (at - left) / (right - left) * (WIDTH - 80), bottom - (value - low) / (high - low) * (bottom - top))
            for at, value in found
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out += [
            f'<text x="60" y="{top - 9}" font-weight="bold" fill="{INK}">{_words(name)}</text>',
            f'<g fill="{GREY}"><text x="54" y="{top + 4}" text-anchor="end">{high:.3g}</text>'
            f'<text x="54" y="{bottom + 4}" text-anchor="end">{low:.3g}</text>'
            f'<text x="60" y="{bottom + 16}">{left:g}</text><text x="{WIDTH - 20}" y="{bottom + 16}" text-anchor="end">{right:g}</text></g>',
            f'<polyline points="60,{top} 60,{bottom} {WIDTH - 20},{bottom}" fill="none" stroke="{GREY}" stroke-width="0.5"/>',
            f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>',
            *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{BLUE}"/>' for x, y in places),
        ]
    return "\n".join([*out, "</svg>"])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest, a little apart where they are the same."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['mean']:.3f}" if "mean" in value else ""
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
