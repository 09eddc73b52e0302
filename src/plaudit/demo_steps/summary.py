"""From what the steps found to the one object that page, file and terminal show. Its keys are listed in docs/demo.md."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from plaudit.demo_steps import offer
from plaudit.demo_steps.gather import GROUP, GROUPS, Gathered, counts_of
from plaudit.demo_steps.house import Demo
from plaudit.demo_steps.improve import Trained
from plaudit.demo_steps.offer import Offered
from plaudit.demo_steps.plan import GOAL_MARGIN, OVERLAP, TWINS
from plaudit.domain import (
    Alert,
    AlertState,
    Annotation,
    Approval,
    Comparison,
    Evaluation,
    Feedback,
    Interaction,
    Json,
    Measurement,
    utc_now,
)
from plaudit.simulate import FEEDBACK_RATE


def summarise(
    demo: Demo,
    gathered: Gathered,
    reward: Trained,
    policy: Trained,
    evaluation: Evaluation,
    hidden: Mapping[str, Any],
    offered: Offered | None,
    watched: Json,
    baselines: Json | None,
) -> Json:
    """Everything but `seconds`, `peak_memory_bytes` and `extra.steps`, which the clock knows at the end."""
    figures, report = evaluation.figures, gathered.report
    agreement = report["agreement"]
    simple = reward.result["baselines"]
    valid = reward.result["valid"]
    rate, kl = figures["win_rate"], figures["kl"]
    looked = offered.figures if offered else None
    return {
        "seconds": None,
        "peak_memory_bytes": None,
        "agreement": {
            name: agreement[name]["mean"] if agreement and agreement[name] else None for name in ("raw", "ac1", "alpha")
        },
        "reward_model": {
            "accuracy": valid["accuracy"]["mean"],
            "bag_of_words": simple["bag_of_words"]["accuracy"]["mean"],
            "length_only": simple["length_only"]["accuracy"]["mean"],
            "difference": _span(reward.result["difference"].get("bag_of_words")),
            "n": valid["n"],
        },
        "hidden_preference": {
            **hidden["users"],
            "headroom_fraction": baselines["headroom_fraction"] if baselines else None,
        },
        "win_rate": rate,
        "readability": _readability(figures),
        "kl": kl["mean"],
        "kl_budget": demo.options.plan.ppo.kl.budget,
        "gate": str(evaluation.gate),
        "gate_reasons": list(evaluation.reasons),
        "canary": {
            "decision": offered.decision if offered else None,
            "n_users": sum(looked["n_users"].values()) if looked else 0,
            "reasons": list(offered.reasons) if offered else [],
        },
        "promoted": bool(offered and offered.promoted),
        "rolled_back": bool(offered and offered.rolled_back),
        "extra": {
            "made_at": f"{utc_now():%Y-%m-%d %H:%M} UTC",
            "plan": _plan(demo),
            "counts": _counts(demo, gathered),
            "aggregation": f"{report['method']} ({report['reason']})",
            "agreement": {name: _span(agreement[name] if agreement else None) for name in ("raw", "ac1", "alpha")},
            "annotators": _annotators(demo, report),
            "reward_model": _reward(reward.result),
            "ppo": [{**row, "length": row["response_tokens"]} for row in policy.result["curve"]],
            "ppo_stop": policy.result["stop"],
            "kl_budget": demo.options.plan.ppo.kl.budget,
            "gate": [_condition(one) for one in figures["conditions"]],
            "figures": {name: value for name, value in figures.items() if name != "conditions"},
            "utilities": {"users": hidden["users"], "guideline": hidden["guideline"]},
            "examples": _examples(demo, hidden),
            "canary": _canary(offered) if offered else None,
            "served": {"candidate": offered.served_candidate, "base_again": offered.served_base_again}
            if offered
            else None,
            "ledger": offer.ledger(demo),
            **watched,
            "baselines": baselines["rows"] if baselines else None,
            "baselines_say": baselines["says"] if baselines else None,
        },
    }


def _plan(demo: Demo) -> Json:
    options = demo.options
    return {
        "name": options.plan.name,
        "base": options.plan.base,
        "seed": options.seed,
        "twin": options.twin,
        "twin_says": TWINS[options.twin] if options.twin else "",
        "people": demo.population.name,
        "guideline": demo.population.guideline,
        "overlap": OVERLAP,
    }


def _counts(demo: Demo, gathered: Gathered) -> Json:
    store, project = demo.store, demo.project_id

    def n(kind: type) -> int:
        return store.count(kind, project_id=project)

    return {
        "interactions": n(Interaction),
        "feedback": n(Feedback),
        "annotations": n(Annotation),
        "comparisons": n(Comparison),
        "annotators": len(demo.crowd.annotators),
        "preferences": sum(counts_of(gathered.record, "preferences").values()),
        "prompts": sum(counts_of(gathered.record, "prompts").values()),
        "approvals": n(Approval),
        "refusals": offer.n_refusals(demo),
        "measurements": n(Measurement),
        "alerts": n(Alert),
        "resolved": store.count(Alert, project_id=project, state=AlertState.RESOLVED),
        "snapshot": gathered.record.counts,
    }


def _span(value: Mapping[str, Any] | None) -> Json | None:
    return {name: value[name] for name in ("mean", "low", "high", "n")} if value else None


def _readability(figures: Mapping[str, Any]) -> Json:
    nll, repetition, eos = figures["nll"], figures["repetition"], figures["eos"]
    explained = (figures["gain_explained_by_length"] or {}).get("fraction")
    return {
        "base_nll": nll["base"]["mean"],
        "candidate_nll": nll["candidate"]["mean"],
        "nll_difference": nll["difference"],
        "base_repetition": repetition["base"]["mean"],
        "candidate_repetition": repetition["candidate"]["mean"],
        "base_eos_fraction": eos["base"]["mean"],
        "candidate_eos_fraction": eos["candidate"]["mean"],
        "gain_explained_by_length": explained,
    }


def _annotators(demo: Demo, report: Json) -> list[Json]:
    """With the truth beside the estimate; only here do the two meet."""
    truth = {person.name: person.behaviour for person in demo.training_crowd.annotators}
    rows = [
        {
            "name": one["name"],
            "n": one["n_answers"],
            "reliability": one["reliability"]["mean"],
            "low": one["reliability"]["low"],
            "high": one["reliability"]["high"],
            "first_fraction": one["first_fraction"],
            "truth": truth.get(one["name"], "unknown"),
        }
        for one in report["annotators"]
        if one["reliability"]
    ]
    return sorted(rows, key=lambda row: -float(row["reliability"]))


def _reward(result: Json) -> Json:
    valid, simple = result["valid"], result["baselines"]
    named = {"reward model": valid, "bag of words": simple["bag_of_words"], "length only": simple["length_only"]}
    return {
        "rows": [{"label": label, **found["accuracy"]} for label, found in named.items()],
        "differences": result["difference"],
        "bins": [
            {"predicted": one["mean_probability"], "observed": one["observed"]["mean"], "n": one["observed"]["n"]}
            for one in valid["bins"]
        ],
        "log_loss": valid["log_loss"],
        "ece": valid["ece"],
        "groups": _groups(result),
    }


def _groups(result: Json) -> list[Json]:
    """How well the reward model fits each group that users declared: on their Preferences and on their thumbs, both held out. None where a group
    has too few for the figure."""
    pairs = result["slices"].get(f"group:{GROUP}", {})
    thumbs = (result.get("thumbs") or {}).get("by", {}).get(f"group:{GROUP}", {})
    rows = []
    for name in GROUPS:
        pair, thumb = pairs.get(name), thumbs.get(name)
        rows.append(
            {
                "name": name,
                "n_pairs": pair["n"] if pair else 0,
                "accuracy": _span(pair["accuracy"]) if pair else None,
                "n_up": thumb["n_up"] if thumb else None,
                "n_down": thumb["n_down"] if thumb else None,
                "auc": _span(thumb["auc"]) if thumb else None,
            }
        )
    return rows


_SIGNS = {"prompts judged": "at least", "win rate": "interval above", "eos": "at least", "length change": "at most ±"}


def _condition(one: Json) -> Json:
    value, interval = one["value"], one["interval"]
    shown = "not measured" if value is None else f"{value:.3g}"
    if interval:
        shown = f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
    return {
        "name": one["name"],
        "shown": shown,
        "threshold": f"{_SIGNS.get(one['name'], 'at most')} {one['threshold']:g}",
        "passed": one["passed"],
    }


def _examples(demo: Demo, hidden: Mapping[str, Any]) -> Json:
    items, seed = hidden["items"], demo.options.seed
    drawn = random.Random(seed).sample(range(len(items)), min(demo.options.plan.n_examples, len(items)))
    return {
        "seed": seed,
        "of": len(items),
        "rows": [
            {
                "prompt": str(items[at].messages[-1]["content"]),
                "base": items[at].second.text,
                "candidate": items[at].first.text,
                "base_utility": hidden["base"].users[at],
                "candidate_utility": hidden["candidate"].users[at],
            }
            for at in drawn
        ],
    }


def _canary(offered: Offered) -> Json:
    figures = offered.figures
    return {
        "looks": [{name: value for name, value in look.items() if name != "figures"} for look in offered.looks],
        "threshold": offered.looks[-1]["threshold"],
        "assumed_feedback_rate": FEEDBACK_RATE,
        "feedback_rate": figures["feedback_rate"],
        "n_users": figures["n_users"],
        "down_rate_difference": figures["down_rate_difference"],
        "thumbs": figures["thumbs"],
        "goal_margin": GOAL_MARGIN,
    }
