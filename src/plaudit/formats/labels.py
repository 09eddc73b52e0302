"""Label files of a crowd: item, worker, label, one vote a row, as CSV, TSV, JSON lines (each also .gz) or Parquet.

A bad row is turned away with file, line and reason while the good ones go in. Everything is text: `1.0`, which other programs write for 1 in
a column with holes, is read as `1`. Columns are Arrow arrays throughout, so that a million rows take about a second.

`position` says where the chosen label stood when it was shown (left, right; 1, 2, ...; 0, 1, ... where a 0 occurs), or names the label that
was shown first. The models need the label shown first: it follows from the place with two labels, or where the first was chosen; where it
does not follow it is drawn at random, which teaches no bias, as long as most rows say it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plaudit.errors import BadInput, NotFound
from plaudit.formats.files import Rejected, read_bytes
from plaudit.stats.aggregate import CodedVotes, Votes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

REQUIRED = ("item", "worker", "label")
OPTIONAL = ("position", "seconds", "group")
ANSWER_COLUMNS = ("truth", "gold", "label")  # of a file of known answers, the first that is there
MAX_SHOWN = 20  # rejected rows that are listed one by one
PLACES = {"left": 0, "first": 0, "top": 0, "right": 1, "second": 1, "last": 1, "bottom": 1}
_WHOLE = re.compile(r"-?\d+\.0+")
_SECONDS = r"^\d+(\.\d*)?([eE][+-]?\d+)?$"


@dataclass(frozen=True)
class LabelFile:
    """What a label file holds, row by row in `coded.votes` (with the label shown first where the file says it).

    values: (K,) the labels as numbers, where all are. place: (n_votes,) 0 where what was shown first was chosen, 1 where not, -1 unknown.
    seconds: (n_votes,) NaN where unknown. group: (n_votes,) code in `groups`, -1 unknown. n_repeats: rows of a worker who had labelled the
    item already; the last one counts, the earlier ones do not, unless all were asked for. notes: what a reader should know.
    """

    coded: CodedVotes
    values: tuple[float, ...] | None
    place: Ints | None
    seconds: Floats | None
    group: Ints | None
    groups: tuple[str, ...]
    n_rows: int
    n_repeats: int
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """Known labels by item, from a file of gold or truth."""

    by_item: Mapping[str, str]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]


@dataclass
class _Rows:
    """A file's columns as trimmed text, empty where nothing stands, and the line of each row."""

    name: str
    columns: dict[str, pa.Array]
    lines: Ints
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def reject(self, bad: Bools, reason: str, column: str | None = None) -> None:
        """Drop rows; `{}` in the reason becomes the row's value in `column`."""
        if not bad.any():
            return
        values = self.columns[column].filter(pa.array(bad)).to_pylist() if column else []
        for i, line in enumerate(self.lines[bad].tolist()):
            self.rejected.append(Rejected(self.name, line, reason.format(_short(values[i])) if column else reason))
        keep = pa.array(~bad)
        self.columns = {name: array.filter(keep) for name, array in self.columns.items()}
        self.lines = self.lines[~bad]


