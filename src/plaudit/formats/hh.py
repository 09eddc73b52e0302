"""Anthropic's HH-RLHF: `{"chosen": transcript, "rejected": transcript}` a line, where a transcript is a text of turns

    \\n\\nHuman: question\\n\\nAssistant: answer

The prompt is the text before each side's last "\\n\\nAssistant:"; a row whose two prompts differ, or whose answer is empty, is rejected (the
published files have both kinds). Blanks around a turn belong to the layout and are not kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from plaudit.domain import Message
from plaudit.formats.files import Rejected, read_items, written
from plaudit.formats.records import LossReport, Record, forget, pairs

ANSWER = "\n\nAssistant:"  # what precedes an assistant's turn
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
SPEAKERS = {role: speaker for speaker, role in ROLES.items()}


def read(path: Path, salt: str = "") -> Iterator[Record | Rejected]:  # noqa: ARG001  names nobody
    for line, raw in read_items(path):
        try:
            messages, chosen, rejected = prompt_and_answers(raw)
            yield Record(id=f"{path.name}:{line}", messages=messages, responses=(chosen, rejected), ranks=(1, 2))
        except ValueError as error:
            yield Rejected(str(path), line, str(error))


def prompt_and_answers(raw: Any) -> tuple[tuple[Message, ...], str, str]:
    """(messages, chosen, rejected) of one row. Raises ValueError with the reason."""
    if isinstance(raw, ValueError):
        raise raw
    if not isinstance(raw, dict) or not all(isinstance(raw.get(side), str) for side in ("chosen", "rejected")):
        raise ValueError('it needs "chosen" and "rejected", both texts')
    (one, mark_one, chosen), (two, mark_two, rejected) = (
        raw[side].rpartition(ANSWER) for side in ("chosen", "rejected")
    )
    if not mark_one or not mark_two:
        raise ValueError('a side has no "\\n\\nAssistant:"')
    if one != two:
        raise ValueError("the prompts of chosen and rejected differ")
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise ValueError(f"the {side} answer is empty")
    return read_transcript(one), chosen.strip(), rejected.strip()


def read_transcript(text: str) -> tuple[Message, ...]:
    """Messages of a transcript; neighbours of one role become one message, because many chat templates refuse them apart.

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


def write(records: Iterable[Record], path: Path) -> LossReport:
    """HH lines of every pair. Held: the turns of users and assistants, and which answer is better."""
    report = LossReport()
    with written(path) as file:
        for record in records:
            report.n_records += 1
            for pair in pairs(record, report):
                reason = _against(pair.messages, pair.responses)
                if reason is not None:
                    report.dropped[reason] += 1
                    continue
                kept = forget(pair, (), report)
                if _trimmed(kept):
                    report.lost["blanks around a turn"] += 1
                better, worse = kept.chosen_first
                prompt = "".join(f"\n\n{SPEAKERS[one['role']]}: {one['content'].strip()}" for one in kept.messages)
                sides = {
                    side: f"{prompt}{ANSWER} {kept.responses[index].strip()}"
                    for side, index in (("chosen", better), ("rejected", worse))
                }
                file.write(json.dumps(sides, ensure_ascii=False) + "\n")
                report.n_written += 1
    return report


def _against(messages: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> str | None:
    if any(one["role"] not in SPEAKERS for one in messages):
        return "a message is neither the user's nor the assistant's"
    if any(one["role"] == two["role"] for one, two in pairwise(messages)):
        return "two messages of one role follow each other"
    # As it will be read, where a turn's own line breaks may complete a marker
    if any(TURN.search("\n\n" + text) for text in (*(str(one["content"]) for one in messages), *answers)):
        return "a text holds a turn's marker"
    return None


def _trimmed(record: Record) -> bool:
    texts = (*(str(one["content"]) for one in record.messages), *record.responses)
    return any(text != text.strip() for text in texts)
