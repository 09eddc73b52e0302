"""Filters: named rules on the text of prompts and answers. Block, redact, replace or flag, with a verdict that is stored either way.

    parse(tables)                  the `[[filters]]` of plaudit.toml, checked -> Filters
    screen_messages(filters, ...)  a prompt: its text parts as they may be sent on, and the verdicts
    Screen(filters)                an answer, whole or piece by piece: `feed` and `close` give what may be shown

A pattern is RE2's (through pyarrow, imported with the first filter): matching is linear in the text, so no pattern can hang the gateway.
In a stream a filter that changes text holds back `max_match_chars` characters, so that a match over the border of two pieces is found; one
that does not say how long its matches are holds back all of it. Cut in any way, a text comes out as if it had come whole, for every match
of at most that length (the property is tested). Text is what is read: tool calls pass as they are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from plaudit.domain import Json, Message
from plaudit.errors import ConfigError

MAX_MATCH_CHARS = 10_000


class Action(StrEnum):
    BLOCK = "block"  # nothing of the text from the match on; the finish_reason is content_filter
    REDACT = "redact"  # each match becomes its filter's name in brackets
    REPLACE = "replace"  # each match becomes the filter's `replacement`
    FLAG = "flag"  # only the verdict


# --- detectors ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detector:
    """`check` gives how many characters of a match count (0: it is none); without it, all."""

    pattern: str  # RE2
    max_match_chars: int
    check: Callable[[str], int] | None = None


def _iban(match: str) -> int:
    """The longest start of the match whose check digits are right (ISO 13616: mod 97 is 1); 0 where none is."""
    ends = [place for place in range(1, len(match) + 1) if match[place - 1] != " "]
    for end in reversed(ends[14:]):  # the shortest IBAN has 15 characters
        digits = match[:end].replace(" ", "").upper()
        number = "".join(str(int(sign, 36)) for sign in digits[4:] + digits[:4])
        if int(number) % 97 == 1:
            return end
    return 0


def _card(match: str) -> int:
    """All of a number that passes the Luhn check (ISO/IEC 7812)."""
    digits = [int(sign) for sign in match if sign.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(match) if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 else 0


DETECTORS: Mapping[str, Detector] = {
    "email": Detector(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}", 384),
    "iban": Detector(r"(?i)\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", 42, _iban),
    "card": Detector(r"\b\d(?:[ -]?\d){12,18}\b", 37, _card),
    "phone": Detector(r"(?:\+|\b00)[1-9]\d{0,2}(?:[ /.()-]{0,3}\d){6,12}\b", 55),
    "ip": Detector(r"\b(?:\d{1,3}\.){3}\d{1,3}\b", 15),
    "secret": Detector(
        r"\b(?:sk-[A-Za-z0-9_-]{20,200}|plk_[A-Za-z0-9_-]{16,200}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,200})"
        r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----",
        204,
    ),
}


# --- reading the settings ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """One rule. `max_match_chars` is the longest match that a stream is held back for; None holds back all of it."""

    name: str
    action: Action
    pattern: str
    replacement: str = ""
    max_match_chars: int | None = None
    check: Callable[[str], int] | None = None

    @property
    def changes_text(self) -> bool:
        return self.action is not Action.FLAG


@dataclass(frozen=True)
class Filters:
    """In the order of the settings, which is the order in which they act."""

    prompt: tuple[Filter, ...] = ()
    response: tuple[Filter, ...] = ()

    @property
    def change_responses(self) -> bool:
        return any(one.changes_text for one in self.response)


FIELDS = ("name", "on", "action", "pattern", "words", "detector", "replacement", "max_match_chars")
ON = ("both", "prompt", "response")


def parse(tables: Sequence[Any]) -> Filters:
    """The filters of plaudit.toml. Raises ConfigError naming the filter and what is wrong with it."""
    made: list[tuple[str, Filter]] = []
    for place, table in enumerate(tables):
        if not isinstance(table, Mapping):
            raise ConfigError(
                f"filters[{place}] is {table!r}; write a [[filters]] table with name, action and a pattern."
            )
        made.append(_parse_one(table, f"filter {table.get('name', place)!r}"))
    names = [one.name for _, one in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"Two filters are called {twice!r}; verdicts name their filter, so give each a name of its own."
        )
    return Filters(
        prompt=tuple(one for on, one in made if on in ("both", "prompt")),
        response=tuple(one for on, one in made if on in ("both", "response")),
    )


def _parse_one(table: Mapping[str, Any], what: str) -> tuple[str, Filter]:
    for field in table:
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{what} has a field {field!r}, which is unknown; did you mean {near!r}?")
    name = table.get("name")
    if not isinstance(name, str) or not name or len(name) > 100:
        raise ConfigError(f"{what} has the name {name!r}; give 1 to 100 characters.")
    on, action = table.get("on", "both"), table.get("action")
    if on not in ON:
        raise ConfigError(f"{what} acts on {on!r}; choose one of {', '.join(ON)}.")
    if action not in list(Action):
        raise ConfigError(f"{what} has the action {action!r}; choose one of {', '.join(Action)}.")
    replacement = table.get("replacement")
    if (action == Action.REPLACE) != isinstance(replacement, str):
        raise ConfigError(
            f"{what} has the action {action} and the replacement {replacement!r}; replace needs one, no other has one."
        )
    found = _detector(table, what)
    check_pattern(found.pattern, what)  # of ours too: pyarrow is then imported before the first chat
    return on, Filter(
        name=name,
        action=Action(action),
        pattern=found.pattern,
        replacement=f"[{name}]" if action == Action.REDACT else str(replacement or ""),
        max_match_chars=found.max_match_chars or None,
        check=found.check,
    )


def _detector(table: Mapping[str, Any], what: str) -> Detector:
    """What finds the matches: a detector of ours, a list of words, or a pattern of the caller's. `max_match_chars` 0: not known."""
    given = [field for field in ("pattern", "words", "detector") if field in table]
    if len(given) != 1:
        raise ConfigError(
            f"{what} has {' and '.join(given) or 'nothing to look for'}; give one of pattern, words, detector."
        )
    if given != ["pattern"] and "max_match_chars" in table:
        raise ConfigError(f"{what} has max_match_chars, which goes with a pattern only: of {given[0]} it is known.")
    match given[0]:
        case "detector":
            if table["detector"] not in DETECTORS:
                raise ConfigError(
                    f"{what} names the detector {table['detector']!r}; choose one of {', '.join(DETECTORS)}."
                )
            return DETECTORS[table["detector"]]
        case "words":
            words = table["words"]
            if (
                not isinstance(words, list | tuple)
                or not words
                or not all(isinstance(w, str) and w.strip() for w in words)
            ):
                raise ConfigError(f"{what} has the words {words!r}; give a list of non-empty strings.")
            return Detector(any_of(words), max(len(word) for word in words))
        case _:
            longest = table.get("max_match_chars", 0)
            if isinstance(longest, bool) or not isinstance(longest, int) or not 0 <= longest <= MAX_MATCH_CHARS:
                raise ConfigError(
                    f"{what} has max_match_chars {longest!r}; give a whole number from 1 to {MAX_MATCH_CHARS}."
                )
            return Detector(table["pattern"], longest)


