"""Runs: what training does and did. Rows from the store, figures and curves from the run folders, read in the thread pool."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Checkpoint, Json, Run, RunState, utc_now
from plaudit.errors import NotFound, PlauditError
from plaudit.learn.configs import PROGRAMS
from plaudit.loop import run_files
from plaudit.loop.run_files import HEADLINES, Pace, RunFiles
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages import markdown, words
from plaudit.web.pages.curves import curve
from plaudit.web.pages.shell import FOREVER, HEADERS, Column, Table, answer, twin
from plaudit.web.sign_in import signed_in

Courses = Mapping[str, Sequence[tuple[int, float]]]  # figure -> (step, value)

PER_PAGE = 50
MOST_BYTES = 1_000_000  # of metrics.jsonl that a page looks at, 1,500 to 5,000 lines; its twins have all
REFRESH_MS = 1000  # of a run that works
SHARE = 0.05  # of one core that a watched page may cost; a heavier one asks less often
LAST_BYTES = 8_000  # for the newest line alone
OVER = (RunState.DONE, RunState.FAILED, RunState.CANCELLED)
LISTED = (
    Column("program", "Program", href="/runs/{id}"),
    Column("state", "State", "state"),
    Column("started_at", "Started", "moment"),
    Column("seconds", "Took", "duration"),
    Column("at", "At", "brief"),
    Column("figures", "Last figures", "words"),
    Column("turn", "Turn", "number"),
    Column("id", "Run", "brief"),
)
FIGURES = (
    Column("phase", "Phase"),
    Column("figure", "Figure"),
    Column("first", "First", "number"),
    Column("last", "Last", "number"),
    Column("least", "Least", "number"),
    Column("greatest", "Greatest", "number"),
    Column("n", "Points", "number"),
)


@dataclass(frozen=True)
class Drawn:
    """One figure of a phase: its course as a picture, where it has one."""

    name: str
    last: float
    picture: Markup | None


@dataclass(frozen=True)
class Phase:
    """One phase of a run, ready for its template."""

    name: str
    pace: Pace
    head: tuple[Drawn, ...]
    more: tuple[Drawn, ...]


@dataclass(frozen=True)
class Look:
    """Everything that the page of one run shows, as it is now."""

    run: Run
    program: str
    files: RunFiles | None
    missing: str  # why there are no files
    phases: tuple[Phase, ...]
    figures: tuple[Json, ...]
    chosen: tuple[tuple[str, Any], ...]
    results: tuple[tuple[str, Any], ...]
    checkpoint: Checkpoint | None
    card: Markup | None
    lost: bool  # it should be running, but nobody has said so for a while


# --- pages -------------------------------------------------------------------------------------------------------------


async def runs(request: Request) -> Response:
    """GET /runs: newest first, a page at a time; with `?steps=all` also those of a turn that run no learn program."""
    door, before = door_of(request), request.query_params.get("before")
    whole = request.query_params.get("steps") == "all"
    listed, older = await door.run(_listed, door.store, signed_in(request).project_id, before, whole, utc_now())
    empty = "No run yet: training and scoring appear here when they are queued. `plaudit loop run` and `plaudit train` start them."
    table = Table("runs", "Runs", LISTED, listed, empty if before is None else "There is no older run.")
    live = before is None and any(row["state"] not in OVER for row in listed)
    return answer(request, "runs.html", [table], older=older, live=live, whole=whole)


async def run(request: Request) -> Response:
    """GET /runs/{run_id}: config, lineage, figures, curves, result and card; `?table=metrics` is every line of metrics.jsonl."""
    door, run_id = door_of(request), request.path_params["run_id"]
    project_id = signed_in(request).project_id
    wanted = request.query_params.get("as")
    if wanted is not None and request.query_params.get("table", "metrics") == "metrics":
        response: Response = await door.run(_all_lines, door.store, project_id, run_id, wanted)
        return response
    began = time.perf_counter()
    look = await door.run(_look, door.store, project_id, run_id, request.url.path, utc_now())
    cost_ms = (time.perf_counter() - began) * 1000
    table = Table("figures", "All figures", FIGURES, look.figures, "No figure yet.")
    return answer(
        request,
        "run.html",
        [table],
        look=look,
        run=look.run,
        live=look.run.state not in OVER,
        refresh_ms=round(max(REFRESH_MS, cost_ms / SHARE)),
        seconds=_seconds(look.run, utc_now()),
    )


async def picture(request: Request) -> Response:
    """GET /runs/{run_id}/card/{name}: a picture of the card."""
    door, name = door_of(request), request.path_params["name"]
    content = await door.run(_picture, door.store, signed_in(request).project_id, request.path_params["run_id"], name)
    # Inside <img> nothing runs; opened by itself the sandbox holds. Vega writes inline styles.
    policy = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    headers = {**HEADERS, "content-security-policy": policy, "cache-control": FOREVER.replace("public", "private")}
    return Response(content, 200, headers, "image/svg+xml")


# --- reading -----------------------------------------------------------------------------------------------------------


def _listed(
    store: Store, project_id: str, before: str | None, whole: bool, now: datetime
) -> tuple[list[Json], str | None]:
    """Rows of the list, and the id to go on with where there are older ones."""
    wanted: dict[str, Any] = {} if whole else {"step": tuple(PROGRAMS)}
    found = store.find(Run, project_id=project_id, descending=True, limit=PER_PAGE + 1, after=before, **wanted)
    rows = [_row(run, now) for run in found[:PER_PAGE]]
    return rows, found[PER_PAGE - 1].id if len(found) > PER_PAGE else None


def _row(run: Run, now: datetime) -> Json:
    lines = run_files.recent(Path(run.folder) / run_files.METRICS, LAST_BYTES)[0] if run.folder else []
    last = lines[-1] if lines else {}
    figures = run_files.curves([last]) if last else {}
    named = [name for name in HEADLINES if name in figures] or list(figures)[:2]
    return {
        "id": run.id,
        "program": run.step,
        "state": run.state,
        "started_at": run.started_at,
        "seconds": _seconds(run, now),
        "at": f"{last['phase']} {last['step']}/{last['of']}" if last else None,
        "figures": ", ".join(f"{name} {words.number(figures[name][-1][1])}" for name in named[:3]) or run.error,
        "turn": run.turn,
    }


def _seconds(run: Run, now: datetime) -> float | None:
    return ((run.finished_at or now) - run.started_at).total_seconds() if run.started_at else None


def _found(store: Store, project_id: str, run_id: str) -> Run:
    found = store.first(Run, id=run_id, project_id=project_id)
    if found is None:
        raise NotFound(f"There is no run {run_id!r} in this project.")
    return found


def _look(store: Store, project_id: str, run_id: str, path: str, now: datetime) -> Look:
    run = _found(store, project_id, run_id)
    files, missing = None, ""
    if run.folder is None:
        missing = "This step runs no learn program, so it has no figures."
    elif run.state == RunState.QUEUED:
        missing = "Nobody has started it yet: the worker takes queued runs, one at a time."
    else:
        try:
            files = run_files.read(Path(run.folder), MOST_BYTES)
        except PlauditError as error:  # its folder is gone, or spoilt: the row still tells
            missing = error.message
    if files is not None and files.program is None and run.step in PROGRAMS:
        files = replace(files, program=run.step)  # it has only just started: its folder does not tell yet
    phases = run_files.by_phase(files.lines if files else ())
    courses = {name: run_files.curves(mine) for name, mine in phases.items()}
    made = run.outputs.get("checkpoint_id")
    card = Path(str(run.folder)) / "checkpoint" / "card.md"
    return Look(
        run=run,
        program=(files.program if files else None) or run.step,
        files=files,
        missing=missing,
        phases=tuple(_phase(name, run_files.pace(mine), courses[name]) for name, mine in phases.items()),
        figures=tuple(_figures(courses)),
        chosen=_chosen(run, files),
        results=tuple(_headlines(run.outputs.get("result") or {})),
        checkpoint=store.first(Checkpoint, id=made) if made else None,
        card=markdown.render(card.read_text(), pictures=f"{path}/card/") if run.folder and card.is_file() else None,
        lost=run.state == RunState.RUNNING and run.lease_expires_at is not None and run.lease_expires_at < now,
    )


def _chosen(run: Run, files: RunFiles | None) -> tuple[tuple[str, Any], ...]:
    """What was set besides the defaults; everything where the program's defaults do not tell."""
    try:
        return tuple(files.chosen()) if files else tuple(sorted(run.config.items()))
    except PlauditError:  # a config of an older Plaudit
        return tuple(sorted(run.config.items()))


