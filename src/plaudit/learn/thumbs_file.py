"""JSONL files of single answers with a thumb, read into what KTO reads. One JSON object a line, plain or gzipped:

    {"prompt": "q" | transcript | [messages], "completion": "a" | [{"role": "assistant", ...}], "label": true | false}

as TRL writes unpaired preferences; "messages" may stand for "prompt" and "response" for "completion". Optional: `weight`, `finished`
(false: cut off at the token limit), `family`, `id`. A row that cannot be used is rejected with its line and the reason.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plaudit.artifacts import Message
from plaudit.errors import BadInput
from plaudit.formats.files import Rejected, read_lines, reason_of
from plaudit.formats.trl import prompt_of
from plaudit.learn.pairs_file import family_of, flag_field, number_field, place_of, text_field


@dataclass(frozen=True)
class Thumb:
    """One answer and whether its reader liked it."""

    name: str
    family: str
    split: str  # train | valid
    messages: tuple[Message, ...]
    response: str
    up: bool
    weight: float
    finished: bool


def read_thumbs(path: Path, valid_fraction: float) -> tuple[list[Thumb], list[Rejected]]:
    """(usable rows, a share `valid_fraction` of their prompt families held out; rejected lines). Raises NotFound, BadInput (none usable)."""
    rows: list[Thumb] = []
    rejected: list[Rejected] = []
    for number, line in read_lines(path):
        try:
            row = read_row(json.loads(line.decode()), f"line-{number}")
        except ValueError as error:  # json and utf-8 errors are ValueErrors too
            rejected.append(Rejected(str(path), number, reason_of(error)))
            continue
        rows.append(replace(row, split="valid" if place_of(row.family) < valid_fraction else "train"))
    if not rows:
        first = f"line {rejected[0].line}: {rejected[0].reason}" if rejected else "it is empty"
        raise BadInput(
            f"{path} has no usable row ({len(rejected)} rejected; {first}); see docs/training.md for the form."
        )
    return rows, rejected


def read_row(raw: Any, name: str) -> Thumb:
    """One parsed line, in split `train`. Raises ValueError with the reason why it cannot be used."""
    if not isinstance(raw, dict) or not isinstance(raw.get("label"), bool):
        raise ValueError('it needs "label", true or false')
    messages = prompt_of(raw.get("prompt", raw.get("messages", "")))
    response = raw.get("completion", raw.get("response"))
    if isinstance(response, list) and len(response) == 1 and isinstance(response[0], dict):
        response = response[0].get("content")
    if not isinstance(response, str) or not response.strip():
        raise ValueError("the completion is empty, or not a text or a single message")
    return Thumb(
        name=text_field(raw, "id") or name,
        family=text_field(raw, "family") or family_of(messages),
        split="train",
        messages=messages,
        response=response.strip(),
        up=raw["label"],
        weight=number_field(raw, "weight", 1.0, 0.0, math.inf),
        finished=flag_field(raw, "finished"),
    )
