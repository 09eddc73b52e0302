"""The release ledger: what stands in the way of each move, the way back, and a random walk that must never break the invariants."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from plaudit import artifacts
from plaudit.domain import (
    AuditEntry,
    Checkpoint,
    CheckpointKind,
    Decision,
    Evaluation,
    Experiment,
    ExperimentState,
    GateVerdict,
    Release,
    ReleaseState,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Corrupt, NotFound, PlauditError, Refused
from plaudit.loop import experiment, govern, release, serving
from plaudit.loop.pilots import Pilot
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
P = "prj_default"
URL = "http://127.0.0.1:8485/v1"


@pytest.fixture
def store(store: Store) -> Store:
    return lived_in(store)


def lived_in(opened: Store) -> Store:
    govern.ensure_project(opened, NOW)
    for name in ("ada", "bo"):
        govern.person(opened, P, name, NOW)
    release.register_base(opened, P, "base", URL, NOW)
    return opened


def checkpoint(store: Store, folder: Path, kind: CheckpointKind = CheckpointKind.POLICY) -> Checkpoint:
    made = new_id(Checkpoint)
    path = artifacts.new_folder(folder, made)
    (path / "adapter.bin").write_text(made)
    manifest = artifacts.finish(path, "checkpoint", {"checkpoint_kind": str(kind)})
    row = Checkpoint(
        id=made, project_id=P, kind=kind, folder=str(path), sha256=manifest.id, base="tiny", created_at=NOW
    )
    store.add(row)
    return row


def candidate(store: Store, folder: Path, segment: str = "") -> Release:
    return release.create_candidate(store, P, checkpoint(store, folder).id, "candidate", URL, NOW, segment=segment)


def evaluate(store: Store, of: Release, gate: GateVerdict = GateVerdict.PASS) -> None:
    assert of.checkpoint_id
    reasons = () if gate == GateVerdict.PASS else ("win rate is .41",)
    row = Evaluation(
        id=new_id(Evaluation),
        project_id=P,
        checkpoint_id=of.checkpoint_id,
        against_id=None,
        suite="s",
        figures={},
        gate=gate,
        reasons=reasons,
        created_at=NOW,
    )
    store.add(row)


def approve(store: Store, of: Release, stage: str, person: str, decision: Decision = Decision.APPROVE) -> None:
    govern.approve(store, P, of.id, stage, person, decision, "because", NOW)


def canary(store: Store, folder: Path, segment: str = "") -> Release:
    made = candidate(store, folder, segment)
    evaluate(store, made)
    approve(store, made, "canary", "ada")
    return release.to_canary(store, P, made.id, "op", NOW)


def looked(store: Store, of: Release, verdict: str = "promote", at: datetime = NOW) -> Experiment:
    running = experiment.start(store, P, of.id, served(store, of.segment).id, NOW)
    figures = {"verdict": verdict, "reasons": ["as it is"], "at": at.isoformat()}
    return store.change(Experiment, running.id, figures=figures)


def served(store: Store, segment: str) -> Release:
    """What its users meet who are in no experiment."""
    return store.first(Release, state=ReleaseState.LIVE, segment=segment) or release.live(store, P)


def promoted(store: Store, folder: Path, segment: str = "") -> Release:
    made = canary(store, folder, segment)
    looked(store, made)
    approve(store, made, "live", "bo")
    return release.promote(store, P, made.id, "op", NOW)


def actions(store: Store) -> list[str]:
    return [entry.action for entry in store.find(AuditEntry, order="seq")]


def test_the_base_is_live_once_and_moves_with_its_server(store: Store, tmp_path: Path) -> None:
    first = release.live(store, P)
    other = candidate(store, tmp_path)
    assert release.register_base(store, P, "base", URL, NOW) == first
    moved = release.register_base(store, P, "base", "http://127.0.0.1:9/v1", NOW)
    assert moved.id == first.id
    assert {store.get(Release, x.id).upstream for x in (first, other)} == {"http://127.0.0.1:9/v1"}
    with pytest.raises(Conflict, match="already has a live release"):
        release.register_base(store, P, "another", URL, NOW)


def test_a_candidate_needs_a_policy_checkpoint_whose_bytes_are_those_registered(store: Store, tmp_path: Path) -> None:
    reward = checkpoint(store, tmp_path, CheckpointKind.REWARD)
    with pytest.raises(BadInput, match="is a reward, not a policy"):
        release.create_candidate(store, P, reward.id, "m", URL, NOW)
    changed = checkpoint(store, tmp_path)
    (Path(changed.folder) / "adapter.bin").write_text("other weights")
    with pytest.raises(Corrupt, match=r"adapter\.bin"):
        release.create_candidate(store, P, changed.id, "m", URL, NOW)
    swapped, donor = checkpoint(store, tmp_path), checkpoint(store, tmp_path)
    for name in ("adapter.bin", "manifest.json"):  # consistent in itself, but not what the ledger knows
        (Path(swapped.folder) / name).write_bytes((Path(donor.folder) / name).read_bytes())
    with pytest.raises(Corrupt, match="the ledger registered"):
        release.create_candidate(store, P, swapped.id, "m", URL, NOW)


def test_canary_needs_gate_and_approval_and_says_all_that_is_missing(store: Store, tmp_path: Path) -> None:
    made = candidate(store, tmp_path)
    with pytest.raises(Refused) as error:
        release.to_canary(store, P, made.id, "op", NOW)
    assert error.value.reasons == ("its checkpoint was never evaluated", "nobody has approved it for canary")
    evaluate(store, made, GateVerdict.FAIL)
    approve(store, made, "canary", "ada", Decision.REFUSE)
    with pytest.raises(Refused) as error:
        release.to_canary(store, P, made.id, "op", NOW)
    assert "win rate is .41" in error.value.reasons[0]
    assert error.value.reasons[1] == "ada refused it for canary: because"
    evaluate(store, made)
    approve(store, made, "canary", "ada")
    assert release.to_canary(store, P, made.id, "op", NOW).state == ReleaseState.CANARY
    second = candidate(store, tmp_path)
    evaluate(store, second)
    approve(store, second, "canary", "bo")
    with pytest.raises(Refused, match="is a canary already"):
        release.to_canary(store, P, second.id, "op", NOW)


def test_a_release_of_a_base_without_a_known_licence_is_blocked(store: Store, tmp_path: Path) -> None:
    for licence, blocked in (("unknown", True), ("apache-2.0", False)):
        made = new_id(Checkpoint)
        path = artifacts.new_folder(tmp_path, made)
        manifest = artifacts.finish(path, "checkpoint", {"checkpoint_kind": "policy", "license": licence})
        store.add(
            Checkpoint(
                id=made,
                project_id=P,
                kind=CheckpointKind.POLICY,
                folder=str(path),
                sha256=manifest.id,
                base="b",
                created_at=NOW,
            )
        )
        offered = release.create_candidate(store, P, made, "candidate", URL, NOW)
        with pytest.raises(Refused) as refused:
            release.to_canary(store, P, offered.id, "ann", NOW)
        assert any("licence" in reason for reason in refused.value.reasons) is blocked


def test_live_needs_a_fresh_look_that_says_promote_and_a_second_person(store: Store, tmp_path: Path) -> None:
    made = canary(store, tmp_path)
    with pytest.raises(Refused) as error:
        release.promote(store, P, made.id, "op", NOW)
    assert error.value.reasons == ("nobody has approved it for live", "no experiment with users is running for it")
    running = looked(store, made, "hold")
    approve(store, made, "live", "bo")
    with pytest.raises(Refused, match="says hold: as it is"):
        release.promote(store, P, made.id, "op", NOW)
    store.change(Experiment, running.id, figures={"verdict": "promote", "at": NOW.isoformat()})
    with pytest.raises(Refused, match="11 minutes old"):
        release.promote(store, P, made.id, "op", NOW + timedelta(minutes=11))
    base = release.live(store, P)
    assert release.promote(store, P, made.id, "op", NOW).state == ReleaseState.LIVE
    assert release.live(store, P).id == made.id
    assert store.get(Release, base.id).state == ReleaseState.RETIRED
    assert store.get(Experiment, running.id).state == ExperimentState.PROMOTED
    assert actions(store)[-3:] == ["experiment.end", "release.retire", "release.promote"]
    govern.verify_audit(store, P)


def test_one_person_cannot_be_both_approvals_even_if_the_rows_say_so(store: Store, tmp_path: Path) -> None:
    made = canary(store, tmp_path)
    looked(store, made)
    with pytest.raises(Refused, match="second person"):
        approve(store, made, "live", "ada")
    approve(store, made, "live", "bo")
    approval = store.find(release.Approval, release_id=made.id, stage="live")[0]
    store.change(release.Approval, approval.id, person="ada")
    with pytest.raises(Refused, match="ada approved both stages"):
        release.promote(store, P, made.id, "op", NOW)


def test_a_changed_checkpoint_is_not_promoted(store: Store, tmp_path: Path) -> None:
    made = canary(store, tmp_path)
    looked(store, made)
    approve(store, made, "live", "bo")
    folder = Path(store.get(Checkpoint, made.checkpoint_id or "").folder)
    (folder / "adapter.bin").write_text("x")
    with pytest.raises(Corrupt):
        release.promote(store, P, made.id, "op", NOW)
    assert store.get(Release, made.id).state == ReleaseState.CANARY


def test_rolling_back_a_canary_ends_its_experiment_and_leaves_the_live_one(store: Store, tmp_path: Path) -> None:
    base = release.live(store, P)
    made = canary(store, tmp_path)
    running = looked(store, made)
    assert release.roll_back(store, P, "op", "harm", NOW).id == base.id
    assert store.get(Release, made.id).state == ReleaseState.ROLLED_BACK
    ended = store.get(Experiment, running.id)
    assert (ended.state, ended.ended_at) == (ExperimentState.ROLLED_BACK, NOW)
    with pytest.raises(Conflict, match="final"):
        release.to_canary(store, P, made.id, "op", NOW)


def test_rolling_back_live_returns_the_one_before_and_never_a_refused_one(store: Store, tmp_path: Path) -> None:
    base = release.live(store, P)
    first = promoted(store, tmp_path)
    never = candidate(store, tmp_path)
    release.refuse(store, P, never.id, "ada", "no", NOW + timedelta(hours=1))
    assert store.get(Release, never.id).state == ReleaseState.RETIRED
    second = promoted(store, tmp_path)
    next_canary = canary(store, tmp_path)
    running = looked(store, next_canary)
    back = release.roll_back(store, P, "op", "worse", NOW + timedelta(hours=2), release_id=second.id)
    assert back.id == first.id
    assert back.live_at == NOW + timedelta(hours=2)
    assert store.get(Release, second.id).state == ReleaseState.ROLLED_BACK
    assert store.get(Release, next_canary.id).state == ReleaseState.RETIRED  # it was measured against what is gone
    assert store.get(Experiment, running.id).state == ExperimentState.STOPPED
    assert release.roll_back(store, P, "op", "worse too", NOW).id == base.id
    with pytest.raises(Conflict, match="none to roll back to"):
        release.roll_back(store, P, "op", "again", NOW)
    govern.verify_audit(store, P)


def test_what_users_meet_is_not_refused_and_what_they_do_not_is_not_rolled_back(store: Store, tmp_path: Path) -> None:
    made = canary(store, tmp_path)
    with pytest.raises(Conflict, match="roll it back instead"):
        release.refuse(store, P, made.id, "ada", "no", NOW)
    other = candidate(store, tmp_path)
    with pytest.raises(Conflict, match="nothing to roll back"):
        release.roll_back(store, P, "op", "", NOW, release_id=other.id)
    with pytest.raises(NotFound):
        release.roll_back(store, P, "op", "", NOW, release_id="rel_unknown")


def test_upstreams_hold_what_serves_and_the_way_back(store: Store, tmp_path: Path) -> None:
    first = promoted(store, tmp_path)
    second = promoted(store, tmp_path)
    third = candidate(store, tmp_path)
    release.refuse(store, P, candidate(store, tmp_path).id, "ada", "no", NOW)
    assert {r.id for r, _ in release.to_load(store, P)} == {first.id, second.id, third.id}


@pytest.mark.parametrize("how", ["gone", "of a newer Plaudit", "unreadable"])
def test_whatever_is_wrong_with_a_candidate_it_is_left_out(store: Store, tmp_path: Path, monkeypatch, how: str) -> None:
    waiting = candidate(store, tmp_path)
    manifest = Path(store.get(Checkpoint, waiting.checkpoint_id or "").folder) / artifacts.MANIFEST
    if how == "gone":
        manifest.unlink()
    elif how == "unreadable":
        monkeypatch.setattr(artifacts, "sha256_file", lambda path: Path("/dev/null/none").read_bytes())
    else:
        manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 99'))
        assert "99" in manifest.read_text()
    assert release.to_load(store, P) == []
    assert [r.id for r, _ in release.damaged(store, P)] == [waiting.id]


def test_a_damaged_checkpoint_is_left_out_unless_it_is_live(store: Store, tmp_path: Path, caplog) -> None:
    served = promoted(store, tmp_path)
    waiting = candidate(store, tmp_path)

    def damage(of: Release) -> None:
        (Path(store.get(Checkpoint, of.checkpoint_id or "").folder) / "adapter.bin").write_text("x")

    assert release.damaged(store, P) == []
    damage(waiting)
    with caplog.at_level("WARNING", "plaudit.release"):
        assert [r.id for r, _ in release.to_load(store, P)] == [served.id]
    assert f"{waiting.id} (candidate) is not loaded" in caplog.text
    assert [r.id for r, _ in release.damaged(store, P)] == [waiting.id]
    damage(served)
    with pytest.raises(Corrupt, match=rf"{served.id} .* restore .* `plaudit release rollback {served.id}`"):
        release.to_load(store, P)
    release.roll_back(store, P, "op", "its checkpoint is damaged", NOW, served.id)
    assert release.to_load(store, P) == []  # the base answers, which has no checkpoint


def test_a_lost_race_changes_nothing(store: Store, tmp_path: Path) -> None:
    """Two promotions of the same store state: the second finds the live one moved (what PostgreSQL would let both begin)."""
    made = canary(store, tmp_path)
    looked(store, made)
    approve(store, made, "live", "bo")
    stale = release.live(store, P)
    release.promote(store, P, made.id, "op", NOW)
    before = actions(store)
    with pytest.raises(Conflict), store.write() as tx:
        release._move(tx, stale, ReleaseState.RETIRED, "op", "operator", "release.retire", "", NOW)
    assert actions(store) == before


def test_every_move_passes_the_transition_table(store: Store) -> None:
    with pytest.raises(Conflict, match="cannot become canary"), store.write() as tx:
        release._move(tx, release._live(tx, P), ReleaseState.CANARY, "op", "operator", "release.x", "", NOW)


def test_a_segment_has_a_release_of_its_own_and_goes_back_to_everybodys(store: Store, tmp_path: Path) -> None:
    base = release.live(store, P)
    pro = promoted(store, tmp_path, "plan = pro")
    assert (pro.segment, pro.state, release.live(store, P).id) == ("plan=pro", ReleaseState.LIVE, base.id)
    config = serving.serving_config(store, P)
    assert serving.assign(config, "u", None, {"plan": "pro"}).release_id == pro.id
    assert serving.assign(config, None, None, {"plan": "free"}).release_id == base.id
    with pytest.raises(Conflict, match="not what the users of plan=pro are served by"):
        experiment.start(store, P, canary(store, tmp_path, "plan=pro").id, base.id, NOW)
    with pytest.raises(Conflict, match=r"unique|UNIQUE"):  # the database holds it too
        store.change(Release, base.id, segment="plan=pro")
    later = promoted(store, tmp_path)  # and now there is one of everybody's to return to, which is not theirs
    assert release.roll_back(store, P, "op", "worse", NOW, pro.id).id == later.id
    assert serving.assign(serving.serving_config(store, P), "u", None, {"plan": "pro"}).release_id == later.id
    govern.verify_audit(store, P)


def test_what_a_segment_was_measured_against_may_go(store: Store, tmp_path: Path) -> None:
    """A promotion for everybody ends the segment's experiment and leaves its canary; a rollback retires it."""
    pro = canary(store, tmp_path, "plan=pro")
    running = looked(store, pro)
    everybodys = promoted(store, tmp_path)
    assert store.get(Experiment, running.id).state == ExperimentState.STOPPED
    assert store.get(Release, pro.id).state == ReleaseState.CANARY
    again = looked(store, pro)
    assert again.control_id == everybodys.id
    release.roll_back(store, P, "op", "worse", NOW, everybodys.id)
    assert store.get(Experiment, again.id).state == ExperimentState.STOPPED
    assert store.get(Release, pro.id).state == ReleaseState.RETIRED


