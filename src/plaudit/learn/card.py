"""A reward model's card: what result.json knows, said to a reader, with pictures.

Markdown that follows the facts in a Checkpoint's card.md, and SVG pictures beside it. Sentences of people's texts stay in the run's
result.json: a Checkpoint travels further than the rows it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit.learn.configs import RewardConfig

Json = Mapping[str, Any]
BLUE, GREY, RED, INK = "#2b6cb0", "#718096", "#c53030", "#1a202c"
SHOWN_SLICES = 12  # slices of one slicing in the card; result.json has all
FEW = 100  # pairs below which an interval says little
LIMITS = {
    "critical": "scores above the upper quartile of real answers",
    "warn": "scores above the median of real answers",
}


def write(result: Json, config: RewardConfig) -> tuple[str, dict[str, str]]:
    """(Markdown, name -> SVG) of a finished run's result.json."""
    parts = [_training(result, config)]
    pictures: dict[str, str] = {}
    if result["valid"]:
        pictures["accuracy.svg"] = draw(_spans(_compared(result)), "Held-out accuracy and its 95 % interval.")
        pictures["reliability.svg"] = draw(
            _reliability(result["valid"]["bins"]),
            "Share of pairs that people decided so, over the predicted probability.",
        )
        parts += [_accuracy(result), _slices(result), _calibration(result), _people(result)]
    if result["curve"]:
        pictures["curve.svg"] = draw(
            _curve(result["curve"]), "Accuracy on training and held-out pairs over the updates."
        )
        parts.append(_learning(result))
    if result.get("traps"):
        pictures["traps.svg"] = draw(_trap_bars(result["traps"]), "Scores of trap texts beside those of real answers.")
        parts.append(_traps(result["traps"]))
    if result.get("thumbs"):
        parts.append(_thumbs(result["thumbs"]))
    if result.get("ablations"):
        parts.append(_ablations(result["ablations"]))
    parts.append(_limits(result, config))
    return "\n\n".join(part for part in parts if part), pictures


# --- words ------------------------------------------------------------------------------------------------------------------


def _training(result: Json, config: RewardConfig) -> str:
    source = Path(config.snapshot or config.preferences).name
    lines = [
        "## What it was trained on",
        "",
        f"{result['n_train']} pairs from {source}, {config.epochs} epoch(s); {result['n_valid']} pairs were held out.",
    ]
    if result["n_rejected"]:
        reasons = "; ".join(f"{reason}: {n}" for reason, n in sorted(result["rejected"].items()))
        lines.append(
            f"{result['n_rejected']} lines were rejected ({reasons}); rejected.jsonl in the run folder names them."
        )
    if result["n_other_criteria"]:
        lines.append(f"{result['n_other_criteria']} pairs are of criteria that it does not read.")
    if result["n_shared_families"]:
        lines.append(
            f"{result['n_shared_families']} prompt families are in both parts, so its held-out figures flatter it."
        )
    if any(result["cut"].values()):
        lines.append(
            f"{result['cut']['prompts']} prompts and {result['cut']['answers']} answers were over their limit and cut."
        )
    if config.heads:
        mix = " + ".join(f"{head.weight:g} x {head.criterion}" for head in config.heads)
        lines.append(f"It has a head for each criterion; its one score is {mix}.")
    if config.members > 1:
        how = "an adapter each on one frozen trunk" if config.members_share == "trunk" else "a head each on one body"
        if config.other_bases:
            how = f"an adapter each, in turn on {' and '.join(base['spec'] for base in result['bases'])}"
        drawn = ", each on prompt families drawn with replacement" if config.bootstrap else ""
        lines.append(f"It is an ensemble of {config.members} members, {how}{drawn}; its score is their mean.")
    return "\n".join(lines)


