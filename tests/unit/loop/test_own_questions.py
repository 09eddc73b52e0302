"""Questions from people's own rows: what is asked, once; consent first, personal data treated, forbidden upstreams left out."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from plaudit.domain import Comparison, ComparisonKind, Interaction, Project, Response, TrainingUse
from plaudit.errors import BadInput
from plaudit.formats.files import Rejected
from plaudit.formats.questions import Asked
from plaudit.loop import questions
from plaudit.loop.asking import Asking
from plaudit.loop.questions import Form
from plaudit.store.database import Store

ASKED = ({"role": "user", "content": "Why?"},)


def row(*responses: str, **fields: Any) -> Asked:
    return Asked(**{"file": "f", "line": 1, "messages": ASKED, "responses": responses, **fields})


def ask(
    store: Store, now: datetime, *rows: Asked | Rejected, use: TrainingUse = TrainingUse.ALLOWED, **form: Any
) -> questions.Report:
    return questions.ask(store, "prj_default", rows, Form(**{"batch": "own", **form}), training_use=use, now=now)


def test_each_two_are_compared_one_alone_is_rated_and_nothing_twice(
    store: Store, project: Project, now: datetime
) -> None:
    rows = (row("a", "b", "c", models=("m", "", "n")), row("only", domain="law", priority=4, warning="blood"))
    for n_known in (0, 4):
        report = ask(store, now, *rows, Rejected("f", 3, "it is empty"), criteria=("tone",), overlap=2, priority=1)
        assert (report.n_questions, report.n_known, report.n_rejected) == (4 - n_known, n_known, 1)
    (talk,) = store.find(Interaction)
    assert (talk.training_use, talk.attributes) == (TrainingUse.ALLOWED, {"import": "own"})
    assert {one.text: one.model for one in store.find(Response)} == {
        "a": "m",
        "b": "import",
        "c": "n",
        "only": "import",
    }
    made = store.find(Comparison)
    assert [one.kind for one in made] == [ComparisonKind.PAIRWISE] * 3 + [ComparisonKind.RATING]
    assert {(one.overlap, one.criteria, one.interaction_id) for one in made} == {(2, ("tone",), talk.id)}
    assert [(one.domain, one.priority, one.attributes) for one in made[2:]] == [
        (None, 1, {}),
        ("law", 4, {"warning": "blood"}),
    ]
    assert ask(store, now, rows[0], kind=ComparisonKind.RATING, batch="other").n_questions == 3


def test_consent_comes_first(store: Store, project: Project, now: datetime) -> None:
    for use in (TrainingUse.UNKNOWN, TrainingUse.DENIED):
        with pytest.raises(BadInput, match="only what may be trained on"):
            ask(store, now, row("a", "b"), use=use)
    assert store.count(Interaction) == 0


def test_what_nobody_may_read_or_learn_from_is_not_asked(store: Store, project: Project, now: datetime) -> None:
    asking = Asking({"email": "redact", "iban": "drop"}, ("gpt-*",))
    report = ask(
        store, now, row("Mail ada@example.org.", "No."), row("DE89 3704 0044 0532 0130 00", "No."),
        row("a", "b", models=("gpt-9", "")), row("alone"), kind=ComparisonKind.PAIRWISE, asking=asking,
    )  # fmt: skip
    assert (report.n_questions, report.n_rows, report.n_rejected) == (1, 1, 3)
    assert set(report.reasons) == {
        "personal data (iban)",
        "terms of the upstream forbid training",
        "one response alone is compared with nothing; ask for a rating",
    }
    texts = " ".join(one.text for one in store.find(Response))
    assert "ada@" not in texts
    assert "DE89" not in texts


@pytest.mark.parametrize(
    "form", [{"overlap": 0}, {"batch": " "}, {"kind": ComparisonKind.RANKING}, {"criteria": ("overall",)}]
)
def test_a_form_that_cannot_be_asked(store: Store, project: Project, now: datetime, form: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        ask(store, now, row("a", "b"), **form)
