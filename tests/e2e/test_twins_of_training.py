"""Twins whose training gains nothing, or gains it by a trick; and that every twin is tested in one of the two files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from plaudit.demo_steps.plan import TWINS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("twin", ["equal-candidate", "hackable-reward"])
def test_idle_or_tricked_training_claims_no_gain(claims_no_gain: Callable[[str], None], twin: str) -> None:
    claims_no_gain(twin)


def test_every_twin_is_tested() -> None:
    files = Path(__file__).parent.glob("test_twins_of_*.py")
    tested = {
        name
        for file in files
        for line in re.findall(r'"twin", \[(.*)\]', file.read_text())
        for name in re.findall(r'"([a-z-]+)"', line)
    }
    assert tested == set(TWINS)
