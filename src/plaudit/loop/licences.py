"""Licences: what is known of the rights in data that a model may be trained on, and what a Release waits for while nobody knows.

    declare(store, ...)              a person says the licence of an import, or of a model's answers, and whether its terms allow training
    rights(tx, project_id, base)     what holds now, to be asked row by row when a Snapshot is frozen
    reasons_against(tx, checkpoint)  what in the Snapshots behind a Checkpoint has no licence, or terms that forbid training, now
    override(store, ...)             a named person answers for a Release all the same; on the audit log

What users of the application sent is its own (`OWN`): their consent decides. A model that a Release offers has the licence of its Checkpoint, or
of the base model; any other model's answers have the one that somebody has declared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from plaudit import artifacts
from plaudit.domain import (
    AuditEntry,
    Checkpoint,
    Licence,
    LicenceOf,
    Release,
    Run,
    SnapshotRecord,
    TrainingUse,
    new_id,
)
from plaudit.errors import BadInput, Conflict, NotFound
from plaudit.loop import gates, govern
from plaudit.store.database import Store, Transaction

UNKNOWN = "unknown"
OWN = "first party"  # the licence of what the application's own users said
NO_MODEL = frozenset({"person", "import", ""})  # stand where a model's name would, if one had written it
OVERRIDE = "licence.override"
MAX_CHARS = 200


def declare(
    store: Store,
    project_id: str,
    subject: LicenceOf,
    name: str,
    licence: str,
    terms: TrainingUse,
    by: str,
    now: datetime,
) -> Licence:
    """Say the licence and terms of an import or a model (`*` in a model's name stands for anything); saying the same again changes nothing.
    Raises BadInput."""
    licence = licence.strip()
    for what, text in (("name", name), ("licence", licence)):
        if not text.strip() or len(text) > MAX_CHARS:
            raise BadInput(f"The {what} is {text!r}; give 1 to {MAX_CHARS} characters.")
    with store.write() as tx:
        known = _newest(tx, project_id, subject).get(name)
        if known is not None and (known.licence, known.terms) == (licence, terms):
            return known
        made = Licence(
            id=new_id(Licence),
            project_id=project_id,
            subject=subject,
            name=name,
            licence=licence,
            terms=terms,
            by=by,
            created_at=now,
        )
        tx.add(made)
        before = {"licence": known.licence, "terms": str(known.terms)} if known is not None else {}
        after = {"licence": licence, "terms": str(terms)}
        govern.audit(tx, project_id, by, "system", f"licence.{subject}", name, before, after, now)
        return made


@dataclass(frozen=True)
class Rights:
    """What holds now. `own`: the licence of each model that a Release offers."""

    imports: Mapping[str, Licence]
    models: Mapping[str, Licence]
    own: Mapping[str, str] = field(default_factory=dict)
    _found: dict[str, Licence | None] = field(default_factory=dict, repr=False)

    def of_import(self, name: str) -> str:
        """The licence of a batch, or of our own users' data where it is ""."""
        if not name:
            return OWN
        return self.imports[name].licence if name in self.imports else UNKNOWN

    def of_model(self, model: str) -> str:
        declared = self._declared(model)
        return declared.licence if declared is not None else self.own.get(model, UNKNOWN)

    def terms(self, imported: str, models: Sequence[str]) -> TrainingUse:
        """Whether the terms of everything behind a row allow training on it: denied where one forbids it, unknown where one is not known."""
        said = [self.imports[imported].terms if imported in self.imports else TrainingUse.UNKNOWN] if imported else []
        for model in models:
            declared = self._declared(model)
            if declared is not None:
                said.append(declared.terms)
            elif model not in self.own:
                said.append(TrainingUse.UNKNOWN)
        return next((one for one in (TrainingUse.DENIED, TrainingUse.UNKNOWN) if one in said), TrainingUse.ALLOWED)

    def _declared(self, model: str) -> Licence | None:
        if model not in self._found:
            fitting = [one for one in self.models.values() if fnmatchcase(model, one.name)]
            self._found[model] = max(fitting, key=lambda one: (one.name == model, one.id), default=None)
        return self._found[model]


def rights(tx: Transaction, project_id: str, base_licence: str = UNKNOWN) -> Rights:
    """What has been declared, and the licences of the models that Releases offer. `base_licence`: that of the base model."""
    checkpoints = {one.id: one for one in tx.find(Checkpoint, project_id=project_id)}
    own = {
        release.model: (
            base_licence if release.checkpoint_id is None else _of_folder(checkpoints[release.checkpoint_id])
        )
        or UNKNOWN
        for release in tx.find(Release, project_id=project_id)
        if release.checkpoint_id is None or release.checkpoint_id in checkpoints
    }
    imports, models = (_newest(tx, project_id, subject) for subject in (LicenceOf.IMPORT, LicenceOf.MODEL))
    return Rights(imports, models, own)


def base_licence(folder: Path) -> str:
    """What a prepared base model's folder says of its licence."""
    note = folder / "prepared.json"
    return str(json.loads(note.read_text()).get("license", UNKNOWN)) if note.is_file() else UNKNOWN


def reasons_against(tx: Transaction, checkpoint: Checkpoint) -> list[str]:
    """Sentences about what a Checkpoint, or one it was made from, learned from without a licence, or against its terms; empty where all is
    known. A Snapshot that was frozen before licences were kept says nothing."""
    held = rights(tx, checkpoint.project_id)
    found = {}
    if _of_folder(checkpoint) == UNKNOWN:
        found["", ""] = (
            "nobody has said the licence of its base model: write it into the base folder's prepared.json and train anew"
        )
    for record in snapshots_behind(tx, checkpoint):
        for subject, names in record.lineage.get("rights", {}).get("declared", {}).items():
            for name in names:
                is_import = subject == LicenceOf.IMPORT
                licence = held.of_import(name) if is_import else held.of_model(name)
                terms = held.terms(name, ()) if is_import else held.terms("", (name,))
                if terms is TrainingUse.DENIED:
                    found[subject, name] = (
                        f"the terms of {subject} {name!r} forbid training, and Snapshot {record.id} holds rows of it: freeze and train anew"
                    )
                elif licence == UNKNOWN:
                    found[subject, name] = (
                        f"nobody has said the licence of {subject} {name!r}, of which Snapshot {record.id} holds rows: say it with "
                        f"`plaudit snapshot licence {subject} {name} LICENCE`, or freeze without it and train anew"
                    )
    return [found[key] for key in sorted(found)]


def snapshots_behind(tx: Transaction, checkpoint: Checkpoint) -> list[SnapshotRecord]:
    """Every Snapshot that this Checkpoint, or one that it was made from, was trained on."""
    project_id = checkpoint.project_id
    checkpoints, snapshots = tx.find(Checkpoint, project_id=project_id), tx.find(SnapshotRecord, project_id=project_id)
    runs = {one.id: one for one in tx.find(Run, project_id=project_id)}
    waiting, seen = [checkpoint], {checkpoint.id}
    behind: dict[str, SnapshotRecord] = {}
    while waiting:
        made = waiting.pop()
        run = runs.get(made.run_id or "")
        said = json.dumps([made.parent_id, *([run.inputs, run.config] if run is not None else [])])
        behind |= {one.id: one for one in snapshots if _named(one, said)}
        parents = [one for one in checkpoints if one.id not in seen and _named(one, said)]
        seen |= {one.id for one in parents}
        waiting += parents
    return [behind[id] for id in sorted(behind)]


def override(store: Store, project_id: str, release_id: str, person: str, reason: str, now: datetime) -> AuditEntry:
    """A named Person answers for the licences behind a Release; on the audit log. Raises NotFound, BadInput (no reason), Conflict (nothing to
    override), Forbidden (no role of theirs has the permission)."""
    if not reason.strip():
        raise BadInput("reason is empty; say in a sentence why the licence does not stand in the way.")
    with store.write() as tx:
        found = tx.first(Release, id=release_id, project_id=project_id)
        if found is None or found.checkpoint_id is None:
            raise NotFound(f"There is no Release {release_id!r} of a Checkpoint in this project.")
        reasons = reasons_against(tx, tx.get(Checkpoint, found.checkpoint_id))
        if not reasons:
            raise Conflict(f"Every licence behind {release_id} is known: there is nothing to override.")
        role = gates.overriding_role(tx, project_id, person, "a licence that nobody knows")
        after = {"reason": reason, "reasons": reasons}
        return govern.audit(tx, project_id, person, role, OVERRIDE, release_id, {}, after, now)


def overridden(tx: Transaction, release: Release) -> AuditEntry | None:
    """The newest entry by which somebody answered for this Release's licences; `after.reasons` says for which."""
    return tx.first(AuditEntry, project_id=release.project_id, action=OVERRIDE, object_id=release.id)


def _of_folder(checkpoint: Checkpoint) -> str | None:
    """What a finished Checkpoint says of its base model's licence; None where it says nothing."""
    folder = Path(checkpoint.folder)
    return artifacts.read_manifest(folder).body.get("license") if (folder / artifacts.MANIFEST).is_file() else None


def _newest(tx: Transaction, project_id: str, subject: LicenceOf) -> dict[str, Licence]:
    return {one.name: one for one in tx.find(Licence, project_id=project_id, subject=subject)}


def _named(one: Checkpoint | SnapshotRecord, said: str) -> bool:
    return any(json.dumps(name) in said for name in (one.id, one.folder, one.sha256))
