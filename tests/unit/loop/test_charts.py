"""Charts: what every picture promises to the page that holds it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from plaudit.loop import charts

ROWS = [{"step": at, "kl": at**0.5, "arm": "a"} for at in range(1, 10)]
SPANS = [{"label": f"model {at}", "mean": 0.5, "low": 0.4, "high": 0.7} for at in range(3)]
BARS = [{"label": "ask", "value": 3.25}, {"label": "train", "value": 60.0}]
BINS = [{"predicted": 0.2, "observed": 0.25, "n": 12}, {"predicted": 0.8, "observed": 0.7, "n": 30}]


def draw(name: str, width: int = charts.WIDTH) -> str:
    match name:
        case "lines":
            return charts.lines(
                ROWS, x="step", y="kl", x_title="step", y_title="KL, nats", about="KL <grows>", width=width,
                rule=2.0, rule_label="budget 2", bands=[(2.0, 4.0)],
            )  # fmt: skip
        case "spans":
            return charts.spans(SPANS, x_title="accuracy, share", about="three models", rule=0.5, width=width)
        case "bars":
            return charts.bars(BARS, x_title="time, seconds", about="time", width=width)
    return charts.calibration(BINS, x_title="predicted", y_title="observed, share", about="calibration", width=width)


NAMES = ("lines", "spans", "bars", "calibration")


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_one_svg_that_fits_and_takes_the_colours_of_its_page(name: str) -> None:
    for width in (600, 328):
        svg = draw(name, width)
        root = ET.fromstring(svg)
        assert float(root.attrib["width"]) <= width + 1
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', svg))
        assert {colour for colour in colours if colour.startswith("#")} == set()
        assert "var(--ink)" in colours
        assert "var(--c1)" in colours


def test_axes_carry_their_titles_and_rules_their_labels() -> None:
    words = " ".join(ET.fromstring(draw("lines")).itertext())
    for text in ("KL, nats", "step", "budget 2"):
        assert text in words
    assert "60.0" in " ".join(ET.fromstring(draw("bars")).itertext())  # a bar's own figure


def test_what_a_picture_says_of_itself_is_text_and_not_markup() -> None:
    assert ET.fromstring(draw("lines")).attrib["aria-label"] == "KL <grows>"


def test_a_log_axis_spreads_powers_of_ten_evenly() -> None:
    rows = [{"look": at, "e": 10.0**at} for at in range(4)]
    svg = charts.lines(rows, x="look", y="e", x_title="look", y_title="e-value", about="e", log=True)
    path = next(d for d in re.findall(r' d="(M[^"]+)"', svg) if d.count("L") == 3)
    heights = [float(point.split(",")[1]) for point in re.findall(r"[ML]([\d.,-]+)", path)]
    steps = [before - after for before, after in pairwise(heights)]
    assert max(steps) - min(steps) < 1.0
    assert min(steps) > 10


def test_two_pictures_share_a_page_without_sharing_clip_paths() -> None:
    ids = [set(re.findall(r'<clipPath id="([^"]+)"', draw(name))) for name in NAMES]
    assert sum(len(one) for one in ids) == len(set().union(*ids))
    for name in NAMES:
        svg = draw(name)
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(re.findall(r'id="([^"]+)"', svg))