def any_of(words: Sequence[str]) -> str:
    """Whole words in any case. RE2's word border knows ASCII only, so it stands only beside ASCII letters and digits."""
    longest_first = sorted(words, key=len, reverse=True)  # else `a` hides `a b`
    edge = re.compile(r"\w", re.ASCII)
    bounded = [
        rf"\b{re.escape(word)}"[0 if edge.match(word[0]) else 2 :] + (r"\b" if edge.match(word[-1]) else "")
        for word in longest_first
    ]
    return "(?i)(?:" + "|".join(bounded) + ")"


def check_pattern(pattern: Any, what: str) -> None:
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"{what} has the pattern {pattern!r}; give a regular expression.")
    try:
        matches_nothing = "\x00" in _marked([""], pattern)[0]
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise ConfigError(f"{what} has a pattern that RE2 does not read ({error}).") from error
    if matches_nothing:
        raise ConfigError(f"{what} has a pattern that matches the empty text; make it match something.")


# --- matching ----------------------------------------------------------------------------------------------------------


def find(pattern: str, text: str, before: str = "") -> list[tuple[int, int]]:
    """(start, end) of the matches from left to right, none empty, none over another; in characters. `before` is the one character that
    stands before the text: no match begins with it, but a word border sees it."""
    whole = (before + text).replace("\x00", "\ufffd")
    (marked,) = _marked([whole], rf"\A(?s:.)|(?:{pattern})" if before else pattern)
    return _spans(marked, -len(before))


