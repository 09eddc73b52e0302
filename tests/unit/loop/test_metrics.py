"""Declared metrics: what each one sums per user, by hand-made rows; what they decide; how often they err, over many experiments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from plaudit.domain import (
    Assignment,
    CompletionStatus,
    Experiment,
    FeedbackKind,
    Interaction,
    Project,
    Response,
    ResponseScore,
)
from plaudit.errors import BadInput
from plaudit.loop import collect, experiment, metrics, outcomes
from plaudit.loop.experiment import Observed, Rules
from plaudit.loop.metrics import PerUser
from plaudit.stats.looks import Metric
from plaudit.store.database import Store
from plaudit.store.experiment import Window, exposures

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_each_metric_sums_what_it_says_of_each_user(
    store: Store, project: Project, chat: Callable[..., Interaction]
) -> None:
    def turn(actor: str, arm: str, answer: str = "Press it.", **more: object) -> Interaction:
        return chat(actor=actor, answers=(answer,), assignment=Assignment("rel", "exp_1", arm, 0, 0.5), **more)

    first = turn("ada", "candidate", "I'm sorry, I can't help with that.", conversation_id="c1")
    second = turn("ada", "candidate", conversation_id="c2", status=CompletionStatus.ERROR)
    other = turn("bob", "control", now=NOW + timedelta(hours=1))
    turn("bob", "released")  # another phase of the same experiment is another arm
    for about, kind, value in (
        (first, FeedbackKind.RATING, 4),
        (second, FeedbackKind.RATING, 1),
        (first, FeedbackKind.EDIT, "Hold it."),
        (first, FeedbackKind.SIGNAL, "regenerate"),
        (first, FeedbackKind.SIGNAL, "regenerate"),
        (other, FeedbackKind.SIGNAL, "re_enerate"),
        (other, FeedbackKind.THUMB, True),
    ):
        body = {"interaction_id": about.id, "kind": str(kind), "value": value}
        collect.record_feedback(store, project.id, body, None, NOW + timedelta(hours=2))
    early, late = NOW + timedelta(minutes=30), NOW + timedelta(hours=3)
    for user, value, at in (("ada", 5, early), ("bob", 7, early), ("bob", 2.5, late)):
        outcomes.record(store, project.id, [{"user": user, "name": "won", "value": value, "at": at.isoformat()}], late)
    for value, days in ((3, 1), (4, 3)):
        at = (NOW - timedelta(days=days)).isoformat()
        outcomes.record(store, project.id, [{"user": "ada", "name": "won", "value": value, "at": at}], late)
    (answer,) = store.find(Response, interaction_id=other.id)
    store.add(ResponseScore(id=answer.id, project_id=project.id, checkpoint_id="ckp", value=-1.5, created_at=NOW))
    names = [*metrics.MEASURED, "outcome:won", "signal:re_enerate"]
    made = Experiment(
        id="exp_1", project_id=project.id, candidate_id="rel", control_id="rel_2", salt="s", stages=(0.5,),
        rules=asdict(Rules()), created_at=NOW, metrics=metrics.declare([Metric(name, "monitor", "up") for name in names]),
    )  # fmt: skip
    store.add(made)
    seen = experiment.observe(store, "exp_1")
    assert seen.in_candidate.tolist() == [True, False]  # ada, bob
    found = {
        name: list(zip(one.sums.tolist(), one.counts.tolist(), strict=True)) for name, one in seen.declared.items()
    }
    assert found == {
        "thumbs_up": [(0, 2), (1, 1)],
        "thumbs_down": [(0, 2), (0, 1)],
        "rating": [(5, 2), (0, 0)],
        "edit_rate": [(1, 2), (0, 1)],
        "regenerate_rate": [(1, 2), (0, 1)],
        "return_rate": [(1, 1), (0, 1)],
        "score": [(0, 0), (-1.5, 1)],
        "length": [(34 + 9, 2), (9, 1)],
        "latency": [(9, 1), (9, 1)],
        "errors": [(1, 2), (0, 1)],
        "refusals": [(1, 2), (0, 1)],
        "outcome:won": [(5, 1), (2.5, 1)],  # bob's 7 came before he was assigned
        "signal:re_enerate": [(0, 2), (1, 1)],
    }
    past = {name: one.before for name, one in seen.declared.items() if one.before is not None}
    assert {name: str(one.tolist()) for name, one in past.items()} == {"outcome:won": "[7.0, nan]"}
    # Of all traffic: whatever answered them, by what was known at the end.
    with store.read() as tx:
        early_on, at_last = (
            metrics.per_user_within(tx, window, metrics.declared(made), exposures(tx, window))
            for window in (Window(project.id, NOW, NOW + timedelta(hours=end)) for end in (1, 3))
        )
    found = {name: list(zip(one.sums.tolist(), one.counts.tolist(), strict=True)) for name, one in at_last.items()}
    twice = {"thumbs_up": (1, 2), "edit_rate": (0, 2), "length": (18, 2), "latency": (18, 2), "errors": (0, 2)}
    assert {name: found[name][1] for name in twice} == twice  # bob's other arm counts
    assert found["outcome:won"] == [(5, 1), (9.5, 1)]
    assert [found[name][0] for name in ("rating", "edit_rate", "errors", "refusals", "return_rate")] == [
        (5, 2), (1, 2), (1, 2), (1, 2), (1, 1),
    ]  # fmt: skip
    nothing = {name: early_on[name].sums.tolist() for name in ("rating", "edit_rate", "thumbs_up", "regenerate_rate")}
    assert set(map(tuple, nothing.values())) == {(0.0, 0.0)}  # feedback came two hours later
    assert early_on["outcome:won"].sums.tolist() == [5, 7]
    assert str(early_on["outcome:won"].before) == "[ 7. nan]"
    # In the same layer a pilot has met the same users in the same arms: what they brought since then is no past.
    store.add(replace(made, id="exp_0", created_at=NOW - timedelta(days=2), state="stopped"))
    before = experiment.observe(store, "exp_1").declared["outcome:won"].before
    assert before is not None
    assert before[0] == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([Metric("reward", "goal", "up")], "'reward' is no metric"),
        ([Metric("outcome:", "goal", "up")], "'outcome:' is no metric"),
        ([Metric("rating", "goal", "up"), Metric("rating", "monitor", "up")], "declared twice"),
        ([Metric("rating", "goal", "up", -0.1)], "margin"),
    ],
)
def test_what_cannot_be_declared(given: list[Metric], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        metrics.declare(given)


# --- judging -----------------------------------------------------------------------------------------------------------

N = 600
ARMS = np.arange(N) % 2 == 0
ONE_STAGE = np.zeros(N, dtype=np.int64)


def judged(metric: Metric, values: np.ndarray, counts: np.ndarray | None = None, stage: np.ndarray = ONE_STAGE):
    n = np.ones(len(values)) if counts is None else counts
    return metrics.judge(metric, PerUser(values, n), ARMS, stage, 0.01, 800, 200)


def test_the_difference_is_that_of_users_and_who_says_nothing_is_nobody() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 3, N).astype(float)
    values = counts * np.where(ARMS, 3.0, 2.0) + rng.normal(0, 0.01, N) * counts
    reading = judged(Metric("rating", "goal", "up"), values, counts).reading
    assert (reading.state, reading.n_candidate) == ("waiting", int((counts[ARMS] > 0).sum()))
    assert reading.waits == "bounds need 200 users in each arm with a value"
    full = judged(Metric("rating", "goal", "up"), values + 1e-9, np.maximum(counts, 1)).reading
    assert full.candidate == pytest.approx(values[ARMS].sum() / np.maximum(counts, 1)[ARMS].sum())


def test_goals_guardrails_and_monitors_say_what_bounds_say() -> None:
    better = np.where(ARMS, 3.0, 2.0) + np.random.default_rng(2).normal(0, 0.3, N)
    assert judged(Metric("rating", "goal", "up"), better).reading.state == "met"
    down = judged(Metric("rating", "goal", "down", 0.5), better)
    assert down.reading.state == "missed"
    assert down.missed.startswith("goal rating: +1")
    assert down.missed.endswith("must be below +0.5 for certain")
    fired = judged(Metric("latency", "guardrail", "down"), better).guardrail
    assert fired is not None
    assert (fired.fired, fired.name) == (True, "latency")
    quiet = judged(Metric("latency", "guardrail", "down", margin=2.0), better)
    assert (quiet.reading.state, quiet.missed) == ("quiet", "")
    assert judged(Metric("latency", "monitor", "down"), better).reading.state == "watched"


def test_one_rich_user_decides_nothing_and_a_share_of_none_is_not_certain() -> None:
    rich = np.random.default_rng(3).normal(10, 1, N)
    rich[0] = 1e9
    assert judged(Metric("outcome:won", "guardrail", "down"), rich).reading.difference.high < 1
    none = judged(Metric("errors", "goal", "down", margin=1e-4), np.zeros(N)).reading
    assert none.state == "missed"
    assert none.difference.high > 1e-4
    assert judged(Metric("latency", "goal", "down"), np.zeros(N)).reading.waits == "it is one value for everybody"


def test_a_rare_event_counts_although_a_rich_user_would_not() -> None:
    """Four errors of 800 users, all of them the candidate's: cutting the highest 1 % would cut them all."""
    errors = np.zeros(N)
    errors[np.flatnonzero(ARMS)[:4]] = 1.0
    assert judged(Metric("errors", "monitor", "down"), errors).reading.difference.mean == pytest.approx(
        4 / ARMS.sum(), rel=0.01
    )
    spent = judged(Metric("outcome:won", "monitor", "up"), errors).reading
    assert spent.waits == "it is one value for everybody"


