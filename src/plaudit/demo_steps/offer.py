"""Step 11: refusals, named approvals, the canary with its looks, promotion, and the way back by one command.

Where the process was killed, the store says how far it came: a Release's state, an Experiment's stage, the users who have visited. What is
only said once (a refusal, a look) is kept as a small Run of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from plaudit import simulate
from plaudit.client import Plaudit
from plaudit.demo_steps import gather
from plaudit.demo_steps.gather import Tell
from plaudit.demo_steps.house import APPLICATION, APPROVERS, OWNER, Demo, command, once
from plaudit.demo_steps.plan import GOAL_MARGIN, MIN_STAGE_USERS, STAGES
from plaudit.domain import (
    Approval,
    AuditEntry,
    Decision,
    Experiment,
    Interaction,
    Json,
    Release,
    ReleaseState,
    Run,
    utc_now,
)
from plaudit.errors import Refused, Unavailable
from plaudit.loop import experiment, govern, release, serving
from plaudit.loop.experiment import Look, Rules
from plaudit.stats.assignment import arm_for, bucket, enrol

SWITCH_S = 60.0  # a gateway reads the ledger twice a second; a busy machine takes longer
FIRST_EXPERIMENTER = "canary"  # users of the experiment are called canary-0000 ...


@dataclass(frozen=True)
class Offered:
    """How the offer to users ended."""

    decision: str  # promote | hold | roll_back
    reasons: tuple[str, ...]
    looks: tuple[Json, ...]
    figures: Json  # the last look's
    promoted: bool
    rolled_back: bool
    served_candidate: bool  # seen through the gateway after the promotion
    served_base_again: bool  # seen through the gateway after the rollback


def refuse_by_gate(demo: Demo, offered: Release) -> str:
    """The gate said fail: show that a canary is refused, and retire the candidate. Returns the refusal."""
    said = once(demo, "refused.canary", lambda: _refusal(lambda: _to_canary(demo, offered)), release=offered.id)
    if demo.store.get(Release, offered.id).state == ReleaseState.CANDIDATE:
        release.refuse(demo.store, demo.project_id, offered.id, APPROVERS[0], "the gate said fail", utc_now())
    return str(said["said"])


def to_users(demo: Demo, offered: Release, tell: Tell) -> Offered:
    """The whole of step 11 for a candidate that passed its gate."""
    alice, bob = APPROVERS
    once(demo, "refused.canary", lambda: _refusal(lambda: _to_canary(demo, offered)), release=offered.id)
    if _state(demo, offered) == ReleaseState.CANDIDATE:
        _approve(demo, offered, "canary", alice, "the gate passed and I have read answers")
        _to_canary(demo, offered)
    running = _experiment(demo, offered)
    look, looks = _ramp(demo, running, tell)
    if look.verdict != "promote":
        if _state(demo, offered) == ReleaseState.CANARY:
            why = f"the canary said {look.verdict}"
            release.roll_back(demo.store, demo.project_id, alice, why, utc_now(), offered.id)
        again = _serves(demo, release.live(demo.store, demo.project_id))
        return Offered(look.verdict, look.reasons, looks, look.figures, False, True, False, again)

    def same_eyes() -> object:
        return _approve(demo, offered, "live", alice, "I like it still")

    once(demo, "refused.four-eyes", lambda: _refusal(same_eyes), release=offered.id)
    once(demo, "refused.live", lambda: _refusal(lambda: _promote(demo, offered)), release=offered.id)
    if _state(demo, offered) == ReleaseState.CANARY:
        _approve(demo, offered, "live", bob, "no guardrail fired")
        experiment.look(demo.store, running.id, utc_now())  # a promotion rests on figures of now
        _promote(demo, offered)

    def check() -> Json:
        return {"served": _serves(demo, offered)}

    served = once(demo, "served.candidate", check, release=offered.id)["served"]
    if _state(demo, offered) == ReleaseState.LIVE:
        done = command(demo, "release", "rollback", "--by", bob, "--reason", "the demo shows the way back")
        if done.returncode != 0:
            raise Unavailable(f"`plaudit release rollback` failed: {done.stderr.strip() or done.stdout.strip()}")
    again = _serves(demo, release.live(demo.store, demo.project_id))
    rolled_back = _state(demo, offered) == ReleaseState.ROLLED_BACK
    return Offered("promote", look.reasons, looks, look.figures, True, rolled_back, served, again)


# --- the ramp ------------------------------------------------------------------------------------------------------------


def _experiment(demo: Demo, offered: Release) -> Experiment:
    known = demo.store.first(Experiment, project_id=demo.project_id, candidate_id=offered.id)
    if known is not None:
        return known
    control = release.live(demo.store, demo.project_id)
    rules = Rules(min_stage_users=MIN_STAGE_USERS, goal_margin=GOAL_MARGIN)
    return experiment.start(
        demo.store, demo.project_id, offered.id, control.id, utc_now(), stages=STAGES, rules=rules, by=OWNER
    )


def _ramp(demo: Demo, running: Experiment, tell: Tell) -> tuple[Look, tuple[Json, ...]]:
    """Visits and looks by turns until the experiment says promote or roll back, or nobody is left to ask. Each look is said once."""
    plan = demo.options.plan
    everybody = gather.visits(demo, "traffic", FIRST_EXPERIMENTER, plan.most_visits)
    looks: list[Json] = []
    at = plan.first_visits
    met = 0  # visitors so far
    while True:
        _wait_for_gateway(demo, running)
        so_far = everybody[:at]
        gather.ask(demo, so_far, lambda done, _, start=met: tell(start + done, len(everybody)))  # type: ignore[misc]
        met = at

        def see(number: int = len(looks) + 1) -> Json:
            return _said(number, experiment.look(demo.store, running.id, utc_now()))

        looks.append(once(demo, f"look.{len(looks) + 1}", see, experiment=running.id, visits=at))
        last = looks[-1]
        if last["verdict"] != "hold" or at >= len(everybody):
            return Look(last["verdict"], tuple(last["reasons"]), last["figures"]), tuple(looks)
        now = demo.store.get(Experiment, running.id)
        if now.stage + 1 < len(STAGES) and last["stage"] == now.stage and last["figures"]["may_advance"]:
            experiment.advance(demo.store, demo.project_id, running.id, OWNER, utc_now())
        at = min(len(everybody), at + plan.visits_per_look)


def _said(number: int, look: Look) -> Json:
    figures = look.figures
    harm = next(one for one in figures["guardrails"] if one["name"] == "first_thumbs_down")
    return {
        "look": number,
        "stage": figures["stage"],
        "verdict": look.verdict,
        "reasons": list(look.reasons),
        "e_value": harm["value"],
        "threshold": harm["threshold"],
        "n_candidate": figures["n_users"]["candidate"],
        "n_control": figures["n_users"]["control"],
        "figures": figures,
    }


def _wait_for_gateway(demo: Demo, running: Experiment) -> None:
    """Until the gateway assigns by this experiment's present stage, seen over HTTP: users who come earlier would not be enrolled."""
    now = demo.store.get(Experiment, running.id)
    if now.ended_at is not None:
        return
    config = serving.serving_config(demo.store, demo.project_id)
    probe = next(
        user
        for user in (f"probe-{at}" for at in range(10_000))
        if serving.assign(config, user).arm == serving.CANDIDATE
        and (now.stage == 0 or not _enrolled_before(config, user))
    )
    with _client(demo) as client:
        _until(lambda: client.assign(probe)["experiment_id"] == running.id, "assign users to the canary")


