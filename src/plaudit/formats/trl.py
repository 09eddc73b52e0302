"""TRL's dataset types, one JSON object a line.

    {"prompt", "chosen", "rejected", "margin"?}     preference, explicit prompt: texts, or lists of messages
    {"chosen", "rejected"}                          preference, implicit prompt: what both begin with
    {"prompt", "completion", "label"}               unpaired preference, for KTO
    {"prompt", "completion"}                        prompt and completion, for SFT

Beside them our own names are read and written, which TRL's trainers ignore: `id`, `criterion`, `probability`, `weight`, `annotator`.
An implicit prompt of texts ends where they part (after the last blank they share, as TRL cuts it), so answers that begin alike lose
that beginning to the prompt; of HH transcripts it is what stands before the last turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from plaudit.domain import Message
from plaudit.formats import hh
from plaudit.formats.files import Rejected, read_items, written
from plaudit.formats.records import LossReport, Record, forget, messages_of, number_of, pairs, pseudonym, text_of

Kind = Literal["preference", "unpaired", "completion"]
NO_MARGIN = (
    "it has no margin: nobody said how much better its chosen answer is, or its Snapshot was frozen without --margins"
)
HELD = ("probability", "weight", "criterion", "annotator")
OF_ONE = ("weight", "criterion", "annotator")  # what still means something of one answer of a pair


def read(path: Path, salt: str = "") -> Iterator[Record | Rejected]:
    for line, raw in read_items(path):
        try:
            yield _record(raw, f"{path.name}:{line}", salt)
        except ValueError as error:
            yield Rejected(str(path), line, str(error))


def _record(raw: Any, name: str, salt: str) -> Record:
    if isinstance(raw, ValueError):
        raise raw
    if not isinstance(raw, dict):
        raise ValueError("it is no object")
    given: dict[str, Any] = {
        "id": str(raw["id"]) if raw.get("id") not in (None, "") else name,
        "margin": number_of(raw.get("margin"), "margin"),
        "probability": number_of(raw.get("probability"), "probability"),
        "weight": number_of(raw.get("weight"), "weight"),
        "criterion": str(raw.get("criterion") or ""),
        "annotator": pseudonym(raw.get("annotator"), salt),
    }
    if "chosen" in raw or "rejected" in raw:
        messages, chosen, rejected = prompt_and_answers(raw)
        return Record(messages=messages, responses=(chosen, rejected), ranks=(1, 2), **given)
    if "completion" not in raw:
        raise ValueError('it needs "chosen" and "rejected", or "prompt" and "completion"')
    label = raw.get("label")
    if label is not None and not isinstance(label, bool):
        raise ValueError(f"label is {label!r}; it must be true or false")
    answer = _answer(raw["completion"], "the completion")
    return Record(messages=prompt_of(raw.get("prompt")), responses=(answer,), label=label, **given)


def prompt_and_answers(raw: dict[str, Any]) -> tuple[tuple[Message, ...], str, str]:
    """(messages, chosen, rejected) of a preference row in any of its forms. Raises ValueError with the reason."""
    sides = [raw.get("chosen"), raw.get("rejected")]
    if not all(isinstance(side, str) for side in sides) and not all(isinstance(side, list) for side in sides):
        raise ValueError('it needs "chosen" and "rejected", both texts or both lists of messages')
    prompt = raw.get("prompt", raw.get("messages"))
    if prompt is None:
        return _implicit(*sides)
    return prompt_of(prompt), _answer(sides[0], "the chosen answer"), _answer(sides[1], "the rejected answer")


def prompt_of(value: Any) -> tuple[Message, ...]:
    """A text (one user message, or an HH transcript), or a list of messages. Raises ValueError."""
    if isinstance(value, str) and hh.TURN.match(value):
        return hh.read_transcript(value.rstrip().removesuffix(hh.ANSWER))
    return messages_of(value)


def _implicit(chosen: Any, rejected: Any) -> tuple[tuple[Message, ...], str, str]:
    if isinstance(chosen, list):
        threads = [messages_of(side, "an answer") for side in (chosen, rejected)]
        if any(thread[-1]["role"] != "assistant" for thread in threads):
            raise ValueError("an answer does not end in an assistant message")
        if threads[0][:-1] != threads[1][:-1]:
            raise ValueError("the prompts of chosen and rejected differ")
        return threads[0][:-1], str(threads[0][-1]["content"]), str(threads[1][-1]["content"])
    if hh.TURN.match(chosen) and hh.TURN.match(rejected):
        return hh.prompt_and_answers({"chosen": chosen, "rejected": rejected})
    cut = next(
        (at for at, (one, two) in enumerate(zip(chosen, rejected, strict=False)) if one != two),
        min(len(chosen), len(rejected)),
    )
    if cut and chosen[cut - 1] == " ":
        cut -= 1
    return (
        messages_of(chosen[:cut]),
        text_of(chosen[cut:], "the chosen answer"),
        text_of(rejected[cut:], "the rejected answer"),
    )


def _answer(value: Any, what: str) -> str:
    if isinstance(value, list):
        thread = messages_of(value, what)
        if len(thread) != 1 or thread[0]["role"] != "assistant":
            raise ValueError(f"{what} must be one assistant message")
        value = thread[0]["content"]
    return text_of(value, what)


def write(
    records: Iterable[Record], path: Path, kind: Kind = "preference", conversational: bool = True, margin: bool = False
) -> LossReport:
    """Lines of one dataset type. Not conversational: only prompts of a single user message have a form as text.

    margin: write that column, and drop pairs without one: a file where some rows lack it reads as null there, and trainers fail on null.
    `unpaired` takes thumbs, and of a pair the better answer as true and the worse as false; `completion` takes approved answers and the
    better one of a pair.
    """
    report = LossReport()
    with written(path) as file:
        for record in records:
            report.n_records += 1
            for row in _rows(record, kind, report):
                if not conversational and (len(row.messages) != 1 or row.messages[0]["role"] != "user"):
                    report.dropped["the prompt is a conversation, which has no form as one text"] += 1
                    continue
                if margin and row.margin is None:
                    report.dropped[NO_MARGIN] += 1
                    continue
                kept = forget(row, (*HELD, "margin") if margin else HELD, report)
                file.write(json.dumps(_line(kept, kind, conversational), ensure_ascii=False) + "\n")
                report.n_written += 1
    return report


def _rows(record: Record, kind: Kind, report: LossReport) -> Iterator[Record]:
    """The records that one line each will hold."""
    if kind == "preference":
        yield from pairs(record, report)
    elif record.ranks is None:
        if kind == "unpaired" and record.label is None:
            report.dropped["it is neither labelled nor ranked"] += 1
        elif kind == "completion" and record.label is False:
            report.dropped["it is labelled as bad"] += 1
        else:
            yield record
    else:
        for pair in pairs(record, report):
            report.lost["which answer it was compared with"] += 1
            alone = forget(pair, OF_ONE, report)
            for place, index in enumerate(pair.chosen_first[: 2 if kind == "unpaired" else 1]):
                yield replace(
                    alone,
                    id=f"{pair.id}/{('chosen', 'rejected')[place]}",
                    responses=(pair.responses[index],),
                    ranks=None,
                    label=place == 0 if kind == "unpaired" else None,
                )


def _line(record: Record, kind: Kind, conversational: bool) -> dict[str, Any]:
    prompt: Any = list(record.messages) if conversational else record.messages[0]["content"]

    def answer(index: int) -> Any:
        text = record.responses[index]
        return [{"role": "assistant", "content": text}] if conversational else text

    line: dict[str, Any] = {"prompt": prompt}
    if kind == "preference":
        better, worse = record.chosen_first
        line |= {"chosen": answer(better), "rejected": answer(worse)}
    else:
        line["completion"] = answer(0)
        if kind == "unpaired":
            line["label"] = record.label
    line["id"] = record.id
    for name in (*HELD, "margin"):
        value = getattr(record, name)
        if value not in (None, ""):
            line[name] = value
    return line