def test_stages_are_compared_within_themselves() -> None:
    """The base rate doubles between two stages whose arms are of other sizes; pooled it would look like a difference of 0.4."""
    stage = (np.arange(N) >= 300).astype(np.int64)
    arms = np.where(stage == 0, np.arange(N) % 10 < 3, np.arange(N) % 10 < 7)
    values = 1.0 + stage + np.random.default_rng(4).normal(0, 0.01, N)
    found = metrics.judge(Metric("rating", "monitor", "up"), PerUser(values, np.ones(N)), arms, stage, 0.01, 800, 200)
    assert abs(found.reading.difference.mean) < 0.01
    assert abs(values[arms].mean() - values[~arms].mean()) > 0.3


def test_a_users_own_past_sharpens_an_outcome_by_what_it_predicts_and_moves_nothing() -> None:
    """200 experiments, correlation .8 with the past: 1 - .64 of the variance is left. The negative control is a past of somebody else."""
    means: dict[str, list[float]] = {"plain": [], "own": [], "another's": []}
    left: dict[str, list[float]] = {"own": [], "another's": []}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        past, noise = rng.normal(size=N), rng.normal(size=N)
        values = 0.2 * ARMS + 0.8 * past + 0.6 * noise
        for name, before in (("plain", None), ("own", past), ("another's", rng.permutation(past))):
            one = PerUser(values, np.ones(N), before)
            found = metrics.judge(Metric("outcome:won", "goal", "up"), one, ARMS, ONE_STAGE, 0.05, 800, 200).reading
            means[name].append(found.difference.mean)
            assert (found.adjusted is None) == (name == "plain")
            if found.adjusted:
                left[name].append(found.adjusted["variance_fraction"])
    spread = {name: np.var(some) for name, some in means.items()}
    assert abs(np.mean(means["own"]) - 0.2) < 4 * np.sqrt(spread["own"] / 200)
    assert np.mean(left["own"]) == pytest.approx(0.36, abs=0.03)
    assert 0.25 < spread["own"] / spread["plain"] < 0.5
    assert np.mean(left["another's"]) == pytest.approx(1.0, abs=0.01)
    assert 0.9 < spread["another's"] / spread["plain"] < 1.1