def _phase(name: str, pace: Pace, courses: Courses) -> Phase:
    drawn = [_drawn(name, figure, points, pace) for figure, points in courses.items()]
    head = [one for wanted in HEADLINES for one in drawn if one.name == wanted] or drawn[:2]
    return Phase(name, pace, tuple(head), tuple(one for one in drawn if one not in head))


def _drawn(phase: str, name: str, points: Sequence[tuple[int, float]], pace: Pace) -> Drawn:
    last = points[-1][1]
    if len(points) < 2:
        return Drawn(name, last, None)
    first, values = points[0][1], [value for _, value in points]
    about = (
        f"{name} in the phase {phase}: {words.number(first)} at step {points[0][0]}, {words.number(last)} at step {points[-1][0]}, "
        f"between {words.number(min(values))} and {words.number(max(values))}."
    )
    return Drawn(name, last, curve(points, about, of=pace.of))


def _figures(phases: Mapping[str, Courses]) -> list[Json]:
    rows = []
    for phase, courses in phases.items():
        for name, points in courses.items():
            values = [value for _, value in points]
            rows.append(
                {
                    "phase": phase,
                    "figure": name,
                    "first": values[0],
                    "last": values[-1],
                    "least": min(values),
                    "greatest": max(values),
                    "n": len(values),
                }
            )
    return rows


