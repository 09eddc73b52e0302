"""Argilla v2 records as its REST API lists them (also as JSON lines): fields with the texts, responses with each user's values.

    {"items": [{"id", "fields": {"prompt", "response1", "response2"}, "metadata": {}, "responses": [{"user_id", "status": "submitted",
      "values": {"preference": {"value": "response1"}, "ranking": {"value": [{"value": "response1", "rank": 1}, ...]},
                 "rating": {"value": 4}}}]}], "total": 1}

Equal ranks are ties; they are only in this form, Argilla's SDK drops them. Drafts and discarded answers are no judgements. Reading only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plaudit.formats.files import Rejected, read_items
from plaudit.formats.records import Record, messages_of, pseudonym

PROMPTS = ("prompt", "instruction", "messages", "chat", "conversation", "question", "input")
TIES = ("tie", "both", "equal", "same")
COMMENTS = ("comment", "reason", "explanation", "note")


def read(path: Path, salt: str = "") -> Iterator[Record | Rejected]:
    for line, raw in read_items(path, key="items"):
        try:
            if isinstance(raw, ValueError):
                raise raw
            if not isinstance(raw, dict) or not isinstance(raw.get("fields"), dict):
                raise ValueError('it is no record with "fields"')
            responses = raw.get("responses")
            if not isinstance(responses, list) or not responses:
                raise ValueError("nobody has answered it")
        except ValueError as error:
            yield Rejected(str(path), line, str(error))
            continue
        for number, response in enumerate(responses, start=1):
            try:
                yield _record(raw, response, salt)
            except ValueError as error:
                yield Rejected(str(path), line, f"response {number}: {error}")


def _record(raw: Mapping[str, Any], response: Any, salt: str) -> Record:
    if not isinstance(response, dict) or not isinstance(response.get("values"), dict):
        raise ValueError("it holds no values")
    if response.get("status", "submitted") != "submitted":
        raise ValueError(f"its status is {response['status']}")
    given = raw["fields"]
    prompt = next((name for name in PROMPTS if given.get(name)), None)
    if prompt is None:
        raise ValueError(f"its fields have no prompt; one of these should hold it: {', '.join(PROMPTS)}")
    names = [name for name, value in given.items() if name != prompt and isinstance(value, str)]
    values = {
        name: one["value"] for name, one in response["values"].items() if isinstance(one, dict) and "value" in one
    }
    common: dict[str, Any] = {
        "id": str(raw.get("external_id") or raw.get("id") or ""),
        "messages": messages_of(given[prompt]),
        "annotator": pseudonym(response.get("user_id"), salt),
        "created_at": str(response.get("inserted_at") or ""),
        "comment": next((str(values[name]) for name in COMMENTS if values.get(name)), ""),
        "meta": {str(k): str(v) for k, v in (raw.get("metadata") or {}).items() if isinstance(v, (str, int, float))},
    }
    ranking = next((value for value in values.values() if _is_ranking(value)), None)
    if ranking is not None:
        ranks = {str(one["value"]): int(one["rank"]) for one in ranking if one.get("rank") is not None}
        if any(name not in given for name in ranks) or len(ranks) < 2:
            raise ValueError(f"the ranking {sorted(ranks)} does not name the answers among its fields")
        order = [name for name in names if name in ranks]
        return Record(
            responses=tuple(given[name] for name in order), ranks=tuple(ranks[name] for name in order), **common
        )
    if len(names) == 2:
        for value in values.values():
            if value in names:
                return Record(
                    responses=(given[names[0]], given[names[1]]),
                    ranks=(1, 2) if value == names[0] else (2, 1),
                    **common,
                )
            if isinstance(value, str) and value.lower() in TIES:
                return Record(responses=(given[names[0]], given[names[1]]), ranks=(1, 1), **common)
    raise ValueError("its values are neither a ranking of its fields nor the name of one of two answers")


def _is_ranking(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "value" in one for one in value)