def find_each(pattern: str, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """What `find` says of each text, with the pattern compiled once: compiling takes RE2 longer than a text."""
    return [_spans(marked, 0) for marked in _marked([text.replace("\x00", "\ufffd") for text in texts], pattern)]


def _spans(marked: str, at: int) -> list[tuple[int, int]]:
    """`at`: where in the text that is asked about the marked one begins."""
    spans = []
    for place, piece in enumerate(marked.split("\x00")):
        if place % 2 and piece and at >= 0:
            spans.append((at, at + len(piece)))
        at += len(piece)
    return spans


def _marked(texts: Sequence[str], pattern: str) -> list[str]:
    """The texts with a NUL on both sides of each match: the one call of pyarrow that says where all of them are."""
    import pyarrow

    replace, options = _compiled(pattern)
    marked: list[str] = replace.call([pyarrow.array(texts, pyarrow.large_string())], options).to_pylist()
    return marked


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> tuple[Any, Any]:
    from pyarrow import compute

    options = compute.ReplaceSubstringOptions(pattern=f"(?:{pattern})", replacement="\x00\\0\x00")
    return compute.get_function("replace_substring_regex"), options


# --- screening ---------------------------------------------------------------------------------------------------------


class Screen:
    """One text on its way through filters. What `feed` and `close` return may be shown; after `blocked` nothing comes any more."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self._passes = [_Pass(one) for one in filters]

    def feed(self, piece: str) -> str:
        return self._through(piece, last=False)

    def close(self) -> str:
        """The rest; call it once, at the end of the text."""
        return self._through("", last=True)

    @property
    def blocked(self) -> bool:
        return any(one.blocked for one in self._passes)

    @property
    def changed(self) -> bool:
        """Whether what was shown is not what was said."""
        return any(one.n and one.filter.changes_text for one in self._passes)

    @property
    def verdicts(self) -> tuple[Json, ...]:
        """Of the filters that matched: {"filter", "action", "n"}."""
        return tuple(
            {"filter": one.filter.name, "action": str(one.filter.action), "n": one.n} for one in self._passes if one.n
        )

    def _through(self, text: str, last: bool) -> str:
        before = False  # whether an earlier filter has blocked: what it let through is the end of the text for the later ones
        for one in self._passes:
            if one.blocked:
                return ""
            text = one.feed(text, last or before)
            before = before or one.blocked
        return text


class _Pass:
    """One filter over one text."""

    def __init__(self, filter: Filter) -> None:
        self.filter = filter
        self.n = 0
        self.blocked = False
        self._pending = ""  # not yet decided
        self._before = ""  # the character before that

    def feed(self, piece: str, last: bool) -> str:
        self._pending += piece
        if not self.filter.changes_text:  # nothing waits for a flag: it looks once, at the end
            if last:
                self._flag()
            return piece
        if not self._pending:
            return ""
        if last:
            return self._decide(len(self._pending), last)
        longest = self.filter.max_match_chars
        decided = (
            -1 if longest is None else len(self._pending) - longest - 1
        )  # one more: is the end of a match a word border?
        return self._decide(decided, last) if decided >= 0 else ""

    def _decide(self, decided: int, last: bool) -> str:
        """Let through what can no longer change: a match that starts at `decided` or before is here to its end."""
        shown, at = [], 0
        for start, end in self._matches():
            if start > decided:
                break
            kept = end if self.filter.check is None else start + self.filter.check(self._pending[start:end])
            shown.append(self._pending[at:start])
            at = end
            if kept == start:  # looked like one and is none
                shown.append(self._pending[start:end])
                continue
            self.n += 1
            if self.filter.action is Action.BLOCK:
                self.blocked = True
                self._pending = ""
                return "".join(shown)
            shown += [self.filter.replacement, self._pending[kept:end]]
        until = len(self._pending) if last else max(at, decided)
        shown.append(self._pending[at:until])
        self._before = self._pending[until - 1] if until else self._before
        self._pending = self._pending[until:]
        return "".join(shown)

    def _matches(self) -> list[tuple[int, int]]:
        return find(self.filter.pattern, self._pending, self._before)

    def _flag(self) -> None:
        check = self.filter.check
        found = self._matches()
        self.n = sum(check is None or check(self._pending[start:end]) > 0 for start, end in found)


@dataclass(frozen=True)
class ScreenedMessages:
    messages: tuple[Message, ...]
    verdicts: tuple[Json, ...]
    blocked: bool


def screen_messages(filters: Sequence[Filter], messages: Sequence[Message]) -> ScreenedMessages:
    """Every message of a prompt, whoever speaks: contents that are strings, and the text parts of the others. A verdict counts the matches
    of its filter in all of them. A prompt that is blocked comes back as it was."""
    if not filters:
        return ScreenedMessages(tuple(messages), (), False)
    screened = []
    counted: dict[str, Json] = {}
    blocked = False

    def shown(text: str) -> str:
        nonlocal blocked
        screen = Screen(filters)
        passed = screen.feed(text) + screen.close()
        for verdict in screen.verdicts:
            known = counted.setdefault(verdict["filter"], {**verdict, "n": 0})
            known["n"] += verdict["n"]
        blocked = blocked or screen.blocked
        return passed

    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            screened.append({**message, "content": shown(content)})
        elif isinstance(content, list | tuple):
            parts = [{**part, "text": shown(part["text"])} if _is_text(part) else part for part in content]
            screened.append({**message, "content": parts})
        else:
            screened.append(message)
    return ScreenedMessages(tuple(messages if blocked else screened), tuple(counted.values()), blocked)


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
