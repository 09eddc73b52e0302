"""JSONL files of chosen and rejected answers, as other libraries write them, read into the rows that training reads.

One JSON object a line, plain or gzipped. The prompt and the two answers come in any of these forms:

    {"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", "rejected": ...}      HH transcripts: the prompt is what precedes the last "\\n\\nAssistant:"
    {"prompt": "q" | transcript, "chosen": "a", "rejected": "b"}      TRL, explicit prompt; "messages" (a list) may stand for "prompt"
    {"prompt": [messages], "chosen": [{"role": "assistant", ...}], "rejected": [...]}      TRL, conversational
    {"chosen": [messages], "rejected": [messages]}      TRL, conversational: all messages but the last are the prompt

Optional in each: `margin`, `weight`, `probability` (that people prefer chosen), `criterion`, `source`, `annotator`, `family`, `id`,
`chosen_finished`, `rejected_finished`, and the slices of a report: `slice` (a text, or an object of texts), `category`, `subset`, `group`.
A row that cannot be used is rejected with its line and the reason; the others go in. `formats.trl` reads the three texts of a row; here
stand what training asks beside them. Left out: multi-turn answers, images, tool calls.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plaudit.artifacts import PreferenceRow, sha256_of
from plaudit.errors import BadInput
from plaudit.formats.files import Rejected, read_lines, reason_of, reasons
from plaudit.formats.trl import prompt_and_answers

__all__ = ["Pair", "Rejected", "holds_pairs", "read_pairs", "read_row", "read_split", "reasons"]

SLICES = ("category", "subset", "group")


@dataclass(frozen=True)
class Pair(PreferenceRow):
    """A PreferenceRow with what only files say."""

    margin: float = 0.0  # in score units: chosen should lead by more than this
    annotator: str = ""
    slices: Mapping[str, str] = field(default_factory=dict)  # name of a slicing -> this row's slice


def read_split(
    preferences: str, valid_preferences: str = "", valid_fraction: float = 0.1
) -> tuple[list[Pair], list[Pair], list[Rejected]]:
    """(training rows, held-out rows, rejected lines) of one file split by prompt family, or of two files.

    A family's place is a hash of its name, so that it never moves, however much is added. Raises NotFound, BadInput (nothing usable, or
    nothing left on one side of the split).
    """
    rows, rejected = read_pairs(Path(preferences))
    if valid_preferences:
        held_out, more = read_pairs(Path(valid_preferences))
        return rows, [replace(row, split="valid") for row in held_out], rejected + more
    held_out = [replace(row, split="valid") for row in rows if place_of(row.family) < valid_fraction]
    rows = [row for row in rows if place_of(row.family) >= valid_fraction]
    if not rows or (valid_fraction > 0 and not held_out):
        empty = "held out" if rows else "trained on"
        raise BadInput(
            f"Splitting {preferences} by prompt family at valid_fraction {valid_fraction} leaves nothing to be {empty}; "
            "give another valid_fraction, or a second file as valid_preferences."
        )
    return rows, held_out, rejected


def read_pairs(path: Path) -> tuple[list[Pair], list[Rejected]]:
    """All usable rows (split `train`), and the lines that are not. Raises NotFound, BadInput where no row is usable."""
    rows: list[Pair] = []
    rejected: list[Rejected] = []
    for number, line in read_lines(path):
        try:
            rows.append(read_row(json.loads(line.decode()), f"line-{number}"))
        except ValueError as error:  # json and utf-8 errors are ValueErrors too
            rejected.append(Rejected(str(path), number, reason_of(error)))
    if not rows:
        first = f"line {rejected[0].line}: {rejected[0].reason}" if rejected else "it is empty"
        raise BadInput(
            f"{path} has no usable row ({len(rejected)} rejected; {first}); see docs/training.md for the forms."
        )
    return rows, rejected


def holds_pairs(path: Path) -> bool:
    """Whether the first line that is an object tells of a chosen or a rejected answer. Raises NotFound."""
    for _, line in read_lines(path):
        try:
            raw = json.loads(line.decode())
        except ValueError:
            continue
        if isinstance(raw, dict):
            return "chosen" in raw or "rejected" in raw
    return False


def read_row(raw: Any, name: str) -> Pair:
    """One parsed line. Raises ValueError with the reason why it cannot be used."""
    if not isinstance(raw, dict) or "chosen" not in raw or "rejected" not in raw:
        raise ValueError('it needs "chosen" and "rejected"')
    messages, *answers = prompt_and_answers(raw)
    chosen, rejected = (answer.strip() for answer in answers)
    if chosen == rejected:
        raise ValueError("both answers are the same text")
    slices = {key: text_field(raw, key) for key in SLICES if raw.get(key) not in (None, "")}
    extra = raw.get("slice")
    if isinstance(extra, dict):
        slices |= {str(key): str(value) for key, value in extra.items()}
    elif extra not in (None, ""):
        slices["slice"] = text_field(raw, "slice")
    return Pair(
        preference_id=text_field(raw, "id") or name,
        comparison_id="",
        criterion=text_field(raw, "criterion"),
        family=text_field(raw, "family") or family_of(messages),
        split="train",
        messages=messages,
        chosen=chosen,
        rejected=rejected,
        probability=number_field(raw, "probability", 1.0, 0.0, 1.0),
        weight=number_field(raw, "weight", 1.0, 0.0, math.inf),
        source=text_field(raw, "source") or "import",
        chosen_finished=flag_field(raw, "chosen_finished"),
        rejected_finished=flag_field(raw, "rejected_finished"),
        margin=number_field(raw, "margin", 0.0, -math.inf, math.inf),
        annotator=text_field(raw, "annotator"),
        slices=slices,
    )


def family_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Prompt family of a conversation: its first user message, whatever its case and spacing, so that later turns of one dialogue stay with it."""
    first = next((str(one["content"]) for one in messages if one["role"] == "user"), str(messages[0]["content"]))
    return sha256_of(" ".join(first.split()).casefold())[:16]


def text_field(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key, "")
    if isinstance(value, (dict, list)):
        raise ValueError(f"{key} must be a text")
    return "" if value is None else str(value)


def number_field(raw: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = raw.get(key)
    if value is None:
        return default
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise ValueError(f"{key} is {value!r}; it must be a number between {low:g} and {high:g}")
    return float(value)


def flag_field(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key, True)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false")
    return value


def place_of(family: str) -> float:
    """Where a family falls in [0, 1): uniform over names, the same for ever."""
    return int.from_bytes(hashlib.sha256(family.encode()).digest()[:8]) / 2**64
