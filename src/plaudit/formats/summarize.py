"""OpenAI's summarize-from-feedback comparisons: two summaries of one post or article, a worker, which of the two, how sure (1 to 9).

{"info": {"id", "title", "post" | "article", ...}, "summaries": [{"text", "policy", "note"}, ...], "choice": 0 | 1, "worker", "batch",
 "extra": {"confidence"}}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plaudit.formats.files import Rejected, read_items
from plaudit.formats.records import Record, number_of, pseudonym, text_of

ASK = "Summarize the following {what}.\n\n{title}{text}"
PASSED_ON = ("batch", "split")


def read(path: Path, salt: str = "") -> Iterator[Record | Rejected]:
    for line, raw in read_items(path):
        try:
            yield _record(raw, salt)
        except ValueError as error:
            yield Rejected(str(path), line, str(error))


def _record(raw: Any, salt: str) -> Record:
    if isinstance(raw, ValueError):
        raise raw
    info = raw.get("info") if isinstance(raw, dict) else None
    if not isinstance(info, dict) or not isinstance(raw.get("summaries"), list):
        raise ValueError('it needs "info" and "summaries"')
    what = "post" if info.get("post") else "article"
    body = text_of(info.get(what), f"the {what}")
    title = f"{info['title'].strip()}\n\n" if isinstance(info.get("title"), str) and info["title"].strip() else ""
    answers = tuple(one.get("text") if isinstance(one, dict) else None for one in raw["summaries"])
    choice = raw.get("choice")
    if len(answers) != 2 or isinstance(choice, bool) or choice not in (0, 1):
        raise ValueError(f"it needs two summaries and a choice of 0 or 1 (choice is {choice!r})")
    extra = raw.get("extra") if isinstance(raw.get("extra"), dict) else {}
    texts = tuple(text_of(answer, "a summary").strip() for answer in answers)
    return Record(
        id=f"{info.get('id') or body[:40]}:{sorted(texts)[0][:40]}",
        messages=({"role": "user", "content": ASK.format(what=what, title=title, text=body.strip())},),
        responses=texts,
        ranks=(1, 2) if choice == 0 else (2, 1),
        confidence=number_of(extra.get("confidence"), "confidence"),
        annotator=pseudonym(raw.get("worker"), salt),
        models=tuple(str(one.get("policy") or "") for one in raw["summaries"]),
        meta={name: str(raw[name]) for name in PASSED_ON if raw.get(name) not in (None, "")},
    )