def read_labels(path: Path, extra_labels: Sequence[str] = (), *, keep_repeats: bool = False) -> LabelFile:
    """The votes of a file. `extra_labels`: labels beside those that somebody gave (what gold knows).

    Raises NotFound (no such file), BadInput (unreadable, a column is missing, no good row, one label, one worker).
    """
    rows = _read(path)
    _need(rows, REQUIRED)
    unknown = [name for name in rows.columns if name not in (*REQUIRED, *OPTIONAL)]
    if unknown:
        rows.notes.append(f"{rows.name} has columns that nothing reads: {', '.join(unknown)}.")
    n_rows = len(rows.lines) + len(rows.rejected)
    for name in REQUIRED:
        rows.reject(_mask(pc.equal(rows.columns[name], "")), f"{name} is empty")
    rows.columns["label"] = _whole(rows.columns["label"])
    if "seconds" in rows.columns:
        column = rows.columns["seconds"]
        fine = pc.or_(pc.equal(column, ""), pc.match_substring_regex(column, _SECONDS))
        rows.reject(~_mask(fine), "seconds is {}, not a number of seconds", "seconds")
    reading = _reading_of_positions(rows)
    n_repeats = 0 if keep_repeats else _drop_repeats(rows)
    if not len(rows.lines):
        raise BadInput(f"{rows.name} holds no vote that can be read{_first_rejected(rows)}.")
    coded, values = _encode(rows, extra_labels)
    place, first = _order(rows, reading, coded)
    votes = coded.votes
    groups = tuple(sorted(set(_codes(rows.columns["group"])[0]) - {""})) if "group" in rows.columns else ()
    return LabelFile(
        coded=CodedVotes(
            Votes(votes.item, votes.worker, votes.label, votes.n_labels, first),
            coded.items,
            coded.workers,
            coded.labels,
        ),
        values=values,
        place=place,
        seconds=_numbers(rows.columns["seconds"]) if "seconds" in rows.columns else None,
        group=_index(rows.columns["group"], groups) if groups else None,
        groups=groups,
        n_rows=n_rows,
        n_repeats=n_repeats,
        rejected=tuple(sorted(rows.rejected, key=lambda one: one.line)),
        notes=tuple(rows.notes),
    )


def read_answers(path: Path) -> Answers:
    """Known labels: columns item and truth (or gold, or label). An item answered twice keeps its first answer; another one is rejected."""
    rows = _read(path)
    column = next((name for name in ANSWER_COLUMNS if name in rows.columns), "truth")
    _need(rows, ("item", column))
    for name in ("item", column):
        rows.reject(_mask(pc.equal(rows.columns[name], "")), f"{name} is empty")
    items, labels = rows.columns["item"].to_pylist(), _whole(rows.columns[column]).to_pylist()
    by_item: dict[str, str] = {}
    for item, label, line in zip(items, labels, rows.lines.tolist(), strict=True):
        if by_item.setdefault(item, label) != label:
            reason = f"item {_short(item)} was {_short(by_item[item])} before and is {_short(label)} here"
            rows.rejected.append(Rejected(rows.name, line, reason))
    if not by_item:
        raise BadInput(f"{rows.name} holds no answer that can be read; give columns item and truth.")
    return Answers(by_item, tuple(sorted(rows.rejected, key=lambda one: one.line)), tuple(rows.notes))


def read_history(path: Path, workers: Sequence[str], labels: Sequence[str]) -> Floats:
    """(n_workers, K truth, K vote) counts from the `confusion` file of an earlier run: worker, truth, label, n. Unknown names are skipped."""
    rows = _read(path)
    _need(rows, ("worker", "truth", "label", "n"))
    rows.reject(~_mask(pc.match_substring_regex(rows.columns["n"], _SECONDS)), "n is {}, not a count", "n")
    if rows.rejected:
        raise BadInput(f"{rows.rejected[0]}; give the confusion file that --out wrote, as it was.")
    history = np.zeros((len(workers), len(labels), len(labels)))
    worker = _index(rows.columns["worker"], workers)
    truth, label = (_index(_whole(rows.columns[name]), labels) for name in ("truth", "label"))
    known = (worker >= 0) & (truth >= 0) & (label >= 0)
    np.add.at(history, (worker[known], truth[known], label[known]), _numbers(rows.columns["n"])[known])
    if not known.any():
        raise BadInput(
            f"{rows.name} knows none of these workers and labels; give the confusion file of the same crowd."
        )
    return history


