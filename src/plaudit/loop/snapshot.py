"""Snapshot: freeze what the store concludes into an immutable, hashed folder that training reads.

Nothing enters whose consent is not `allowed` or whose Comparison was made for an evaluation, and nothing whose question or family an
evaluation asks about enters but into `test`, which nothing is trained on; each filter reports how many it removed. Edits and choices of
end users become Preferences here (and edits Demonstrations): one person's word, so the probability is that of one vote under the prior
that aggregation uses.

Splits go by prompt family: a family's place is a hash of the seed and its name, so it never moves from one Snapshot to the next, however
much is added. Families that share a question stay together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from plaudit.artifacts import DemonstrationRow, PreferenceRow, PromptRow, Snapshot, write_snapshot
from plaudit.domain import (
    Feedback,
    FeedbackKind,
    Guideline,
    Interaction,
    Message,
    Preference,
    PreferenceSource,
    Purpose,
    Response,
    ResponseOrigin,
    SnapshotRecord,
    TrainingUse,
    new_id,
)
from plaudit.errors import BadInput, Refused
from plaudit.loop.prompts import question_sha256
from plaudit.store import snapshot as sources
from plaudit.store.database import Store, Transaction
from plaudit.store.feedback import current, shown_responses

SPLITS = ("train", "valid", "test")
# One vote of somebody unknown under Dirichlet(4, 1), the prior of stats.aggregate: right with probability 4/5.
ONE_VOTE = 0.8
CUT_OFF = "length"  # the finish reason of an answer that met its token limit


@dataclass(frozen=True)
class _Conclusion:
    """One feedback's Preferences, and for an edit the approved text."""

    feedback: Feedback
    interaction: Interaction
    preferences: tuple[Preference, ...]
    edited: Response | None


