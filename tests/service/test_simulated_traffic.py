"""`plaudit simulate traffic --url`: simulated users of a real service with an experiment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from plaudit.cli.simulate import simulate
from plaudit.domain import Feedback, Interaction, Release, ReleaseState, Role, utc_now
from plaudit.errors import BadInput
from plaudit.loop import experiment


def test_users_meet_their_arms_and_thumbs_are_theirs(start_service, tmp_path: Path) -> None:
    service = start_service(store_patience_s=30.0)
    now, (live,) = utc_now(), service.store.find(Release, state=ReleaseState.LIVE)
    canary = Release(
        id="rel_new", project_id=service.project.id, checkpoint_id=None, model="fake-2", upstream="fake:", state=ReleaseState.CANARY,
        created_at=now, state_at=now,
    )  # fmt: skip
    service.store.add(canary)
    experiment.start(service.store, service.project.id, canary.id, live.id, now, stages=(0.3,), layer="steady")
    words = [
        "traffic",
        "--url",
        service.url,
        "--users",
        "14",
        "--messages",
        "2",
        "--pictures",
        str(tmp_path / "out"),
    ]
    refused = CliRunner().invoke(simulate, words)
    assert isinstance(refused.exception, BadInput)
    done = CliRunner().invoke(simulate, [*words, "--key", service.key(Role.APPLICATION), "--json"])
    assert done.exit_code == 0, done.output
    arms = json.loads(done.stdout)["arms"]
    served = service.stored(Interaction, 28)
    by_arm = {name: [one for one in served if (one.arm or "outside") == name] for name in arms}
    assert {name: arm["messages"] for name, arm in arms.items()} == {name: len(some) for name, some in by_arm.items()}
    assert {name: arm["users"] for name, arm in arms.items()} == {
        name: len({one.actor for one in some}) for name, some in by_arm.items()
    }
    assert set(arms) == {"candidate", "control", "outside"}
    up = {one.interaction_id: one.value["up"] for one in service.store.find(Feedback) if one.kind == "thumb"}
    for name, some in by_arm.items():
        said = [up[one.id] for one in some if one.id in up]
        assert (arms[name]["up"], arms[name]["down"]) == (said.count(True), said.count(False))
        assert arms[name]["up_share"]["mean"] == pytest.approx(sum(said) / len(said))
    drawn = (tmp_path / "out" / "thumbs.svg").read_text()
    assert "simulated users" in drawn
    assert "var(--" not in drawn
