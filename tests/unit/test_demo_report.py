"""The report of the demo: one summary in, a page, a file and a table out."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from plaudit import demo_report

KEYS = {
    "seconds",
    "peak_memory_bytes",
    "agreement",
    "reward_model",
    "hidden_preference",
    "win_rate",
    "readability",
    "kl",
    "kl_budget",
    "gate",
    "gate_reasons",
    "canary",
    "promoted",
    "rolled_back",
}


def span(mean: float, half: float, n: int = 120) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def a_summary() -> dict[str, Any]:
    """What a whole run of the demo hands to the report; the figures are made up."""
    return {
        "seconds": 512.3,
        "peak_memory_bytes": 3_400_000_000,
        "agreement": {"raw": 0.61, "ac1": 0.31, "alpha": 0.28},
        "reward_model": {
            "accuracy": 0.69,
            "bag_of_words": 0.63,
            "length_only": 0.55,
            "difference": span(0.06, 0.05, 88),
            "n": 88,
        },
        "hidden_preference": {
            "base": 0.52,
            "candidate": 0.61,
            "difference": span(0.09, 0.03),
            "headroom_fraction": 0.34,
        },
        "win_rate": span(0.66, 0.07),
        "readability": {"base_nll": 1.4, "candidate_nll": 1.5},
        "kl": 4.1,
        "kl_budget": 8.0,
        "gate": "pass",
        "gate_reasons": [],
        "canary": {"decision": "promote", "n_users": 420, "reasons": ["no guardrail fired"]},
        "promoted": True,
        "rolled_back": True,
        "extra": {
            "made_at": "2026-11-22 09:00 UTC",
            "plan": {
                "name": "full",
                "base": "smollm2",
                "seed": 0,
                "twin": None,
                "twin_says": "",
                "people": "support",
                "guideline": "Choose the one you would rather send.",
                "overlap": 3,
            },
            "hardware": {
                "cpu": "A CPU",
                "cores": 2,
                "memory_bytes": 24e9,
                "system": "Linux",
                "python": "3.11",
            },
            "aggregation": "MAP Dawid-Skene",
            "kl_budget": 8.0,
            "counts": {
                "interactions": 830,
                "feedback": 512,
                "annotations": 1140,
                "comparisons": 380,
                "annotators": 12,
                "preferences": 240,
                "prompts": 240,
                "approvals": 2,
                "refusals": 2,
                "measurements": 96,
                "alerts": 1,
                "resolved": 1,
            },
            "agreement": {"raw": span(0.61, 0.02), "ac1": span(0.31, 0.03), "alpha": span(0.28, 0.03)},
            "annotators": [
                {
                    "name": f"annotator-{i:02d}",
                    "n": 95,
                    "reliability": 0.5 + i / 30,
                    "low": 0.4 + i / 30,
                    "high": min(1.0, 0.6 + i / 30),
                    "truth": "careful" if i > 5 else "spammer",
                }
                for i in range(12)
            ],
            "reward_model": {
                "rows": [
                    {"label": "reward model", **span(0.69, 0.09, 88)},
                    {"label": "bag of words", **span(0.63, 0.1, 88)},
                    {"label": "length only", **span(0.55, 0.1, 88)},
                ],
                "differences": {"bag_of_words": span(0.06, 0.05, 88), "length_only": span(0.14, 0.06, 88)},
                "bins": [{"predicted": 0.05 + i / 10, "observed": 0.08 + i / 11, "n": 5 + i} for i in range(10)],
                "groups": [
                    {
                        "name": "new",
                        "n_pairs": 41,
                        "accuracy": span(0.66, 0.12, 41),
                        "n_up": 12,
                        "n_down": 9,
                        "auc": span(0.71, 0.2, 18),
                    },
                    {"name": "returning", "n_pairs": 0, "accuracy": None, "n_up": None, "n_down": None, "auc": None},
                ],
            },
            "ppo": [{"step": i, "score": i * 0.13, "kl": i * 0.35, "length": 38 - i * 0.4} for i in range(1, 14)],
            "utilities": {
                "users": {"base": 0.52, "candidate": 0.61, "difference": span(0.09, 0.03)},
                "guideline": {"base": 0.5, "candidate": 0.63, "difference": span(0.13, 0.04)},
            },
            "gate": [
                {"name": "win rate", "shown": "0.66 [0.59, 0.73]", "threshold": "low above 0.5", "passed": True},
                {"name": "kl", "shown": "4.10", "threshold": "at most 8", "passed": True},
            ],
            "examples": {
                "seed": 0,
                "of": 120,
                "rows": [
                    {
                        "prompt": f"How do I reset <b>my</b> password, number {i}?",
                        "base": "I am SmolLM. The password & the rest " * 3,
                        "candidate": "Sorry to hear that. Open the settings, choose Security and press Reset.",
                        "base_utility": 0.31,
                        "candidate_utility": 0.72,
                    }
                    for i in range(20)
                ],
            },
            "canary": {
                "looks": [
                    {
                        "look": i,
                        "e_value": 0.8**i,
                        "n_candidate": 20 * i,
                        "n_control": 20 * i,
                        "verdict": "hold",
                    }
                    for i in range(1, 8)
                ],
                "threshold": 80.0,
                "goal_margin": 0.1,
                "down_rate_difference": span(-0.03, 0.06, 420),
                "assumed_feedback_rate": 0.5,
                "feedback_rate": span(0.49, 0.04, 500),
                "n_users": {"candidate": 212, "control": 208},
            },
            "ledger": [{"at": "09:00:01", "actor": "alice", "what": "approve for canary", "outcome": "done"}],
            "alerts": {
                "metric": "thumbs_up_rate",
                "title": "thumbs up, share of thumbs",
                "bands": [(15.0, 25.0)],
                "rule": {"name": "satisfaction_fell", "warn": -0.1},
                "rows": [{"seconds": 5 * i, "value": 0.3 + (0.5 if 2 < i < 5 else 0), "n": 60} for i in range(8)],
                "events": [{"at": "09:01", "rule": "thumbs-down", "state": "fired", "message": "0.8 above 0.6"}],
            },
            "due": [
                {"when": "right after the turn", "started": False, "reasons": ["0 new preferences of 100"]},
                {"when": "after more answers", "started": True, "reasons": []},
            ],
            "steps": [
                {"name": name, "seconds": 3.0 * at, "said": "done"}
                for at, name in enumerate("up ask sample annotate aggregate freeze reward ppo".split(), start=1)
            ],
            "baselines_say": "Best-of-4 costs four times the tokens.",
            "baselines": [
                {"label": name, "utility": 0.6, "difference": span(gain, 0.03), "words": 30.0}
                for name, gain in (("PPO", 0.09), ("system prompt", 0.02), ("best of 4", 0.1), ("SFT", 0.04))
            ],
        },
    }


class Page(HTMLParser):
    """Text and the addresses that a page would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.hidden = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.hidden += tag == "style"
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def page() -> str:
    return demo_report.render(a_summary())