def _headlines(result: Json, prefix: str = "", depth: int = 1) -> list[tuple[str, Any]]:
    """(dotted name, value) of every figure that is not too deep; an interval is one figure."""
    rows: list[tuple[str, Any]] = []
    for name, part in result.items():
        if isinstance(part, dict) and {"mean", "low", "high"} <= set(part):
            mean, low, high = (words.number(part[key]) for key in ("mean", "low", "high"))
            rows.append((prefix + name, f"{mean} [{low}, {high}]"))
        elif isinstance(part, dict):
            rows += _headlines(part, f"{prefix}{name}.", depth + 1) if depth < 2 else []
        elif not isinstance(part, list) and name != "program":
            rows.append((prefix + name, part))
    return rows


def _all_lines(store: Store, project_id: str, run_id: str, wanted: str) -> Response:
    run = _found(store, project_id, run_id)
    lines = run_files.Tail(Path(run.folder) / run_files.METRICS).new() if run.folder else []
    rows = [_flat(line) for line in lines] if wanted == "csv" else lines
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return twin(wanted, "metrics", columns or list(run_files.LINE), rows)


def _flat(line: Json) -> Json:
    """Parts of a part by dotted names: one line of a spreadsheet."""
    flat: Json = {}
    for name, value in line.items():
        flat |= {f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _picture(store: Store, project_id: str, run_id: str, name: str) -> bytes:
    run = _found(store, project_id, run_id)
    file = Path(str(run.folder)) / "checkpoint" / name
    if run.folder is None or not re.fullmatch(r"[a-z0-9_-]+\.svg", name) or not file.is_file():
        raise NotFound(f"The card of {run_id} has no picture {name!r}.")
    return file.read_bytes()
