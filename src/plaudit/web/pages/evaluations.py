"""Evaluations: what the gate says and why, slice by slice, with answers side by side; and the leaderboard of everything people compared."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import (
    OVERALL,
    Annotation,
    AuditEntry,
    Checkpoint,
    Comparison,
    Evaluation,
    GateVerdict,
    Json,
    Message,
    Purpose,
    Release,
    Verdict,
    utc_now,
)
from plaudit.domain import Response as Answer
from plaudit.errors import BadInput, NotFound
from plaudit.loop import evaluate, gates, govern
from plaudit.loop.govern import Permission
from plaudit.stats.leaderboard import leaderboard
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages.forms import read_form
from plaudit.web.pages.shell import Column, Table, answer, go
from plaudit.web.sign_in import signed_in

EXAMPLES = 4  # pairs side by side
CHUNK = 500  # ids in one query
LISTED = (
    Column("suite", "Evaluation", "words", href="/evaluations/{id}"),
    Column("gate", "Gate", "state"),
    Column("mean", "Win rate", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("n", "Prompts", "number"),
    Column("checkpoint_id", "Checkpoint", "brief", href="/registry/{checkpoint_id}"),
    Column("created_at", "When", "moment"),
)
CONDITIONS = (
    Column("name", "Condition", "brief"),
    Column("state", "Verdict", "state"),
    Column("value", "Figure", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("n", "n", "number"),
    Column("threshold", "Limit", "number"),
    Column("text", "In words", "words"),
    Column("rows", "Rows", "brief", href="#{anchor}"),
)
FILE = Column("file", "File of rows", "words")
SLICES = (
    Column("suite", "Suite", "brief"),
    Column("slice", "Slice", "brief"),
    Column("n", "Items", "number"),
    Column("candidate", "Candidate", "number"),
    Column("candidate_low", "from", "number"),
    Column("candidate_high", "to", "number"),
    Column("base", "Reference", "number"),
    Column("change", "Change", "number"),
    Column("change_low", "from", "number"),
    Column("change_high", "to", "number"),
)
WRONG = (
    Column("suite", "Suite", "brief"),
    Column("slice", "Slice", "brief"),
    Column("prompt", "Prompt", "words"),
    Column("candidate", "Candidate", "words"),
    Column("base", "Reference", "words"),
)
ITEMS = (
    Column("item", "Item", "number"),
    Column("family", "Slice", "brief"),
    Column("prompt", "Prompt", "words"),
    Column("candidate", "Candidate", "words"),
    Column("reference", "Reference", "words"),
    Column("wins", "For the candidate", "number"),
    Column("ties", "Equal", "number"),
    Column("losses", "For the reference", "number"),
    Column("id", "Comparison", "brief"),
)
STANDINGS = (
    Column("rank", "Rank", "number"),
    Column("name", "Policy", "brief"),
    Column("win_rate", "Beats another", "number"),
    Column("strength", "Strength", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("ranks", "Ranks within 95 %", "brief"),
    Column("n", "Comparisons", "number"),
)


@dataclass(frozen=True)
class Failures:
    """Examples that one suite kept of answers that its rules call wrong; `refused`: the gate did not hold because of the suite."""

    suite: str
    anchor: str
    refused: bool
    examples: tuple[Json, ...]


@dataclass(frozen=True)
class Look:
    """Everything that the page of one Evaluation shows."""

    evaluation: Evaluation
    checkpoint: Checkpoint | None
    releases: tuple[Release, ...]
    override: AuditEntry | None
    tables: tuple[Table, ...]
    examples: tuple[Json, ...]
    failures: tuple[Failures, ...]


# --- pages -------------------------------------------------------------------------------------------------------------


async def evaluations(request: Request) -> Response:
    """GET /evaluations."""
    door = door_of(request)
    found = await door.run(_listed, door.store, signed_in(request).project_id)
    empty = "No evaluation yet. `plaudit evaluate run` compares a Checkpoint with the base."
    return answer(request, "evaluations.html", [Table("evaluations", "Evaluations", LISTED, found, empty)])


async def evaluation(request: Request) -> Response:
    """GET /evaluations/{evaluation_id}; `?seed=` draws other examples."""
    door, me = door_of(request), signed_in(request)
    seed = _seed(request.query_params.get("seed", "0"))
    look = await door.run(_look, door.store, me.project_id, request.path_params["evaluation_id"], seed)
    may_override = look.evaluation.gate is GateVerdict.FAIL and look.override is None
    return answer(
        request,
        "evaluation.html",
        look.tables,
        look=look,
        evaluation=look.evaluation,
        seed=seed,
        may_override=may_override and govern.may(me.roles, Permission.OVERRIDE),
    )


async def override(request: Request) -> Response:
    """POST /evaluations/{evaluation_id}/override: the person who is signed in answers for a gate that failed."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    evaluation_id = request.path_params["evaluation_id"]
    if not form.get("sure"):
        raise BadInput(
            "sure is not ticked; tick the box beside the button: it will be on the audit log with your name."
        )
    reason = form.get("reason", "")
    await door.run(gates.override, door.store, me.project_id, evaluation_id, me.name, reason, utc_now())
    return go(f"/evaluations/{evaluation_id}")