def write_table(folder: Path, name: str, columns: Mapping[str, Any]) -> list[Path]:
    """`name`.parquet and `name`.csv with these columns (lists or arrays; one of None alone is of numbers); the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {column: pa.array(values) for column, values in columns.items()}
    table = pa.table(
        {c: array.cast(pa.float64()) if pa.types.is_null(array.type) else array for c, array in arrays.items()}
    )
    paths = [folder / f"{name}.parquet", folder / f"{name}.csv"]
    pq.write_table(table, paths[0])
    pacsv.write_csv(table, paths[1])
    return paths


# --- reading -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> _Rows:
    """Text columns of a file by its extension; rows that cannot be split into columns are rejected, blank ones are nothing."""
    if not path.is_file():
        raise NotFound(f"There is no file {str(path)!r}; give a label file.")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        rows = _read_parquet(path)
    elif kind in ("csv", "tsv"):
        rows = _read_csv(path, _content(path), "\t" if kind == "tsv" else ",")
    elif kind in ("jsonl", "ndjson"):
        rows = _read_jsonl(path, _content(path))
    else:
        raise BadInput(
            f"{path.name} has no extension that is known; give .csv, .tsv, .jsonl (each also .gz) or .parquet."
        )
    named = {name.strip().lower(): array for name, array in rows.columns.items()}
    if len(named) < len(rows.columns):
        raise BadInput(f"{path.name} names a column twice: {', '.join(rows.columns)}; give each its own name.")
    rows.columns = {name: pc.utf8_trim_whitespace(array) for name, array in named.items()}
    blank = np.ones(len(rows.lines), dtype=bool)
    for array in rows.columns.values():
        blank &= _mask(pc.equal(array, ""))
    if blank.any():
        keep = pa.array(~blank)
        rows.columns = {name: array.filter(keep) for name, array in rows.columns.items()}
        rows.lines = rows.lines[~blank]
    return rows


def _content(path: Path) -> bytes:
    """The file's bytes, unpacked. Raises BadInput where they are a damaged archive or no UTF-8."""
    content = read_bytes(path)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path.name}, line {line} is not UTF-8; save the file as UTF-8.") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise BadInput(f"{path.name} is empty; give at least a header and one row.")
    return content


def _read_csv(path: Path, content: bytes, delimiter: str) -> _Rows:
    first_line = io.StringIO(content.split(b"\n", 1)[0].decode(), newline=None)
    header = next(csv.reader(first_line, delimiter=delimiter), [])
    if len(set(header)) < len(header):
        raise BadInput(f"{path.name} names a column twice: {', '.join(header)}; give each its own name.")
    bad: list[tuple[int, int]] = []

    def skip(row: pacsv.InvalidRow) -> str:
        bad.append((row.number, row.actual_columns))
        return "skip"

    try:
        table = pacsv.read_csv(
            io.BytesIO(content),
            # One thread: rows are numbered then.
            read_options=pacsv.ReadOptions(use_threads=False),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=skip
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in header}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise BadInput(f"{path.name} cannot be read as a table: {error}.") from error
    columns = {name: _one(table.column(name)) for name in table.column_names}
    numbers = np.delete(np.arange(2, 2 + table.num_rows + len(bad)), [number - 2 for number, _ in bad])
    # A row's number does not count the line breaks inside quoted values of the rows before it.
    breaks = np.zeros(len(numbers), dtype=np.int64)
    for array in columns.values():
        breaks += pc.count_substring(array, "\n").to_numpy(zero_copy_only=False)
    breaks_before = np.concatenate([[0], np.cumsum(breaks)])
    rejected = [
        Rejected(
            path.name,
            number + int(breaks_before[np.searchsorted(numbers, number)]),
            f"it has {n} columns and the header {len(header)}",
        )
        for number, n in bad
    ]
    return _Rows(path.name, columns, numbers + breaks_before[:-1], rejected)


def _read_jsonl(path: Path, content: bytes) -> _Rows:
    records: list[dict[str, str]] = []
    names: dict[str, None] = {}  # an ordered set
    lines, rejected = [], []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            rejected.append(Rejected(path.name, number, f"it is not JSON ({error})"))
            continue
        if not isinstance(record, dict):
            rejected.append(Rejected(path.name, number, "it is not a JSON object"))
            continue
        nested = [name for name, value in record.items() if isinstance(value, dict | list) and name in REQUIRED]
        if nested:
            rejected.append(Rejected(path.name, number, f"{nested[0]} is a {type(record[nested[0]]).__name__}"))
            continue
        names.update(dict.fromkeys(record))
        records.append({name: _text(value) for name, value in record.items()})
        lines.append(number)
    columns = {name: pa.array([record.get(name, "") for record in records], pa.string()) for name in names}
    return _Rows(path.name, columns, np.array(lines, dtype=np.int64), rejected)