def _enrolled_before(config: serving.ServingConfig, user: str) -> bool:
    """Whether the stage before enrolled this user already, so that they tell nothing about the present one."""
    assert config.experiment is not None
    earlier = arm_for(bucket(config.experiment.salt, user), enrol(STAGES[config.experiment.stage - 1]))
    return earlier is not None


# --- acts ----------------------------------------------------------------------------------------------------------------


def _state(demo: Demo, offered: Release) -> ReleaseState:
    return demo.store.get(Release, offered.id).state


def _approve(demo: Demo, offered: Release, stage: str, person: str, reason: str) -> object:
    known = demo.store.first(Approval, release_id=offered.id, stage=stage, person=person)
    if known is not None and known.decision is Decision.APPROVE:
        return known
    return govern.approve(demo.store, demo.project_id, offered.id, stage, person, Decision.APPROVE, reason, utc_now())


def _to_canary(demo: Demo, offered: Release) -> object:
    return release.to_canary(demo.store, demo.project_id, offered.id, OWNER, utc_now())


def _promote(demo: Demo, offered: Release) -> object:
    return release.promote(demo.store, demo.project_id, offered.id, OWNER, utc_now())


def _refusal(act: Callable[[], object]) -> Json:
    """What the house says to an act that must not pass."""
    try:
        act()
    except Refused as refused:
        return {"said": refused.message, "at": utc_now().isoformat()}
    raise Unavailable("An act that needs an approval passed without it; this is a bug of the release ledger.")


