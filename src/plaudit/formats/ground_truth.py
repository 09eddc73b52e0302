"""Amazon SageMaker Ground Truth: input manifests, augmented output manifests, and the files of single workers' answers.

    input      {"source": TEXT | JSON TEXT}                                         what a labelling job is given, at most 100,000 characters a line
    output     {"source": ..., JOB: label, "JOB-metadata": {"class-name", "confidence", "human-annotated", ...}}     one consolidated label
    workers    {"answers": [{"workerId", "answerContent", "timeSpentInSeconds", ...}]}, or what a consolidation lambda is given:
               [{"datasetObjectId", "dataObject": {"content"}, "annotations": [{"workerId", "annotationData": {"content": JSON TEXT}}]}]

The source of our jobs is the JSON text of {"prompt" | "messages", "responses": [...]}; anything else has no answers to judge. Traps that
the reader knows: metadata keys with hyphens in built-in jobs and underscores in custom ones; a label that is a text or a number; a
confidence of 0.00, which means one worker; `labelCategories` that is null; in a text ranking `responseRankings[i]` is the rank of response
i, and equal ranks are ties.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit.domain import Message
from plaudit.formats.files import Rejected, read_items, written
from plaudit.formats.records import LossReport, Record, forget, messages_of, number_of, pseudonym, text_of

MAX_LINE = 100_000  # characters
HELD = ("confidence", "created_at", "models", "annotator", "seconds")
JOB = "preference"
TIES = ("tie", "equal", "same", "both")


def read(path: Path, salt: str = "") -> Iterator[Record | Rejected]:
    for line, raw in read_items(path):
        try:
            if isinstance(raw, ValueError):
                raise raw
            judged = list(_judgements(raw, f"{path.name}:{line}", salt))
            if not judged:
                raise ValueError("it holds no label; this line has not been judged")
        except ValueError as error:
            yield Rejected(str(path), line, str(error))
            continue
        for number, one in enumerate(judged, start=1):
            yield one if isinstance(one, Record) else Rejected(str(path), line, f"answer {number}: {one}")


def _judgements(raw: Any, name: str, salt: str) -> Iterator[Record | ValueError]:
    """Every judgement of one object; a bad one among several is a ValueError in their place."""
    if not isinstance(raw, dict):
        raise ValueError("it is no object")
    if "annotations" in raw and "dataObject" in raw:  # what the lambda is given
        messages, answers = _source((raw["dataObject"] or {}).get("content"))
        for one in raw["annotations"] or []:
            yield _worker(str(raw.get("datasetObjectId", name)), messages, answers, one, _content(one), salt)
        return
    if "answers" in raw:  # the file of one item's workers, joined with its source where the job was ours
        messages, answers = _source(raw.get("source"))
        for one in raw["answers"] or []:
            yield _worker(str(raw.get("id", name)), messages, answers, one, one.get("answerContent"), salt)
        return
    messages, answers = _source(raw.get("source"))
    for job, details in _jobs(raw):
        try:
            yield Record(
                id=str(raw.get("id", name)),
                messages=messages,
                responses=answers,
                ranks=_ranks(raw.get(job), details, len(answers)),
                confidence=number_of(_either(details, "confidence"), "confidence"),
                created_at=str(_either(details, "creation-date") or ""),
                annotator=pseudonym(raw.get("annotator"), salt),
                seconds=number_of(raw.get("seconds"), "seconds"),
                models=tuple(map(str, raw.get("models") or ())),
            )
        except ValueError as error:
            yield error


def _jobs(raw: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name of the label, its metadata) of each labelling job that a line carries."""
    for key, value in raw.items():
        for ending in ("-metadata", "_metadata"):
            if key.endswith(ending) and isinstance(value, dict):
                yield key.removesuffix(ending), value


def _either(details: Mapping[str, Any], key: str) -> Any:
    return details.get(key, details.get(key.replace("-", "_")))


def _source(value: Any) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError("its source is a plain text, with no answers to judge") from None
    if not isinstance(value, dict) or not isinstance(value.get("responses"), list):
        raise ValueError('its source holds no "responses"')
    answers = tuple(one.get("text") if isinstance(one, dict) else one for one in value["responses"])
    return messages_of(value.get("messages", value.get("prompt"))), tuple(text_of(one, "a response") for one in answers)


def _ranks(label: Any, details: Mapping[str, Any], n: int) -> tuple[int, ...]:
    """Ranks from a consolidated label: an index, a class name, or a text ranking."""
    if isinstance(label, dict):
        return _answer_ranks(label, n)
    name = _either(details, "class-name")
    if isinstance(name, str) and name.lower() in TIES:
        return (1,) * n
    chosen = _chosen(name if name not in (None, "") else label, n)
    if chosen is None:
        chosen = _chosen(label, n)
    if chosen is None:
        raise ValueError(f"its label {label!r} ({name!r}) names none of {n} answers and no tie")
    return tuple(1 if index == chosen else 2 for index in range(n))


