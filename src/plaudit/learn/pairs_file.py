"""JSONL files of chosen and rejected answers, as other libraries write them, read into the rows that training reads.

One JSON object a line, plain or gzipped. The prompt and the two answers come in any of these forms:

    {"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", "rejected": ...}      HH transcripts: the prompt is what precedes the last "\\n\\nAssistant:"
    {"prompt": "q" | transcript, "chosen": "a", "rejected": "b"}      TRL, explicit prompt; "messages" (a list) may stand for "prompt"
    {"prompt": [messages], "chosen": [{"role": "assistant", ...}], "rejected": [...]}      TRL, conversational
    {"chosen": [messages], "rejected": [messages]}      TRL, conversational: all messages but the last are the prompt

Optional in each: `margin`, `weight`, `probability` (that people prefer chosen), `criterion`, `source`, `annotator`, `family`, `id`,
`chosen_finished`, `rejected_finished`, and the slices of a report: `slice` (a text, or an object of texts), `category`, `subset`, `group`.
A row that cannot be used is rejected with its line and the reason; the others go in. Left out: multi-turn answers, images, tool calls.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plaudit.artifacts import Message, PreferenceRow, sha256_of
from plaudit.errors import BadInput, NotFound

ANSWER = "\n\nAssistant:"  # what precedes an assistant's turn in an HH transcript
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
SLICES = ("category", "subset", "group")
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Pair(PreferenceRow):
    """A PreferenceRow with what only files say."""

    margin: float = 0.0  # in score units: chosen should lead by more than this
    annotator: str = ""
    slices: Mapping[str, str] = field(default_factory=dict)  # name of a slicing -> this row's slice


@dataclass(frozen=True)
class Rejected:
    """A line that was left out, and why."""

    file: str
    line: int
    reason: str


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
    messages, chosen, rejected = _prompt_and_answers(raw)
    if not messages:
        raise ValueError("the prompt is empty")
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        if not text:
            raise ValueError(f"the {side} answer is empty")
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


def read_transcript(text: str) -> tuple[Message, ...]:
    """Messages of an HH transcript; neighbours of one role become one message, because many chat templates refuse them apart.

    Raises ValueError where text stands before the first turn.
    """
    head, *parts = TURN.split(text)
    if head.strip():
        raise ValueError(f'text stands before the first "\\n\\nHuman:" ({head.strip()[:40]!r})')
    messages: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        if messages and messages[-1]["role"] == ROLES[speaker]:
            messages[-1]["content"] += "\n\n" + content.strip()
        else:
            messages.append({"role": ROLES[speaker], "content": content.strip()})
    return tuple(messages)


def _prompt_and_answers(raw: Mapping[str, Any]) -> tuple[tuple[Message, ...], str, str]:
    sides = [raw["chosen"], raw["rejected"]]
    prompt = raw.get("prompt", raw.get("messages"))
    if all(isinstance(side, list) for side in sides):
        threads = [_messages(side) for side in sides]
        if any(not thread or thread[-1]["role"] != "assistant" for thread in threads):
            raise ValueError("an answer does not end in an assistant message")
        prompts = [thread[:-1] for thread in threads]
        if prompts[0] != prompts[1]:
            raise ValueError("the prompts of chosen and rejected differ")
        if prompt is not None and prompts[0]:
            raise ValueError('the answers hold more than one message beside a "prompt"')
        messages = prompts[0] if prompt is None else prompt_of(prompt)
        return messages, *(str(thread[-1]["content"]).strip() for thread in threads)  # type: ignore[return-value]
    if not all(isinstance(side, str) for side in sides):
        raise ValueError("chosen and rejected must both be texts, or both be lists of messages")
    if prompt is not None:
        return prompt_of(prompt), sides[0].strip(), sides[1].strip()
    cut = [side.rpartition(ANSWER) for side in sides]
    if not all(marker for _, marker, _ in cut):
        raise ValueError('there is no "prompt", and a side has no "\\n\\nAssistant:"')
    if cut[0][0] != cut[1][0]:
        raise ValueError("the prompts of chosen and rejected differ")
    return read_transcript(cut[0][0]), cut[0][2].strip(), cut[1][2].strip()


def prompt_of(value: Any) -> tuple[Message, ...]:
    if isinstance(value, list):
        return tuple(_messages(value))
    if not isinstance(value, str):
        raise ValueError("the prompt is neither a text nor a list of messages")
    if TURN.match(value):
        return read_transcript(value.rstrip().removesuffix(ANSWER))
    return ({"role": "user", "content": value},) if value.strip() else ()


def _messages(value: list[Any]) -> list[Message]:
    for one in value:
        if not isinstance(one, dict) or not isinstance(one.get("role"), str) or not isinstance(one.get("content"), str):
            raise ValueError('a message needs "role" and "content", both texts')
    return [{"role": one["role"], "content": one["content"]} for one in value]


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


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise NotFound(f"{path} does not exist; name a JSONL file.")
    with path.open("rb") as plain:
        packed = plain.read(2) == GZIP_MAGIC
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
        except (EOFError, gzip.BadGzipFile) as error:
            raise BadInput(f"{path} is a damaged gzip file ({error}); copy it again.") from error


def reason_of(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error})"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def reasons(rejected: Sequence[Rejected]) -> dict[str, int]:
    """How many lines were left out for each reason, what a reason quotes aside."""
    return dict(Counter(re.sub(r" \(.*\)", "", one.reason) for one in rejected))


def place_of(family: str) -> float:
    """Where a family falls in [0, 1): uniform over names, the same for ever."""
    return int.from_bytes(hashlib.sha256(family.encode()).digest()[:8]) / 2**64
