"""Personal data in texts: what is looked for, and what becomes of it. The same before annotation and before a Snapshot.

    made = rules({"email": "redact", "iban": "drop"})
    screen(made, texts)        -> one Screened per text
    screen_row(made, row)      -> the row as it may be shown, what was found, and whether it must go

The kinds are the detectors of the gateway ([filters](../filters.py): RE2 through pyarrow, cards with their Luhn digit, IBANs with their check
digits). A finder of one's own is a function from a text to (start, end) spans. A kind's hint is a simpler pattern that every match of it
meets: a batch of texts is searched for it by pyarrow at once, and only what meets it is looked at closely. Tool calls are not searched.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from plaudit.errors import BadInput
from plaudit.loop.filters import DETECTORS, Detector, find_each

Finder = Callable[[str], Sequence[tuple[int, int]]]
TEXT_FIELDS = ("chosen", "rejected", "response")  # of a row, beside its messages


class Treatment(StrEnum):
    DETECT = "detect"  # counted
    REDACT = "redact"  # each becomes its kind in brackets
    DROP = "drop"  # the whole row goes


HINTS: Mapping[str, str] = {
    "email": r"@",
    "iban": r"[A-Za-z]{2}[0-9]{2}",
    "card": r"[0-9][ -]?[0-9][ -]?[0-9][ -]?[0-9][ -]?[0-9]",
    "phone": r"(?:\+|00)[1-9]",
    "ip": r"[0-9]\.[0-9]",
    "secret": r"sk-|plk_|AKIA|gh[pousr]_|-----BEGIN",
}


@dataclass(frozen=True)
class Rule:
    kind: str
    treatment: Treatment
    find: Callable[[Sequence[str]], Sequence[Sequence[tuple[int, int]]]]  # the spans in each of some texts
    hint: str | None = None


@dataclass(frozen=True)
class Screened:
    """A text as it may be shown, how many of each kind were found, and whether a kind was among them that nothing may hold."""

    text: str
    found: Mapping[str, int]
    drop: bool


def rules(treatments: Mapping[str, str], finders: Mapping[str, Finder] | None = None) -> tuple[Rule, ...]:
    """In the order given, which is the order in which they act. Raises BadInput (unknown kind or treatment)."""
    own = finders or {}
    made = []
    for kind, treatment in treatments.items():
        if kind not in own and kind not in DETECTORS:
            raise BadInput(
                f"{kind!r} is no kind of personal data that is known; choose from {', '.join([*DETECTORS, *own])}."
            )
        if treatment not in list(Treatment):
            raise BadInput(f"{kind} is to be treated by {treatment!r}; choose one of {', '.join(Treatment)}.")
        finder = partial(_with_own, own[kind]) if kind in own else partial(_with_detector, DETECTORS[kind])
        made.append(Rule(kind, Treatment(treatment), finder, None if kind in own else HINTS[kind]))
    return tuple(made)


def screen(made: Sequence[Rule], texts: Sequence[str]) -> list[Screened]:
    """Every text through every rule."""
    found = _found(made, texts)
    return [found.get(at) or Screened(text, {}, False) for at, text in enumerate(texts)]


def _found(made: Sequence[Rule], texts: Sequence[str]) -> dict[int, Screened]:
    """By place, the texts in which a rule finds something: few of many."""
    import pyarrow as pa
    from pyarrow import compute

    shown, drop = list(texts), set[int]()
    found: dict[int, Counter[str]] = {}
    array = pa.array(shown, pa.large_string())
    for rule in made:
        if rule.hint is None:
            likely: Sequence[int] = range(len(shown))
        else:
            likely = compute.indices_nonzero(compute.match_substring_regex(array, rule.hint)).to_pylist()
        for at, spans in zip(likely, rule.find([shown[at] for at in likely]), strict=True):
            if spans:
                found.setdefault(at, Counter())[rule.kind] += len(spans)
                drop.update([at] if rule.treatment is Treatment.DROP else [])
                if rule.treatment is Treatment.REDACT:
                    shown[at] = _redacted(shown[at], spans, f"[{rule.kind}]")
    return {at: Screened(shown[at], kinds, at in drop) for at, kinds in found.items()}


def screen_rows(
    made: Sequence[Rule], rows: Sequence[dict[str, Any]]
) -> list[tuple[dict[str, Any], Counter[str], bool]]:
    """Rows with `messages` and any of TEXT_FIELDS: each as it may be kept, what was found in it, and whether it must go."""
    texts: list[str] = []
    ends = []
    for row in rows:
        texts += _texts(row)
        ends.append(len(texts))
    found = _found(made, texts)
    screened: list[tuple[dict[str, Any], Counter[str], bool]] = [(row, Counter(), False) for row in rows]
    for place in sorted({bisect_right(ends, at) for at in found}):
        its = range(ends[place - 1] if place else 0, ends[place])
        parts = [found[at] for at in its if at in found]
        counts = sum((Counter(part.found) for part in parts), Counter[str]())
        shown = _with_texts(rows[place], [found[at].text if at in found else texts[at] for at in its])
        screened[place] = shown, counts, any(part.drop for part in parts)
    return screened


def _with_own(finder: Finder, texts: Sequence[str]) -> list[Sequence[tuple[int, int]]]:
    return [finder(text) for text in texts]


def _with_detector(detector: Detector, texts: Sequence[str]) -> list[Sequence[tuple[int, int]]]:
    return [
        [(start, start + kept) for start, end in spans if (kept := _counted(detector, text[start:end]))]
        for text, spans in zip(texts, find_each(detector.pattern, texts), strict=True)
    ]


def _counted(detector: Detector, match: str) -> int:
    """How many characters of a match count."""
    return len(match) if detector.check is None else detector.check(match)


def _redacted(text: str, spans: Sequence[tuple[int, int]], label: str) -> str:
    pieces, at = [], 0
    for start, end in sorted(spans):
        if start >= at:  # a finder of one's own may give spans that overlap
            pieces += [text[at:start], label]
        at = max(at, end)
    return "".join([*pieces, text[at:]])


def _texts(row: Mapping[str, Any]) -> list[str]:
    texts = [row[name] for name in TEXT_FIELDS if name in row]
    for message in row["messages"]:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list | tuple):
            texts += [part["text"] for part in content if _has_text(part)]
    return texts


def _with_texts(row: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    rest = iter(texts)
    shown = {**row, **{name: next(rest) for name in TEXT_FIELDS if name in row}}
    messages = []
    for message in row["messages"]:
        content = message.get("content")
        if isinstance(content, str):
            messages.append({**message, "content": next(rest)})
        elif isinstance(content, list | tuple):
            parts = [{**part, "text": next(rest)} if _has_text(part) else part for part in content]
            messages.append({**message, "content": parts})
        else:
            messages.append(message)
    return {**shown, "messages": tuple(messages)}


def _has_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)