def test_who_has_no_past_is_left_alone_and_it_is_said() -> None:
    rng = np.random.default_rng(7)
    past, values = rng.normal(size=N), rng.normal(size=N)
    readings = []
    for before in (None, np.full(N, np.nan), np.where(np.arange(N) < 200, past, np.nan)):
        one = PerUser(values + (0 if before is None else 3 * np.nan_to_num(before)), np.ones(N), before)
        readings.append(
            metrics.judge(Metric("outcome:won", "goal", "up"), one, ARMS, ONE_STAGE, 0.05, 800, 200).reading
        )
    assert readings[1].difference == readings[0].difference
    assert readings[1].adjusted == {"n_users": 0, "variance_fraction": 1.0}
    assert readings[2].adjusted["n_users"] == 200
    assert readings[2].adjusted["variance_fraction"] < 0.5


def observed(values: dict[str, np.ndarray]) -> Observed:
    zeros, events = np.zeros(N, dtype=np.int64), np.zeros(0, dtype=bool)
    return Observed(
        ARMS, ONE_STAGE, zeros + 1, zeros, zeros, zeros, zeros > 0, events, np.zeros(0), events, np.zeros(0), 0,
        {name: PerUser(one, np.ones(N)) for name, one in values.items()},
    )  # fmt: skip


