"""Experiments: the ramp, what is observed, and whole experiments simulated over many seeds (with a negative control)."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from plaudit.domain import (
    Completion,
    CompletionStatus,
    Experiment,
    ExperimentState,
    Feedback,
    FeedbackKind,
    Interaction,
    InteractionSource,
    Measurement,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Refused
from plaudit.loop import experiment, govern, release, serving
from plaudit.loop.experiment import Observed, Rules
from plaudit.loop.serving import ServingConfig
from plaudit.store.database import Store

from .ramp import CANARY, LIVE, NOW, P, running


@pytest.fixture
def store(store: Store) -> Store:
    govern.ensure_project(store, NOW)
    store.add(LIVE, CANARY)
    return store


# --- the ramp ----------------------------------------------------------------------------------------------------------


def test_start_needs_a_canary_against_the_live_one_and_runs_alone(store: Store) -> None:
    with pytest.raises(Conflict, match="needs a canary"):
        experiment.start(store, P, LIVE.id, CANARY.id, NOW)
    with pytest.raises(BadInput, match="growing"):
        experiment.start(store, P, CANARY.id, LIVE.id, NOW, stages=(0.5, 0.1))
    with pytest.raises(BadInput, match=r"0\.6"):
        experiment.start(store, P, CANARY.id, LIVE.id, NOW, stages=(0.1, 0.6))
    with pytest.raises(BadInput, match="below 200"):
        Rules(min_users=50)
    with pytest.raises(BadInput, match="alhpa"):
        experiment.rules_from({"alhpa": 0.1})
    made = experiment.start(store, P, CANARY.id, LIVE.id, NOW, rules=experiment.rules_from({"goal_margin": 0.2}))
    assert made.rules["goal_margin"] == 0.2
    with pytest.raises(Conflict, match="is running"):
        experiment.start(store, P, CANARY.id, LIVE.id, NOW)
    govern.verify_audit(store, P)


def test_every_change_gives_the_serving_config_another_version(store: Store) -> None:
    before = serving.serving_config(store, P)
    assert (before.live, before.experiment) == (LIVE, None)
    made = experiment.start(store, P, CANARY.id, LIVE.id, NOW)
    after = serving.serving_config(store, P)
    assert after.version > before.version
    assert (after.experiment, after.candidate) == (made, CANARY)
    release.roll_back(store, P, "op", "", NOW)
    last = serving.serving_config(store, P)
    assert last.version > after.version
    assert (last.experiment, last.candidate) == (None, None)


def test_the_ramp_goes_on_after_a_look_that_allows_it_and_each_stage_is_looked_at_anew(store: Store) -> None:
    # A named layer: with a salt of chance 300 users are too few for the first stage once in thirty times.
    made = experiment.start(store, P, CANARY.id, LIVE.id, NOW, layer="steady")
    with pytest.raises(Refused, match="nobody has looked"):
        experiment.advance(store, P, made.id, "op", NOW)
    experiment.look(store, made.id, NOW)
    with pytest.raises(Refused, match="needs 20 users in each arm"):
        experiment.advance(store, P, made.id, "op", NOW)
    serve(store, made, 300)
    experiment.look(store, made.id, NOW)
    moved = experiment.advance(store, P, made.id, "op", NOW + timedelta(hours=1))
    assert (moved.stage, moved.figures, len(moved.stage_started_at)) == (1, {}, 2)
    with pytest.raises(Conflict, match="last stage"):
        experiment.advance(store, P, made.id, "op", NOW)


# --- observing ---------------------------------------------------------------------------------------------------------


def serve(store: Store, made: Experiment, n_users: int, down: float = 0.0, seed: int = 0) -> None:
    """Messages of users as the gateway records them, thumbs at random."""
    rng = np.random.default_rng(seed)
    rows: list[object] = []
    for i in range(n_users):
        assignment = serving.assign(ServingConfig(1, LIVE, CANARY, made), f"user-{i}")
        rows += message(f"user-{i}", assignment.arm, assignment.experiment_id, made.stage)
        if rng.random() < down:
            rows.append(thumb(rows[-2], up=False))
    store.add(*rows)


def message(
    actor: str | None,
    arm: str | None,
    experiment_id: str | None = "exp_1",
    stage: int = 0,
    *,
    conversation: str = "c",
    status: CompletionStatus = CompletionStatus.OK,
    minutes: int = 0,
) -> list[object]:
    at = NOW + timedelta(minutes=minutes)
    interaction = Interaction(
        id=new_id(Interaction),
        project_id=P,
        conversation_id=conversation,
        turn=1,
        actor=actor,
        messages=(),
        family="f",
        prompt_sha256="",
        source=InteractionSource.GATEWAY,
        release_id=None,
        served_release_id=None,
        experiment_id=experiment_id,
        arm=arm,
        stage=stage if arm else None,
        assignment_probability=0.5 if arm else None,
        created_at=at,
    )
    return [interaction, Completion(id=interaction.id, project_id=P, status=status, model="m", created_at=at)]


def thumb(interaction: object, *, up: bool, minutes: int = 0, **more: object) -> Feedback:
    assert isinstance(interaction, Interaction)
    at = NOW + timedelta(minutes=minutes)
    return Feedback(
        id=new_id(Feedback),
        project_id=P,
        interaction_id=interaction.id,
        response_idx=0,
        kind=FeedbackKind.THUMB,
        value={"up": up},
        actor=interaction.actor,
        natural_key=None,
        body_sha256="",
        created_at=at,
        **more,
    )  # type: ignore[arg-type]


def test_observed_counts_users_once_by_assigned_arm(store: Store) -> None:
    a1, a2, a3 = (message("a", "candidate", conversation=c, minutes=m) for c, m in (("c1", 0), ("c1", 1), ("c2", 2)))
    b = message("b", "control", stage=1, status=CompletionStatus.ERROR, minutes=3)
    twice = [*message("c", "candidate"), *message("c", "control")]
    outside = [*message(None, "candidate"), *message("d", None, None), *message("e", "candidate", "exp_other")]
    store.add(*a1, *a2, *a3, *b, *twice, *outside)
    first = thumb(a2[0], up=False, minutes=4)
    changed = thumb(a2[0], up=True, minutes=5, supersedes=first.id)
    store.add(first, changed, thumb(a3[0], up=False, minutes=6), thumb(twice[0], up=False), thumb(outside[4], up=False))
    seen = experiment.observe(store, "exp_1")
    assert seen.in_candidate.tolist() == [True, False]  # a, b
    assert seen.stage.tolist() == [0, 1]
    assert seen.n_messages.tolist() == [3, 1]
    assert seen.returned.tolist() == [True, False]
    assert seen.n_down.tolist() == [2, 0]
    assert seen.n_up.tolist() == [1, 0]
    assert seen.n_with_feedback.tolist() == [2, 0]
    assert (seen.down_in_candidate.tolist(), seen.down_probability.tolist()) == ([True], [0.5])
    assert seen.error_in_candidate.tolist() == [False]
    assert seen.n_double == 1


def test_a_users_first_thumbs_down_carries_the_probability_of_its_time(store: Store) -> None:
    rows = [message("a", "candidate", minutes=m) for m in range(3)]
    store.add(*(row for turn in rows for row in turn))
    for turn, probability in zip(rows, (0.5, 0.25, 0.75), strict=True):
        store.change(Interaction, turn[1].id, assignment_probability=probability)  # type: ignore[attr-defined]
    store.add(
        thumb(rows[1][0], up=False, minutes=8),
        thumb(rows[0][0], up=False, minutes=4),
        thumb(rows[2][0], up=False, minutes=9),
    )
    seen = experiment.observe(store, "exp_1")
    assert (seen.down_in_candidate.tolist(), seen.down_probability.tolist()) == ([True], [0.5])


def test_a_look_keeps_its_figures_and_an_ended_experiment_its_last_ones(store: Store) -> None:
    made = experiment.start(store, P, CANARY.id, LIVE.id, NOW)
    serve(store, replace(made, stage=1), 900, down=0.2)
    found = experiment.look(store, made.id, NOW + timedelta(minutes=1))
    assert (found.verdict, found.reasons) == ("hold", ("the ramp is at stage 1 of 2",))
    kept = store.get(Experiment, made.id).figures
    assert kept == found.figures
    assert sum(kept["n_users"].values()) == 900
    assert kept["feedback_rate"]["mean"] == pytest.approx(0.2, abs=0.05)
    experiment.look(store, made.id, NOW + timedelta(minutes=1))
    measured = store.find(Measurement, metric="experiment_down_rate_difference")[0]
    assert store.count(Measurement) == 1  # looking again without news adds no point
    assert measured.low == kept["down_rate_difference"]["low"]
    release.roll_back(store, P, "op", "", NOW)
    assert experiment.look(store, made.id, NOW + timedelta(minutes=2)) == found
    assert store.get(Experiment, made.id).state == ExperimentState.ROLLED_BACK


# --- the order of decisions --------------------------------------------------------------------------------------------


def seen(
    n: int = 300,
    n_candidate: int | None = None,
    downs: tuple[int, int] = (0, 0),
    n_double: int = 0,
    messages: tuple[int, int] = (1, 1),
) -> Observed:
    """`n` control users and `n_candidate` candidates; downs and messages a user are (candidate, control)."""
    c = n if n_candidate is None else n_candidate
    chosen = np.arange(c + n) < c
    n_down = np.zeros(c + n, dtype=np.int64)
    n_down[: downs[0]] = 1
    n_down[c : c + downs[1]] = 1
    events = np.arange(sum(downs)) < downs[0]
    return Observed(
        in_candidate=chosen,
        stage=np.ones(c + n, dtype=np.int64),
        n_messages=np.where(chosen, *messages),
        n_down=n_down,
        n_up=np.zeros_like(n_down),
        n_with_feedback=n_down,
        returned=np.zeros(c + n, dtype=bool),
        down_in_candidate=events,
        down_probability=np.full(len(events), 0.5),
        error_in_candidate=events[:0],
        error_probability=np.zeros(0),
        n_double=n_double,
    )


def decide(observed: Observed, rules: Rules | None = None, stage: int = 1) -> experiment.Look:
    return experiment.analyse(observed, rules or Rules(), stage, 2)


def test_no_harm_over_enough_users_at_the_last_stage_says_promote() -> None:
    assert decide(seen(downs=(3, 3))).verdict == "promote"
    assert decide(seen(downs=(3, 3)), stage=0).reasons == ("the ramp is at stage 1 of 2",)
    few = decide(seen(n=199))
    assert (few.verdict, few.reasons) == ("hold", ("199 candidate and 199 control users; 200 in each arm are needed",))


def test_a_guardrail_comes_before_everything_else() -> None:
    harmful = decide(seen(n=60, downs=(40, 8), n_double=30), stage=0)
    assert harmful.verdict == "roll_back"
    assert harmful.reasons[0].startswith("guardrail first_thumbs_down: e = ")
    assert not harmful.figures["may_advance"]
    errors = replace(seen(), error_in_candidate=np.ones(20, dtype=bool), error_probability=np.full(20, 0.5))
    assert decide(errors).reasons[0].startswith("guardrail first_error")


def test_an_arm_that_is_only_used_more_is_not_called_harmful() -> None:
    """The e-process on first thumbs-down fires, but per message there are no more of them."""
    busy = seen(downs=(110, 40), messages=(3, 1))
    by_name = {g["name"]: g for g in decide(busy).figures["guardrails"]}
    assert by_name["first_thumbs_down"]["value"] > by_name["first_thumbs_down"]["threshold"]
    assert decide(busy).verdict != "roll_back"


def test_a_broken_assignment_holds_whatever_the_goal_says() -> None:
    lost = decide(seen(n=400, n_candidate=300))
    assert (lost.verdict, lost.figures["may_advance"]) == ("hold", False)
    assert "planned numbers" in lost.reasons[0]
    assert decide(seen(n_double=6)).verdict == "promote"  # 1 % of 606
    both = decide(seen(n_double=7))
    assert "met both arms" in both.reasons[0]
    assert decide(seen(n=900, n_candidate=100)).figures["down_rate_difference"] is None


def test_a_stop_lasts_over_looks(store: Store) -> None:
    made = experiment.start(store, P, CANARY.id, LIVE.id, NOW)
    candidates = [f"u{i}" for i in range(500)]
    store.add(*(row for user in candidates for row in message(user, "candidate", made.id)))
    assert experiment.look(store, made.id, NOW).figures["stopped"]
    store.add(*(row for i in range(500) for row in message(f"late{i}", "control", made.id)))
    found = experiment.look(store, made.id, NOW)
    assert found.figures["n_users"] == {"candidate": 500, "control": 500}
    assert (found.verdict, found.figures["decided_by"], found.figures["may_advance"]) == ("hold", "assignment", False)


def test_the_goal_is_judged_by_its_worst_end() -> None:
    slightly = seen(n=300, downs=(45, 30))
    assert decide(slightly).reasons[0].startswith("thumbs-down per message may be up to +0.")
    assert decide(slightly, Rules(goal_margin=0.2)).verdict == "promote"


def test_fewer_returning_users_roll_back() -> None:
    gone = replace(seen(n=400), returned=np.arange(800) % 3 == 0)
    kept = replace(gone, returned=gone.returned | ~gone.in_candidate)
    assert decide(gone).verdict == "promote"
    assert decide(kept).reasons[0].startswith("guardrail return_rate: -0.")


# --- whole experiments, many times -------------------------------------------------------------------------------------


N_USERS = 1000


def z_test(chosen: np.ndarray, event: np.ndarray) -> float:
    a, b = event[~chosen], event[chosen]
    rate = event.mean()
    return (b.mean() - a.mean()) / math.sqrt(rate * (1 - rate) * (1 / len(a) + 1 / len(b)))


def simulate(seed: int, harm: float, usage: float = 1.0) -> tuple[str, bool]:
    """One experiment of 1,000 users with a look each 100: (what it ends with, whether a z-test read at every look would have cried harm).

    Users differ (Beta), the base rate drifts by half over the run, and the ramp widens after 300 arrivals. `harm` multiplies the
    candidate's rate of thumbs-down per message.
    """
    rng = np.random.default_rng(seed)
    configs = [ServingConfig(7, LIVE, CANARY, running(s, f"salt-{seed}")) for s in (0, 1)]
    met = [serving.assign(configs[int(i >= 300)], f"user-{i}") for i in range(1300)]
    enrolled = [assignment for assignment in met if assignment.arm][:N_USERS]
    chosen = np.array([assignment.arm == "candidate" for assignment in enrolled])
    stage = np.array([assignment.stage for assignment in enrolled])
    size = len(enrolled)
    rate = rng.beta(2, 18, size) * (1 - 0.5 * np.arange(size) / N_USERS) * np.where(chosen, harm, 1.0)
    n = 1 + rng.poisson(2 * np.where(chosen, usage, 1.0))
    down = rng.binomial(n, np.minimum(rate, 1.0))
    cried = any(z_test(chosen[:t], down[:t] > 0) > 1.645 for t in range(100, size + 1, 25))
    for t in range(100, size + 1, 100):
        c, n_down, n_messages = chosen[:t], down[:t], n[:t]
        first = c[n_down > 0]
        found = experiment.analyse(
            Observed(
                in_candidate=c,
                stage=stage[:t],
                n_messages=n_messages,
                n_down=n_down,
                n_up=n_down * 0,
                n_with_feedback=n_down,
                returned=n_messages > 2,
                down_in_candidate=first,
                down_probability=np.full(len(first), 0.5),
                error_in_candidate=first[:0],
                error_probability=np.zeros(0),
                n_double=0,
            ),
            Rules(n_planned=N_USERS),
            int(stage[t - 1]),
            2,
        )
        if found.verdict == "roll_back":
            break
    return found.verdict, cried


def a_a(n: int, most: int) -> None:
    ended = [simulate(seed, harm=1.0) for seed in range(n)]
    assert sum(verdict == "roll_back" for verdict, _ in ended) <= most
    assert np.mean([cried for _, cried in ended]) > 0.15  # the negative control: a z-test at every look


def test_an_equal_candidate_is_rolled_back_no_more_often_than_alpha_allows() -> None:
    a_a(50, most=9)  # of 50 at alpha .05, more than 9 happen less than once in a thousand


@pytest.mark.slow
def test_an_equal_candidate_over_many_experiments() -> None:
    a_a(600, most=47)


def test_a_harmful_candidate_is_rolled_back_and_a_better_one_is_not() -> None:
    harmful = [simulate(seed, harm=2.0)[0] for seed in range(1000, 1015)]
    assert harmful.count("roll_back") >= 13
    assert "promote" not in harmful
    better = [simulate(seed, harm=0.6)[0] for seed in range(2000, 2015)]
    assert better.count("promote") >= 13
    assert "roll_back" not in better


@pytest.mark.slow
def test_use_alone_is_not_harm_over_many_experiments() -> None:
    """An arm used 30 % more at the same rate: the e-process alone calls it harmful in about 60 % of experiments."""
    assert np.mean([simulate(seed, harm=1.0, usage=1.3)[0] == "roll_back" for seed in range(200)]) < 0.2
