"""Label Studio's JSON export: an array of tasks, each with its data and its annotations, from Pairwise or Ranker templates.

    {"id", "data": {"prompt", "answer1", "answer2"}, "annotations": [{"completed_by": 3 | {"id", "email"}, "was_cancelled": false,
      "lead_time": 12.5, "result": [{"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": "left"}}]}]}

`left` means the first name in `to_name`; the export does not say which data field a name shows, so a name that is no field takes the
answer fields in the order in which they stand. A skip is an annotation with `was_cancelled`. Pairwise holds no tie. Each annotation is a
Record of its own, so that disagreement survives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit.domain import Message
from plaudit.formats.files import Rejected, read_items, written
from plaudit.formats.records import LossReport, Record, forget, messages_of, number_of, pairs, pseudonym

PROMPTS = ("prompt", "messages", "conversation", "question", "instruction", "input")
HELD = ("annotator", "seconds", "created_at", "comment", "order")
# What a labelling interface for our tasks is made of; `plaudit export` prints it
LABEL_CONFIG = """<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="better" toName="answer1,answer2"/>
  <Text name="answer1" value="$answer1"/>
  <Text name="answer2" value="$answer2"/>
</View>"""


def read(path: Path, salt: str = "") -> Iterator[Record | Rejected]:
    for line, raw in read_items(path):
        try:
            if isinstance(raw, ValueError):
                raise raw
            task, annotations = _task(raw)
        except ValueError as error:
            yield Rejected(str(path), line, str(error))
            continue
        for number, annotation in enumerate(annotations, start=1):
            try:
                yield _record(task, annotation, salt)
            except ValueError as error:
                yield Rejected(str(path), line, f"annotation {number}: {error}")


def _task(raw: Any) -> tuple[dict[str, Any], list[Any]]:
    if not isinstance(raw, dict) or not isinstance(raw.get("data"), dict):
        raise ValueError('it is no task with "data"')
    annotations = raw.get("annotations", raw.get("completions"))
    if not isinstance(annotations, list) or not annotations:
        raise ValueError("nobody has annotated it")
    return raw, annotations


def _record(task: Mapping[str, Any], annotation: Any, salt: str) -> Record:
    if not isinstance(annotation, dict):
        raise ValueError("it is no object")
    if annotation.get("was_cancelled") or annotation.get("skipped"):
        raise ValueError("it was skipped")
    data = task["data"]
    field = next((name for name in PROMPTS if data.get(name)), None)
    if field is None:
        raise ValueError(f"its data has no prompt; one of these fields should hold it: {', '.join(PROMPTS)}")
    results = [one for one in annotation.get("result") or [] if isinstance(one, dict)]
    kinds = [one.get("type") for one in results]
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    if "pairwise" in kinds:
        answers, ranks = _pairwise(data, field, results[kinds.index("pairwise")])
    elif "ranker" in kinds:
        answers, ranks = _ranker(data, results[kinds.index("ranker")])
    else:
        raise ValueError(f"it holds no pairwise or ranker result, but {', '.join(map(str, kinds)) or 'nothing'}")
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("id", who.get("email"))
    return Record(
        id=str(task.get("id", "")) or json.dumps(data, sort_keys=True)[:60],
        messages=_messages(data[field]),
        responses=answers,
        ranks=ranks,
        annotator=pseudonym(who, salt),
        seconds=number_of(annotation.get("lead_time"), "lead_time"),
        created_at=str(annotation.get("created_at") or ""),
        comment=_comment(results),
        order=_order(data, len(answers)),
    )


def _pairwise(
    data: Mapping[str, Any], prompt: str, result: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[int, int]]:
    selected = (result.get("value") or {}).get("selected")
    if selected not in ("left", "right"):
        raise ValueError(f"selected is {selected!r}; it must be left or right")
    names = [name.strip() for name in str(result.get("to_name", "")).split(",")]
    if len(names) != 2:
        raise ValueError(f"to_name is {result.get('to_name')!r}; it must name two answers")
    if not all(name in data for name in names):
        texts = [name for name, value in data.items() if isinstance(value, str) and name not in (prompt, *PROMPTS)]
        if len(texts) != 2:
            raise ValueError(f"its data does not tell which fields {names} are")
        names = texts
    if not all(isinstance(data[name], str) for name in names):
        raise ValueError("an answer is no text")
    return (data[names[0]], data[names[1]]), (1, 2) if selected == "left" else (2, 1)


def _ranker(data: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Items in the order of the list; the ranker's own order is best first. With buckets, the items of one are a tie."""
    items = next((value for value in data.values() if isinstance(value, list) and value and _is_item(value[0])), None)
    if items is None:
        raise ValueError("its data has no list of items to rank")
    placed = (result.get("value") or {}).get("ranker")
    if isinstance(placed, dict):
        groups = [list(map(str, group)) for group in placed.values() if isinstance(group, list)]
        places = groups if len(groups) > 1 else [[one] for group in groups for one in group]
    elif isinstance(placed, list):
        places = [[str(one)] for one in placed]
    else:
        raise ValueError("its ranker value is no order")
    rank = {one: place for place, group in enumerate(places, start=1) for one in group}
    ids = [str(item["id"]) for item in items]
    if set(rank) != set(ids):
        raise ValueError("the ranked items are not the task's")
    texts = tuple(
        str(item.get("body") or item.get("html") or item.get("title") or item.get("text") or "") for item in items
    )
    return texts, tuple(rank[one] for one in ids)


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and "id" in value and "role" not in value


