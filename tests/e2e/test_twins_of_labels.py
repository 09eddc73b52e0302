"""Twins whose annotators say nothing. (Two files of twins, because a file runs in one process and each takes minutes.)"""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("twin", ["shuffled-labels", "spammers-only"])
def test_worthless_labels_claim_no_gain(claims_no_gain: Callable[[str], None], twin: str) -> None:
    claims_no_gain(twin)
