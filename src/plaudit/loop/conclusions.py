"""Conclusions: votes in, Preferences and a report out. Pure; `annotate.aggregate` reads the votes and stores what comes of them.

Which response is label 0 is dealt by a hash of the response ids, so no label is right more often by habit (the served answer stands first
in every Comparison) and agreement needs no further symmetry.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median

import numpy as np

from plaudit.domain import OVERALL, Annotation, Preference, PreferenceSource, Verdict
from plaudit.errors import BadInput
from plaudit.stats.aggregate import Aggregate, Method, Votes, aggregate
from plaudit.stats.agreement import Agreement, agreement
from plaudit.stats.intervals import Interval
from plaudit.store.annotation import Vote

TIE = 2  # the label beside 0 and 1, where anybody says so
# How much a vote counts in its Preference's weight. One without a strength is as good as a clear one: who is not asked for it loses nothing.
STRENGTH_WEIGHT = {None: 1.0, 1: 0.5, 2: 1.0, 3: 1.5}


@dataclass(frozen=True)
class AnnotatorRow:
    """One annotator as the aggregation saw them. Rates are None where nothing was seen."""

    annotator_id: str
    name: str
    n_answers: int
    n_ties: int
    n_both_bad: int
    n_skips: int
    first_fraction: float | None  # how often they chose what was shown first
    median_seconds: float | None
    reliability: Interval | None


@dataclass(frozen=True)
class AggregateReport:
    """What came of one aggregation. `agreement` is None with fewer than two comparisons that have two votes.

    Each criterion is aggregated alone: who sees accuracy well may not see tone. The figures are those of `criterion`, and the reports of the
    others stand in `others`.
    """

    criterion: str
    method: str
    reason: str  # why this method
    n_comparisons: int
    n_votes: int  # preferring or tie
    n_both_bad: int  # comparisons that most found bad on both sides: no Preference
    n_preferences: int
    n_written: int  # new or changed, of all criteria
    agreement: Agreement | None
    annotators: tuple[AnnotatorRow, ...]
    others: tuple[AggregateReport, ...] = ()


@dataclass(frozen=True)
class _Ballots:
    """The votes in the form that stats reads. Of each comparison's two responses, a hash decides which is label 0."""

    comparisons: tuple[Vote, ...]  # one vote of each, for its columns
    sides: tuple[tuple[str, str], ...]  # (label 0, label 1) response ids per comparison
    n_votes: tuple[int, ...]
    kept: tuple[Vote, ...]


def conclude(
    votes: Sequence[Vote],
    names: Mapping[str, str],
    method: Method,
    project_id: str,
    now: datetime,
    known: Mapping[str, str] | None = None,
    gold_ids: Collection[str] = (),
) -> tuple[list[Preference], AggregateReport]:
    """Every Preference that the votes support, and the report (with n_written 0: nothing is stored here). Deterministic.

    Criteria are concluded one by one; the report is that of `overall`, or of the first criterion by name, and holds the others.
    `known`: comparison id -> the response that is better overall, as gold or an expert says; it is held fixed. Those of `gold_ids` teach who
    is reliable and get no Preference. Raises BadInput for an unknown method.
    """
    by_criterion: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_criterion[vote.annotation.criterion].append(vote)
    order = sorted(by_criterion, key=lambda criterion: (criterion != OVERALL, criterion)) or [OVERALL]
    drawn, reports = [], []
    for criterion in order:
        fixed = known if known is not None and criterion == OVERALL else {}
        preferences, report = _conclude_criterion(
            criterion, by_criterion[criterion], names, method, project_id, now, fixed, gold_ids
        )
        drawn += preferences
        reports.append(report)
    return drawn, replace(reports[0], others=tuple(reports[1:]))


def _conclude_criterion(
    criterion: str,
    votes: Sequence[Vote],
    names: Mapping[str, str],
    method: Method,
    project_id: str,
    now: datetime,
    known: Mapping[str, str],
    gold_ids: Collection[str],
) -> tuple[list[Preference], AggregateReport]:
    """The Preferences and the report of one criterion.

    A tie is a label of its own to the model; its share of the posterior is half a vote each way. "Both bad" casts no vote, and where
    more than half say so there is no Preference. Strength weighs a vote in the weight and never in the probability. Both are rounded to 6
    digits, so that another machine's last bit does not make another Snapshot.
    """
    ballots, n_both_bad = _ballots(votes)
    if not ballots.kept:
        rows = _annotator_rows(votes, names, {}, None)
        return [], AggregateReport(criterion, method, "no votes", 0, 0, n_both_bad, 0, 0, None, rows)
    items = {vote.comparison_id: code for code, vote in enumerate(ballots.comparisons)}
    workers: dict[str, int] = {}
    for vote in ballots.kept:
        workers.setdefault(vote.annotation.annotator_id, len(workers))
    labels, first = [], []
    for vote in ballots.kept:
        sides = ballots.sides[items[vote.comparison_id]]
        labels.append(TIE if vote.annotation.choice is None else sides.index(vote.annotation.choice))
        first.append(sides.index(vote.annotation.order[0]))
    coded = Votes(
        np.array([items[vote.comparison_id] for vote in ballots.kept]),
        np.array([workers[vote.annotation.annotator_id] for vote in ballots.kept]),
        np.array(labels),
        3 if TIE in labels else 2,
        np.array(first),
        np.array([STRENGTH_WEIGHT[vote.annotation.strength] for vote in ballots.kept]),
    )
    fixed = {
        code: ballots.sides[code].index(known[id]) for id, code in items.items() if known.get(id) in ballots.sides[code]
    }
    result = aggregate(coded, method, fixed or None)
    asked = [code for id, code in items.items() if id not in gold_ids]
    try:  # the sides are dealt by hash already: the frame is symmetrised
        agreed = agreement(_only(coded, asked), np.random.default_rng(0))
    except BadInput:  # fewer than two comparisons with two votes
        agreed = None
    drawn = [_conclude(ballots, code, result, project_id, now) for code in asked]
    return drawn, AggregateReport(
        criterion=criterion,
        method=result.method,
        reason=result.reason,
        n_comparisons=len(asked),
        n_votes=sum(ballots.n_votes[code] for code in asked),
        n_both_bad=n_both_bad,
        n_preferences=len(drawn),
        n_written=0,
        agreement=agreed,
        annotators=_annotator_rows(votes, names, workers, result),
    )