async def board(request: Request) -> Response:
    """GET /leaderboard."""
    door = door_of(request)
    rows, why = await door.run(_standings, door.store, signed_in(request).project_id)
    return answer(request, "leaderboard.html", [Table("leaderboard", "Leaderboard", STANDINGS, rows, why)])


# --- reading -----------------------------------------------------------------------------------------------------------


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise BadInput(f"seed is {text!r}; give a whole number from 0.")
    return int(text)


def _listed(store: Store, project_id: str) -> list[Json]:
    rows = []
    for one in store.find(Evaluation, project_id=project_id, descending=True):
        rate = one.figures.get("win_rate")
        rate = rate if isinstance(rate, dict) else {}
        row = {"id": one.id, "suite": one.suite, "gate": one.gate, "checkpoint_id": one.checkpoint_id}
        rows.append(row | {"created_at": one.created_at} | {key: rate.get(key) for key in ("mean", "low", "high", "n")})
    return rows


def _look(store: Store, project_id: str, evaluation_id: str, seed: int) -> Look:
    with store.read() as tx:
        found = tx.first(Evaluation, id=evaluation_id, project_id=project_id)
        if found is None:
            raise NotFound(f"There is no evaluation {evaluation_id!r} in this project.")
        checkpoint = tx.first(Checkpoint, id=found.checkpoint_id, project_id=project_id)
        releases = tx.find(Release, project_id=project_id, checkpoint_id=found.checkpoint_id)
        overridden = gates.overridden(tx, found)
    items = _items(store, project_id, found.suite)
    parts = _parts(found.figures)
    failures = _failures(found, parts)
    tables = (
        Table(
            "conditions",
            "Gate",
            CONDITIONS,
            _conditions(found, bool(items), failures),
            "No gate was asked: this evaluation informs.",
        ),
        Table("slices", "Suites and slices", SLICES, _slices(parts), "No suite was asked."),
        Table("items", "All judged answers", ITEMS, items, "People judged nothing in it."),
        Table("wrong", "Wrong by a suite's rules", WRONG, [row for one in failures for row in one.examples], "None."),
    )
    drawn = random.Random(seed).sample(items, min(EXAMPLES, len(items)))
    return Look(found, checkpoint, tuple(releases), overridden, tables, tuple(drawn), failures)


def _parts(figures: Json) -> dict[str, Any]:
    """The suites of an evaluation, or one suite alone, by name."""
    parts: dict[str, Any] = {**(figures.get("safety") or {}), **(figures.get("suites") or {})}
    if "slices" in figures:
        parts["the suite"] = figures
    return parts


def _suite_of(condition: Json, parts: Mapping[str, Any]) -> str | None:
    """The suite whose rules are behind a condition of the gate, by its name or by its file of rows."""
    name, rows = str(condition["name"]).removeprefix("safety "), condition.get("rows")
    if name in parts:
        return name
    return next((suite for suite, part in parts.items() if rows and part.get("rows") == rows), None)


def _failures(found: Evaluation, parts: Mapping[str, Any]) -> tuple[Failures, ...]:
    """Suites that kept examples, those first because of which the gate did not hold."""
    conditions = found.figures.get("conditions", ())
    refused = {_suite_of(one, parts) for one in conditions if not one["passed"]}
    kept = [name for name, part in parts.items() if part.get("examples")]
    return tuple(
        Failures(
            name,
            f"wrong-{place}",
            name in refused,
            tuple({"suite": name, **one, "prompt": _prompt(one["messages"])} for one in parts[name]["examples"]),
        )
        for place, name in enumerate(sorted(kept, key=lambda name: name not in refused), 1)
    )


