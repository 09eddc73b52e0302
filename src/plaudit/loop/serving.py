"""What a live request needs: which Release answers this turn. `assign` is a pure function of the serving config, the user and how the
conversation began; `serving_config` reads the ledger for it. What users then do is judged in `loop/experiment.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plaudit.domain import Assignment, Experiment, ExperimentState, Interaction, Release, ReleaseState
from plaudit.errors import NotFound
from plaudit.loop import pilots
from plaudit.loop.pilots import Pilot
from plaudit.stats.assignment import arm_for, bucket, enrol, matches, side_of
from plaudit.store import experiment as observed_rows
from plaudit.store.database import Store, Transaction

CANDIDATE, CONTROL = "candidate", "control"
RELEASED, HOLDOUT = "released", "holdout"  # the same two after promotion


@dataclass(frozen=True)
class Kept:
    """What the holdout of a promoted experiment stays on."""

    release: Release
    experiment: Experiment


@dataclass(frozen=True)
class Scope:
    """What the users of one segment are served by."""

    live: Release
    candidate: Release | None = None
    experiment: Experiment | None = None
    pilot: Pilot | None = None  # the experiment's
    kept: Kept | None = None
    segment: str = ""

    @property
    def releases(self) -> tuple[Release, ...]:
        held = self.kept.release if self.kept else None
        return tuple(release for release in (self.live, self.candidate, held) if release is not None)


@dataclass(frozen=True)
class ServingConfig:
    """What the gateway serves by, swapped whole. `version` is the number of the audit entry that made it so. The first fields are everybody's;
    `narrower` are the segments with a Release or an experiment of their own, those with more conditions first."""

    version: int
    live: Release
    candidate: Release | None = None
    experiment: Experiment | None = None
    pilot: Pilot | None = None
    kept: Kept | None = None
    narrower: tuple[Scope, ...] = ()
    shadow: Release | None = None  # gets copies of live requests, and answers nobody

    @property
    def everybody(self) -> Scope:
        return Scope(self.live, self.candidate, self.experiment, self.pilot, self.kept)

    def scope(self, attributes: Mapping[str, Any]) -> Scope:
        """Each turn belongs to one scope: the first segment that it matches, else everybody's."""
        return next((one for one in self.narrower if matches(one.segment, attributes)), self.everybody)

    @property
    def one_release(self) -> bool:
        """Whether everybody is answered by the same Release, so that how a conversation began does not matter."""
        return not self.narrower and self.experiment is None and self.kept is None

    def release(self, release_id: str) -> Release:
        """The Release that an Assignment of this config names."""
        for scope in (self.everybody, *self.narrower):
            for release in scope.releases:
                if release.id == release_id:
                    return release
        raise NotFound(f"Release {release_id!r} is not served by config {self.version}.")


def serving_config(store: Store, project_id: str) -> ServingConfig:
    """The live Releases and the running experiments, in one consistent view. Raises NotFound before anything is live."""
    with store.read() as tx:
        lives = {one.segment: one for one in tx.find(Release, project_id=project_id, state=ReleaseState.LIVE)}
        if "" not in lives:
            raise NotFound(f"Project {project_id} has no live release yet; start it once with `plaudit up`.")
        tried: dict[str, Scope] = {}
        for experiment in tx.find(Experiment, project_id=project_id, state=ExperimentState.RUNNING):
            candidate = tx.get(Release, experiment.candidate_id)
            tried[candidate.segment] = Scope(lives[""], candidate, experiment, pilots.from_json(experiment.pilot))
        scopes: dict[str, Scope] = {}
        for segment in {*lives, *tried}:
            live = lives.get(segment, lives[""])
            found = tried.get(segment, Scope(live))
            scopes[segment] = replace(found, live=live, segment=segment, kept=_kept(tx, live))
        shadow = tx.first(Release, project_id=project_id, state=ReleaseState.SHADOW)
        version = observed_rows.ledger_version(tx, project_id)
    general = scopes.pop("")
    narrower = sorted(scopes.values(), key=lambda one: (-one.segment.count(","), one.segment))
    return ServingConfig(
        version,
        general.live,
        general.candidate,
        general.experiment,
        general.pilot,
        general.kept,
        tuple(narrower),
        shadow,
    )


