"""Anybody's experiment as a file: CSV (`,` `;` or tab), JSON Lines or Parquet, plain or packed, into what `stats/looks.py` analyses.

    user,arm,at[,stage][,assignment_probability],METRIC...[,pre_METRIC...]      a row per event, message or user
    at,arm,n,mean,variance[,metric][,stage][,assignment_probability]            a row per look and arm

A row that cannot be used is left out, with its line (Parquet: row) and the reason. Two arms; the one that is not the control is the candidate.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.errors import BadInput, NotFound
from plaudit.formats.files import Rejected, read_items, read_lines
from plaudit.stats.looks import (
    STEADY_USERS,
    Look,
    Metric,
    Period,
    Plan,
    Rows,
    Totals,
    analyse_rows,
    analyse_totals,
    described,
    look_ends,
)

OWN = ("user", "arm", "at", "stage", "assignment_probability")
TOTALS = ("at", "arm", "n", "mean", "variance")
PRE = "pre_"
MOST_USERS = 1e12  # of one row; more is a mistake
SHOWN = 100  # rejected rows that a report lists
LAST_SECOND = 1e11  # about the year 5138; milliseconds of our time are beyond
EMPTY = ("", "na", "nan", "null", "none")


@dataclass(frozen=True)
class ExperimentFile:
    """What was read. `stages` names the numbers of `data.stage`; `n_rows` counts usable rows."""

    data: Rows | Totals
    control: str
    candidate: str
    stages: tuple[str, ...]
    n_rows: int
    rejected: tuple[Rejected, ...]


def read(
    path: Path, control: str, metrics: Sequence[str], cumulative: bool = False, share: float = 0.5
) -> ExperimentFile:
    """metrics: the columns to read (or the names in the column `metric`). share: probability of the candidate where no column says so.

    Raises NotFound, BadInput: no usable row, a column that is not there, an arm that is not there, more than two arms.
    """
    if not 0 < share < 1:
        raise BadInput(f"share is {share}; the candidate's planned share of the users lies between 0 and 1.")
    rejected: list[Rejected] = []
    records = _records(path, rejected)
    first = next(records, None)
    if first is None:
        reason = f"; line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
        raise BadInput(f"{path} has no row{reason}; see docs/experiments.md for the columns.")
    of_totals = "user" not in first[1] and all(name in first[1] for name in TOTALS)
    if cumulative and not of_totals:
        raise BadInput(f"{path} has not the columns {', '.join(TOTALS)}; --cumulative is for rows that hold totals.")
    if not of_totals:
        _need(first[1], OWN[:3], path)
    absent = set() if of_totals else set(metrics)
    columns_seen = tuple(map(str, first[1]))
    read_one = _total if of_totals else _row
    kept: list[tuple[Any, ...]] = []
    for line, record in chain([first], records):
        if absent:
            absent -= record.keys()
        try:
            kept.append(read_one(record, metrics, share))
        except ValueError as error:
            rejected.append(Rejected(str(path), line, str(error)))
    if not kept:
        raise BadInput(
            f"{path} has no usable row ({len(rejected)} rejected; line {rejected[0].line}: {rejected[0].reason}); "
            "see docs/experiments.md for the columns."
        )
    if absent:
        raise BadInput(f"{path} has no metric {sorted(absent)[0]!r}; its columns are {', '.join(columns_seen)}.")
    candidate = _candidate([row[1] for row in kept], control, path)
    kept.sort(key=lambda row: row[0])  # stable: rows of one moment keep their order
    stages, stage = _numbered([row[2] for row in kept])
    at = np.array([row[0] for row in kept])
    in_candidate = np.array([row[1] != control for row in kept], dtype=bool)
    probability = np.array([row[3] for row in kept])
    data: Rows | Totals
    if of_totals:
        data = Totals(
            at=at,
            metric=[row[4] for row in kept],
            in_candidate=in_candidate,
            stage=stage,
            probability=probability,
            n=np.array([row[5] for row in kept], dtype=np.int64),
            mean=np.array([row[6] for row in kept]),
            variance=np.array([row[7] for row in kept]),
            cumulative=cumulative,
        )
    else:
        columns = {
            name: np.array([row[5][i] for row in kept], dtype=np.float64) for i, name in enumerate(_columns(metrics))
        }
        data = Rows(
            at=at,
            user=_numbered([row[4] for row in kept])[1],
            in_candidate=in_candidate,
            stage=stage,
            probability=probability,
            values={name: columns[name] for name in metrics},
            before={name: columns[PRE + name] for name in metrics if not np.isnan(columns[PRE + name]).all()},
        )
    return ExperimentFile(data, control, candidate, stages, len(kept), tuple(rejected))


def report(file: ExperimentFile, metrics: Sequence[Metric], plan: Plan, looks: int | Period | None) -> dict[str, Any]:
    """The verdict at every look, as docs/experiments.md describes it. looks: so many, or by the calendar; None: 10, and every time of a
    file of totals. `decision` is the first look that does not say hold. Raises BadInput."""
    data = file.data
    if isinstance(data, Rows):
        found = analyse_rows(data, metrics, plan, look_ends(data.at, 10 if looks is None else looks))
    else:
        found = analyse_totals(data, metrics, plan)
        if looks is not None:
            times = np.array([look.at for look in found])
            found = [replace(found[end - 1], number=i) for i, end in enumerate(look_ends(times, looks), start=1)]
    decisive = next((look for look in found if look.verdict.verdict != "hold"), found[-1])
    return {
        "control": file.control,
        "candidate": file.candidate,
        "n_rows": file.n_rows,
        "n_rejected": len(file.rejected),
        "rejected": [{"line": one.line, "reason": one.reason} for one in file.rejected[:SHOWN]],
        "notes": _notes(found[-1], plan),
        "plan": asdict(plan),
        "decision": {"verdict": decisive.verdict.verdict, "look": decisive.number, "of": len(found)},
        "looks": [described(look) for look in found],
    }


def _notes(last: Look, plan: Plan) -> list[str]:
    notes = [
        f"{reading.name} is one value for everybody: nothing can be compared"
        for reading in last.readings
        if reading.control is not None and reading.waits.startswith("it is one value")
    ]
    if plan.min_users < STEADY_USERS:
        notes.append(f"below {STEADY_USERS} users in each arm the bounds of means and rates may be too narrow")
    if any(reading.waits.startswith("bounds need arms of equal size") for reading in last.readings):
        notes.append(
            "the arms are not of equal size, where only the exact test of guardrails of zeros and ones holds: "
            "give the control an arm of the same size"
        )
    return notes


# --- rows --------------------------------------------------------------------------------------------------------------


def _row(record: Mapping[str, Any], metrics: Sequence[str], share: float) -> tuple[Any, ...]:
    """(at, arm, stage, probability, user, values). Raises ValueError with the reason why it cannot be used."""
    at, arm, stage, probability = _shared(record, share)
    values = tuple(_number(record, name, optional=True) for name in _columns(metrics))
    return at, arm, stage, probability, _text(record, "user"), values


def _total(record: Mapping[str, Any], metrics: Sequence[str], share: float) -> tuple[Any, ...]:
    """(at, arm, stage, probability, metric, n, mean, variance). Raises ValueError."""
    at, arm, stage, probability = _shared(record, share)
    if record.get("metric") in (None, ""):
        if len(metrics) != 1:
            raise ValueError("without a column `metric` the file tells of one metric; name one")
        metric = metrics[0]
    else:
        metric = _text(record, "metric")
    n, mean, variance = (_number(record, name) for name in ("n", "mean", "variance"))
    if not 0 <= n <= MOST_USERS or n != int(n):
        raise ValueError(f"n is {n:g}; it must be a number of users")
    if variance < 0:
        raise ValueError(f"variance is {variance:g}; it cannot be below 0")
    return at, arm, stage, probability, metric, int(n), mean, variance


def _shared(record: Mapping[str, Any], share: float) -> tuple[float, str, str, float]:
    probability = _number(record, "assignment_probability", optional=True)
    if math.isnan(probability):
        probability = share
    if not 0 < probability < 1:
        raise ValueError(f"assignment_probability is {probability:g}; it must lie between 0 and 1, both excluded")
    stage = record.get("stage")
    return _time(record.get("at")), _text(record, "arm"), "" if stage is None else str(stage).strip(), probability


def _columns(metrics: Sequence[str]) -> tuple[str, ...]:
    return (*metrics, *(PRE + name for name in metrics))


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or isinstance(value, (dict, list)) or not str(value).strip():
        raise ValueError(f"{name} is empty" if value is None or value == "" else f"{name} is {value!r}; give a text")
    return str(value).strip()


def _number(record: Mapping[str, Any], name: str, optional: bool = False) -> float:
    value = record.get(name)
    if value is None or (isinstance(value, str) and value.strip().lower() in EMPTY):
        if optional:
            return math.nan
        raise ValueError(f"{name} is empty")
    try:
        number = float(value)  # true and false are 1 and 0
    except (TypeError, ValueError, OverflowError):
        word = str(value).strip().lower()
        if word not in ("true", "false"):
            raise ValueError(f"{name} is {value!r}, which is no number") from None
        number = float(word == "true")
    if math.isnan(number) and optional:
        return number
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}, which is not finite")
    return number


def _time(value: Any) -> float:
    """Seconds since 1970 of an ISO 8601 time (UTC where it names no zone), a date, or a number of seconds."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    text = "" if value is None else str(value).strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number) and not isinstance(value, bool):
        if abs(number) > LAST_SECOND:
            raise ValueError(f"at is {text}; give seconds since 1970, not milliseconds")
        return number
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"at is {text!r}; give an ISO 8601 time or seconds since 1970" if text else "at is empty"
        ) from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _need(record: Mapping[str, Any], columns: Sequence[str], path: Path) -> None:
    for name in columns:
        if name not in record:
            raise BadInput(
                f"{path} has no column {name!r}; it has {', '.join(map(str, record))}. See docs/experiments.md."
            )


