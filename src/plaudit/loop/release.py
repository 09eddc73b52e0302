"""The ledger of Releases: candidate -> canary -> live, and the way back.

Every move goes through the transition table, needs its gate and approvals, and writes its audit entry in the same transaction. A project has
exactly one live Release from its first on, and at most one canary; a segment of its users may have one of each of its own. What stands in a
move's way comes back as `Refused.reasons`.

    candidate --gate + approval "canary"--> canary --look says promote + approval "live" by another person--> live
                                            canary --roll_back--> rolled_back          live --roll_back--> rolled_back, the one before is live again
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from plaudit import artifacts
from plaudit.domain import (
    EXPERIMENT_TRANSITIONS,
    RELEASE_TRANSITIONS,
    Approval,
    Checkpoint,
    CheckpointKind,
    Decision,
    Evaluation,
    Experiment,
    ExperimentState,
    GateVerdict,
    Json,
    Release,
    ReleaseState,
    check_transition,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Corrupt, NotFound, Refused
from plaudit.loop import gates, govern, licences
from plaudit.stats import assignment
from plaudit.store.audit import lock_head
from plaudit.store.database import Store, Transaction

log = logging.getLogger("plaudit.release")
SYSTEM = "system"  # actor and role of what Plaudit does by itself
LOOK_MAX_AGE = timedelta(minutes=10)  # a promotion rests on figures of now


def live(store: Store, project_id: str) -> Release:
    """The one live Release for everybody. Raises NotFound before `register_base`."""
    with store.read() as tx:
        return _live(tx, project_id)


def register_base(store: Store, project_id: str, model: str, upstream: str, now: datetime) -> Release:
    """The base model as the first live Release. Again: the same row; every Release of its upstream follows where that has moved."""
    with _ledger(store, project_id) as tx:
        known = next((r for r in tx.find(Release, project_id=project_id, checkpoint_id=None) if r.model == model), None)
        if known is not None:
            if known.upstream != upstream:
                for release in tx.find(Release, project_id=project_id, upstream=known.upstream):
                    tx.change(Release, release.id, upstream=upstream)
                moved = {"upstream": known.upstream}, {"upstream": upstream}
                govern.audit(tx, project_id, SYSTEM, SYSTEM, "release.move_upstream", known.id, *moved, now)
            return tx.get(Release, known.id)
        if tx.count(Release, project_id=project_id, state=ReleaseState.LIVE, segment=""):
            raise Conflict(
                f"Project {project_id} already has a live release; the base model {model!r} cannot become its first."
            )
        release = Release(
            id=new_id(Release),
            project_id=project_id,
            checkpoint_id=None,
            model=model,
            upstream=upstream,
            state=ReleaseState.LIVE,
            created_at=now,
            state_at=now,
            live_at=now,
        )
        tx.add(release)
        govern.audit(tx, project_id, SYSTEM, SYSTEM, "release.register_base", release.id, {}, _facts(release), now)
        return release


def create_candidate(
    store: Store,
    project_id: str,
    checkpoint_id: str,
    model: str,
    upstream: str,
    now: datetime,
    by: str = SYSTEM,
    role: str = SYSTEM,
    segment: str = "",
) -> Release:
    """Offer a policy Checkpoint as `model` at `upstream` to everybody or to a segment; nobody is served by it yet. Idempotent by checkpoint
    and segment while it is a candidate. Raises BadInput for a malformed segment."""
    verified_checkpoint(store, checkpoint_id, CheckpointKind.POLICY)
    segment = assignment.segment(segment)
    with _ledger(store, project_id) as tx:
        for known in tx.find(Release, project_id=project_id, checkpoint_id=checkpoint_id, segment=segment):
            if known.state not in (ReleaseState.RETIRED, ReleaseState.ROLLED_BACK):
                return known
        release = Release(
            id=new_id(Release),
            project_id=project_id,
            checkpoint_id=checkpoint_id,
            model=model,
            upstream=upstream,
            created_at=now,
            state_at=now,
            segment=segment,
        )
        tx.add(release)
        govern.audit(tx, project_id, by, role, "release.create", release.id, {}, _facts(release), now)
        return release


def scope(
    store: Store, project_id: str, release_id: str, segment: str, by: str, now: datetime, role: str = "operator"
) -> Release:
    """Whom a candidate is for: users of a segment, or everybody (empty). Raises Conflict where somebody has approved it or it is past that."""
    segment = assignment.segment(segment)
    with _ledger(store, project_id) as tx:
        release = _get(tx, project_id, release_id)
        if release.state != ReleaseState.CANDIDATE:
            raise Conflict(f"Release {release_id} is {release.state}; only a candidate is given another segment.")
        if tx.count(Approval, project_id=project_id, release_id=release_id):
            raise Conflict(f"Release {release_id} was decided on as it is; make another candidate for the segment.")
        before, after = {"segment": release.segment}, {"segment": segment}
        govern.audit(tx, project_id, by, role, "release.scope", release_id, before, after, now)
        return tx.change(Release, release_id, {"state": release.state}, segment=segment)


def to_shadow(
    store: Store, project_id: str, release_id: str, by: str, now: datetime, role: str = "operator"
) -> Release:
    """candidate -> shadow: it gets copies of live requests and answers nobody. Raises Conflict (another is there), Corrupt, NotFound."""
    _verify_release(store, project_id, release_id)
    with _ledger(store, project_id) as tx:
        release = _get(tx, project_id, release_id)
        other = tx.first(Release, project_id=project_id, state=ReleaseState.SHADOW)
        if other is not None and other.id != release_id:
            raise Conflict(f"{other.id} is in shadow already; only one is at a time.")
        return _move(tx, release, ReleaseState.SHADOW, by, role, "release.to_shadow", "", now)


def to_canary(
    store: Store, project_id: str, release_id: str, by: str, now: datetime, role: str = "operator"
) -> Release:
    """candidate or shadow -> canary. Users reach it once an Experiment runs. Raises Refused (reasons), Conflict, Corrupt, NotFound."""
    _verify_release(store, project_id, release_id)
    with _ledger(store, project_id) as tx:
        release = _get(tx, project_id, release_id)
        check_transition(RELEASE_TRANSITIONS, release.state, ReleaseState.CANARY, f"Release {release_id}")
        _refuse_where(release, "canary", reasons_against(tx, release, ReleaseState.CANARY, now))
        return _move(tx, release, ReleaseState.CANARY, by, role, "release.to_canary", "", now)


def promote(store: Store, project_id: str, release_id: str, by: str, now: datetime, role: str = "operator") -> Release:
    """canary -> live; the live one of the same users retires, the experiment ends as promoted, and those of segments that were measured
    against what retires end unjudged. Raises Refused (reasons), Conflict, Corrupt, NotFound."""
    _verify_release(store, project_id, release_id)
    with _ledger(store, project_id) as tx:
        release = _get(tx, project_id, release_id)
        check_transition(RELEASE_TRANSITIONS, release.state, ReleaseState.LIVE, f"Release {release_id}")
        _refuse_where(release, "live", reasons_against(tx, release, ReleaseState.LIVE, now))
        _end_experiments(tx, project_id, release_id, ExperimentState.PROMOTED, by, role, "promoted", now)
        before = tx.first(Release, project_id=project_id, state=ReleaseState.LIVE, segment=release.segment)
        if before is not None:
            stopped = f"{release_id} follows what it was measured against"
            _end_experiments(tx, project_id, before.id, ExperimentState.STOPPED, by, role, stopped, now)
            _move(tx, before, ReleaseState.RETIRED, by, role, "release.retire", f"{release_id} follows", now)
        return _move(tx, release, ReleaseState.LIVE, by, role, "release.promote", "", now)


def refuse(
    store: Store, project_id: str, release_id: str, by: str, reason: str, now: datetime, role: str = "approver"
) -> Release:
    """candidate or shadow -> retired, without ever having served anybody. What users meet is rolled back instead."""
    with _ledger(store, project_id) as tx:
        release = _get(tx, project_id, release_id)
        if release.state not in (ReleaseState.CANDIDATE, ReleaseState.SHADOW):
            raise Conflict(
                f"Release {release_id} is {release.state}: users meet it; roll it back instead of refusing it."
            )
        return _move(tx, release, ReleaseState.RETIRED, by, role, "release.refuse", reason, now)


def roll_back(
    store: Store,
    project_id: str,
    by: str,
    reason: str,
    now: datetime,
    release_id: str | None = None,
    role: str = "operator",
) -> Release:
    """Take a Release away from users: the newest canary where there is one, else everybody's live one, else `release_id`. Returns what its
    users are served by then.

    A canary's experiment ends with it. Under a live one the newest retired one of the same users that once was live returns (a segment that
    has none is served like everybody); canaries that were measured against it retire unjudged. Needs no approval: it protects. Raises
    Conflict where there is no way back.
    """
    with _ledger(store, project_id) as tx:
        canary = tx.first(Release, project_id=project_id, state=ReleaseState.CANARY)
        target = _get(tx, project_id, release_id) if release_id else canary or _live(tx, project_id)
        if target.state == ReleaseState.LIVE:
            earlier = _way_back(tx, project_id, target.segment)
            if earlier is None and not target.segment:
                raise Conflict(f"Release {target.id} is the first that was live; there is none to roll back to.")
            unjudged = tx.find(Release, project_id=project_id, state=ReleaseState.CANARY)
            against = {one.candidate_id for one in _measured_against(tx, project_id, target.id)}
            _end_experiments(tx, project_id, target.id, ExperimentState.STOPPED, by, role, reason, now)
            for one in unjudged:
                if one.segment == target.segment or one.id in against:
                    _move(tx, one, ReleaseState.RETIRED, by, role, "release.retire", f"{target.id} rolled back", now)
            _move(tx, target, ReleaseState.ROLLED_BACK, by, role, "release.roll_back", reason, now)
            if earlier is None:
                return _live(tx, project_id)
            return _move(tx, earlier, ReleaseState.LIVE, by, role, "release.return", f"{target.id} rolled back", now)
        if target.state not in (ReleaseState.CANARY, ReleaseState.SHADOW):
            raise Conflict(
                f"Release {target.id} is {target.state}: users do not meet it, there is nothing to roll back."
            )
        _end_experiments(tx, project_id, target.id, ExperimentState.ROLLED_BACK, by, role, reason, now)
        _move(tx, target, ReleaseState.ROLLED_BACK, by, role, "release.roll_back", reason, now)
        own = tx.first(Release, project_id=project_id, state=ReleaseState.LIVE, segment=target.segment)
        return own or _live(tx, project_id)


def reasons_against(tx: Transaction, release: Release, stage: ReleaseState, now: datetime) -> list[str]:
    """Every rule of the house that forbids `release` to become canary or live now; empty where it may."""
    evaluations = tx.find(Evaluation, project_id=release.project_id, checkpoint_id=release.checkpoint_id)
    # One without a gate (a suite, a judge) informs and decides nothing.
    evaluation = next((one for one in reversed(evaluations) if one.gate is not None), None)
    override = gates.overridden(tx, evaluation) if evaluation is not None else None
    reasons = []
    if release.checkpoint_id is None or evaluation is None:
        reasons.append("its checkpoint was never evaluated")
    elif evaluation.gate != GateVerdict.PASS and override is None:
        because = "; ".join(evaluation.reasons)
        reasons.append(f"the gate of evaluation {evaluation.id} says {evaluation.gate}: {because}")
    answered = licences.overridden(tx, release)
    if release.checkpoint_id is not None:
        excused = answered.after["reasons"] if answered is not None else ()
        found = licences.reasons_against(tx, tx.get(Checkpoint, release.checkpoint_id))
        reasons += [reason for reason in found if reason not in excused]
    approvals = tx.find(Approval, project_id=release.project_id, release_id=release.id)
    latest = {approval.stage: approval for approval in approvals}  # the last word of a stage counts
    wanted = ("canary",) if stage == ReleaseState.CANARY else ("canary", "live")
    for name in wanted:
        approval = latest.get(name)
        if approval is None:
            reasons.append(f"nobody has approved it for {name}")
        elif approval.decision != Decision.APPROVE:
            reasons.append(f"{approval.person} refused it for {name}: {approval.reason or 'no reason given'}")
    people = [latest[name].person for name in wanted if name in latest]
    if override is not None and override.actor in people:
        reasons.append(f"{override.actor} overrode its gate; the approvals need other people")
    if answered is not None and answered.actor in people:
        reasons.append(f"{answered.actor} answered for its licences; the approvals need other people")
    if len(people) != len(set(people)):
        reasons.append(f"{people[0]} approved both stages; the second approval needs another person")
    if stage == ReleaseState.CANARY:
        other = tx.first(Release, project_id=release.project_id, state=ReleaseState.CANARY, segment=release.segment)
        if other is not None:
            reasons.append(f"{other.id} is a canary already; only one runs at a time")
    else:
        reasons += _experiment_reasons(tx, release, now)
    return reasons


def verified_checkpoint(store: Store, checkpoint_id: str, kind: CheckpointKind | None = None) -> Checkpoint:
    """The Checkpoint after reading every byte of its folder. Raises Corrupt, NotFound, BadInput (another kind)."""
    checkpoint = store.get(Checkpoint, checkpoint_id)
    if kind is not None and checkpoint.kind != kind:
        raise BadInput(f"Checkpoint {checkpoint_id} is a {checkpoint.kind}, not a {kind}.")
    if checkpoint.purged_at is not None:
        raise Corrupt(
            f"Checkpoint {checkpoint_id} was purged after an erasure ({checkpoint.purged_at:%Y-%m-%d}); train anew."
        )
    manifest = artifacts.verify(Path(checkpoint.folder), "checkpoint")
    if manifest.id != checkpoint.sha256:
        raise Corrupt(
            f"{checkpoint.folder} holds checkpoint {manifest.id[:12]}, the ledger registered {checkpoint.sha256[:12]}; "
            "restore the folder from a backup."
        )
    return checkpoint


def to_load(store: Store, project_id: str) -> list[tuple[Release, Checkpoint]]:
    """What an upstream holds: Releases that must answer now, or at once after a rollback, oldest first, each with its checkpoint verified.

    A damaged checkpoint that is not the live one's is left out with a warning: users meet the live Release in its place. A damaged live one
    raises Corrupt: to serve something else is a decision, and the ledger would not say it (docs/release.md, "A damaged Checkpoint").
    """
    found = []
    for release, checkpoint in _examined(store, project_id):
        if isinstance(checkpoint, Checkpoint):
            found.append((release, checkpoint))
        elif release.state != ReleaseState.LIVE:
            log.warning("release %s (%s) is not loaded: %s", release.id, release.state, checkpoint)
        else:
            raise Corrupt(
                f"The live release {release.id} ({release.model}) cannot be served: {checkpoint.rstrip('.')}; "
                f"or go back to the release before it with `plaudit release rollback {release.id}` and start again."
            )
    return found


def damaged(store: Store, project_id: str) -> list[tuple[Release, str]]:
    """Releases that `to_load` would miss, each with what is wrong with its checkpoint."""
    return [(release, wrong) for release, wrong in _examined(store, project_id) if isinstance(wrong, str)]


# --- inside ------------------------------------------------------------------------------------------------------------


def _examined(store: Store, project_id: str) -> Iterator[tuple[Release, Checkpoint | str]]:
    """Each Release that an upstream holds with its verified checkpoint, or with the sentence that says why it has none."""
    with store.read() as tx:
        releases = tx.find(
            Release,
            project_id=project_id,
            state=(ReleaseState.CANDIDATE, ReleaseState.SHADOW, ReleaseState.CANARY, ReleaseState.LIVE),
        )
        segments = {one.segment for one in tx.find(Release, project_id=project_id)}
        earlier = [_way_back(tx, project_id, segment) for segment in sorted(segments)]
    for release in [*releases, *(one for one in earlier if one)]:
        if release.checkpoint_id is None:
            continue
        try:
            yield release, verified_checkpoint(store, release.checkpoint_id)
        except (BadInput, Corrupt, NotFound, OSError) as error:
            yield release, str(error)


@contextmanager
def _ledger(store: Store, project_id: str) -> Iterator[Transaction]:
    """A write transaction that holds the project: what it checks stays true until its commit, on every database."""
    with store.write() as tx:
        lock_head(tx, project_id)
        yield tx


def _get(tx: Transaction, project_id: str, release_id: str) -> Release:
    release = tx.get(Release, release_id)
    if release.project_id != project_id:
        raise NotFound(f"There is no Release {release_id!r}.")
    return release


def _live(tx: Transaction, project_id: str) -> Release:
    found = tx.first(Release, project_id=project_id, state=ReleaseState.LIVE, segment="")
    if found is None:
        raise NotFound(f"Project {project_id} has no live release yet; start it once with `plaudit up`.")
    return found


def _way_back(tx: Transaction, project_id: str, segment: str) -> Release | None:
    retired = tx.find(Release, project_id=project_id, state=ReleaseState.RETIRED, segment=segment)
    return max((r for r in retired if r.live_at), key=lambda r: (r.live_at or r.created_at, r.id), default=None)


def _verify_release(store: Store, project_id: str, release_id: str) -> None:
    with store.read() as tx:
        release = _get(tx, project_id, release_id)
    if release.checkpoint_id is not None:
        verified_checkpoint(store, release.checkpoint_id)


def _refuse_where(release: Release, stage: str, reasons: list[str]) -> None:
    if reasons:
        raise Refused(f"Release {release.id} may not become {stage}: {'; '.join(reasons)}.", reasons)


def _experiment_reasons(tx: Transaction, release: Release, now: datetime) -> list[str]:
    experiment = tx.first(
        Experiment, project_id=release.project_id, candidate_id=release.id, state=ExperimentState.RUNNING
    )
    if experiment is None:
        return ["no experiment with users is running for it"]
    if experiment.pilot:
        return [f"experiment {experiment.id} is a pilot among chosen users; stop it and start one for all of them"]
    verdict = experiment.figures.get("verdict")
    if verdict != "promote":
        said = "; ".join(experiment.figures.get("reasons", ())) or "nobody has looked yet"
        return [f"experiment {experiment.id} says {verdict or 'nothing'}: {said}"]
    age = now - datetime.fromisoformat(experiment.figures["at"])
    if age > LOOK_MAX_AGE:
        return [
            f"the last look at experiment {experiment.id} is {age.total_seconds() / 60:.0f} minutes old; look again"
        ]
    return []


def _measured_against(tx: Transaction, project_id: str, control_id: str) -> list[Experiment]:
    return tx.find(Experiment, project_id=project_id, state=ExperimentState.RUNNING, control_id=control_id)


def _end_experiments(
    tx: Transaction,
    project_id: str,
    release_id: str,
    after: ExperimentState,
    by: str,
    role: str,
    reason: str,
    now: datetime,
) -> None:
    """End what runs with this Release in either arm."""
    for experiment in tx.find(Experiment, project_id=project_id, state=ExperimentState.RUNNING):
        if release_id not in (experiment.candidate_id, experiment.control_id):
            continue
        check_transition(EXPERIMENT_TRANSITIONS, experiment.state, after, f"Experiment {experiment.id}")
        tx.change(Experiment, experiment.id, {"state": experiment.state}, state=after, ended_at=now)
        before = {"state": str(experiment.state)}
        facts = {"state": str(after), "reason": reason}
        govern.audit(tx, project_id, by, role, "experiment.end", experiment.id, before, facts, now)


def _move(
    tx: Transaction,
    release: Release,
    after: ReleaseState,
    by: str,
    role: str,
    action: str,
    reason: str,
    now: datetime,
) -> Release:
    """One transition with its audit entry; loses the race with a Conflict where another process moved the Release first."""
    check_transition(RELEASE_TRANSITIONS, release.state, after, f"Release {release.id}")
    live_at = now if after == ReleaseState.LIVE else release.live_at
    moved = tx.change(Release, release.id, {"state": release.state}, state=after, state_at=now, live_at=live_at)
    facts = {"state": str(after), **({"reason": reason} if reason else {})}
    before = {"state": str(release.state)}
    govern.audit(tx, release.project_id, by, role, action, release.id, before, facts, now)
    return moved


def _facts(release: Release) -> Json:
    return {
        "state": str(release.state),
        "checkpoint_id": release.checkpoint_id,
        "model": release.model,
        "upstream": release.upstream,
        **({"segment": release.segment} if release.segment else {}),
    }
