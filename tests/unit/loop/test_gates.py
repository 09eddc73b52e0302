"""Conditions of the config over any figure, and the way around a gate. The house's own conditions: test_evaluate.py, on its figures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from plaudit.domain import (
    AuditEntry,
    Checkpoint,
    CheckpointKind,
    Decision,
    Evaluation,
    GateVerdict,
    Person,
    Project,
    Release,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Forbidden, NotFound
from plaudit.loop import gates, govern, release
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FIGURES = {
    "rows": "batch b",
    "win_rate": {"mean": 0.6, "low": 0.52, "high": 0.68, "n": 120},
    "count": 7,
    "suites": {"red": {"rows": "red.jsonl", "difference": {"mean": 0.01, "low": -0.02, "high": 0.04, "n": 80}}},
}


def one(**table: Any) -> gates.Condition:
    (bound,) = gates.parse([{"name": "c", **table}])
    return gates._bounded(bound, FIGURES)


@pytest.mark.parametrize(
    ("table", "passed"),
    [
        ({"figure": "win_rate", "at_least": 0.6}, True),
        ({"figure": "win_rate", "at_least": 0.6, "use": "low"}, False),
        ({"figure": "suites.red.difference", "at_most": 0.03}, True),
        ({"figure": "suites.red.difference", "at_most": 0.03, "use": "high"}, False),
        ({"figure": "count", "at_least": 7, "at_most": 7}, True),
        ({"figure": "count", "at_least": 8, "at_most": 9}, False),
        ({"figure": "count", "at_least": 5, "at_most": 6}, False),
        ({"figure": "suites.blue.difference", "at_most": 1}, False),
        ({"figure": "suites.red", "at_most": 1}, False),
    ],
)
def test_a_condition_of_the_config(table: dict[str, Any], passed: bool) -> None:
    assert one(**table).passed is passed


def test_a_verdict_has_its_figure_interval_threshold_and_rows() -> None:
    found = one(figure="suites.red.difference", at_most=0.03, use="high")
    assert found.interval == FIGURES["suites"]["red"]["difference"]
    assert (found.value, found.threshold, found.rows) == (0.04, 0.03, "red.jsonl")
    assert found.text == "c: the high of suites.red.difference 0.010 [-0.020, 0.040] (n = 80) must be at most 0.03"
    missing = one(figure="suites.blue.difference", at_most=1)
    assert (missing.text, missing.rows) == ("c: suites.blue.difference was not measured", "batch b")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"figure": "score"}, "no figure for its gate"),
        ({"figure": "measures.reward.mean", "at_least": 1}, "no figure for its gate"),
        ({"figure": "win_rate"}, "limits"),
        ({"figure": "win_rate", "at_least": "much"}, "limits"),
        ({"figure": "win_rate", "at_least": True}, "limits"),
        ({"figure": "", "at_least": 1}, "figure ''"),
        ({"figure": "win_rate", "at_least": 1, "use": "middle"}, "uses 'middle'"),
        ({"figure": "win_rate", "atleast": 1}, "did you mean 'at_least'"),
    ],
)
def test_conditions_are_checked_when_they_are_read(table: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        gates.parse([{"name": "c", **table}])


def test_conditions_have_names_of_their_own() -> None:
    table = {"name": "c", "figure": "count", "at_least": 1}
    with pytest.raises(BadInput, match="Two gate conditions are called 'c'"):
        gates.parse([table, table])
    with pytest.raises(BadInput, match="Gate condition 0"):
        gates.parse(["count > 1"])


# --- the way around ----------------------------------------------------------------------------------------------------


@pytest.fixture
def failed(store: Store, project: Project) -> Evaluation:
    for name, role in (("Ann", "admin"), ("Bob", "approver"), ("Cy", "approver")):
        govern.create_key(store, project.id, name, [role], name, now=NOW)
    made = Evaluation(
        id=new_id(Evaluation), project_id=project.id, checkpoint_id="ckp_1", against_id=None, suite="s", figures={},
        gate=GateVerdict.FAIL, reasons=("kl is 9",), created_at=NOW,
    )  # fmt: skip
    store.add(made)
    return made


def test_only_a_named_role_overrides_and_it_is_on_the_log(store: Store, failed: Evaluation) -> None:
    with pytest.raises(Forbidden, match=r"Bob may not override a gate \(approver\); it takes admin"):
        gates.override(store, failed.project_id, failed.id, "Bob", "I want it", NOW)
    with pytest.raises(BadInput, match="reason is empty"):
        gates.override(store, failed.project_id, failed.id, "Ann", " ", NOW)
    with pytest.raises(NotFound, match="'Eve'"):
        gates.override(store, failed.project_id, failed.id, "Eve", "why", NOW)
    with pytest.raises(NotFound, match="no Evaluation"):
        gates.override(store, failed.project_id, "evl_none", "Ann", "why", NOW)
    assert store.count(AuditEntry, action=gates.OVERRIDE) == 0
    made = gates.override(store, failed.project_id, failed.id, "Ann", "the budget was wrong", NOW)
    assert (made.actor, made.role, made.after) == ("Ann", "admin", {"reason": "the budget was wrong"})
    assert made.before == {"gate": "fail", "reasons": ["kl is 9"]}
    govern.verify_audit(store, failed.project_id)


def test_a_key_that_was_ended_gives_no_right(store: Store, failed: Evaluation) -> None:
    ann = store.first(Person, name="Ann")
    assert ann is not None
    for key in store.find(govern.ApiKey, person_id=ann.id):
        govern.revoke_key(store, failed.project_id, key.id, NOW)
    with pytest.raises(Forbidden, match="no role"):
        gates.override(store, failed.project_id, failed.id, "Ann", "why", NOW)


def test_what_passed_needs_no_override(store: Store, failed: Evaluation) -> None:
    store.change(Evaluation, failed.id, gate=GateVerdict.PASS)
    with pytest.raises(Conflict, match="nothing to override"):
        gates.override(store, failed.project_id, failed.id, "Ann", "why", NOW)


def test_an_overridden_gate_lets_its_release_pass_but_not_by_the_same_person(store: Store, failed: Evaluation) -> None:
    govern.create_key(store, failed.project_id, "both", ["approver"], "Ann", now=NOW)
    made = Release(
        id="rel_1",
        project_id=failed.project_id,
        checkpoint_id="ckp_1",
        model="m",
        upstream="u",
        created_at=NOW,
        state_at=NOW,
    )
    policy = Checkpoint(
        id="ckp_1",
        project_id=failed.project_id,
        kind=CheckpointKind.POLICY,
        folder="f",
        sha256="0" * 64,
        base="tiny",
        created_at=NOW,
    )
    store.add(policy, made)

    def reasons() -> list[str]:
        with store.read() as tx:
            return release.reasons_against(tx, made, release.ReleaseState.CANARY, NOW)

    def approve(who: str) -> None:
        govern.approve(store, failed.project_id, made.id, "canary", who, Decision.APPROVE, "read", NOW)

    approve("Bob")
    assert reasons() == [f"the gate of evaluation {failed.id} says fail: kl is 9"]
    gates.override(store, failed.project_id, failed.id, "Ann", "why", NOW)
    assert reasons() == []
    store.add(
        Evaluation(
            id=new_id(Evaluation),
            project_id=failed.project_id,
            checkpoint_id="ckp_1",
            against_id=None,
            suite="judge",
            figures={},
            created_at=NOW,
        )
    )
    assert reasons() == [], "a suite without a gate decides nothing"
    approve("Ann")
    assert reasons() == ["Ann overrode its gate; the approvals need other people"]
    approve("Cy")
    again = Evaluation(
        id=new_id(Evaluation),
        project_id=failed.project_id,
        checkpoint_id="ckp_1",
        against_id=None,
        suite="s",
        figures={},
        gate=GateVerdict.FAIL,
        reasons=("kl is 8.5",),
        created_at=NOW,
    )
    store.add(again)
    assert reasons() == [f"the gate of evaluation {again.id} says fail: kl is 8.5"], "it held for that Evaluation alone"