def test_the_page_is_one_file_that_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert [address for address in parsed.loads if not address.startswith("#")] == []
    assert not re.search(r"@import|url\((?!#)", page)


def test_terminal_and_page_show_the_same_figures(page: str) -> None:
    words = Page(page).words()
    for figure in demo_report.figures(a_summary()):
        assert f"{figure.name} {figure.text}" in words


def test_the_groups_of_users_stand_beside_each_other_and_are_simulated(page: str) -> None:
    words = Page(page).words()
    start = words.index("simulated The same model by the group")
    assert "new 41 0.66 [0.54, 0.78] 12 9 0.71 [0.51, 0.91] returning 0 – – – –" in words[start:]
    summary = copy.deepcopy(a_summary())
    summary["extra"]["reward_model"]["groups"] = []
    assert "liked above disliked" not in demo_report.render(summary, {})


def test_what_a_model_wrote_is_shown_and_not_run(page: str) -> None:
    assert "<b>my</b>" not in page
    assert "How do I reset <b>my</b> password, number 0?" in Page(page).words()


def test_every_picture_fits_both_widths_and_follows_the_colour_scheme(page: str) -> None:
    pictures = demo_report.pictures(a_summary())
    assert set(pictures) == {
        *("annotators", "accuracy", "calibration", "ppo_score", "ppo_kl", "ppo_length"),
        *("utilities", "canary", "alerts", "steps", "baselines"),
    }
    for name, picture in pictures.items():
        for svg, limit in ((picture.wide, 601), (picture.narrow, demo_report.NARROW + 1)):
            width = re.search(r'width="(\d+)', svg)
            assert width is not None, name
            assert int(width[1]) <= limit, name
            assert "var(--ink)" in svg, name
            assert "#1001" not in svg, name  # a stand-in colour that was not replaced
        assert picture.rows, name
    ids = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_figures_of_simulated_people_say_so() -> None:
    simulated = {figure.name for figure in demo_report.figures(a_summary()) if figure.simulated}
    assert {"Win rate against base, ties half", "Held-out users' utility", "Agreement, raw"} <= simulated
    for name, picture in demo_report.pictures(a_summary()).items():
        assert picture.simulated or name in ("ppo_kl", "ppo_length", "steps"), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gate": "fail", "gate_reasons": ["win rate is .49"], "promoted": False}, "win rate is .49"),
        (
            {"canary": {"decision": "roll_back", "n_users": 90, "reasons": ["harm"]}, "promoted": False},
            "roll_back (harm)",
        ),
        ({"hidden_preference": {"base": 0.5, "candidate": 0.51, "difference": span(0.01, 0.03)}}, "includes zero"),
    ],
)
def test_no_gain_is_claimed_where_anything_says_no(change: dict[str, Any], says: str) -> None:
    summary = a_summary() | change
    assert demo_report.gained(a_summary())
    assert not demo_report.gained(summary)
    assert demo_report.headline(summary).startswith("No gain is claimed")
    assert says in demo_report.headline(summary)


def test_a_refused_run_is_still_reported(tmp_path: Path) -> None:
    summary = copy.deepcopy(a_summary())
    summary |= {
        "gate": "fail",
        "gate_reasons": ["kl is over its budget"],
        "canary": {"decision": None, "n_users": 0, "reasons": []},
        "promoted": False,
        "rolled_back": False,
    }
    for part in ("canary", "ledger", "alerts", "due", "baselines"):
        del summary["extra"][part]
    page, numbers = demo_report.write(summary, tmp_path)
    assert "No canary ran" in Page(page.read_text()).words()
    kept = json.loads(numbers.read_text())
    assert kept == summary
    assert set(kept) == KEYS | {"extra"}