def test_a_candidate_changes_its_users_only_before_anybody_decided(store: Store, tmp_path: Path) -> None:
    made = candidate(store, tmp_path)
    assert release.scope(store, P, made.id, "b=2,a=1", "op", NOW).segment == "a=1,b=2"
    approve(store, made, "canary", "ada")
    with pytest.raises(Conflict, match="decided on as it is"):
        release.scope(store, P, made.id, "", "op", NOW)
    with pytest.raises(BadInput, match="no segment"):
        release.scope(store, P, made.id, "pro", "op", NOW)
    with pytest.raises(Conflict, match="only a candidate"):
        release.scope(store, P, release.live(store, P).id, "a=1", "op", NOW)


def test_a_pilot_is_not_promoted_from(store: Store, tmp_path: Path) -> None:
    made = canary(store, tmp_path)
    running = experiment.start(store, P, made.id, release.live(store, P).id, NOW, pilot=Pilot(users=frozenset({"u"})))
    store.change(Experiment, running.id, figures={"verdict": "promote", "at": NOW.isoformat()})
    approve(store, made, "live", "bo")
    with pytest.raises(Refused, match="is a pilot among chosen users"):
        release.promote(store, P, made.id, "op", NOW)


COMMANDS = ("canary", "promote", "roll back", "experiment")