def _text(value: Any) -> str:
    """As CSV would hold it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _read_parquet(path: Path) -> _Rows:
    try:
        table = pq.read_table(path)
        columns = {}
        for name in table.column_names:
            array = _one(table.column(name))
            if pa.types.is_floating(array.type):
                array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
            columns[name] = pc.fill_null(array.cast(pa.string()), "")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise BadInput(f"{path.name} cannot be read as a table of text and numbers: {error}.") from error
    return _Rows(path.name, columns, np.arange(1, table.num_rows + 1))


def _need(rows: _Rows, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in rows.columns]
    if missing:
        raise BadInput(
            f"{rows.name} has no column {' and no column '.join(missing)}; it has {', '.join(rows.columns) or 'none'}, "
            f"and {', '.join(names)} are needed{_first_rejected(rows)}."
        )


def _first_rejected(rows: _Rows) -> str:
    """For a sentence about a file of which too little is left."""
    return f" ({len(rows.rejected)} rows were rejected: {rows.rejected[0]})" if rows.rejected else ""


# --- coding ------------------------------------------------------------------------------------------------------------


def _encode(rows: _Rows, extra_labels: Sequence[str]) -> tuple[CodedVotes, tuple[float, ...] | None]:
    """Codes by order of appearance for items and workers; labels in the order of their numbers, or of their text."""
    items, item = _codes(rows.columns["item"])
    workers, worker = _codes(rows.columns["worker"])
    given, label = _codes(rows.columns["label"])
    names = sorted({*given, *extra_labels})
    values = _values(names)
    if values is not None:
        names = [name for _, name in sorted(zip(values, names, strict=True))]
        values = tuple(sorted(values))
    if len(names) < 2:
        raise BadInput(
            f"All {len(label)} votes of {rows.name} say {names[0]!r}; there is nothing to compare{_first_rejected(rows)}."
        )
    if len(workers) < 2:
        raise BadInput(
            f"All {len(label)} votes of {rows.name} come from one worker, {workers[0]!r}; give the votes of two or more"
            f"{_first_rejected(rows)}."
        )
    code = np.array([names.index(name) for name in given])
    return CodedVotes(Votes(item, worker, code[label], len(names)), items, workers, tuple(names)), values


def _values(names: Sequence[str]) -> tuple[float, ...] | None:
    """The labels as numbers, where all are finite ones."""
    try:
        values = tuple(float(name) for name in names)
    except ValueError:
        return None
    return values if all(math.isfinite(value) for value in values) else None


def _drop_repeats(rows: _Rows) -> int:
    """Keep the last row of each (item, worker); returns how many went."""
    _, item = _codes(rows.columns["item"])
    workers, worker = _codes(rows.columns["worker"])
    key = item * max(len(workers), 1) + worker
    _, from_the_end = np.unique(key[::-1], return_index=True)
    n_repeats = len(key) - len(from_the_end)
    if n_repeats:
        keep = np.zeros(len(key), dtype=bool)
        keep[len(key) - 1 - from_the_end] = True
        rows.columns = {name: array.filter(pa.array(keep)) for name, array in rows.columns.items()}
        rows.lines = rows.lines[keep]
        rows.notes.append(
            f"{n_repeats} rows of {rows.name} are earlier labels of a worker for the same item; the last one counts."
        )
    return n_repeats


@dataclass(frozen=True)
class _Reading:
    """How a file's positions are read: the texts that mean "the chosen label stood first", or None where they name the label shown first."""

    first: frozenset[str] | None


