"""One's own prompts and responses, which people are to judge: JSONL or a JSON array (.gz and .zst too), CSV, TSV, Parquet.

    {"prompt": text, or "messages": [{"role", "content"}],
     "responses": [texts], or "response" and "response_2", ... in columns of their own,
     "models": [names], or "model" of all; "domain", "family", "priority", "warning": if you like}

In a CSV cell a list is JSON. A CSV file is read as a whole, the others item by item.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.domain import Message
from plaudit.errors import BadInput, NotFound
from plaudit.formats.files import Rejected, read_bytes, read_items
from plaudit.formats.records import messages_of, number_of, text_of

MAX_RESPONSES = 20
_OWN_COLUMN = re.compile(r"response(_[0-9]+)?")


@dataclass(frozen=True)
class Asked:
    """One prompt and what was said to it. `models` is empty or as long as `responses`."""

    file: str
    line: int
    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    models: tuple[str, ...] = ()
    domain: str | None = None
    family: str | None = None
    priority: int = 0
    warning: str = ""


def read(path: Path) -> Iterator[Asked | Rejected]:
    """Every row in order. Raises NotFound, BadInput (a file that cannot be read at all)."""
    for line, raw in _rows(path):
        try:
            yield _asked(str(path), line, raw)
        except ValueError as error:
            yield Rejected(str(path), line, str(error))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    suffix = next((one for one in reversed(path.suffixes) if one not in (".gz", ".zst")), "").lower()
    match suffix:
        case ".csv" | ".tsv":
            yield from _table(path, "\t" if suffix == ".tsv" else ",")
        case ".parquet":
            yield from _parquet(path)
        case _:
            yield from read_items(path)


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for row in rows:
            if None in row:
                yield rows.line_num, ValueError("it has more cells than the header")
            else:
                yield rows.line_num, {name: _cell(value) for name, value in row.items() if value}
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read as a table ({error}); save it as CSV in UTF-8.") from error


def _cell(value: str) -> Any:
    """A list where the cell holds one."""
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa  # where it is needed: the service starts without it
    from pyarrow import parquet

    if not path.is_file():
        raise NotFound(f"{path} does not exist; name a file.")
    try:
        with parquet.ParquetFile(path) as file:
            line = 0
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except pa.ArrowInvalid as error:
        raise BadInput(f"{path} is no Parquet file that can be read ({error}); write it again.") from error


def _asked(file: str, line: int, raw: Any) -> Asked:
    if isinstance(raw, ValueError):
        raise raw
    if not isinstance(raw, Mapping):
        raise ValueError("it is no object")
    responses = _responses(raw)
    models = raw.get("models") or ([str(raw["model"])] * len(responses) if raw.get("model") else [])
    if not isinstance(models, list) or (models and len(models) != len(responses)):
        raise ValueError(f"there are {len(responses)} responses and models is {models!r}")
    messages = raw.get("messages")
    return Asked(
        file=file,
        line=line,
        messages=messages_of(messages if messages is not None else raw.get("prompt")),
        responses=responses,
        models=tuple(str(one or "") for one in models),
        domain=_name(raw, "domain"),
        family=_name(raw, "family"),
        priority=int(number_of(raw.get("priority"), "priority") or 0),
        warning=_name(raw, "warning") or "",
    )


def _responses(raw: Mapping[str, Any]) -> tuple[str, ...]:
    given = raw.get("responses")
    if given is None:
        columns = sorted((name for name in raw if _OWN_COLUMN.fullmatch(str(name))), key=lambda name: (len(name), name))
        given = [raw[name] for name in columns if raw[name] is not None]
    if not isinstance(given, list) or not 0 < len(given) <= MAX_RESPONSES:
        raise ValueError(f'it needs "responses", a list of 1 to {MAX_RESPONSES} texts, or "response"')
    texts = tuple(text_of(one, "a response") for one in given)
    if len({text.strip() for text in texts}) < len(texts):
        raise ValueError("two responses are the same text")
    return texts


def _name(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    if value is None or value == "":
        return None
    if len(str(value)) > 200:
        raise ValueError(f"{name} has more than 200 characters")
    return str(value)
