from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from plaudit.domain import (
    Checkpoint,
    CheckpointKind,
    Experiment,
    ExperimentState,
    Interaction,
    Release,
    ReleaseState,
    new_id,
)
from plaudit.loop import collect, govern, outcomes
from plaudit.loop.reward_and_business import Point, answer, ask, names
from plaudit.stats.intervals import Interval
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
P = "prj_default"


def points(rewards: Sequence[float], seen: Sequence[float]) -> list[Point]:
    return [
        Point(
            f"exp_{place}", "rel_0", "m", "promoted", NOW, reward, "training", Interval(mean, mean - 1, mean + 1, 400)
        )
        for place, (reward, mean) in enumerate(zip(rewards, seen, strict=True))
    ]


@pytest.mark.parametrize(
    ("n", "sign", "said"), [(7, 1, "Too few: 7"), (8, 1, "Yes"), (8, -1, "No"), (8, 0, "One of the two never changed")]
)
def test_the_answer_by_how_many_and_which_way(n: int, sign: int, said: str) -> None:
    rewards = [0.1 * place + 0.1 for place in range(n)]
    found = answer("thumbs", points(rewards, [sign * reward for reward in rewards]))
    assert found.verdict.startswith(said)
    assert (found.correlation is not None) == (n == 8 and sign != 0)
    assert found.same_sign == (n if sign == 1 else 0)


def test_noise_shows_nothing_and_what_lacks_a_figure_does_not_count() -> None:
    rewards, seen = [1, 2, 3, 4, 5, 6, 7, 8], [3, 1, 4, -1, -5, 9, -2, 6]
    for sign in (1, -1):  # on neither side of zero
        noise = points(rewards, [sign * one for one in seen])
        found = answer("thumbs", [*noise, Point("exp_9", "rel_0", "m", "stopped", NOW, None, "", None)])
        assert found.verdict.startswith("Not shown")
        assert (len(found.points), len(found.counted)) == (9, 8)
    assert answer("thumbs", points([1.0] * 8, seen)).verdict.startswith("One of the two never changed")


def over(store: Store, figures: dict[str, Any], checkpoint_id: str | None = None) -> Experiment:
    one = Release(
        id=new_id(Release), project_id=P, checkpoint_id=checkpoint_id, model="m", upstream="fake:", state=ReleaseState.RETIRED,
        created_at=NOW, state_at=NOW,
    )  # fmt: skip
    made = Experiment(
        id=new_id(Experiment), project_id=P, candidate_id=one.id, control_id=one.id, salt="s", stages=(0.5,),
        state=ExperimentState.STOPPED, figures=figures, created_at=NOW, ended_at=NOW,
    )  # fmt: skip
    store.add(one, made)
    return made


def test_figures_of_the_look_come_first_and_less_harm_is_more(store: Store) -> None:
    govern.ensure_project(store, NOW)
    change = {"mean": -0.1, "low": -0.2, "high": 0.05, "n": 500}
    score = {"name": "score", "better": "up", "difference": {"mean": 0.4, "low": 0.1, "high": 0.7, "n": 500}}
    effort = {"name": "outcome:effort", "better": "down", "difference": change}
    over(store, {"down_rate_difference": change, "metrics": [score, effort]})
    (thumbs,) = ask(store, P).points
    (effort_point,) = ask(store, P, "effort").points
    assert (thumbs.reward, thumbs.reward_from) == (0.4, "answers")
    assert thumbs.outcome == effort_point.outcome == Interval(0.1, -0.05, 0.2, 500)


def test_else_the_reward_is_what_training_gained_and_what_runs_is_no_point(store: Store) -> None:
    govern.ensure_project(store, NOW)
    gains = {"ckp_1": {"score": 0.9, "score_first": 0.5}, "ckp_2": {"score": 0.9, "score_first": None}}
    for id, metrics in gains.items():
        store.add(Checkpoint(id=id, project_id=P, kind=CheckpointKind.POLICY, folder=id, sha256=id, base="b",
                             metrics=metrics, created_at=NOW))  # fmt: skip
    waiting = {"metrics": [{"name": "score", "better": "up", "difference": None}]}  # declared, and not yet known
    for id in gains:
        over(store, waiting, id)
    running = over(store, {}, "ckp_1")
    store.change(Experiment, running.id, state=ExperimentState.RUNNING)
    assert [(one.reward, one.reward_from) for one in ask(store, P).points] == [(0.4, "training"), (None, "")]


def test_what_the_business_sent_is_summed_by_user_and_arm(store: Store) -> None:
    """Three users an arm, one in both. Means 4 and 1 of the sums {3, 5} and {2, 0}: worked out by hand."""
    govern.ensure_project(store, NOW)
    made = over(store, {})
    for user, arm in (
        ("a", "candidate"),
        ("b", "candidate"),
        ("c", "control"),
        ("d", "control"),
        ("x", "candidate"),
        ("x", "control"),
    ):
        body = {"messages": [{"role": "user", "content": user}], "responses": ["r"], "user": user}
        asked = collect.log_interaction(store, P, body, NOW)
        store.change(type(asked), asked.id, experiment_id=made.id, arm=arm)
    sent = [("a", 1.0), ("a", 2.0), ("b", 5.0), ("c", 2.0), ("x", 100.0)]
    bodies = [
        {"user": user, "name": "sales", "value": value, "at": f"2026-03-02T00:00:0{place}Z"}
        for place, (user, value) in enumerate(sent)
    ]
    outcomes.record(store, P, bodies, NOW)
    assert names(store, P) == ["thumbs", "sales"]
    assert names(store, "prj_other") == ["thumbs"]
    (point,) = ask(store, P, "sales").points
    assert point.outcome is not None
    assert (point.outcome.mean, point.outcome.n) == (3.0, 4)
    assert point.outcome.low == pytest.approx(3 - 1.959964 * 2**0.5)  # variances 2 and 2, two users each
    assert ask(store, P, "refunds").points[0].outcome is None
    for one in store.find(Interaction, actor="b"):
        store.change(Interaction, one.id, experiment_id=None, arm=None)  # one user alone has no variance
    assert ask(store, P, "sales").points[0].outcome is None