def _reading_of_positions(rows: _Rows) -> _Reading | None:
    """How most positions of the file can be read; rows with another one are rejected. None without positions."""
    if "position" not in rows.columns:
        return None
    given = _whole(rows.columns["position"])
    lower = pc.utf8_lower(given)
    fits = {
        "word": _mask(pc.is_in(lower, pa.array(list(PLACES)))),
        "number": _mask(pc.match_substring_regex(lower, r"^\d{1,9}$")),
        "label": _mask(pc.is_in(given, rows.columns["label"])),
    }
    kind = max(fits, key=lambda name: int(fits[name].sum()))
    if not fits[kind].any():
        rows.notes.append(f"No position of {rows.name} can be read; the order shown is not used.")
        return None
    rows.columns["position"] = given if kind == "label" else lower
    match kind:
        case "word":
            reading = _Reading(frozenset(name for name, place in PLACES.items() if place == 0))
            rows.notes.append("position is read as the place of the chosen label.")
        case "number":
            lowest = "0" if _mask(pc.equal(lower, "0")).any() else "1"
            reading = _Reading(frozenset({lowest}))
            rows.notes.append(f"position is read as the place of the chosen label; {lowest} is the first place.")
        case _:
            reading = _Reading(None)
            rows.notes.append("position is read as the label that was shown first.")
    unreadable = ~(fits[kind] | _mask(pc.equal(given, "")))
    rows.reject(unreadable, "position is {}, which cannot be read as in the other rows", "position")
    return reading


def _order(rows: _Rows, reading: _Reading | None, coded: CodedVotes) -> tuple[Ints | None, Ints | None]:
    """(place, the label shown first), each (n_votes,), None where the file does not say; unknown ones of `first` are drawn."""
    if reading is None:
        return None, None
    label = coded.votes.label
    position = rows.columns["position"]
    if reading.first is None:
        first = _index(position, coded.labels)
        place = np.where(first < 0, -1, first != label)
    else:
        names, code = _codes(position)
        place_of = np.array([-1 if not name else int(name not in reading.first) for name in names])
        place = place_of[code]
        first = np.where(place == 0, label, -1)
    if np.mean(place >= 0) < 0.5:
        rows.notes.append(f"Most rows of {rows.name} have no position; the order shown is not used by the models.")
        return place, None
    return place, _drawn(first, place, label, coded.votes.n_labels)


def _drawn(first: Ints, place: Ints, label: Ints, n_labels: int) -> Ints:
    """Where the label shown first is unknown (-1): a random one of those that have a place, not the chosen one where that stood elsewhere."""
    unknown = np.flatnonzero(first < 0)
    positioned = np.unique(label[place >= 0])
    if len(positioned) < 2:
        positioned = np.arange(n_labels)
    rng = np.random.default_rng(0)
    any_of_them = rng.integers(0, len(positioned), len(unknown))
    chosen = np.searchsorted(positioned, label[unknown]).clip(0, len(positioned) - 1)
    another = (chosen + 1 + rng.integers(0, len(positioned) - 1, len(unknown))) % len(positioned)
    out = first.copy()
    out[unknown] = positioned[np.where(place[unknown] == 1, another, any_of_them)]
    return out


# --- columns -----------------------------------------------------------------------------------------------------------


def _one(column: Any) -> Any:
    """One array of a column in chunks."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _codes(column: pa.Array) -> tuple[tuple[str, ...], Ints]:
    encoded = _one(column.dictionary_encode())
    return tuple(encoded.dictionary.to_pylist()), _indices(encoded)


def _indices(encoded: Any) -> Ints:
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _index(column: pa.Array, names: Sequence[str]) -> Ints:
    """(n,) the place of each value in `names`, -1 where it is not there."""
    found = pc.index_in(column, pa.array(list(names), pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _mask(array: Any) -> Bools:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=bool)


def _numbers(column: pa.Array) -> Floats:
    """(n,) float64, NaN where the text is empty."""
    held = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column).cast(pa.float64())
    return np.asarray(held.to_numpy(zero_copy_only=False), dtype=np.float64)


def _whole(column: pa.Array) -> pa.Array:
    """`3.0` as `3`."""
    names = _one(column.dictionary_encode())
    if not any(_WHOLE.fullmatch(name) for name in names.dictionary.to_pylist()):
        return column
    return pc.replace_substring_regex(column, r"^(-?\d+)\.0+$", r"\1")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def by_reason(rejected: Sequence[Rejected]) -> Mapping[str, int]:
    """How many rows for each reason, values left out."""
    return dict(Counter(re.sub(r"'.*'", "...", one.reason) for one in rejected))
