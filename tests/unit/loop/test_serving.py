"""Which Release answers a turn: by user, by how the conversation began, and as the ramp goes on."""

from __future__ import annotations

from collections import Counter

import pytest

from plaudit.domain import (
    Assignment,
    Interaction,
    InteractionSource,
    new_id,
)
from plaudit.errors import NotFound
from plaudit.loop import govern, serving
from plaudit.loop.serving import ServingConfig
from plaudit.store.database import Store

from .ramp import CANARY, LIVE, NOW, P, running


def config(stage: int = 0, salt: str = "salt") -> ServingConfig:
    return ServingConfig(7, LIVE, CANARY, running(stage, salt))


@pytest.fixture
def store(store: Store) -> Store:
    govern.ensure_project(store, NOW)
    store.add(LIVE, CANARY)
    return store


def test_without_a_user_or_an_experiment_the_live_release_answers_outside_the_analysis() -> None:
    for assignment in (serving.assign(config(), None), serving.assign(ServingConfig(1, LIVE), "u")):
        assert (assignment.release_id, assignment.experiment_id, assignment.arm) == (LIVE.id, None, None)


def test_enrolled_users_never_change_arm_when_the_ramp_goes_on() -> None:
    users = [f"user-{i}" for i in range(4000)]
    small = {user: serving.assign(config(0), user) for user in users}
    large = {user: serving.assign(config(1), user) for user in users}
    counts = Counter(a.arm for a in small.values())
    assert abs(counts["candidate"] - 400) < 75  # 4 standard deviations of a binomial (4000, .1)
    assert abs(counts["control"] - 400) < 75
    assert {large[user].arm for user in users} == {"candidate", "control"}
    for user in users:
        if small[user].arm:
            assert small[user].arm == large[user].arm
    for assignment in large.values():
        assert assignment.release_id == (CANARY.id if assignment.arm == "candidate" else LIVE.id)
        assert (assignment.stage, assignment.assignment_probability, assignment.experiment_id) == (1, 0.5, "exp_1")


def one_of_each() -> dict[str, str]:
    """A user who is in `candidate` or `control` from the first stage on, and one who comes into each only at the second (`later ...`)."""
    found: dict[str, str] = {}
    for user in (f"user-{i}" for i in range(500)):
        now, next_stage = serving.assign(config(0), user).arm, serving.assign(config(1), user).arm
        found.setdefault(now or f"later {next_stage}", user)
    return found


def test_a_conversation_stays_when_the_ramp_reaches_its_user_and_both_arms_leave_it_out() -> None:
    """Only the candidate's conversations would change their release; if only those were left out, arms would count different things."""
    users = one_of_each()
    start = serving.assign(config(0), users["later candidate"])
    assert start == Assignment(LIVE.id)
    for arm in ("candidate", "control"):
        assert serving.assign(config(1), users[f"later {arm}"], start) == Assignment(LIVE.id)
        assert serving.assign(config(1), users[f"later {arm}"]).arm == arm  # a new conversation


def test_a_conversation_stays_whoever_speaks_and_counts_for_the_arm_that_it_began_in() -> None:
    users = one_of_each()
    for arm, home in (("candidate", CANARY.id), ("control", LIVE.id)):
        began = serving.assign(config(0), users[arm])
        assert (began.release_id, began.arm) == (home, arm)
        other = users["control" if arm == "candidate" else "candidate"]
        for speaker in (None, other, users["later candidate"]):
            assert serving.assign(config(0), speaker, began) == Assignment(home)
        later = serving.assign(config(1), users[arm], began)
        assert (later.release_id, later.arm, later.stage) == (home, arm, 1)


def test_a_conversation_without_a_user_stays_outside_the_analysis() -> None:
    users, began = one_of_each(), serving.assign(config(0), None)
    for speaker in (None, users["candidate"], users["control"]):
        assert serving.assign(config(0), speaker, began) == Assignment(LIVE.id)


def test_a_conversation_moves_when_its_release_is_not_served_any_more() -> None:
    users = one_of_each()
    in_candidate = serving.assign(config(0), users["candidate"])
    assert serving.assign(ServingConfig(8, LIVE), users["candidate"], in_candidate) == Assignment(
        LIVE.id
    )  # rolled back
    assert serving.assign(ServingConfig(8, CANARY), None, Assignment(LIVE.id)) == Assignment(CANARY.id)  # promoted


def test_how_a_conversation_began_is_its_first_turn(store: Store) -> None:
    assert serving.began(store, P, "cnv_1") is None
    for release_id, arm in ((CANARY.id, "candidate"), (LIVE.id, None)):
        turn = Interaction(
            id=new_id(Interaction),
            project_id=P,
            conversation_id="cnv_1",
            turn=1,
            actor=None,
            messages=({"role": "user", "content": "hi"},),
            family="f",
            prompt_sha256="",
            source=InteractionSource.GATEWAY,
            release_id=release_id,
            served_release_id=release_id,
            experiment_id="exp_1" if arm else None,
            arm=arm,
            created_at=NOW,
        )
        store.add(turn)
    assert serving.began(store, P, "cnv_1") == Assignment(CANARY.id, "exp_1", "candidate")
    assert serving.began(store, "prj_other", "cnv_1") is None


def test_a_config_knows_the_releases_that_it_assigns() -> None:
    assert config().release(CANARY.id) is CANARY
    with pytest.raises(NotFound):
        config().release("rel_other")
