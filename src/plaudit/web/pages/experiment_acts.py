"""What an operator does to an experiment in the browser: start one for a canary, go on with its ramp, stop it, end its holdout."""

from __future__ import annotations

from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Experiment, ExperimentState, Person, utc_now
from plaudit.errors import BadInput, Conflict, NotFound
from plaudit.loop import experiment as acts
from plaudit.loop import govern, opening
from plaudit.loop.govern import Permission
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages.forms import confirmed, read_form
from plaudit.web.pages.shell import go
from plaudit.web.sign_in import signed_in


async def start(request: Request) -> Response:
    """POST /experiments: users meet a canary, where `sure` was ticked."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    reason = confirmed(form)
    made = await door.run(_start, door.store, me, form, reason, utc_now())
    return go(f"/experiments/{made.id}")


async def move(request: Request) -> Response:
    """POST /experiments/{experiment_id}/move: advance, stop or end_holdout, where `sure` was ticked."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    experiment_id, reason = request.path_params["experiment_id"], confirmed(form)
    await door.run(_move, door.store, me, experiment_id, form, reason, utc_now())
    return go(f"/experiments/{experiment_id}")


def moves(experiment: Experiment) -> list[tuple[str, str, tuple[str, ...]]]:
    """(act, button, what stood in its way at the last look) of those that its state allows."""
    if experiment.state == ExperimentState.RUNNING:
        found: list[tuple[str, str, tuple[str, ...]]] = [("stop", "Stop the experiment", ())]
        if experiment.stage + 1 < len(experiment.stages):
            against = experiment.figures.get("blocks_advance", ("nobody has looked at this stage yet",))
            share = experiment.stages[experiment.stage + 1]
            found.insert(0, ("advance", f"Go on to {100 * share:.3g} % of users in each arm", tuple(against)))
        return found
    if experiment.holdout and experiment.state == ExperimentState.PROMOTED:
        return [("end_holdout", "End the holdout", ())]
    return []


def _start(store: Store, me: Person, form: dict[str, str], reason: str, now: datetime) -> Experiment:
    """Every word as `plaudit experiment start` reads it; an empty field is an option that was not given. Raises BadInput, NotFound, Conflict."""

    def lines(name: str) -> list[str]:
        return [line.strip() for line in form.get(name, "").splitlines() if line.strip()]

    def amount(name: str) -> float:
        return opening.number(name, form[name]) if form.get(name) else 0.0

    release_id = form.get("release", "")
    if not release_id:
        raise BadInput("release is empty; choose the canary that users shall meet.")
    canary, live = opening.opponents(store, me.project_id, release_id)
    cap = amount("cap") if form.get("cap") else None
    names, until = lines("users") or None, _moment(form.get("until", ""))
    return acts.start(
        store,
        me.project_id,
        canary.id,
        live.id,
        now,
        opening.shares(form.get("stages", "")),
        acts.rules_from(opening.rules(lines("rules"))),
        by=me.name,
        role=govern.acting_role(me.roles, Permission.OPERATE),
        declared=opening.metrics(lines("metrics"), lines("margins")),
        pilot=opening.pilot(lines("only"), names, until, cap, amount("prompt_price"), amount("completion_price")),
        holdout=amount("holdout"),
        layer=form.get("layer", "").strip() or None,
        reason=reason,
    )


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        raise BadInput(f"until is {text!r}; give a date and a time, such as 2026-12-01T09:00.") from None


def _move(store: Store, me: Person, experiment_id: str, form: dict[str, str], reason: str, now: datetime) -> None:
    """The act by this person, in the role that lets them. Raises BadInput (no such act), NotFound, Conflict, and what the act raises."""
    role = govern.acting_role(me.roles, Permission.OPERATE)
    found = store.first(Experiment, id=experiment_id, project_id=me.project_id)
    if found is None:
        raise NotFound(f"There is no experiment {experiment_id!r} in this project.")
    match act := form.get("act", ""):
        case "advance":
            if form.get("stage") != str(found.stage):  # pressed twice, or by two people
                raise Conflict(
                    f"Experiment {experiment_id} is at stage {found.stage + 1} by now; look at its page again."
                )
            acts.look(store, experiment_id, now)  # a fresh one: it says whether the ramp may go on
            acts.advance(store, me.project_id, experiment_id, me.name, now, role, reason)
        case "stop":
            acts.stop(store, me.project_id, experiment_id, me.name, reason, now, role)
        case "end_holdout":
            acts.end_holdout(store, me.project_id, experiment_id, me.name, now, role, reason)
        case _:
            raise BadInput(f"act is {act!r}; choose from: advance, stop, end_holdout.")