def _messages(value: Any) -> tuple[Message, ...]:
    """A text, messages, or the turns of a Paragraphs tag: {"author", "text"}."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "text" in value[0]:
        value = [
            {
                "role": {"assistant": "assistant", "system": "system"}.get(str(one.get("author")).lower(), "user"),
                "content": one["text"],
            }
            for one in value
        ]
    return messages_of(value)


def _comment(results: Sequence[Mapping[str, Any]]) -> str:
    for one in results:
        if one.get("type") == "textarea":
            text = (one.get("value") or {}).get("text")
            return "\n".join(text) if isinstance(text, list) else str(text or "")
    return ""


def _order(data: Mapping[str, Any], n: int) -> tuple[int, ...] | None:
    """What we wrote beside the answers: Label Studio keeps no order of its own."""
    order = data.get("order")
    return tuple(order) if isinstance(order, list) and sorted(order) == list(range(n)) else None


def write(records: Iterable[Record], path: Path) -> LossReport:
    """Tasks with one annotation each, as Label Studio imports them; LABEL_CONFIG is the interface that they need.

    Held: who, how long, when, a comment, the order shown (as data). A tie cannot be said and is dropped.
    """
    report = LossReport()
    with written(path) as file:
        file.write("[")
        for record in records:
            report.n_records += 1
            for pair in pairs(record, report):
                kept = forget(pair, HELD, report)
                file.write("\n" if report.n_written == 0 else ",\n")
                file.write(json.dumps(_as_task(kept), ensure_ascii=False))
                report.n_written += 1
        file.write("\n]\n")
    return report


def _as_task(record: Record) -> dict[str, Any]:
    first, second = record.responses
    # A conversation stays one: a Text tag shows its JSON, a Paragraphs tag its turns
    data: dict[str, Any] = {"prompt": list(record.messages), "answer1": first, "answer2": second}
    if record.order is not None:
        data["order"] = list(record.order)
    result: list[dict[str, Any]] = [
        {
            "from_name": "better",
            "to_name": "answer1,answer2",
            "type": "pairwise",
            "value": {"selected": "left" if record.chosen_first[0] == 0 else "right"},
        }
    ]
    if record.comment:
        result.append(
            {"from_name": "comment", "to_name": "prompt", "type": "textarea", "value": {"text": [record.comment]}}
        )
    annotation: dict[str, Any] = {"was_cancelled": False, "result": result}
    if record.annotator:
        annotation["completed_by"] = {"id": record.annotator}
    if record.seconds is not None:
        annotation["lead_time"] = record.seconds
    if record.created_at:
        annotation["created_at"] = record.created_at
    return {"id": record.id, "data": data, "annotations": [annotation]}
