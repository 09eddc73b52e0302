"""Abuse of feedback: who looks like it, and the quarantine that keeps their feedback out of Snapshots and metrics until it is lifted.

Nothing is deleted and nobody is told: a quarantined actor's feedback is accepted, stored, and counts for nothing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from plaudit.domain import Interaction, Quarantine, new_id
from plaudit.errors import BadInput, Conflict, NotFound
from plaudit.loop import govern
from plaudit.stats import abuse as signs
from plaudit.stats.abuse import Suspect
from plaudit.store import feedback as chains
from plaudit.store import monitoring
from plaudit.store.database import Store


def suspects(store: Store, project_id: str, since: datetime, now: datetime) -> list[Suspect]:
    """What looks like abuse in [since, now), besides what is in quarantine already."""
    with store.read() as tx:
        spoken = monitoring.spoken(tx, project_id, since, now)
    return signs.suspects([monitoring.act(*one) for one in signs.worth_a_look(spoken)])


def quarantine(
    store: Store,
    project_id: str,
    *,
    actor: str | None = None,
    interaction_id: str | None = None,
    reason: str,
    by: str,
    now: datetime,
    role: str = "system",
) -> Quarantine:
    """Hold all feedback of an actor, or on an Interaction, or of that actor on that Interaction; what is there and what comes. Raises
    BadInput (neither, or no reason), NotFound (Interaction), Conflict (it stands already)."""
    if actor is None and interaction_id is None:
        raise BadInput("A quarantine needs an actor or an Interaction; else it would hold everything.")
    if not reason.strip():
        raise BadInput("reason is empty; say in a sentence why.")
    with store.write() as tx:
        if interaction_id is not None and tx.first(Interaction, id=interaction_id, project_id=project_id) is None:
            raise NotFound(f"There is no Interaction {interaction_id!r} in this project.")
        standing = tx.first(
            Quarantine, project_id=project_id, actor=actor, interaction_id=interaction_id, lifted_at=None
        )
        if standing is not None:
            raise Conflict(
                f"This is in quarantine already ({standing.id}, since {standing.created_at:%Y-%m-%d %H:%M} UTC)."
            )
        made = Quarantine(
            id=new_id(Quarantine),
            project_id=project_id,
            actor=actor,
            interaction_id=interaction_id,
            reason=reason,
            by=by,
            n_feedback=0,
            created_at=now,
        )
        n_feedback = chains.quarantine(tx, project_id, made)
        tx.add(made)
        after = {"reason": reason, "n_feedback": n_feedback}
        govern.audit(tx, project_id, by, role, "quarantine.add", made.id, {}, after, now)
        return tx.change(Quarantine, made.id, n_feedback=n_feedback)


def lift(
    store: Store,
    project_id: str,
    quarantine_id: str,
    by: str,
    now: datetime,
    role: str = "system",
    reason: str = "",
) -> Quarantine:
    """Give its feedback back; lifting it twice changes nothing. Raises NotFound."""
    with store.write() as tx:
        found = tx.first(Quarantine, id=quarantine_id, project_id=project_id)
        if found is None:
            raise NotFound(f"There is no quarantine {quarantine_id!r} in this project.")
        if found.lifted_at is not None:
            return found
        n_feedback = chains.give_back(tx, quarantine_id)
        for other in tx.find(Quarantine, project_id=project_id, lifted_at=None, order="created_at"):
            if other.id != quarantine_id and _overlap(found, other):  # it holds what both of them are about
                n_feedback -= chains.quarantine(tx, project_id, other)
        after = {"n_feedback": n_feedback} | ({"reason": reason} if reason else {})
        govern.audit(tx, project_id, by, role, "quarantine.lift", quarantine_id, {}, after, now)
        return tx.change(Quarantine, quarantine_id, n_feedback=n_feedback, lifted_at=now)


def _overlap(one: Quarantine, other: Quarantine) -> bool:
    """Whether some feedback can be held by either."""
    same_actor = None in (one.actor, other.actor) or one.actor == other.actor
    return same_actor and (
        None in (one.interaction_id, other.interaction_id) or one.interaction_id == other.interaction_id
    )


def quarantines(store: Store, project_id: str, lifted_too: bool = False) -> list[Quarantine]:
    """Those that stand, newest first, with what each holds by now; lifted ones with what they gave back."""
    standing: dict[str, Any] = {} if lifted_too else {"lifted_at": None}
    with store.read() as tx:
        found = tx.find(Quarantine, project_id=project_id, descending=True, **standing)
        now = chains.held(tx, project_id)
    return [one if one.lifted_at else replace(one, n_feedback=now.get(one.id, 0)) for one in found]


def quarantine_suspects(store: Store, project_id: str, since: datetime, now: datetime) -> list[Quarantine]:
    """Quarantine whatever looks like abuse in [since, now), each once."""
    reasons: dict[tuple[str | None, str | None], list[str]] = {}
    for one in suspects(store, project_id, since, now):
        reasons.setdefault((one.actor, one.interaction_id), []).append(f"{one.signal} ({one.n} acts)")
    made = []
    for (actor, interaction_id), signals in reasons.items():
        try:
            made.append(
                quarantine(
                    store,
                    project_id,
                    actor=actor,
                    interaction_id=interaction_id,
                    reason=f"looks like abuse: {', '.join(signals)}",
                    by="worker",
                    now=now,
                )
            )
        except Conflict:  # another worker was first
            continue
    return made
