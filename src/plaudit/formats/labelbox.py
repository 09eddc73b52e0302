"""Labelbox's export v2, one JSON object a line: a data row, and for each project its labels.

    {"data_row": {"id", "global_key", "row_data": {"messages": [...], "modelOutputs": [{"title", "content", "modelConfigName"}]}},
     "projects": {ID: {"labels": [{"id", "label_details": {"created_by", "created_at"}, "performance_details": {"seconds_to_create",
       "skipped"}, "annotations": {"objects": [...], "classifications": [...]}}]}}}

Three kinds of answer are read: message ranking (`message_ranking_task`), single selection (`message_single_selection_task`) and a radio
classification whose value names an answer, or a tie. Rankings are unique and consecutive there: a tie has to be a radio option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit.domain import Message
from plaudit.formats.files import Rejected, read_items, written
from plaudit.formats.records import LossReport, Record, forget, messages_of, number_of, pseudonym

HELD = ("annotator", "seconds", "created_at", "models")
TIE = re.compile(r"\b(tie|equal|same|both)\b", re.IGNORECASE)
PROJECT = "plaudit"


def read(path: Path, salt: str = "") -> Iterator[Record | Rejected]:
    for line, raw in read_items(path):
        try:
            messages, answers = _data(raw)
            labels = [label for one in (raw.get("projects") or {}).values() for label in one.get("labels") or []]
            if not labels:
                raise ValueError("it has no label")
        except (ValueError, AttributeError, TypeError) as error:
            reason = str(error) if isinstance(error, ValueError) else "it is no data row of an export v2"
            yield Rejected(str(path), line, reason)
            continue
        for number, label in enumerate(labels, start=1):
            try:
                yield _record(raw["data_row"], messages, answers, label, salt)
            except ValueError as error:
                yield Rejected(str(path), line, f"label {number}: {error}")


Answer = tuple[str, str, str]  # (id or title, text, model)


def _data(raw: Any) -> tuple[tuple[Message, ...], list[Answer]]:
    if isinstance(raw, ValueError):
        raise raw
    row = raw["data_row"]["row_data"] if isinstance(raw, dict) and isinstance(raw.get("data_row"), dict) else None
    if isinstance(row, str):
        if re.match(r"https?://|gs://|s3://", row):
            raise ValueError("row_data is an address; export with its content")
        row = json.loads(row)
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise ValueError("row_data holds no conversation")
    messages: list[dict[str, Any]] = []
    answers: list[Answer] = []
    for one in row["messages"]:
        who = one.get("user") or {}
        role = one.get("role") or ("assistant" if "model" in str(who.get("name", "")).lower() else "user")
        messages.append({"role": role, "content": one.get("content")})
    for output in row.get("modelOutputs") or []:
        key = output.get("messageId") or output.get("title") or output.get("modelConfigName")
        answers.append((str(key), str(output.get("content") or ""), str(output.get("modelConfigName") or "")))
    if len(answers) < 2:
        raise ValueError("it has fewer than two modelOutputs")
    return messages_of(messages), answers


def _record(
    row: Mapping[str, Any], messages: tuple[Message, ...], answers: Sequence[Answer], label: Any, salt: str
) -> Record:
    performance = label.get("performance_details") or {}
    if performance.get("skipped"):
        raise ValueError("it was skipped")
    details = label.get("label_details") or {}
    return Record(
        id=str(row.get("global_key") or row.get("external_id") or row.get("id") or ""),
        messages=messages,
        responses=tuple(text for _, text, _ in answers),
        ranks=_ranks(answers, label.get("annotations") or {}),
        annotator=pseudonym(details.get("created_by"), salt),
        seconds=number_of(performance.get("seconds_to_create"), "seconds_to_create"),
        created_at=str(details.get("created_at") or ""),
        models=tuple(model for _, _, model in answers) if any(model for _, _, model in answers) else (),
    )


def _ranks(answers: Sequence[Answer], annotations: Mapping[str, Any]) -> tuple[int, ...]:
    for one in [*(annotations.get("objects") or []), *(annotations.get("classifications") or [])]:
        if task := one.get("message_ranking_task"):
            place = {_index(answers, ranked): int(ranked["order"]) for ranked in task.get("ranked_messages") or []}
            if sorted(place) != list(range(len(answers))):
                raise ValueError("the ranking does not hold every answer once")
            return tuple(place[index] for index in range(len(answers)))
        if task := one.get("message_single_selection_task"):
            best = _index(answers, task)
            return tuple(1 if index == best else 2 for index in range(len(answers)))
        if isinstance(radio := one.get("radio_answer"), dict):
            said = str(radio.get("value") or radio.get("name") or "")
            title = str(radio.get("name") or "")
            for index, (key, _, model) in enumerate(answers):
                if said.lower() in (key.lower(), model.lower()) or title.lower() in (key.lower(), model.lower()):
                    return tuple(1 if at == index else 2 for at in range(len(answers)))
            if TIE.search(said.replace("_", " ")) or TIE.search(title):
                return (1,) * len(answers)
    raise ValueError("it holds no ranking, no selection and no radio answer that names an answer or a tie")


def _index(answers: Sequence[Answer], named: Mapping[str, Any]) -> int:
    for field in ("message_id", "model_config_name"):
        for index, (key, _, model) in enumerate(answers):
            if named.get(field) and str(named[field]) in (key, model):
                return index
    raise ValueError(f"{named.get('message_id') or named.get('model_config_name')!r} is none of its answers")


def write(records: Iterable[Record], path: Path) -> LossReport:
    """Lines as an export v2 has them: rankings as a ranking task, ties as a radio answer.

    Held: who, how long, when, which models. A ranking of three or more with a tie in it has no form and is dropped, as is "both bad".
    """
    report = LossReport()
    with written(path) as file:
        for record in records:
            report.n_records += 1
            reason = _against(record)
            if reason is not None:
                report.dropped[reason] += 1
                continue
            kept = forget(record, HELD, report)
            file.write(json.dumps(_line(kept), ensure_ascii=False) + "\n")
            report.n_written += 1
    return report


def _against(record: Record) -> str | None:
    if record.both_bad:
        return "both answers were called bad"
    if record.ranks is None:
        return "it is labelled, not ranked" if record.label is not None else "it is not ranked"
    if len(set(record.ranks)) not in (1, len(record.ranks)):
        return "a tie within a longer ranking"
    return None


def _line(record: Record) -> dict[str, Any]:
    assert record.ranks is not None
    keys = [
        f"Response {'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[index % 26]}{index // 26 or ''}"
        for index in range(len(record.responses))
    ]
    models = record.models or ("",) * len(keys)
    annotations: dict[str, Any] = {"objects": [], "classifications": [], "relationships": []}
    if len(set(record.ranks)) == 1:
        annotations["classifications"] = [
            {"name": "better", "value": "better", "radio_answer": {"name": "Tie", "value": "tie"}}
        ]
    else:
        places = sorted(range(len(keys)), key=lambda index: record.ranks[index])  # type: ignore[index]
        ranked = [{"message_id": keys[index], "order": place} for place, index in enumerate(places, start=1)]
        annotations["objects"] = [
            {"name": "ranking", "value": "ranking", "message_ranking_task": {"ranked_messages": ranked}}
        ]
    details: dict[str, Any] = {}
    if record.annotator:
        details["created_by"] = record.annotator
    if record.created_at:
        details["created_at"] = record.created_at
    performance: dict[str, Any] = {"skipped": False}
    if record.seconds is not None:
        performance["seconds_to_create"] = record.seconds
    label = {
        "label_kind": "Default",
        "label_details": details,
        "performance_details": performance,
        "annotations": annotations,
    }
    return {
        "data_row": {
            "id": record.id,
            "global_key": record.id,
            "row_data": {
                "type": "application/vnd.labelbox.conversational",
                "version": 1,
                "messages": list(record.messages),
                "modelOutputs": [
                    {"title": key, "content": text, "modelConfigName": model}
                    for key, text, model in zip(keys, record.responses, models, strict=True)
                ],
            },
        },
        "projects": {PROJECT: {"name": PROJECT, "labels": [label]}},
    }