def test_an_experiment_decides_by_what_was_declared() -> None:
    rng = np.random.default_rng(5)
    worse = {"outcome:won": np.where(ARMS, 2.0, 3.0) + rng.normal(0, 0.3, N)}

    def decide(role: str, margin: float = 0.0) -> experiment.Look:
        declared = [Metric("outcome:won", role, "up", margin)]  # type: ignore[arg-type]
        return experiment.analyse(observed(worse), Rules(), 0, 1, declared=declared)

    assert (decide("guardrail").verdict, decide("guardrail").figures["decided_by"]) == ("roll_back", "guardrail")
    assert decide("guardrail").reasons[0].startswith("guardrail outcome:won: -0.998 [")
    assert (decide("goal").verdict, decide("goal").figures["decided_by"]) == ("hold", "goal")
    assert decide("goal", margin=2.0).verdict == decide("monitor").verdict == "promote"
    (figure,) = decide("monitor").figures["metrics"]
    assert (figure["name"], figure["state"], figure["difference"]["n"]) == ("outcome:won", "watched", N)


def test_declared_guardrails_share_alpha_with_the_others() -> None:
    plain = experiment.analyse(observed({}), Rules(), 0, 1).figures["guardrails"]
    values = {"latency": np.random.default_rng(6).normal(9, 1, N)}
    metric = Metric("latency", "guardrail", "down")
    found = experiment.analyse(observed(values), Rules(), 0, 1, declared=[metric]).figures
    assert {one["name"]: one["threshold"] for one in plain}["first_error"] == pytest.approx(4 / 0.05)
    assert {one["name"]: one["threshold"] for one in found["guardrails"]}["first_error"] == pytest.approx(5 / 0.05)
    assert found["metrics"][0]["alpha"] == pytest.approx(0.05 / 5)
    goal = experiment.analyse(observed(values), Rules(), 0, 1, declared=[replace(metric, role="goal")]).figures
    assert goal["metrics"][0]["alpha"] == 0.05


def test_an_equal_outcome_seldom_fires_however_often_one_looks_and_a_z_test_does() -> None:
    """120 A/A experiments with skewed revenue, twenty looks each. At alpha .05 more than 14 of 120 happen less than once in a thousand."""
    fired = naive = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        values = np.where(rng.random(1200) < 0.3, rng.lognormal(2, 1, 1200), 0.0)
        arms = rng.random(1200) < 0.5
        hit = cried = False
        for end in range(60, 1201, 60):
            one = PerUser(values[:end], np.ones(end))
            stage = np.zeros(end, dtype=np.int64)
            found = metrics.judge(Metric("outcome:won", "guardrail", "up"), one, arms[:end], stage, 0.05, 1200, 200)
            hit |= found.reading.state == "fired"
            a, b = values[:end][~arms[:end]], values[:end][arms[:end]]
            cried |= (b.mean() - a.mean()) / np.sqrt(a.var() / len(a) + b.var() / len(b)) < -1.645
        fired, naive = fired + hit, naive + cried
    assert fired <= 14
    assert naive > 20  # the negative control in the same harness
