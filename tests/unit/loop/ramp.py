"""A live Release, a canary, and the experiment of one against the other, as tests of serving, experiments and pilots use them."""

from dataclasses import asdict
from datetime import UTC, datetime

from plaudit.domain import Experiment, Release, ReleaseState
from plaudit.loop.experiment import Rules

NOW = datetime(2026, 1, 1, tzinfo=UTC)
P = "prj_default"


def offered(state: ReleaseState, name: str, segment: str = "") -> Release:
    return Release(
        id=f"rel_{name}",
        project_id=P,
        checkpoint_id=None,
        model=name,
        upstream="fake:",
        state=state,
        segment=segment,
        created_at=NOW,
        state_at=NOW,
    )


LIVE, CANARY = offered(ReleaseState.LIVE, "live"), offered(ReleaseState.CANARY, "canary")


def running(stage: int = 0, salt: str = "salt") -> Experiment:
    return Experiment(
        id="exp_1",
        project_id=P,
        candidate_id=CANARY.id,
        control_id=LIVE.id,
        salt=salt,
        stages=(0.1, 0.5),
        stage=stage,
        rules=asdict(Rules()),
        created_at=NOW,
    )
