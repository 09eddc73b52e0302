from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.loop.snapshots.splits import families_together, split_of, splits


def test_a_familys_place_does_not_depend_on_what_else_is_there() -> None:
    fractions = (0.7, 0.1, 0.2)
    places = [split_of(f"family {i}", 3, fractions) for i in range(4000)]
    shares = [places.count(split) / 4000 for split in ("train", "valid", "test")]
    assert shares == pytest.approx(fractions, abs=0.03)  # 4 standard deviations of a share of .7
    assert places != [split_of(f"family {i}", 4, fractions) for i in range(4000)]
    # printf '0:family 0' | sha256sum starts with 98: 0x98 / 0x100 = .59, and so on. It must never change: it is in people's Snapshots.
    assert [split_of(f"family {i}", 0, (0.5, 0.25, 0.25)) for i in range(8)] == [
        "valid", "test", "valid", "train", "train", "train", "train", "valid",
    ]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 9)), max_size=30))
def test_families_together_are_the_connected_components(rows: list[tuple[str, int]]) -> None:
    """Against the closure computed by brute force."""
    together = families_together(rows)
    groups = {family: {family} for family, _ in rows}
    for _ in rows:
        for family, number in rows:
            for other, same in rows:
                if number == same:
                    merged = groups[family] | groups[other]
                    for one in merged:
                        groups[one] = groups[one] | merged
    assert together == {family: min(group) for family, group in groups.items()}


def test_strata_have_their_shares_and_the_evaluation_its_own() -> None:
    fractions = (0.5, 0.25, 0.25)
    families = [f"family {i}" for i in range(400)]
    slices = {family: Counter({"rare" if i % 20 == 0 else "common": 3}) for i, family in enumerate(families)}
    together = {family: family for family in families}
    placed = splits(together, slices, 0, fractions)
    for name, n in (("rare", 20), ("common", 380)):
        found = Counter(placed[family] for family in families if name in slices[family])
        assert found == {"train": n * 0.5, "valid": n * 0.25, "test": n * 0.25}
    by_chance = splits(together, {}, 0, fractions)
    rare = Counter(by_chance[family] for family in families if "rare" in slices[family])
    assert rare != {"train": 10, "valid": 5, "test": 5}  # the control: this seed is uneven without strata
    asked = splits(together, slices, 0, fractions, evaluation_fraction=0.3)
    assert list(asked.values()).count("evaluation") == pytest.approx(120, abs=4 * (400 * 0.3 * 0.7) ** 0.5)
    linked = splits({**together, "family 1": "family 0"}, {}, 0, fractions, 0.3)
    assert linked["family 1"] == linked["family 0"]
