"""Snapshot: freeze what the store concludes into an immutable, hashed folder that training reads.

Nothing enters whose consent is not `allowed` or whose Comparison was made for an evaluation, and nothing whose question or family an
evaluation asks about enters but into `test`, which nothing is trained on; what else is filtered is a Curation (snapshots/pool.py), and each
filter reports how many it removed. Edits and choices of end users become Preferences here (and edits Demonstrations): one person's word,
so the probability is that of one vote under the prior that aggregation uses.

Splits go by prompt family and conversation (snapshots/splits.py). Rows come from the store page by page and wait in a file, so the number
of Preferences is bounded by the disk.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from plaudit.artifacts import (
    THUMBS,
    GroupRow,
    MarginRow,
    ProvenanceRow,
    Snapshot,
    VoteRow,
    canonical,
    sha256_of,
    write_snapshot,
)
from plaudit.domain import (
    Feedback,
    FeedbackKind,
    Guideline,
    Interaction,
    LicenceOf,
    Message,
    Preference,
    PreferenceSource,
    Project,
    Purpose,
    Response,
    ResponseOrigin,
    SnapshotRecord,
    TrainingUse,
    Verdict,
    new_id,
)
from plaudit.errors import BadInput, Refused
from plaudit.loop import licences, suites
from plaudit.loop.prompts import question_sha256
from plaudit.loop.snapshots import card
from plaudit.loop.snapshots.personal_data import Finder
from plaudit.loop.snapshots.pool import Candidate, Curation, HeldOut, Pool, Tally
from plaudit.loop.snapshots.splits import EVALUATION, SPLITS
from plaudit.store import annotated
from plaudit.store import snapshot as sources
from plaudit.store.database import Store, Transaction
from plaudit.store.feedback import current, shown_responses

# One vote of somebody unknown under Dirichlet(4, 1), the prior of stats.aggregate: right with probability 4/5.
ONE_VOTE = 0.8
THUMB, RATING = "thumb", "rating"  # the sources of thumbs: a user's, and what annotators' ratings make
CUT_OFF = "length"  # the finish reason of an answer that met its token limit
IMPORTED = "import"  # attribute of an Interaction that came with an import, which it names
MAX_GROUPS = 50  # values of an attribute beyond which it is no group but an identifier
STRONGEST = 3  # of a vote's strength: a margin of 1, as Touvron et al. 2023, A.3.3, scale theirs ("small")
UNCHOSEN = frozenset({"random", "import"})  # reasons to ask that are no active selection
PREFERENCES, DEMONSTRATIONS, PROMPTS = "preferences", "demonstrations", "prompts"


@dataclass(frozen=True)
class _Conclusion:
    """The Preferences from one feedback or from what an annotator wrote (`id` is that one's), and for an edit the approved text."""

    id: str
    actor: str | None
    interaction: Interaction
    preferences: tuple[Preference, ...]
    edited: Response | None
    models: tuple[str, ...] = ()  # whose answers people edited or chose from
    annotators: tuple[str, ...] = ()
    batch: str | None = None


def freeze(
    store: Store,
    project_id: str,
    parent: Path,
    *,
    seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    curation: Curation | None = None,
    canaries: Sequence[Sequence[Message]] = (),
    finders: Mapping[str, Finder] | None = None,
    base_licence: str = licences.UNKNOWN,
    now: datetime,
) -> tuple[SnapshotRecord, Snapshot]:
    """Freeze all Preferences, Demonstrations and prompts that may be trained on into `parent/<hash>`, and register the folder.

    fractions: shares of prompt families in train, valid, test. curation: what else is filtered. canaries: prompts that nothing may be trained
    on, beside those of evaluations and of the suites in the package. finders: detectors of personal data of one's own, by kind.
    base_licence: of the base model, where a Release of it answered users.
    The same rows and options give the same Snapshot and record again.
    Raises BadInput (fractions, a group that is none), Refused (nothing may enter; reasons say what the filters removed).
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9 or fractions[0] <= 0:
        raise BadInput(f"fractions are {tuple(fractions)}; give shares of train, valid and test that sum to 1.")
    curation = curation or Curation()
    with Pool(parent, curation, finders) as pool:
        with store.write() as tx:
            conclusions = _conclude_feedback(tx, project_id, pool.tally)
        with store.read() as tx:
            rights = licences.rights(tx, project_id, base_licence)
            held = [*canaries, *_suite_prompts()]
            facts = _gather(tx, project_id, pool, conclusions, held, rights, seed, fractions)
            if curation.margins:
                _set_margins(tx, project_id, pool)
            filters = {name: n for name, n in sorted(pool.tally.removed.items()) if n}
            if next(pool.kept(), None) is None:
                reasons = [f"{name}: {n} removed" for name, n in filters.items()]
                raise Refused(
                    "Nothing in this project may be trained on yet, so there is no Snapshot to freeze.", reasons
                )
            config = {
                "project_id": project_id,
                "seed": seed,
                "fractions": list(fractions),
                "one_vote": ONE_VOTE,
                "curation": curation.to_json(),
                **({"canaries": sha256_of([question_sha256(one) for one in canaries])} if canaries else {}),
                **({"finders": sorted(finders)} if finders else {}),
            }
            counts = _by_split(pool)
            lineage = {**facts, "conclusions": _methods(pool), "rights": _rights(pool, rights)}
            lineage["code_version"] = version("plaudit")
            body = {
                "by_split": counts,
                "filters": filters,
                "examples": {name: pool.tally.examples[name] for name in filters if name in pool.tally.examples},
                "found": dict(sorted(pool.tally.found.items())),
                "lineage": lineage,
            }
            snapshot = write_snapshot(
                parent,
                pool.rows(PREFERENCES),
                pool.rows(DEMONSTRATIONS),
                pool.rows(PROMPTS),
                config=config,
                body=body,
                votes=_single_votes(tx, project_id, pool),
                thumbs=pool.rows(THUMBS),
                provenance=_provenance(pool, rights),
                groups=_groups(pool),
                margins=(MarginRow(one.id, one.margin) for one in pool.kept(PREFERENCES) if one.margin is not None),
                pages=card.pages(body, config, card.figures(pool.kept())),
            )
    return _register(store, project_id, snapshot, {**counts, "filters": filters}, lineage, now), snapshot


def _by_split(pool: Pool) -> dict[str, Any]:
    splits = (*SPLITS, EVALUATION) if pool.curation.evaluation_fraction else SPLITS
    found = Counter((one.table, one.split) for one in pool.kept())
    tables = [PREFERENCES, DEMONSTRATIONS, PROMPTS, *([THUMBS] if next(pool.kept(THUMBS), None) is not None else [])]
    return {table: {split: found[table, split] for split in splits} for table in tables}


def _methods(pool: Pool) -> dict[str, int]:
    """How many Preferences by source and method."""
    return dict(sorted(Counter(one.method for one in pool.kept(PREFERENCES)).items()))


def _gather(
    tx: Transaction,
    project_id: str,
    pool: Pool,
    conclusions: Sequence[_Conclusion],
    canaries: Sequence[Sequence[Message]],
    rights: licences.Rights,
    seed: int,
    fractions: Sequence[float],
) -> dict[str, Any]:
    """Fill the pool and decide; what the manifest's lineage says of the sources."""
    tables = {
        PREFERENCES: _preferences(tx, project_id, conclusions, pool),
        DEMONSTRATIONS: _demonstrations(conclusions, pool),
        PROMPTS: _prompts(tx, project_id, pool.curation.stratify_by),
        THUMBS: chain(_thumbs(tx, project_id, pool), _ratings(tx, project_id, pool)),
    }
    for table, rows in tables.items():
        pool.take(table, _as_allowed(rows, rights))
    held_out = sources.held_out(tx, project_id)
    pool.decide(HeldOut(held_out.families, (*held_out.messages, *canaries)), seed, fractions)
    uses = sources.interactions_by_use(tx, project_id)
    withheld = sum(n for use, n in uses.items() if use is not TrainingUse.ALLOWED)
    if withheld:
        pool.tally.removed["prompts: consent is not allowed"] = withheld
    return {
        "guideline_versions": [one.version for one in tx.find(Guideline, project_id=project_id, order="version")],
        "interactions": {str(use): n for use, n in sorted(uses.items())},
        "n_held_out_families": len(held_out.families),
    }


def _as_allowed(
    rows: Iterator[tuple[Candidate, dict[str, Any]]], rights: licences.Rights
) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """The rows, with a mark where declared terms forbid training on them."""
    for one, row in rows:
        one.forbidden = rights.terms(one.imported, _wrote(one)) is TrainingUse.DENIED
        yield one, row


def _wrote(one: Candidate) -> tuple[str, ...]:
    """The models behind a row, each once."""
    return tuple(dict.fromkeys(name for name in one.models if name not in licences.NO_MODEL))


def _provenance(pool: Pool, rights: licences.Rights) -> Iterator[ProvenanceRow]:
    for one in pool.kept():
        models = _wrote(one)
        yield ProvenanceRow(
            row_id=one.id,
            consent=str(TrainingUse.ALLOWED),
            imported=one.imported,
            licence=rights.of_import(one.imported),
            models=", ".join(models),
            model_licences=", ".join(map(rights.of_model, models)),
            terms=str(rights.terms(one.imported, models)),
        )


def _groups(pool: Pool) -> list[GroupRow]:
    """Of every row that says a group. Raises BadInput where an attribute has so many values that it names people, or none at all."""
    found: dict[str, set[str]] = {name: set() for name in pool.curation.group_by}
    rows = []
    for one in pool.kept():
        for name, value in one.groups:
            found[name].add(value)
        if one.groups:
            rows.append(GroupRow(one.id, canonical(dict(one.groups)).decode()))
    for name, values in found.items():
        if len(values) > MAX_GROUPS:
            raise BadInput(
                f"The attribute {name!r} has {len(values)} values, which is an identifier and no group; group_by takes at most {MAX_GROUPS}."
            )
        if not values:
            raise BadInput(
                f"No Preference or thumb that may be trained on declares the attribute {name!r} of group_by."
            )
    return rows


def _rights(pool: Pool, rights: licences.Rights) -> dict[str, Any]:
    """How many rows there are of each licence and under which terms; `declared`: what only a person can know the licence of."""
    data, models, terms = Counter[str](), Counter[str](), Counter[str]()
    imports, foreign = set[str](), set[str]()
    for one in pool.kept():
        wrote = _wrote(one)
        data[rights.of_import(one.imported)] += 1
        models.update({rights.of_model(name) for name in wrote})
        terms[str(rights.terms(one.imported, wrote))] += 1
        imports.update([one.imported] if one.imported else [])
        foreign.update(name for name in wrote if name not in rights.own)
    return {
        "data": dict(sorted(data.items())),
        "models": dict(sorted(models.items())),
        "terms": dict(sorted(terms.items())),
        "declared": {str(LicenceOf.IMPORT): sorted(imports), str(LicenceOf.MODEL): sorted(foreign)},
    }


def _imported(attributes: Mapping[str, Any]) -> str:
    return str(attributes.get(IMPORTED, ""))


def _suite_prompts() -> list[tuple[Message, ...]]:
    """What the suites in the package ask."""
    return [item.messages for name in suites.PACKAGED for item in suites.load(suites.Source(name)).items]


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


# --- what may enter: each row, or why not ----------------------------------------------------------------------------------


def _preferences(
    tx: Transaction, project_id: str, conclusions: Sequence[_Conclusion], pool: Pool
) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    standing = {preference.id: one for one in conclusions for preference in one.preferences}
    annotators: dict[str, list[str]] = {}
    if pool.curation.max_per_annotator:
        for vote in sources.cast(tx, project_id):
            annotators.setdefault(vote.comparison_id, []).append(vote.annotator_id)
    for one in sources.evidence(tx, project_id):
        preference = one.preference
        why = _against_preference(one, standing)
        if why is not None:
            pool.tally.remove(PREFERENCES, why, preference.id)
            continue
        made, of = standing.get(preference.id), preference.comparison_id
        messages = one.messages if made is None else made.interaction.messages
        assert messages is not None  # _against_preference lets nothing else through
        judges = annotators.get(of or "", ()) if made is None else made.annotators
        yield (
            Candidate(
                id=preference.id,
                family=preference.family,
                question=question_sha256(messages),
                conversation=one.conversation_id,
                actor=one.actor,
                annotators=tuple(sorted(set(judges))),
                source=str(preference.source),
                method=f"{preference.source}/{preference.method}",
                batch=one.batch if made is None else made.batch,
                models=one.models,
                imported=_imported(one.attributes),
                active=one.reason is not None and one.reason not in UNCHOSEN,
                slice=_slice(one.attributes, pool.curation.stratify_by),
                groups=_declared(one.attributes, pool.curation.group_by),
                probability=preference.probability,
                weight=preference.weight,
                sides=(preference.chosen_response_id, preference.rejected_response_id),
                group=None if of is None else (of, preference.criterion),
            ),
            {
                "preference_id": preference.id,
                "comparison_id": of or "",
                "criterion": preference.criterion,
                "family": preference.family,
                "messages": messages,
                "chosen": one.chosen,
                "rejected": one.rejected,
                "probability": preference.probability,
                "weight": preference.weight,
                "source": str(preference.source),
                "chosen_finished": one.chosen_finish_reason != CUT_OFF,
                "rejected_finished": one.rejected_finish_reason != CUT_OFF,
            },
        )


def _demonstrations(conclusions: Sequence[_Conclusion], pool: Pool) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    for one in conclusions:
        if one.edited is None:
            continue
        id, asked = "dem_" + one.id.partition("_")[2], one.interaction
        if not one.edited.text.strip():
            pool.tally.remove(DEMONSTRATIONS, "empty text", id)
            continue
        yield (
            Candidate(
                id=id,
                family=asked.family,
                question=question_sha256(asked.messages),
                conversation=asked.conversation_id,
                actor=one.actor,
                annotators=one.annotators,
                batch=one.batch,
                models=one.models,
                imported=_imported(asked.attributes),
                source=str(PreferenceSource.EDIT),
                slice=_slice(asked.attributes, pool.curation.stratify_by),
                weight=1.0,
            ),
            {
                "demonstration_id": id,
                "family": asked.family,
                "messages": asked.messages,
                "response": one.edited.text,
                "source": str(PreferenceSource.EDIT),
            },
        )


def _prompts(tx: Transaction, project_id: str, stratify_by: str) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    for one in sources.prompts(tx, project_id):
        id = f"pmt_{one.prompt_sha256[:20]}"
        yield (
            Candidate(
                id=id,
                family=one.family,
                question=question_sha256(one.messages),
                conversation=one.conversation_id,
                actor=one.actor,
                imported=_imported(one.attributes),
                slice=_slice(one.attributes, stratify_by),
            ),
            {"prompt_id": id, "family": one.family, "messages": one.messages},
        )


def _thumbs(tx: Transaction, project_id: str, pool: Pool) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    for one in sources.thumbs(tx, project_id):
        yield from _thumb(one, one.feedback_id, THUMB, one.up, None, pool)


def _ratings(tx: Transaction, project_id: str, pool: Pool) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """What annotators rated, as thumbs: up above the middle of the project's scale, down below it."""
    project = tx.get(Project, project_id)
    middle = (project.rating_min + project.rating_max) / 2
    for one in annotated.rated(tx, project_id):
        up = None if one.rating == middle else one.rating > middle
        yield from _thumb(one, "rtg_" + one.comparison_id.partition("_")[2], RATING, up, one.batch, pool)


def _thumb(
    one: sources.Thumb | annotated.Rated, id: str, source: str, up: bool | None, batch: str | None, pool: Pool
) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """The row, where it may enter; `up` is None where nothing was said for or against."""
    why = None if one.training_use is TrainingUse.ALLOWED else "consent is not allowed"
    why = why or (None if one.text.strip() else "empty text")
    why = why or (None if up is not None else "rated in the middle of the scale")
    if why is not None:
        pool.tally.remove(THUMBS, why, id)
        return
    yield (
        Candidate(
            id=id,
            family=one.family,
            question=question_sha256(one.messages),
            conversation=one.conversation_id,
            actor=one.actor,
            source=source,
            batch=batch,
            models=(one.model,),
            imported=_imported(one.attributes),
            slice=_slice(one.attributes, pool.curation.stratify_by),
            groups=_declared(one.attributes, pool.curation.group_by),
        ),
        {
            "thumb_id": id,
            "family": one.family,
            "messages": one.messages,
            "response": one.text,
            "up": up,
            "source": source,
            "response_finished": one.finish_reason != CUT_OFF,
        },
    )


def _declared(attributes: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The groups that are asked for, where the application declared them."""
    said = [(name, attributes.get(name)) for name in names]
    return tuple((name, str(value)) for name, value in said if isinstance(value, str | bool | int) and value != "")


def _slice(attributes: Mapping[str, Any], stratify_by: str) -> str:
    return str(attributes.get(stratify_by, "")) if stratify_by else ""


def _against_preference(one: sources.Evidence, standing: Container[str]) -> str | None:
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


def _single_votes(tx: Transaction, project_id: str, pool: Pool) -> Iterator[VoteRow]:
    """Who said what."""
    for about, vote, choice in _votes(tx, project_id, pool):
        who = sha256_of([project_id, vote.annotator_id])[:12]
        yield VoteRow(about.id, vote.comparison_id, f"annotator-{who}", choice, vote.seconds)


def _set_margins(tx: Transaction, project_id: str, pool: Pool) -> None:
    """Of each Preference about which somebody said how much better: the mean of what the votes say for chosen less what they say for
    rejected, at least 0. A tie says 0, and a vote without a strength says nothing."""
    said: dict[str, list[float]] = defaultdict(list)
    about_strength: dict[str, Candidate] = {}
    for about, vote, choice in _votes(tx, project_id, pool):
        if choice == "tie":
            said[about.id].append(0.0)
        elif vote.strength is not None:
            about_strength[about.id] = about
            said[about.id].append(vote.strength / STRONGEST * (1 if choice == "chosen" else -1))
    for id, about in about_strength.items():
        about.margin = round(max(0.0, fmean(said[id])), 6)


def _votes(tx: Transaction, project_id: str, pool: Pool) -> Iterator[tuple[Candidate, sources.Cast, str]]:
    """Single votes (chosen, rejected or tie) about the Preferences that were admitted, so consent and purpose are theirs. "Both bad" and
    skips are no votes."""
    of = {one.group: one for one in pool.kept(PREFERENCES) if one.group is not None}
    for vote in sources.cast(tx, project_id) if of else ():
        about = of.get((vote.comparison_id, vote.criterion))
        if about is None or about.sides is None:
            continue
        names = dict(zip(about.sides, ("chosen", "rejected"), strict=True))
        choice = "tie" if vote.verdict is Verdict.TIE else names.get(vote.choice or "")
        if choice is not None:
            yield about, vote, choice


# --- edits and choices -------------------------------------------------------------------------------------------------------


def _conclude_feedback(tx: Transaction, project_id: str, tally: Tally) -> list[_Conclusion]:
    """What stands of edits and choices, as Preferences: edit over original, chosen over each other answer shown.

    Ids derive from the feedback's, so that a second freeze finds what the first one wrote and adds only what is new. Preferences of
    superseded or retracted feedback stay in the store, where older Snapshots point, and are left out of new ones.
    """
    conclusions = []
    for feedback in current(tx, project_id, (FeedbackKind.EDIT, FeedbackKind.CHOICE)):
        interaction = tx.get(Interaction, feedback.interaction_id)
        if interaction.training_use is not TrainingUse.ALLOWED:
            tally.remove(f"{feedback.kind}s of users", "consent is not allowed", feedback.id)
            continue
        shown = {one.idx: one for one in shown_responses(tx, interaction.id) or []}
        read = _from_edit if feedback.kind is FeedbackKind.EDIT else _from_choice
        conclusion = read(feedback, interaction, shown)
        if conclusion is not None:
            conclusions.append(conclusion)
    conclusions += _conclude_annotations(tx, project_id, tally)
    wanted = {preference.id: preference for one in conclusions for preference in one.preferences}
    texts = {one.edited.id: one.edited for one in conclusions if one.edited is not None}
    known = {row.id for row in tx.find(Preference, project_id=project_id, source=_FROM_FEEDBACK)}
    edited = {row.id for row in tx.find(Response, project_id=project_id, origin=ResponseOrigin.EDITED)}
    tx.add(*(text for id, text in texts.items() if id not in edited))
    tx.add(*(preference for id, preference in wanted.items() if id not in known))
    return conclusions


def _conclude_annotations(tx: Transaction, project_id: str, tally: Tally) -> list[_Conclusion]:
    """What annotators wrote over the answer that they found better is read as what a user writes over the one they were shown."""
    conclusions = []
    for one in annotated.edits(tx, project_id):
        interaction = tx.get(Interaction, one.interaction_id)
        if interaction.training_use is not TrainingUse.ALLOWED:
            tally.remove("edits of annotators", "consent is not allowed", one.annotation_id)
            continue
        original = tx.get(Response, one.response_id)
        read = replace(interaction, messages=one.messages)  # without the personal data that they were not shown
        made = _edited(one.annotation_id, None, read, original, one.text, one.created_at)
        conclusions.append(replace(made, annotators=(one.annotator_id,), batch=one.batch))
    return conclusions


_FROM_FEEDBACK = (PreferenceSource.EDIT, PreferenceSource.CHOICE)


def _from_edit(feedback: Feedback, interaction: Interaction, shown: dict[int, Response]) -> _Conclusion | None:
    original = shown.get(feedback.response_idx)
    if original is None:  # the answer never came
        return None
    return _edited(feedback.id, feedback.actor, interaction, original, feedback.value["text"], feedback.created_at)


def _edited(
    id: str, actor: str | None, interaction: Interaction, original: Response, text: str, at: datetime
) -> _Conclusion:
    suffix = id.partition("_")[2]
    edited = Response(
        id="res_" + suffix,
        project_id=interaction.project_id,
        interaction_id=interaction.id,
        idx=original.idx,
        text=text,
        finish_reason="stop",
        origin=ResponseOrigin.EDITED,
        model="person",
        created_at=at,
    )
    preference = _preference(interaction, "prf_" + suffix, edited, original, PreferenceSource.EDIT, 1.0, at)
    return _Conclusion(id, actor, interaction, (preference,), edited, (original.model,))


def _from_choice(feedback: Feedback, interaction: Interaction, shown: dict[int, Response]) -> _Conclusion | None:
    chosen = shown.get(feedback.value["chosen"]) if feedback.value["chosen"] is not None else None
    if chosen is None:  # neither was better
        return None
    suffix = feedback.id.partition("_")[2]
    others = [one for one in shown.values() if one.idx != chosen.idx]
    preferences = tuple(
        _preference(
            interaction,
            f"prf_{suffix}_{other.idx}",
            chosen,
            other,
            PreferenceSource.CHOICE,
            1 / len(others),
            feedback.created_at,
        )
        for other in others
    )
    return _Conclusion(feedback.id, feedback.actor, interaction, preferences, None)


def _preference(
    interaction: Interaction,
    id: str,
    chosen: Response,
    rejected: Response,
    source: PreferenceSource,
    weight: float,
    at: datetime,
) -> Preference:
    return Preference(
        id=id,
        project_id=interaction.project_id,
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
        created_at=at,
    )