def _only(coded: Votes, items: Sequence[int]) -> Votes:
    """Their votes. Raises BadInput where there is none."""
    if len(items) == coded.n_items:
        return coded
    kept = np.isin(coded.item, np.array(items, dtype=np.int64))
    return Votes(coded.item[kept], coded.worker[kept], coded.label[kept], coded.n_labels)


def _ballots(votes: Sequence[Vote]) -> tuple[_Ballots, int]:
    """(votes that count, how many comparisons most found bad on both sides)."""
    by_comparison: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.annotation.verdict is not Verdict.SKIP and len(vote.response_ids) == 2:
            by_comparison[vote.comparison_id].append(vote)
    comparisons, sides, n_votes, kept, n_both_bad = [], [], [], [], 0
    for cast in by_comparison.values():
        counting = [vote for vote in cast if vote.annotation.verdict is not Verdict.BOTH_BAD]
        if 2 * (len(cast) - len(counting)) > len(cast):
            n_both_bad += 1
            continue
        one, other = sorted(cast[0].response_ids, key=lambda id: hashlib.sha256(id.encode()).digest())
        comparisons.append(cast[0])
        sides.append((one, other))
        n_votes.append(len(counting))
        kept += counting
    return _Ballots(tuple(comparisons), tuple(sides), tuple(n_votes), tuple(kept)), n_both_bad


def _conclude(ballots: _Ballots, code: int, result: Aggregate, project_id: str, now: datetime) -> Preference:
    vote, sides, posterior = ballots.comparisons[code], ballots.sides[code], result.posterior[code]
    tie = float(posterior[2]) if len(posterior) == 3 else 0.0
    probability = round(float(posterior[0]) + tie / 2, 6)
    chosen, rejected = sides if probability >= 0.5 else sides[::-1]
    return Preference(
        id=_preference_id(vote.comparison_id, vote.annotation.criterion),
        project_id=project_id,
        comparison_id=vote.comparison_id,
        interaction_id=vote.interaction_id,
        criterion=vote.annotation.criterion,
        family=vote.family,
        chosen_response_id=chosen,
        rejected_response_id=rejected,
        probability=round(max(probability, 1 - probability), 6),
        weight=round(float(result.effective_votes[code]), 6),
        n_votes=ballots.n_votes[code],
        source=PreferenceSource.ANNOTATION,
        method=result.method,
        created_at=now,
    )


def _preference_id(comparison_id: str, criterion: str) -> str:
    """One conclusion per comparison and criterion: the same id however often it is drawn."""
    suffix = "" if criterion == OVERALL else "_" + hashlib.sha256(criterion.encode()).hexdigest()[:8]
    return "prf_" + comparison_id.partition("_")[2] + suffix


def _annotator_rows(
    votes: Sequence[Vote], names: Mapping[str, str], workers: Mapping[str, int], result: Aggregate | None
) -> tuple[AnnotatorRow, ...]:
    by_annotator: dict[str, list[Annotation]] = defaultdict(list)
    for vote in votes:
        by_annotator[vote.annotation.annotator_id].append(vote.annotation)
    rows = []
    for annotator_id, given in sorted(by_annotator.items()):
        n = Counter(one.verdict for one in given)
        chosen = [one for one in given if one.verdict is Verdict.PREFER]
        seconds = [one.seconds for one in given if one.verdict is not Verdict.SKIP]
        code = workers.get(annotator_id)
        rows.append(
            AnnotatorRow(
                annotator_id=annotator_id,
                name=names.get(annotator_id, annotator_id),
                n_answers=len(given) - n[Verdict.SKIP],
                n_ties=n[Verdict.TIE],
                n_both_bad=n[Verdict.BOTH_BAD],
                n_skips=n[Verdict.SKIP],
                first_fraction=sum(one.choice == one.order[0] for one in chosen) / len(chosen) if chosen else None,
                median_seconds=median(seconds) if seconds else None,
                reliability=result.reliability.interval(code) if result is not None and code is not None else None,
            )
        )
    return tuple(rows)