def _chosen(value: Any, n: int) -> int | None:
    """Index of the answer that a label names: 0, "0", "A", "response A", "response1" (counted from 1)."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value if 0 <= value < n else None
    text = str(value).strip().lower()
    if text.isdigit():
        return int(text) if int(text) < n else None
    last = text.removeprefix("response").strip(" _-")
    if len(last) == 1 and last.isalpha():
        return ord(last) - ord("a") if ord(last) - ord("a") < n else None
    return int(last) - 1 if last.isdigit() and 1 <= int(last) <= n else None


def _content(annotation: Mapping[str, Any]) -> Any:
    content = (annotation.get("annotationData") or {}).get("content")
    return json.loads(content) if isinstance(content, str) else content


def _worker(
    name: str, messages: tuple[Message, ...], answers: tuple[str, ...], one: Mapping[str, Any], content: Any, salt: str
) -> Record | ValueError:
    try:
        return Record(
            id=name,
            messages=messages,
            responses=answers,
            ranks=_answer_ranks(content, len(answers)),
            annotator=pseudonym(one.get("workerId"), salt),
            seconds=number_of(one.get("timeSpentInSeconds"), "timeSpentInSeconds"),
            created_at=str(one.get("submissionTime") or ""),
        )
    except ValueError as error:
        return error


def _answer_ranks(content: Any, n: int) -> tuple[int, ...]:
    """Ranks from what a worker's form sent: a ranking anywhere within, or a label that names an answer."""
    ranking = _find(content, "responseRankings")
    if isinstance(ranking, Sequence) and not isinstance(ranking, str):
        ranks = tuple(int(rank) for rank in ranking)
        if len(ranks) != n:
            raise ValueError(f"responseRankings has {len(ranks)} ranks for {n} answers")
        return ranks
    for key in ("label", "labels", "choice", "chosen", "preference"):
        label = _find(content, key)
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        if isinstance(label, dict):
            continue
        if isinstance(label, str) and label.lower() in TIES:
            return (1,) * n
        index = _chosen(label, n)
        if index is not None:
            return tuple(1 if at == index else 2 for at in range(n))
    raise ValueError("it holds no responseRankings and no label that names an answer")


def _find(value: Any, key: str) -> Any:
    """The first value at `key` at any depth: forms nest their answers under the names of their elements."""
    if isinstance(value, Mapping):
        if value.get(key) is not None:
            return value[key]
        return next((found for one in value.values() if (found := _find(one, key)) is not None), None)
    if isinstance(value, list):
        return next((found for one in value if (found := _find(one, key)) is not None), None)
    return None


def write_input(records: Iterable[Record], path: Path) -> LossReport:
    """An input manifest: what is to be judged. What was judged already is not written, and counted as lost."""
    report = LossReport()
    with written(path) as file:
        for record in records:
            report.n_records += 1
            if record.ranks is not None:
                report.lost["ranks"] += 1
            forget(record, (), report)
            _put(file, {"id": record.id, "source": _as_source(record)}, report)
    return report


def write(records: Iterable[Record], path: Path, job: str = JOB) -> LossReport:
    """An augmented manifest with our own rows as the label `job`: a text ranking, so that ties have a form.

    Held: confidence, when, who, how long, which models (the last three in fields of ours beside the job's).
    """
    report = LossReport()
    with written(path) as file:
        for record in records:
            report.n_records += 1
            if record.ranks is None or record.both_bad:
                report.dropped["both answers were called bad" if record.both_bad else "it is not ranked"] += 1
                continue
            kept = forget(record, HELD, report)
            details: dict[str, Any] = {
                "type": "groundtruth/custom",
                "job-name": f"labeling-job/{job}",
                "human-annotated": "yes",
            }
            if kept.confidence is not None:
                details["confidence"] = kept.confidence
            if kept.created_at:
                details["creation-date"] = kept.created_at
            line: dict[str, Any] = {"id": kept.id, "source": _as_source(kept)}
            line |= {job: {"responseRankings": list(kept.ranks or ())}, f"{job}-metadata": details}
            line |= {
                name: getattr(kept, name) for name in ("annotator", "seconds") if getattr(kept, name) not in ("", None)
            }
            if kept.models:
                line["models"] = list(kept.models)
            _put(file, line, report)
    return report


def _as_source(record: Record) -> str:
    return json.dumps({"messages": list(record.messages), "responses": list(record.responses)}, ensure_ascii=False)


def _put(file: Any, line: Mapping[str, Any], report: LossReport) -> None:
    text = json.dumps(line, ensure_ascii=False)
    if len(text) > MAX_LINE:
        report.dropped[f"the line is longer than {MAX_LINE} characters"] += 1
        return
    file.write(text + "\n")
    report.n_written += 1
