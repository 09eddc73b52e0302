"""guards.md: its tables are the guards and their figures, its limits the defaults."""

from __future__ import annotations

import math
from dataclasses import replace

from plaudit.learn import configs, guards, readings

from .conftest import code_in

NAMES = (
    "score",
    "tokens",
    "kl",
    "kl_base",
    "gold",
    "disagreement",
    "entropy",
    "embedding_distance",
    *readings.FORMAT_FIGURES,
)


def test_every_figure_is_on_the_page(pages) -> None:
    first = readings.Sampled([0, 0, 1, 1], [[1, 2, 3, 4]] * 4, {name: [1.0, 2.0, 1.0, 2.0] for name in NAMES})
    now = replace(first, figures=first.figures | {"score": [91.0, 92.0, 91.0, 92.0]})
    law = [(d, d * (1 - math.log(d)) if d else 0.0) for d in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)]
    trends = [
        readings.Trend(step, readings.Mean(gain, 0.1, 3), readings.Mean(d, 0.1, 3), d * d)
        for step, (d, gain) in enumerate(law, 1)
    ]
    found = readings.read(configs.GuardsConfig(), configs.KLConfig(), first, now, trends)
    shown = pages["guards.md"].section("Figures").names()
    assert sorted(shown) == sorted(f"guard_{name}" for name in found.figures)


def test_every_guard_is_on_the_page_with_its_signal_and_limits(pages) -> None:
    rows = pages["guards.md"].section("What fires, and when").rows()
    assert [code_in(row[0])[0] for row in rows] == list(guards.GUARDS)
    defaults = configs.GuardsConfig()
    for name, *cells in ([code_in(row[0])[0], *row[2:]] for row in rows):
        for limit, cell in zip(getattr(defaults, name) if name != "traps" else (), cells, strict=False):
            shown = {f"{limit:g}", f"{limit:g}".lstrip("0"), f"{limit:.0%}".replace("%", " %")}
            assert any(one in cell for one in shown) or (name, limit) in {("kl", 1.0), ("kl_base", 1.0)}, (name, limit)


def test_act_on_and_patience_are_those_of_the_code(pages) -> None:
    defaults, text = configs.GuardsConfig(), pages["guards.md"].text
    assert " and ".join(f"`{name}`" for name in defaults.act_on) in text
    assert f"in a row: {defaults.patience}, since" in text
    assert f"; {defaults.kl_patience} for\nthe KL budgets" in text