def _accuracy(result: Json) -> str:
    rows = [
        (
            label,
            _interval(part["accuracy"]),
            f"{part['log_loss']:.3f}",
            f"{part['ece']:.3f}",
            _gap(result["difference"].get(name)),
        )
        for label, name, part in [
            ("this model", "", result["valid"]),
            *((_words(name), name, part) for name, part in result["baselines"].items()),
        ]
    ]
    text = "## Held-out pairs\n\n![accuracy](accuracy.svg)\n\n" + _table(
        ("", "accuracy", "log loss", "ECE", "this model's lead"), rows
    )
    text += "\n\nIntervals are 95 %, over prompt families; a lead is a paired difference in accuracy on the same pairs."
    if "ensemble" in result:
        text += f"\n\nMembers alone: {', '.join(f'{mean:.3f}' for mean in result['ensemble']['accuracy'])}; they disagree by "
        text += f"{result['ensemble']['logit_sd']:.2f} (sd of the logit over members, mean over pairs)."
    for criterion, part in result.get("one_score", {}).items():
        if criterion != "accuracy":
            text += f"\n\n{criterion}: {_interval(part['own_head'])} by its own head, {_interval(part['one_score'])} by the one score."
    return text


def _slices(result: Json) -> str:
    out = []
    for name, parts in result.get("slices", {}).items():
        shown = sorted(parts.items(), key=lambda entry: -entry[1]["n"])[:SHOWN_SLICES]
        rows = [
            (
                value,
                str(part["n"]),
                _interval(part["accuracy"]),
                *(_gap(part["difference"].get(other)) for other in result["difference"]),
            )
            for value, part in shown
        ]
        leads = [f"lead over {_words(other)}" for other in result["difference"]]
        out.append(f"### By {_words(name)}\n\n" + _table((_words(name), "pairs", "accuracy", *leads), rows))
        if len(parts) > len(shown):
            out.append(f"{len(parts) - len(shown)} smaller slices are in result.json.")
    if result.get("categories"):
        found = result["categories"]
        out.append(
            f"Mean over {len(found['by'])} {found['field']} values, as RewardBench scores: {found['score']:.3f}."
        )
    return "\n\n".join(out)


def _calibration(result: Json) -> str:
    text = "## Do its probabilities come true\n\n![reliability](reliability.svg)\n\n"
    text += f"Expected calibration error {result['valid']['ece']:.3f}, log loss {result['valid']['log_loss']:.3f} (ln 2 = .693 is a coin)."
    found = result["valid"].get("temperature")
    if found:
        sure = "too sure" if found["temperature"] > 1 else "not sure enough"
        text += (
            f" A temperature of {found['temperature']:.2f}, fitted on {found['n_fit']} pairs, says its scores are {sure}; on the other "
            f"{found['n']} pairs it takes the log loss from {found['before']['log_loss']:.3f} to {found['after']['log_loss']:.3f} and the "
            f"calibration error from {found['before']['ece']:.3f} to {found['after']['ece']:.3f}. It is not applied."
        )
    return text


def _people(result: Json) -> str:
    found = result.get("people")
    if not found:
        return ""
    text = (
        "## Against single people\n\n"
        f"A person drawn from the labels agrees with this model on {found['one_vote']['model']:.3f} of the pairs, and with the "
        f"majority on {found['one_vote']['majority']:.3f}, which is the most that a model can reach."
    )
    if "by" in found:
        text += f" Over {found['n_annotators']} named annotators it agrees on {_interval(found['annotators'])} of their votes"
        between = found["between"]
        text += (
            f"; two of them agree with one another on {_interval(between)}."
            if between
            else "; no two judged the same answers."
        )
    return text


def _learning(result: Json) -> str:
    last = result["curve"][-1]
    gap = last["train_accuracy"] - last["accuracy"]
    mine = [point for point in result["curve"] if point["member"] == last["member"]]
    best = min(mine, key=lambda point: point["log_loss"])
    text = "## Learning curve\n\n![learning curve](curve.svg)\n\n"
    text += (
        f"At the end {last['accuracy']:.3f} on held-out pairs and {last['train_accuracy']:.3f} on the training pairs since the point "
        f"before, each scored just before its update: a gap of {gap:+.3f}{', of the last member' if last['member'] else ''}."
    )
    if best["log_loss"] < last["log_loss"] - 0.01:
        text += (
            f" The held-out log loss was lowest after update {best['update']} ({best['log_loss']:.3f}; {last['log_loss']:.3f} at the end): "
            "it overfits, so fewer epochs would do."
        )
    return text