def freeze(
    store: Store,
    project_id: str,
    parent: Path,
    *,
    seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    now: datetime,
) -> tuple[SnapshotRecord, Snapshot]:
    """Freeze all Preferences, Demonstrations and prompts that may be trained on into `parent/<hash>`, and register the folder.

    fractions: shares of prompt families in train, valid, test. The same rows and options give the same Snapshot and record again.
    Raises BadInput (fractions), Refused (nothing may enter; reasons say what the filters removed).
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9 or fractions[0] <= 0:
        raise BadInput(f"fractions are {tuple(fractions)}; give shares of train, valid and test that sum to 1.")
    removed: Counter[str] = Counter()
    with store.write() as tx:
        conclusions = _conclude_feedback(tx, project_id, removed)
    with store.read() as tx:
        evidence = sources.evidence(tx, project_id)
        prompts = sources.prompts(tx, project_id)
        held_out = sources.held_out(tx, project_id)
        uses = sources.interactions_by_use(tx, project_id)
        guidelines = tx.find(Guideline, project_id=project_id, order="version")
    removed["prompts: consent is not allowed"] = sum(n for use, n in uses.items() if use is not TrainingUse.ALLOWED)
    rows = _admit(evidence, conclusions, prompts, held_out, seed, fractions, removed)
    filters = {name: n for name, n in sorted(removed.items()) if n}
    if not rows.preferences and not rows.demonstrations and not rows.prompts:
        reasons = [f"{name}: {n} removed" for name, n in filters.items()]
        raise Refused("Nothing in this project may be trained on yet, so there is no Snapshot to freeze.", reasons)

    lineage = {
        "guideline_versions": [guideline.version for guideline in guidelines],
        "conclusions": rows.conclusions,
        "interactions": {str(use): n for use, n in sorted(uses.items())},
        "n_held_out_families": len(held_out.families),
        "code_version": version("plaudit"),
    }
    counts = {
        "preferences": _by_split(rows.preferences),
        "demonstrations": _by_split(rows.demonstrations),
        "prompts": _by_split(rows.prompts),
    }
    snapshot = write_snapshot(
        parent,
        rows.preferences,
        rows.demonstrations,
        rows.prompts,
        config={"project_id": project_id, "seed": seed, "fractions": list(fractions), "one_vote": ONE_VOTE},
        body={"by_split": counts, "filters": filters, "lineage": lineage},
    )
    return _register(store, project_id, snapshot, {**counts, "filters": filters}, lineage, now), snapshot


def _register(
    store: Store,
    project_id: str,
    snapshot: Snapshot,
    counts: dict[str, object],
    lineage: dict[str, object],
    now: datetime,
) -> SnapshotRecord:
    with store.write() as tx:
        known = tx.first(SnapshotRecord, project_id=project_id, sha256=snapshot.manifest.id)
        if known is not None:
            return known
        record = SnapshotRecord(
            id=new_id(SnapshotRecord),
            project_id=project_id,
            folder=str(snapshot.folder),
            sha256=snapshot.manifest.id,
            counts=counts,
            lineage=lineage,
            created_at=now,
        )
        tx.add(record)
        return record


@dataclass(frozen=True)
class _Rows:
    preferences: list[PreferenceRow]
    demonstrations: list[DemonstrationRow]
    prompts: list[PromptRow]
    conclusions: dict[str, int]  # how many Preferences by source and method


def _admit(
    evidence: Sequence[sources.Evidence],
    conclusions: Sequence[_Conclusion],
    prompts: Sequence[sources.Prompt],
    held_out: sources.HeldOut,
    seed: int,
    fractions: Sequence[float],
    removed: Counter[str],
) -> _Rows:
    """What passes the filters, with its split; `removed` counts what does not."""
    standing = {preference.id for one in conclusions for preference in one.preferences}
    kept = [one for one in evidence if not _counted(removed, "preferences", _against_preference(one, standing))]
    approved = [
        one
        for one in conclusions
        if one.edited is not None and not _counted(removed, "demonstrations", _against_edit(one))
    ]
    together = _families_together(
        [(one.preference.family, one.messages or ()) for one in kept]
        + [(one.interaction.family, one.interaction.messages) for one in approved]
        + [(one.family, one.messages) for one in prompts]
    )
    split = {family: _split(root, seed, fractions) for family, root in together.items()}
    held = _HeldOut(held_out.families, frozenset(question_sha256(one) for one in held_out.messages), split)
    kept = [one for one in kept if held.admits(removed, "preferences", one.preference.family, one.messages or ())]
    approved = [
        one
        for one in approved
        if held.admits(removed, "demonstrations", one.interaction.family, one.interaction.messages)
    ]
    usable = [one for one in prompts if held.admits(removed, "prompts", one.family, one.messages)]
    unique = {one.prompt_sha256: one for one in sorted(usable, key=lambda one: one.family, reverse=True)}
    removed["prompts: seen before"] = len(usable) - len(unique)
    methods = Counter(f"{row.preference.source}/{row.preference.method}" for row in kept)
    return _Rows(
        preferences=[_preference_row(one, split) for one in kept],
        demonstrations=[_demonstration_row(one, split) for one in approved],
        prompts=[
            PromptRow(prompt_id=f"pmt_{digest[:20]}", family=one.family, split=split[one.family], messages=one.messages)
            for digest, one in unique.items()
        ],
        conclusions=dict(sorted(methods.items())),
    )


# --- filters: each returns why a row may not enter, or None ------------------------------------------------------------------


@dataclass(frozen=True)
class _HeldOut:
    """What evaluations ask about. An evaluation may draw from the test split, so there its rows stay."""

    families: frozenset[str]
    questions: frozenset[str]  # question_sha256 of their prompts
    split: Mapping[str, str]  # of each family

    def admits(self, removed: Counter[str], table: str, family: str, messages: Sequence[Message]) -> bool:
        if self.split[family] == "test":
            return True
        if family not in self.families and question_sha256(messages) not in self.questions:
            return True
        removed[f"{table}: held out by an evaluation"] += 1
        return False


def _against_preference(one: sources.Evidence, standing: set[str]) -> str | None:
    if one.purpose is Purpose.EVALUATION:
        return "made for an evaluation"
    if one.training_use is not TrainingUse.ALLOWED or one.messages is None:
        return "consent is not allowed"
    if one.preference.source in (PreferenceSource.EDIT, PreferenceSource.CHOICE) and one.preference.id not in standing:
        return "superseded or retracted"
    if not one.chosen or not one.rejected or not one.chosen.strip() or not one.rejected.strip():
        return "empty text"
    if one.chosen.strip() == one.rejected.strip():
        return "identical texts"
    return None


def _against_edit(one: _Conclusion) -> str | None:
    if one.edited is None or not one.edited.text.strip():
        return "empty text"
    return None


def _counted(removed: Counter[str], table: str, why: str | None) -> bool:
    if why is None:
        return False
    removed[f"{table}: {why}"] += 1
    return True


# --- splits ------------------------------------------------------------------------------------------------------------------


def _families_together(rows: Iterable[tuple[str, Sequence[Message]]]) -> dict[str, str]:
    """family -> the name that stands for it: the first by name among those linked by a shared question (union-find)."""
    parent: dict[str, str] = {}

    def root(family: str) -> str:
        while parent[family] != family:
            parent[family] = parent[parent[family]]
            family = parent[family]
        return family

    first_with: dict[str, str] = {}
    for family, messages in rows:
        parent.setdefault(family, family)
        other = first_with.setdefault(question_sha256(messages), family)
        one, two = sorted((root(family), root(other)))
        parent[two] = one
    return {family: root(family) for family in parent}


def _split(family: str, seed: int, fractions: Sequence[float]) -> str:
    place = int.from_bytes(hashlib.sha256(f"{seed}:{family}".encode()).digest()[:8]) / 2**64
    if place < fractions[0]:
        return SPLITS[0]
    return SPLITS[1] if place < fractions[0] + fractions[1] else SPLITS[2]


def _by_split(rows: Sequence[PreferenceRow | DemonstrationRow | PromptRow]) -> dict[str, int]:
    counts = Counter(row.split for row in rows)
    return {split: counts[split] for split in SPLITS}


def _preference_row(one: sources.Evidence, split: dict[str, str]) -> PreferenceRow:
    preference = one.preference
    assert one.messages is not None
    assert one.chosen is not None
    assert one.rejected is not None  # the filters let nothing else through
    return PreferenceRow(
        preference_id=preference.id,
        comparison_id=preference.comparison_id or "",
        criterion=preference.criterion,
        family=preference.family,
        split=split[preference.family],
        messages=one.messages,
        chosen=one.chosen,
        rejected=one.rejected,
        probability=preference.probability,
        weight=preference.weight,
        source=preference.source,
        chosen_finished=one.chosen_finish_reason != CUT_OFF,
        rejected_finished=one.rejected_finish_reason != CUT_OFF,
    )


def _demonstration_row(one: _Conclusion, split: dict[str, str]) -> DemonstrationRow:
    assert one.edited is not None
    return DemonstrationRow(
        demonstration_id="dem_" + one.feedback.id.partition("_")[2],
        family=one.interaction.family,
        split=split[one.interaction.family],
        messages=one.interaction.messages,
        response=one.edited.text,
        source=PreferenceSource.EDIT,
    )


# --- edits and choices -------------------------------------------------------------------------------------------------------


def _conclude_feedback(tx: Transaction, project_id: str, removed: Counter[str]) -> list[_Conclusion]:
    """What stands of edits and choices, as Preferences: edit over original, chosen over each other answer shown.

    Ids derive from the feedback's, so that a second freeze finds what the first one wrote and adds only what is new. Preferences of
    superseded or retracted feedback stay in the store, where older Snapshots point, and are left out of new ones.
    """
    conclusions = []
    for feedback in current(tx, project_id, (FeedbackKind.EDIT, FeedbackKind.CHOICE)):
        interaction = tx.get(Interaction, feedback.interaction_id)
        if interaction.training_use is not TrainingUse.ALLOWED:
            removed[f"{feedback.kind}s of users: consent is not allowed"] += 1
            continue
        shown = {one.idx: one for one in shown_responses(tx, interaction.id) or []}
        read = _from_edit if feedback.kind is FeedbackKind.EDIT else _from_choice
        conclusion = read(feedback, interaction, shown)
        if conclusion is not None:
            conclusions.append(conclusion)
    wanted = {preference.id: preference for one in conclusions for preference in one.preferences}
    texts = {one.edited.id: one.edited for one in conclusions if one.edited is not None}
    known = {row.id for row in tx.find(Preference, project_id=project_id, source=_FROM_FEEDBACK)}
    edited = {row.id for row in tx.find(Response, project_id=project_id, origin=ResponseOrigin.EDITED)}
    tx.add(*(text for id, text in texts.items() if id not in edited))
    tx.add(*(preference for id, preference in wanted.items() if id not in known))
    return conclusions


_FROM_FEEDBACK = (PreferenceSource.EDIT, PreferenceSource.CHOICE)


def _from_edit(feedback: Feedback, interaction: Interaction, shown: dict[int, Response]) -> _Conclusion | None:
    original = shown.get(feedback.response_idx)
    if original is None:  # the answer never came
        return None
    suffix = feedback.id.partition("_")[2]
    edited = Response(
        id="res_" + suffix,
        project_id=feedback.project_id,
        interaction_id=interaction.id,
        idx=feedback.response_idx,
        text=feedback.value["text"],
        finish_reason="stop",
        origin=ResponseOrigin.EDITED,
        model="person",
        created_at=feedback.created_at,
    )
    preference = _preference(feedback, interaction, "prf_" + suffix, edited, original, PreferenceSource.EDIT, 1.0)
    return _Conclusion(feedback, interaction, (preference,), edited)


def _from_choice(feedback: Feedback, interaction: Interaction, shown: dict[int, Response]) -> _Conclusion | None:
    chosen = shown.get(feedback.value["chosen"]) if feedback.value["chosen"] is not None else None
    if chosen is None:  # neither was better
        return None
    suffix = feedback.id.partition("_")[2]
    others = [one for one in shown.values() if one.idx != chosen.idx]
    preferences = tuple(
        _preference(
            feedback, interaction, f"prf_{suffix}_{other.idx}", chosen, other, PreferenceSource.CHOICE, 1 / len(others)
        )
        for other in others
    )
    return _Conclusion(feedback, interaction, preferences, None)


def _preference(
    feedback: Feedback,
    interaction: Interaction,
    id: str,
    chosen: Response,
    rejected: Response,
    source: PreferenceSource,
    weight: float,
) -> Preference:
    return Preference(
        id=id,
        project_id=feedback.project_id,
        comparison_id=None,
        interaction_id=interaction.id,
        family=interaction.family,
        chosen_response_id=chosen.id,
        rejected_response_id=rejected.id,
        probability=ONE_VOTE,
        weight=weight,
        n_votes=1,
        source=source,
        method="one vote",
        created_at=feedback.created_at,
    )
