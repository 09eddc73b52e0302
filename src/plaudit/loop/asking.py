"""Before a question is put to people: whose answers may not be trained on at all, and which personal data nobody is to read.

The detectors are those of Snapshots (snapshots/personal_data.py). What `redact` finds becomes its kind in brackets in the question's own
copy of prompt and answers; the Interaction stays as it was. A question in which `drop` finds something is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from plaudit.domain import EvaluationItem, Message
from plaudit.loop.snapshots import personal_data
from plaudit.loop.snapshots.personal_data import Treatment


@dataclass(frozen=True)
class Asking:
    """`personal_data`: treatment by kind; `forbidden_models`: names, `*` stands for anything. The default asks everything as it is."""

    personal_data: Mapping[str, str] = field(default_factory=dict)
    forbidden_models: tuple[str, ...] = ()

    def forbids(self, model: str) -> bool:
        return any(fnmatchcase(model, like) for like in self.forbidden_models)


@dataclass(frozen=True)
class Shown:
    """A question as people may read it, how many of each kind were found, and which kinds forbid asking it ("" where none does)."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    found: Mapping[str, int]
    dropped: str


def screen(asking: Asking, messages: Sequence[Message], answers: Sequence[str]) -> Shown:
    """Raises BadInput (unknown kind or treatment)."""
    rules = personal_data.rules(asking.personal_data)
    if not rules:
        return Shown(tuple(messages), tuple(answers), {}, "")
    # An answer stands as a message here: both are texts that somebody reads.
    row = {"messages": (*messages, *({"role": "assistant", "content": text} for text in answers))}
    ((shown, found, _),) = personal_data.screen_rows(rules, [row])
    kinds = "+".join(rule.kind for rule in rules if rule.kind in found and rule.treatment is Treatment.DROP)
    read = shown["messages"]
    texts = tuple(one["content"] for one in read[len(messages) :])
    return Shown(tuple(read[: len(messages)]), texts, found, kinds)


def screen_item(asking: Asking, item: EvaluationItem) -> EvaluationItem:
    """An evaluation's item as its judges may read it. It is asked in any case, since a sample without it would be another: `drop` redacts."""
    treatments = {
        kind: Treatment.REDACT if treatment == Treatment.DROP else treatment
        for kind, treatment in asking.personal_data.items()
    }
    shown = screen(replace(asking, personal_data=treatments), item.messages, (item.first.text, item.second.text))
    first, second = shown.answers
    if (shown.messages, first, second) == (tuple(item.messages), item.first.text, item.second.text):
        return item
    return replace(
        item,
        messages=shown.messages,
        first=replace(item.first, text=first),
        second=replace(item.second, text=second),
    )
