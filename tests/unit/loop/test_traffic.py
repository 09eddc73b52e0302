from __future__ import annotations

import pytest

from plaudit.errors import BadInput
from plaudit.loop import traffic
from plaudit.loop.experiment import Rules
from plaudit.loop.traffic import Change, Crowd

CHANGES = {"no better": Change(0.0, 0.5), "better": Change(0.15, 0.5), "harmful": Change(-0.15, 0.5)}


def played(n_runs: int, n_looks: int = 15) -> dict:
    return traffic.trials(Crowd(), CHANGES, Rules(n_planned=6000), (0.1, 0.5), n_runs, 6000, n_looks, seed=7)


def trials(n_runs: int, n_looks: int = 15) -> dict:
    return played(n_runs, n_looks)["changes"]


def test_each_kind_ends_as_it_should_and_the_reward_is_not_believed() -> None:
    found = trials(8)
    assert found["better"]["verdicts"]["promote"]["mean"] >= 0.8
    harmful = found["harmful"]
    assert harmful["verdicts"]["roll_back"]["mean"] == 1.0
    assert harmful["score_difference"] == pytest.approx(0.5, abs=0.1)  # up, as in reward hacking
    assert 0 < harmful["n_candidate"]["median"] <= harmful["n_candidate"]["p95"] < harmful["n_users"]["p95"]
    assert found["no better"]["verdicts"]["promote"]["mean"] <= 0.25
    assert trials(2, 5) == trials(2, 5)


def test_users_who_like_it_less_leave_also_those_who_never_say_so() -> None:
    silent = Crowd(feedback_rate=0.005)
    found = traffic.trials(silent, {"x": Change(-0.35)}, Rules(), (0.5,), 2, 2000, 4, 0)["changes"]["x"]
    assert found["verdicts"]["roll_back"]["mean"] == 1.0


def test_pictures_say_that_all_of_it_is_simulated() -> None:
    found = traffic.pictures(played(2, 5))
    assert set(found) == {"verdicts", "users"}
    for svg in found.values():
        assert "2 simulated experiments of each kind" in svg
        assert "harmful" in svg
    assert "harmful: roll back" in found["verdicts"]


@pytest.mark.slow
def test_false_promotions_and_power_over_many_experiments() -> None:
    found = trials(60)
    assert found["no better"]["verdicts"]["promote"]["mean"] <= 8 / 60  # of 60 at .05 more happen in 4 of 1,000
    assert found["harmful"]["verdicts"]["promote"]["mean"] == 0.0
    assert found["better"]["verdicts"]["promote"]["mean"] >= 0.8


def test_what_cannot_be_played() -> None:
    for changes, runs in (({"x": Change(0.5)}, 1), ({"x": Change()}, 0)):
        with pytest.raises(BadInput):
            traffic.trials(Crowd(), changes, Rules(), (0.5,), runs, 100, 2, 0)
    with pytest.raises(BadInput):
        Crowd(feedback_rate=0.0)