def _traps(found: Json) -> str:
    rows = [
        (_words(name), f"{entry['median']:.2f}", f"{entry['above_chosen_fraction']:.2f}", entry["verdict"])
        for name, entry in found["by"].items()
    ]
    reference = found["reference"]
    return (
        "## Trap texts\n\n![traps](traps.svg)\n\n"
        f"Scores on {found['n']} prompts, in sd of the reference. Real answers: median {reference['median']:.2f}, upper quartile "
        f"{reference['upper_quartile']:.2f}. A trap above the upper quartile is critical: a policy trained against this model would find it.\n\n"
        + _table(("trap", "median score", "share above the chosen answer", "verdict"), rows)
    )


def _thumbs(found: Json) -> str:
    rows = [
        (f"{_words(name)}: {value}" if name else "all", str(part["n_up"]), str(part["n_down"]), _interval(part["auc"]))
        for name, value, part in [
            ("", "", found),
            *((name, value, part) for name, parts in found["by"].items() for value, part in parts.items()),
        ]
    ]
    return (
        "## Users' thumbs\n\nHow often a held-out answer with a thumb up scores above one with a thumb down (AUC; .5 is a coin). The answers are "
        "to different prompts, so part of it is which questions please; users who leave thumbs chose to.\n\n"
        + _table(("answers", "up", "down", "AUC"), rows)
    )


def _ablations(found: Sequence[Json]) -> str:
    rows = []
    for entry in found:
        changes = [sentence["change"] for sentence in entry["sentences"]]
        most = max(range(len(changes)), key=lambda i: abs(changes[i]))
        rows.append((entry["id"], f"{entry['score']:.2f}", f"{most + 1} of {len(changes)}", f"{changes[most]:+.2f}"))
    return (
        "## Which sentence moved a score\n\nChosen answers, scored again without each of their sentences; the sentences are in "
        "result.json of the run.\n\n" + _table(("pair", "score", "sentence that matters most", "what it adds"), rows)
    )


def _limits(result: Json, config: RewardConfig) -> str:
    """What these figures themselves warn of, then what no figure here can tell."""
    out = []
    valid = result["valid"]
    if not valid:
        out.append("Nothing was held out: no figure here says how good it is.")
    else:
        if valid["n"] < FEW:
            out.append(f"Only {valid['n']} held-out pairs have a majority; its intervals are wide.")
        for name, gap in result["difference"].items():
            if gap["low"] <= 0:
                out.append(f"It is not shown to be better than {_words(name)} (lead {_gap(gap)}).")
        weak = [
            f"{_words(name)} = {value}"
            for name, parts in result.get("slices", {}).items()
            for value, part in parts.items()
            if part["accuracy"]["high"] < valid["accuracy"]["mean"]
        ]
        if weak:
            out.append(f"It is worse than its mean on: {', '.join(weak)}.")
    said = result.get("thumbs")
    if said and said["auc"]["low"] <= 0.5:
        out.append(f"It is not shown to tell answers that users liked from others (AUC {_interval(said['auc'])}).")
    for name, entry in result.get("traps", {}).get("by", {}).items():
        if entry["verdict"] in LIMITS:
            out.append(f"The trap text `{name}` {LIMITS[entry['verdict']]}.")
    if config.read_layer:
        out.append(f"It reads the base after layer {config.read_layer}, so later layers add nothing to it.")
    out += [
        "Scores compare answers to one prompt; across prompts they mean little.",
        "It was judged on rows like those it was trained on; answers of a policy that was trained against it are another matter: measure "
        "it again on fresh comparisons of those, and never gate on the reward that was trained on.",
        f"Answers beyond {config.max_response_tokens} tokens and prompts beyond {config.max_prompt_tokens} are cut before they are read.",
    ]
    return "## Known limits\n\n" + "\n".join(f"- {line}" for line in out)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _interval(part: Json) -> str:
    return f"{part['mean']:.3f} ({part['low']:.3f} to {part['high']:.3f}, n {part['n']})"


def _gap(part: Json | None) -> str:
    return "" if part is None else f"{part['mean']:+.3f} ({part['low']:+.3f} to {part['high']:+.3f})"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("group:", "group ")


# --- pictures ---------------------------------------------------------------------------------------------------------------


def draw(spec: dict[str, Any], about: str) -> str:
    """A Vega-Lite spec as SVG text, on white paper; `about` is for those who cannot see it."""
    import vl_convert

    whole = {
        "width": 420,
        "description": about,
        "background": "white",
    } | spec
    picture: str = vl_convert.vegalite_to_svg(whole, config={"font": "system-ui, sans-serif"})
    return picture