def held_out_on(store: Store, project_id: str) -> list[Release]:
    """The Releases that holdouts of promoted experiments are still answered by."""
    with store.read() as tx:
        lives = tx.find(Release, project_id=project_id, state=ReleaseState.LIVE)
        return [kept.release for kept in (_kept(tx, live) for live in lives) if kept is not None]


def _kept(tx: Transaction, live: Release) -> Kept | None:
    """The holdout of the experiment that made `live` live, while there is one and what it stays on was not rolled back. Everybody's stays out of
    the experiments of segments, too."""
    promoted = tx.first(Experiment, candidate_id=live.id, state=ExperimentState.PROMOTED)
    if promoted is None or not promoted.holdout:
        return None
    control = tx.get(Release, promoted.control_id)
    served = (
        ReleaseState.RETIRED,
        ReleaseState.LIVE,
    )  # everybody's live one is what a segment's first is held out from
    return Kept(control, promoted) if control.state in served else None


def began(store: Store, project_id: str, conversation_id: str) -> Assignment | None:
    """What the first turn of a conversation was assigned, None where there is no turn yet."""
    with store.read() as tx:
        found = tx.find(Interaction, project_id=project_id, conversation_id=conversation_id, limit=1)
    if not found or found[0].release_id is None:
        return None
    return Assignment(found[0].release_id, found[0].experiment_id, found[0].arm)


def assign(
    config: ServingConfig,
    actor: str | None,
    began: Assignment | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Assignment:
    """The Release that answers this turn. A new conversation goes by its user and by what is declared of them; without a user, outside the
    ramp, or where the pilot does not admit them, the live Release answers and the turn is part of no experiment.

    A conversation stays with the Release that it began under (`began`) while that one is served, whoever speaks later and however the ramp
    has moved; promotion and rollback move it. It is part of the experiment only where it began in the arm that its user is in now: that
    rule is the same for both arms, although only the candidate's would change the Release.
    """
    own = _by_user(config, actor, attributes or {})
    if began is None or (began.experiment_id, began.arm) == (own.experiment_id, own.arm):
        return own
    scopes = (config.everybody, *config.narrower)
    # What a holdout keeps is nobody else's any more.
    served = {own.release_id, *(one.id for scope in scopes for one in (scope.live, scope.candidate) if one)}
    return Assignment(began.release_id) if began.release_id in served else own


def _by_user(config: ServingConfig, actor: str | None, attributes: Mapping[str, Any]) -> Assignment:
    scope = config.scope(attributes)
    if actor is None:
        return Assignment(scope.live.id)
    if scope.kept is not None:
        kept, promoted = scope.kept.release, scope.kept.experiment
        side = side_of(promoted.salt, actor, promoted.holdout)
        if side is not None:
            release = kept if side == HOLDOUT else scope.live
            return Assignment(release.id, promoted.id, side, len(promoted.stages), 0.5)
    experiment = scope.experiment
    if experiment is None or (scope.pilot is not None and not scope.pilot.admits(actor, attributes)):
        return Assignment(scope.live.id)
    arm = arm_for(bucket(experiment.salt, actor), enrol(experiment.stages[experiment.stage]))
    if arm is None or side_of(experiment.salt, actor, experiment.holdout) == HOLDOUT:
        return Assignment(scope.live.id)
    release_id = experiment.candidate_id if arm == CANDIDATE else experiment.control_id
    # Arms are equal buckets at every stage, so an enrolled user was given the candidate with probability one half.
    return Assignment(release_id, experiment.id, arm, experiment.stage, 0.5)