def _candidate(arms: Sequence[str], control: str, path: Path) -> str:
    names = sorted(set(arms))
    if control not in names:
        raise BadInput(f"Control {control!r} is no arm in {path}; its arms are {', '.join(names)}.")
    others = [name for name in names if name != control]
    if len(others) != 1:
        said = f"{len(names)} arms ({', '.join(names)})" if others else f"one arm ({control})"
        raise BadInput(f"{path} has {said}; an analysis compares two: keep the control's rows and one other arm's.")
    return others[0]


def _numbered(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray[Any, np.dtype[np.int64]]]:
    """Names in the order of their first row, and the number of each row's."""
    numbers: dict[str, int] = {}
    found = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    return tuple(numbers), found


# --- files -------------------------------------------------------------------------------------------------------------


def _records(path: Path, rejected: list[Rejected]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, record) by the file's ending."""
    kinds = [ending.lower() for ending in path.suffixes]
    if ".parquet" in kinds:
        yield from _parquet(path)
    elif any(ending in kinds for ending in (".jsonl", ".ndjson", ".json")):
        for line, item in read_items(path):
            if isinstance(item, dict):
                yield line, item
            else:
                reason = str(item) if isinstance(item, ValueError) else "it is not a JSON object"
                rejected.append(Rejected(str(path), line, reason))
    else:
        yield from _csv(path, rejected)