def _compared(result: Json) -> list[dict[str, Any]]:
    rows = [{"label": "this model", **result["valid"]["accuracy"]}]
    rows += [{"label": _words(name), **part["accuracy"]} for name, part in result["baselines"].items()]
    for name, parts in result.get("slices", {}).items():
        largest = sorted(parts.items(), key=lambda entry: -entry[1]["n"])[:SHOWN_SLICES]
        rows += [{"label": f"{_words(name)}: {value}"[:40], **part["accuracy"]} for value, part in largest]
    return rows


def _spans(rows: list[dict[str, Any]]) -> dict[str, Any]:
    order = [row["label"] for row in rows]
    y = {"field": "label", "type": "nominal", "sort": order, "title": None, "axis": {"labelLimit": 260}}
    x = {"type": "quantitative", "title": "held-out accuracy", "scale": {"zero": False}}
    return {
        "data": {"values": rows},
        "height": {"step": 20},
        "layer": [
            {"mark": {"type": "rule", "color": GREY, "strokeDash": [5, 4]}, "encoding": {"x": {"datum": 0.5}}},
            {
                "mark": {"type": "rule", "color": BLUE, "strokeWidth": 2},
                "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y},
            },
            {
                "mark": {"type": "point", "filled": True, "color": BLUE, "size": 60},
                "encoding": {"x": {"field": "mean", **x}, "y": y},
            },
        ],
    }


def _reliability(bins: Sequence[Json]) -> dict[str, Any]:
    rows = [{"predicted": entry["mean_probability"], **entry["observed"]} for entry in bins]
    x = {"field": "predicted", "type": "quantitative", "title": "predicted probability", "scale": {"domain": [0, 1]}}
    y = {"type": "quantitative", "title": "observed share", "scale": {"domain": [0, 1]}}
    line = [{"predicted": 0, "mean": 0}, {"predicted": 1, "mean": 1}]
    return {
        "data": {"values": rows},
        "width": 280,
        "height": 280,
        "layer": [
            {
                "data": {"values": line},
                "mark": {"type": "line", "color": GREY, "strokeDash": [5, 4]},
                "encoding": {"x": x, "y": {"field": "mean", **y}},
            },
            {
                "mark": {"type": "rule", "color": BLUE},
                "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "color": BLUE},
                "encoding": {
                    "x": x,
                    "y": {"field": "mean", **y},
                    "size": {"field": "n", "type": "quantitative", "title": "pairs"},
                },
            },
        ],
    }


def _curve(points: Sequence[Json]) -> dict[str, Any]:
    names = {"train_accuracy": "training pairs", "accuracy": "held-out pairs"}
    rows = [
        {"update": point["update"], "accuracy": point[key], "rows": name, "member": point["member"]}
        for point in points
        for key, name in names.items()
    ]
    return {
        "data": {"values": rows},
        "height": 180,
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "update", "type": "quantitative", "title": "update", "axis": {"tickMinStep": 1}},
            "y": {"field": "accuracy", "type": "quantitative", "title": "accuracy", "scale": {"zero": False}},
            "color": {"field": "rows", "type": "nominal", "title": None, "scale": {"range": [BLUE, GREY]}},
            "detail": {"field": "member", "type": "nominal"},
        },
    }


def _trap_bars(found: Json) -> dict[str, Any]:
    rows = [{"label": _words(name), **entry} for name, entry in found["by"].items()]
    y = {"field": "label", "type": "nominal", "sort": [row["label"] for row in rows], "title": None}
    x = {"type": "quantitative", "title": "median score (sd of the reference)"}
    lines = [
        {
            "mark": {"type": "rule", "color": INK, "strokeDash": dash},
            "encoding": {"x": {"datum": found["reference"][name]}},
        }
        for name, dash in (("median", [2, 3]), ("upper_quartile", [6, 4]))
    ]
    colour = {
        "field": "verdict",
        "type": "nominal",
        "scale": {"domain": ["ok", "warn", "critical"], "range": [BLUE, "#d69e2e", RED]},
    }
    bar = {"mark": {"type": "bar", "height": 12}, "encoding": {"x": {"field": "median", **x}, "y": y, "color": colour}}
    return {"data": {"values": rows}, "height": {"step": 20}, "layer": [bar, *lines]}
