"""Pilots, holdouts and segments: who meets what. Assignment is a pure function, so most of it needs no store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plaudit.domain import (
    Assignment,
    Experiment,
    ExperimentState,
    Interaction,
    Project,
    Release,
    ReleaseState,
)
from plaudit.errors import BadInput, Conflict
from plaudit.loop import experiment, pilots, pipeline, serving
from plaudit.loop.pilots import Pilot
from plaudit.loop.serving import Kept, Scope, ServingConfig
from plaudit.stats.looks import Metric
from plaudit.store.database import Store

from .ramp import CANARY, LIVE, P, offered

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


PRO = offered(ReleaseState.LIVE, "pro", "plan=pro")
GERMAN = offered(ReleaseState.LIVE, "german", "lang=de,plan=pro")
RUNNING = Experiment(
    id="exp_1", project_id=P, candidate_id=CANARY.id, control_id=LIVE.id, salt="s", stages=(0.5,), created_at=NOW
)
USERS = [f"user-{i}" for i in range(4000)]


@pytest.mark.parametrize(
    ("said", "served"),
    [
        ({}, LIVE),
        ({"plan": "free"}, LIVE),
        ({"plan": "pro", "lang": "fr"}, PRO),
        ({"plan": "pro", "lang": "de"}, GERMAN),
        ({"lang": "de"}, LIVE),
    ],
)
def test_the_narrowest_segment_answers_and_is_in_no_experiment_of_others(said: dict[str, Any], served: Release) -> None:
    narrower = (Scope(GERMAN, segment=GERMAN.segment), Scope(PRO, segment=PRO.segment))
    config = ServingConfig(1, LIVE, CANARY, RUNNING, narrower=narrower)
    assert serving.assign(config, None, None, said).release_id == served.id
    arms = {serving.assign(config, user, None, said).arm for user in USERS[:40]}
    assert arms == ({"candidate", "control"} if served is LIVE else {None})
    assert config.release(served.id) is served


def test_a_pilot_admits_by_name_or_segment_and_deals_the_rest_nothing() -> None:
    pilot = Pilot(segments=("staff=true", "seats=5"), users=pilots.named(["user-7"]))
    config = ServingConfig(1, LIVE, CANARY, RUNNING, pilot)
    dealt = {user: serving.assign(replace(config, pilot=None), user).arm for user in USERS}
    for user, said, admitted in (
        ("user-7", {}, True),
        ("user-8", {}, False),
        ("user-8", {"staff": True}, True),
        ("user-8", {"staff": "true"}, True),
        ("user-8", {"staff": False}, False),
        ("user-8", {"seats": 5}, True),
    ):
        found = serving.assign(config, user, None, said)
        assert (found.arm, found.experiment_id) == ((dealt[user], "exp_1") if admitted else (None, None))
    assert serving.assign(config, None, None, {"staff": True}) == Assignment(LIVE.id)


def test_what_a_pilot_may_cost_and_when_it_ends() -> None:
    pilot = Pilot(ends_at=NOW, cap=2.0, prompt_price=1.0, completion_price=4.0)
    assert pilot.spent(500_000, 250_000) == 1.5
    before = NOW - timedelta(seconds=1)
    assert pilot.over(1.9, before) == ""
    assert pilot.over(2.0, before) == "the pilot has cost 2 of 2"
    assert pilot.over(0.0, NOW) == "the pilot was to end at 2026-03-01 12:00 UTC"
    whom = Pilot(segments=("b=2, a=1",), users=pilots.named(["u"]), ends_at=NOW)
    assert pilots.from_json(pilots.to_json(whom)) == replace(whom, segments=("a=1,b=2",))
    assert pilots.from_json({}) is None
    for wrong in ({"cap": 1.0}, {"cap": -1.0, "prompt_price": 1.0}, {"cap": float("nan"), "prompt_price": 1.0}):
        with pytest.raises(BadInput):
            Pilot(**wrong)


def test_a_holdout_stays_out_and_is_a_fair_sample_of_both_arms() -> None:
    config = ServingConfig(1, LIVE, CANARY, replace(RUNNING, holdout=0.1))
    before = {user: serving.assign(ServingConfig(1, LIVE, CANARY, RUNNING), user).arm for user in USERS}
    held = [user for user in USERS if serving.assign(config, user).arm is None]
    assert abs(len(held) - 400) < 76  # 4 standard deviations of a binomial (4000, .1)
    arms = Counter(before[user] for user in held)
    assert abs(arms["candidate"] - len(held) / 2) < 4 * (len(held) / 4) ** 0.5
    promoted = replace(RUNNING, holdout=0.1, state=ExperimentState.PROMOTED)
    after = ServingConfig(2, CANARY, kept=Kept(LIVE, promoted))
    met = {user: serving.assign(after, user) for user in USERS}
    assert {user for user in USERS if met[user].arm == "holdout"} == set(held)  # who was held out before is now
    assert {one.release_id for one in met.values() if one.arm == "holdout"} == {LIVE.id}
    assert {one.release_id for one in met.values() if one.arm != "holdout"} == {CANARY.id}
    assert abs(Counter(one.arm for one in met.values())["released"] - 400) < 76
    assert after.release(LIVE.id) is LIVE
    # A conversation that began under the Release of before moves, unless its user is held out.
    for user in USERS[:60]:
        served = serving.assign(after, user, Assignment(LIVE.id))
        assert served.release_id == (LIVE.id if user in held else CANARY.id)


def test_experiments_of_one_layer_deal_alike_and_of_two_independently(store: Store, project: Project) -> None:
    store.add(LIVE, CANARY)

    def arms(layer: str | None) -> list[str | None]:
        made = experiment.start(store, P, CANARY.id, LIVE.id, NOW, stages=(0.5,), layer=layer)
        config = serving.serving_config(store, P)
        experiment.stop(store, P, made.id, "op", "enough", NOW)
        return [serving.assign(config, user).arm for user in USERS]

    first, again, other, own = arms("ranking"), arms("ranking"), arms("tone"), arms(None)
    assert first == again
    for another in (other, own):
        same = sum(a == b for a, b in zip(first, another, strict=True))
        assert abs(same - len(USERS) / 2) < 4 * (len(USERS) / 4) ** 0.5
    with pytest.raises(Conflict, match="cannot become stopped"):
        experiment.stop(store, P, store.find(Experiment)[0].id, "op", "again", NOW)


def test_the_worker_ends_a_pilot_that_is_over_and_the_canary_stays(
    store: Store, project: Project, chat: Callable[..., Interaction]
) -> None:
    store.add(LIVE, CANARY)
    pilot = Pilot(users=pilots.named(["candidate", "control"]), cap=3e-5, prompt_price=1.0, completion_price=1.0)
    made = experiment.start(
        store, P, CANARY.id, LIVE.id, NOW, pilot=pilot, declared=[Metric("latency", "monitor", "down")]
    )
    assert "candidate" not in str(made.pilot)  # names are kept as hashes: an erasure does not reach them
    with pytest.raises(Conflict, match="is running"):
        experiment.start(store, P, CANARY.id, LIVE.id, NOW)
    for arm, times in (("candidate", 2), ("control", 5)):  # 12 tokens each; what the control costs is not the pilot's
        for _ in range(times):
            chat(actor=arm, assignment=Assignment("rel", made.id, arm, 0, 0.5))
    assert pipeline.guard(store, P, NOW) is not None
    now = store.get(Experiment, made.id)
    assert (now.state, now.figures["pilot"]["spent"]) == (ExperimentState.RUNNING, pytest.approx(2.4e-5))
    chat(actor="candidate", assignment=Assignment("rel", made.id, "candidate", 0, 0.5))
    pipeline.guard(store, P, NOW)
    ended = store.get(Experiment, made.id)
    assert (ended.state, ended.figures["pilot"]["over"]) == (
        ExperimentState.STOPPED,
        "the pilot has cost 3.6e-05 of 3e-05",
    )
    assert store.get(Release, CANARY.id).state == ReleaseState.CANARY
    assert serving.serving_config(store, P).experiment is None
    assert ended.figures["metrics"][0]["candidate"] == 9.0


def test_the_store_says_who_is_kept_on_what(store: Store, project: Project) -> None:
    before = replace(LIVE, id="rel_before", state=ReleaseState.RETIRED)
    everybody = replace(
        RUNNING, candidate_id=LIVE.id, control_id=before.id, state=ExperimentState.PROMOTED, holdout=0.1
    )
    pros = replace(everybody, id="exp_2", candidate_id=PRO.id, control_id=LIVE.id)
    narrowest = replace(GERMAN, segment="plan=pro,zone=eu")  # more conditions come first, whatever their names
    store.add(before, LIVE, PRO, narrowest, everybody, pros)
    config = serving.serving_config(store, P)
    assert config.kept == Kept(before, everybody)
    assert config.narrower == (
        Scope(narrowest, segment=narrowest.segment),
        Scope(PRO, kept=Kept(LIVE, pros), segment=PRO.segment),
    )
    assert not config.one_release
    # A segment that is served by everybody's Release shares its holdout: its experiment deals neither side.
    store.add(replace(CANARY, segment="lang=fr"), replace(RUNNING, id="exp_3"))
    french = next(one for one in serving.serving_config(store, P).narrower if one.segment == "lang=fr")
    assert (french.kept, french.candidate and french.candidate.id) == (Kept(before, everybody), CANARY.id)
    store.add(*(replace(PRO, id=f"rel_{zone}", segment=f"zone={zone}") for zone in "ecadb"))
    of_one = [one.segment for one in serving.serving_config(store, P).narrower if "," not in one.segment]
    assert of_one == [
        "lang=fr",
        "plan=pro",
        *(f"zone={zone}" for zone in "abcde"),
    ]  # all gateways agree on a user of several
    with pytest.raises(Conflict, match="holds nobody out"):
        experiment.end_holdout(store, P, experiment.end_holdout(store, P, pros.id, "op", NOW).id, "op", NOW)
    assert all(one.kept is None for one in serving.serving_config(store, P).narrower if one.segment == "plan=pro")
    store.change(Release, before.id, state=ReleaseState.ROLLED_BACK)
    assert serving.serving_config(store, P).kept is None