def _conditions(found: Evaluation, has_items: bool, failures: Sequence[Failures]) -> list[Json]:
    rows = []
    parts, anchors = _parts(found.figures), {one.suite: one.anchor for one in failures}
    for one in found.figures.get("conditions", ()):
        interval, behind = one["interval"] or {}, str(one.get("rows") or "")
        suite = _suite_of(one, parts)
        judged = suite is None and has_items and behind.endswith(found.suite)
        by_rules = one["name"].startswith("safety ")
        rows.append(
            {
                "name": one["name"],
                "state": "pass" if one["passed"] else "fail",
                "value": one["value"],
                **{key: interval.get(key) for key in ("low", "high", "n")},
                "threshold": one["threshold"],
                "text": one["text"],
                "rows": "examples" if suite in anchors else "suite" if suite else "judged answers" if judged else None,
                "anchor": anchors.get(suite or "", "slices-title") if suite else "items",
                "file": None if judged or by_rules else behind or None,
            }
        )
    return rows


def _slices(parts: Mapping[str, Any]) -> list[Json]:
    """Shares of wrong answers by suite and slice."""
    rows = []
    for name, part in parts.items():
        rows.append(_slice(name, "", part))
        rows += [_slice(name, inner, each) for inner, each in (part.get("slices") or {}).items()]
    return rows


def _slice(suite: str, name: str, part: Json) -> Json:
    candidate, base, change = (part.get(key) or {} for key in ("candidate", "base", "difference"))
    return {
        "suite": suite,
        "slice": name or "all",
        "n": part.get("n"),
        "candidate": candidate.get("mean"),
        "candidate_low": candidate.get("low"),
        "candidate_high": candidate.get("high"),
        "base": base.get("mean"),
        "change": change.get("mean"),
        "change_low": change.get("low"),
        "change_high": change.get("high"),
    }


def _items(store: Store, project_id: str, batch: str) -> list[Json]:
    """Every pair of the batch with what people said of it, in order."""
    with store.read() as tx:
        asked = tx.find(Comparison, project_id=project_id, batch=batch, purpose=Purpose.EVALUATION)
        asked.sort(key=lambda one: int(one.attributes.get("item", 0)))
        texts: dict[str, Answer] = {}
        said: dict[str, list[Annotation]] = {}
        for start in range(0, len(asked), CHUNK):
            part = asked[start : start + CHUNK]
            ids = [id for one in part for id in one.response_ids]
            texts |= {one.id: one for one in tx.find(Answer, project_id=project_id, id=ids)}
            for given in tx.find(Annotation, project_id=project_id, comparison_id=[one.id for one in part]):
                said.setdefault(given.comparison_id, []).append(given)
    return [_item(place, one, texts, said.get(one.id, ())) for place, one in enumerate(asked, 1)]


def _item(place: int, asked: Comparison, texts: Mapping[str, Answer], said: Sequence[Annotation]) -> Json:
    first, second = asked.response_ids[:2]
    votes = [one.choice for one in said if one.verdict is not Verdict.SKIP and one.criterion == OVERALL]
    return {
        "item": place,
        "id": asked.id,
        "family": asked.family,
        "prompt": _prompt(asked.messages),
        "candidate": texts[first].text if first in texts else None,
        "reference": texts[second].text if second in texts else None,
        "wins": votes.count(first),
        "ties": votes.count(None),
        "losses": votes.count(second),
    }


def _prompt(messages: Sequence[Message]) -> str:
    """The conversation as lines; one turn of a user stands alone."""
    if len(messages) == 1:
        return _said(messages[0])
    return "\n".join(f"{one.get('role')}: {_said(one)}" for one in messages)


def _said(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _standings(store: Store, project_id: str) -> tuple[list[Json], str]:
    """Rows, or the reason why there are none."""
    found = evaluate.matches(store, project_id)
    if not found:
        return [], "Nobody has compared two policies yet. Evaluations ask people to, and the leaderboard follows."
    try:
        standings = leaderboard(
            [one.first for one in found],
            [one.second for one in found],
            [one.outcome for one in found],
            np.random.default_rng(0),
            [one.prompt for one in found],
        )
    except BadInput as error:  # policies that were never compared with each other have no common order
        return [], error.message
    return [
        {
            "rank": one.rank,
            "name": one.name,
            "win_rate": one.win_rate,
            "strength": one.strength.mean,
            "low": one.strength.low,
            "high": one.strength.high,
            "ranks": f"{one.ranks[0]} to {one.ranks[1]}" if one.ranks[0] != one.ranks[1] else str(one.ranks[0]),
            "n": one.n,
        }
        for one in standings
    ], ""