class Killed(Exception):
    pass


class Ledger(RuleBasedStateMachine):
    """Random commands in any order, for everybody and for two segments. Every error must leave: one live release for everybody, at most one
    of a segment, at most one canary of each, no unapproved live one, a whole audit log. `killed` dies between two writes of a command, `race`
    runs two commands at once, each over a connection of its own."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.root = self.folder / new_id(Release)
        self.root.mkdir()
        self.store = lived_in(open_store(f"sqlite:///{self.root / 'store.sqlite'}"))
        self.base = release.live(self.store, P).id
        self.clock = NOW
        self.made: list[str] = []

    def attempt(self, act: Any, *arguments: Any, **named: Any) -> None:
        self.clock += timedelta(seconds=1)
        states = {r.id: r.state for r in self.store.find(Release)}
        try:
            act(*arguments, **named)
        except PlauditError:
            assert {r.id: r.state for r in self.store.find(Release)} == states

    def one(self, index: int) -> str:
        return self.made[index % len(self.made)]

    @rule(segment=st.sampled_from(["", "", "plan=pro", "lang=de"]))
    def create(self, segment: str) -> None:
        self.made.append(candidate(self.store, self.root, segment).id)

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9), segment=st.sampled_from(["", "plan=pro"]))
    def scope(self, index: int, segment: str) -> None:
        self.attempt(release.scope, self.store, P, self.one(index), segment, "op", self.clock)

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9))
    def shadow(self, index: int) -> None:
        self.attempt(release.to_shadow, self.store, P, self.one(index), "op", self.clock)

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9))
    def stop(self, index: int) -> None:
        for running in self.store.find(Experiment, candidate_id=self.one(index)):
            self.attempt(experiment.stop, self.store, P, running.id, "op", "enough", self.clock)

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9), passes=st.booleans())
    def judge(self, index: int, passes: bool) -> None:
        evaluate(self.store, self.store.get(Release, self.one(index)), GateVerdict.PASS if passes else GateVerdict.FAIL)

    @precondition(lambda self: self.made)
    @rule(
        index=st.integers(0, 9),
        stage=st.sampled_from(["canary", "live"]),
        person=st.sampled_from(["ada", "bo"]),
        decision=st.sampled_from([*[Decision.APPROVE] * 3, Decision.REFUSE]),
    )
    def decide(self, index: int, stage: str, person: str, decision: Decision) -> None:
        self.attempt(govern.approve, self.store, P, self.one(index), stage, person, decision, "because", self.clock)

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9))
    def canary(self, index: int) -> None:
        self.attempt(release.to_canary, self.store, P, self.one(index), "op", self.clock)

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9), verdict=st.sampled_from(["promote", "hold"]))
    def experiment(self, index: int, verdict: str) -> None:
        live = served(self.store, self.store.get(Release, self.one(index)).segment).id
        self.attempt(experiment.start, self.store, P, self.one(index), live, self.clock)
        for running in self.store.find(Experiment, state=ExperimentState.RUNNING):
            self.store.change(Experiment, running.id, figures={"verdict": verdict, "at": self.clock.isoformat()})

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9))
    def promote(self, index: int) -> None:
        self.attempt(release.promote, self.store, P, self.one(index), "op", self.clock)

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9))
    def whole_way(self, index: int) -> None:
        """Walks alone would seldom get as far as live."""
        made = self.store.get(Release, self.one(index))
        others = self.store.count(Release, state=ReleaseState.CANARY, segment=made.segment)
        if made.state == ReleaseState.CANDIDATE and not others:
            evaluate(self.store, made)
            for stage, person in (("canary", "ada"), ("live", "bo")):
                self.attempt(govern.approve, self.store, P, made.id, stage, person, Decision.APPROVE, "yes", self.clock)
                self.attempt(release.to_canary, self.store, P, made.id, "op", self.clock)
                self.experiment(index, "promote")
            self.promote(index)

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9))
    def refuse(self, index: int) -> None:
        self.attempt(release.refuse, self.store, P, self.one(index), "ada", "no", self.clock)

    @rule(index=st.none() | st.integers(0, 9))
    def roll_back(self, index: int | None) -> None:
        named = {} if index is None or not self.made else {"release_id": self.one(index)}
        self.attempt(release.roll_back, self.store, P, "op", "because", self.clock, **named)

    def command(self, kind: str, index: int, store: Store) -> None:
        match kind:
            case "canary":
                release.to_canary(store, P, self.one(index), "op", self.clock)
            case "promote":
                release.promote(store, P, self.one(index), "op", self.clock)
            case "roll back":
                release.roll_back(store, P, "op", "because", self.clock)
            case _:
                live = served(store, store.get(Release, self.one(index)).segment).id
                experiment.start(store, P, self.one(index), live, self.clock)

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9), kind=st.sampled_from(COMMANDS), written=st.integers(0, 3))
    def killed(self, index: int, kind: str, written: int) -> None:
        """After `written` entries of the audit log; nothing of the command stays."""
        left = written

        def die(*arguments: Any, **named: Any) -> AuditEntry:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return audit(*arguments, **named)

        audit, states = govern.audit, {r.id: r.state for r in self.store.find(Release)}
        with mock.patch.object(govern, "audit", die), suppress(PlauditError):
            try:
                self.command(kind, index, self.store)
            except Killed:
                assert {r.id: r.state for r in self.store.find(Release)} == states

    @precondition(lambda self: self.made)
    @rule(index=st.integers(0, 9), kinds=st.tuples(st.sampled_from(COMMANDS), st.sampled_from(COMMANDS)))
    def race(self, index: int, kinds: tuple[str, str]) -> None:
        other = open_store(self.store.url)
        start = threading.Barrier(2)

        def act(kind: str, store: Store) -> None:
            start.wait(60)
            with suppress(PlauditError):
                self.command(kind, index, store)

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(act, kind, to) for kind, to in zip(kinds, (self.store, other), strict=True)]:
                done.result()
        other.close()

    @invariant()
    def holds(self) -> None:
        live = {one.segment: one for one in self.store.find(Release, state=ReleaseState.LIVE)}
        assert len(live) == self.store.count(Release, state=ReleaseState.LIVE)
        assert "" in live
        for segment in ("", "plan=pro", "lang=de"):
            assert self.store.count(Release, state=ReleaseState.CANARY, segment=segment) <= 1
        assert self.store.count(Release, state=ReleaseState.SHADOW) <= 1
        for one in live.values():
            if one.id == self.base:
                continue
            approvals = self.store.find(release.Approval, release_id=one.id, decision=Decision.APPROVE)
            assert {a.stage for a in approvals} == {"canary", "live"}
            assert len({a.person for a in approvals}) == 2
            assert self.store.count(Evaluation, checkpoint_id=one.checkpoint_id, gate=GateVerdict.PASS)
        running = self.store.find(Experiment, state=ExperimentState.RUNNING)
        segments = []
        for one in running:
            tried = self.store.get(Release, one.candidate_id)
            assert tried.state == ReleaseState.CANARY
            control = self.store.get(Release, one.control_id)
            assert control.state == ReleaseState.LIVE
            assert control.segment in (tried.segment, "")
            segments.append(tried.segment)
        assert len(segments) == len(set(segments))
        config = serving.serving_config(self.store, P)
        for user in ("u1", "u2", "u3"):
            for said in ({}, {"plan": "pro"}, {"plan": "pro", "lang": "de"}):
                config.release(serving.assign(config, user, None, said).release_id)
        govern.verify_audit(self.store, P)

    def teardown(self) -> None:
        self.store.close()


def walk(folder: Path, examples: int) -> None:
    run_state_machine_as_test(
        type("Ledger", (Ledger,), {"folder": folder}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_commands_never_break_the_ledger(tmp_path: Path) -> None:
    walk(tmp_path, examples=8)


@pytest.mark.slow
def test_many_random_commands_never_break_the_ledger(tmp_path: Path) -> None:
    walk(tmp_path, examples=100)
