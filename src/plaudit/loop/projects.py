"""Projects: applications that share an installation and see nothing of one another. Each has its own keys, people, releases, and scale of ratings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from plaudit.domain import Annotation, Project, Release, TrainingUse, Verdict, new_id
from plaudit.errors import BadInput, Conflict, NotFound
from plaudit.loop import govern, release
from plaudit.loop.answers import MAX_RATING
from plaudit.store.database import Store, Transaction
from plaudit.store.feedback import was_rated

MAX_NAME_CHARS = 100


def create(
    store: Store,
    name: str,
    now: datetime,
    *,
    by: str,
    training_use: TrainingUse = TrainingUse.UNKNOWN,
    rating_min: int = 1,
    rating_max: int = 5,
) -> Project:
    """A new project. Raises BadInput (its name, its scale), Conflict (there is one of this name)."""
    if not name.strip() or name != name.strip() or len(name) > MAX_NAME_CHARS:
        raise BadInput(
            f"A project's name is {name!r}; give 1 to {MAX_NAME_CHARS} characters without spaces around them."
        )
    _check_scale(rating_min, rating_max)
    id = new_id(Project)
    made = Project(
        id=id,
        project_id=id,
        name=name,
        training_use_default=training_use,
        rating_min=rating_min,
        rating_max=rating_max,
        created_at=now,
    )
    with store.write() as tx:
        if tx.first(Project, name=name) is not None:
            raise Conflict(f"There is a project {name!r} already; choose another name.")
        tx.add(made)
        govern.audit(tx, id, by, "system", "project.create", id, {}, {"name": name, **_facts(made)}, now)
    return made


def serve_base(store: Store, project: Project, from_project: str, now: datetime) -> Release | None:
    """The base model of another project as the first live Release of this one; None where that has none."""
    bases = store.find(Release, project_id=from_project, checkpoint_id=None, order="created_at")
    return release.register_base(store, project.id, bases[0].model, bases[0].upstream, now) if bases else None


def find(store: Store, name: str) -> Project:
    """Raises NotFound."""
    found = store.first(Project, name=name)
    if found is None:
        there = ", ".join(one.name for one in store.find(Project, order="name"))
        raise NotFound(f"There is no project {name!r}; there are: {there}. Make one with `plaudit project create`.")
    return found


def change(
    store: Store,
    project_id: str,
    now: datetime,
    *,
    by: str,
    training_use: TrainingUse | None = None,
    rating_min: int | None = None,
    rating_max: int | None = None,
) -> Project:
    """Other defaults from now on; what is stored stays. Raises BadInput, and Conflict for another scale once something was rated on the old."""
    with store.write() as tx:
        before = tx.get(Project, project_id)
        wanted: dict[str, Any] = {
            "training_use_default": before.training_use_default if training_use is None else training_use,
            "rating_min": before.rating_min if rating_min is None else rating_min,
            "rating_max": before.rating_max if rating_max is None else rating_max,
        }
        _check_scale(wanted["rating_min"], wanted["rating_max"])
        scale = (before.rating_min, before.rating_max)
        if scale != (wanted["rating_min"], wanted["rating_max"]) and _rated(tx, project_id):
            raise Conflict(
                f"Project {before.name!r} has ratings on its scale from {scale[0]} to {scale[1]}, which would mean something else on "
                "another; make a new project for another scale."
            )
        after = tx.change(Project, project_id, **wanted)
        if after != before:
            govern.audit(tx, project_id, by, "system", "project.change", project_id, _facts(before), _facts(after), now)
        return after


def _rated(tx: Transaction, project_id: str) -> bool:
    return was_rated(tx, project_id) or tx.first(Annotation, project_id=project_id, verdict=Verdict.RATE) is not None


def _check_scale(low: int, high: int) -> None:
    if not -MAX_RATING <= low < high <= MAX_RATING:
        raise BadInput(
            f"The scale goes from {low} to {high}; its end must be above its beginning, both within {MAX_RATING}."
        )


def _facts(project: Project) -> dict[str, Any]:
    return {
        "training_use_default": str(project.training_use_default),
        "rating_min": project.rating_min,
        "rating_max": project.rating_max,
    }