def _serves(demo: Demo, wanted: Release) -> bool:
    """Ask through the gateway as a user of no experiment until `wanted` answers; then look up what was recorded."""
    visit = gather.visits(demo, "traffic", f"check-{wanted.model}", 1)[0]
    seen: list[str] = []

    def answered() -> bool:
        asked = simulate.ask(
            demo.settings.service_url,
            demo.keys[APPLICATION],
            demo.population,
            [visit],
            max_tokens=demo.options.plan.max_tokens,
            temperature=demo.options.plan.temperature,
            centre=demo.options.plan.demand,
        )
        recorded = demo.store.get(Interaction, asked[0].interaction_id)
        seen.append(recorded.served_release_id or "")
        return seen[-1] == wanted.id

    _until(answered, f"serve release {wanted.id}")
    return True


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SWITCH_S
    while not holds():
        if time.monotonic() > deadline:
            raise Unavailable(
                f"The gateway did not {what} within {SWITCH_S:.0f} s; see its log in the home's logs folder."
            )
        time.sleep(0.1)


def _client(demo: Demo) -> Plaudit:
    return Plaudit(demo.settings.service_url, demo.keys[APPLICATION])


# --- the ledger ----------------------------------------------------------------------------------------------------------

_WORDS = {
    "release.create": "offer a candidate",
    "release.approve": "approve for {stage}",
    "release.refuse": "refuse",
    "release.to_canary": "make it the canary",
    "release.promote": "promote",
    "release.retire": "retire",
    "release.roll_back": "roll back",
    "release.return": "return to service",
    "experiment.start": "start the experiment",
    "experiment.advance": "enrol {share} of all users in each arm",
    "experiment.end": "end the experiment",
}
_REFUSALS = {
    "demo.refused.canary": (OWNER, "make it the canary without approval"),
    "demo.refused.four-eyes": (APPROVERS[0], "approve for live, having approved the canary"),
    "demo.refused.live": (OWNER, "promote without a second approval"),
}


def ledger(demo: Demo) -> list[Json]:
    """Every act on releases and experiments, from the audit log, and every act that was refused, in order of time."""
    rows: list[tuple[datetime, Json]] = []
    for entry in demo.store.find(AuditEntry, project_id=demo.project_id, order="seq"):
        if entry.action in _WORDS:
            facts = {"stage": entry.after.get("stage", ""), "share": f"{entry.after.get('share', 0):.0%}"}
            outcome = str(entry.after.get("reason") or entry.after.get("state") or "done")
            rows.append(
                (entry.created_at, _row(entry.created_at, entry.actor, _WORDS[entry.action].format(**facts), outcome))
            )
    for step, (who, what) in _REFUSALS.items():
        for run in demo.store.find(Run, project_id=demo.project_id, step=step):
            if "said" in run.outputs:
                at = datetime.fromisoformat(run.outputs["at"])
                rows.append((at, _row(at, who, what, f"refused: {run.outputs['said']}")))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _row(at: datetime, actor: str, what: str, outcome: str) -> Json:
    return {"at": f"{at:%H:%M:%S}", "actor": actor, "what": what, "outcome": outcome}


def n_refusals(demo: Demo) -> int:
    return sum(demo.store.count(Run, project_id=demo.project_id, step=step) for step in _REFUSALS)