def _csv(path: Path, rejected: list[Rejected]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for number, line in read_lines(path):
            at = number
            yield line.decode("utf-8", "replace").lstrip("\ufeff" if number == 1 else "").replace("\0", "\ufffd")

    text = lines()
    head = next(text, None)
    if head is None:
        return
    delimiter = max(",;\t", key=head.count)
    names = [name.strip() for name in next(csv.reader([head], delimiter=delimiter))]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise BadInput(f"{path} has the column {sorted(twice)[0]!r} twice; rename one.")
    rows = csv.reader(text, delimiter=delimiter)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            rejected.append(Rejected(str(path), at, f"it is not CSV ({error})"))
            continue
        if row is None:
            return
        if any("\ufffd" in cell for cell in row):
            rejected.append(Rejected(str(path), at, "it is not UTF-8"))
        elif len(row) != len(names):
            rejected.append(Rejected(str(path), at, f"it has {len(row)} columns and the head {len(names)}"))
        else:
            yield at, dict(zip(names, row, strict=True))


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise NotFound(f"{path} does not exist; name a file.")
    try:
        file = pq.ParquetFile(path)
        row = 0
        for batch in file.iter_batches():
            for record in batch.to_pylist():
                row += 1
                yield row, record
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path} is no Parquet file ({str(error).splitlines()[0]}); copy it again.") from error
