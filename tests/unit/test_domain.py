from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from datetime import UTC
from enum import StrEnum

import pytest

from plaudit import domain
from plaudit.domain import (
    ALERT_TRANSITIONS,
    COMPARISON_TRANSITIONS,
    EXPERIMENT_TRANSITIONS,
    NOUNS,
    PREFIXES,
    RELEASE_TRANSITIONS,
    RUN_TRANSITIONS,
    Completion,
    Interaction,
    ReleaseState,
    Response,
    ResponseScore,
    check_transition,
    new_id,
    utc_now,
)
from plaudit.errors import Conflict

TABLES = {
    "release": (RELEASE_TRANSITIONS, domain.ReleaseState),
    "run": (RUN_TRANSITIONS, domain.RunState),
    "comparison": (COMPARISON_TRANSITIONS, domain.ComparisonState),
    "experiment": (EXPERIMENT_TRANSITIONS, domain.ExperimentState),
    "alert": (ALERT_TRANSITIONS, domain.AlertState),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_covers_every_state(name: str) -> None:
    table, kind = TABLES[name]
    assert set(table) == set(kind)
    assert set().union(*table.values()) <= set(kind)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ReleaseState.RETIRED, ReleaseState.LIVE),  # the way back
        (ReleaseState.CANARY, ReleaseState.LIVE),
        (ReleaseState.LIVE, ReleaseState.ROLLED_BACK),
    ],
)
def test_a_legal_transition_passes(before: ReleaseState, after: ReleaseState) -> None:
    check_transition(RELEASE_TRANSITIONS, before, after, "Release rel_1")


def test_an_illegal_transition_says_what_would_be_legal() -> None:
    with pytest.raises(
        Conflict, match="Release rel_1 is canary and cannot become candidate; from canary it may become live, "
    ):
        check_transition(RELEASE_TRANSITIONS, ReleaseState.CANARY, ReleaseState.CANDIDATE, "Release rel_1")
    with pytest.raises(Conflict, match="it is final"):
        check_transition(RELEASE_TRANSITIONS, ReleaseState.ROLLED_BACK, ReleaseState.LIVE, "Release rel_1")


def test_what_was_rolled_back_is_never_served_again() -> None:
    """From rolled_back no path leads anywhere: such a policy comes back only as a new Release, through the gate."""
    reached: set[StrEnum] = {ReleaseState.ROLLED_BACK}
    table: Mapping[StrEnum, frozenset[StrEnum]] = RELEASE_TRANSITIONS
    for _ in ReleaseState:
        reached |= set().union(*(table[state] for state in reached))
    assert reached == {ReleaseState.ROLLED_BACK}


def test_ids_carry_their_prefix_and_sort_by_time_across_threads() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(ids: list[str]) -> None:
        ids.extend(new_id(Interaction) for _ in range(2000))

    threads = [threading.Thread(target=make, args=(ids,)) for ids in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [id for ids in made for id in ids]
    assert len(set(everything)) == 8000
    assert all(ids == sorted(ids) for ids in made)  # made later sorts later
    assert {len(id) for id in everything} == {len("int_") + 21}
    assert all(id.startswith("int_") for id in everything)


def test_ids_increase_also_while_the_clock_stands_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([10**18] * 20 + [10**18 - 10**9] * 20)
    monkeypatch.setattr(domain, "_last", 0)
    monkeypatch.setattr(domain.time, "time_ns", lambda: next(moments))
    made = [new_id(Interaction) for _ in range(40)]
    assert made == sorted(made)


def test_an_id_made_now_sorts_after_one_of_long_ago() -> None:
    long_ago = "int_" + domain._base32(1_000_000_000_000_000, 11) + "z" * 10  # 2001
    assert long_ago < new_id(Interaction)


def test_prefixes_are_unique_but_for_rows_which_bear_the_id_of_another() -> None:
    prefixes = [prefix for kind, prefix in PREFIXES.items() if kind not in (Completion, ResponseScore)]
    assert len(set(prefixes)) == len(prefixes)
    assert PREFIXES[Completion] == PREFIXES[Interaction]
    assert PREFIXES[ResponseScore] == PREFIXES[Response]


def test_nouns_are_frozen() -> None:
    for kind in NOUNS:
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert {"id", "project_id"} <= {field.name for field in dataclasses.fields(kind)}


def test_now_is_aware_and_utc() -> None:
    assert utc_now().tzinfo is UTC
