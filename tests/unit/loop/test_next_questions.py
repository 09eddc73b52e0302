"""Questions by a mix: what is scored, what is asked, and that each Comparison says why; `learn score` has a stand-in."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from plaudit.domain import Assignment, Interaction, Project, Response, utc_now
from plaudit.errors import BadInput
from plaudit.loop import live_questions, next_questions, release
from plaudit.loop.next_questions import Candidate, Figures
from plaudit.stats.selection import Mix
from plaudit.store.database import Store

Chat = Callable[..., Interaction]


@pytest.fixture
def served(store: Store, project: Project, chat: Chat, now: datetime) -> list[Interaction]:
    """Forty interactions of the live release, every eighth about refunds."""
    live = release.register_base(store, project.id, "base", "fake:", now)
    return [
        chat(f"question {i}", assignment=Assignment(live.id), attributes={"topic": "other" if i % 8 else "refund"})
        for i in range(40)
    ]


def test_a_mix_asks_what_it_is_for_and_keeps_the_reason(
    store: Store, project: Project, served: list[Interaction]
) -> None:
    heard: list[Candidate] = []

    def scorer(found: list[Candidate]) -> Figures:
        heard.extend(found)
        number = [int(str(one.messages[0]["content"]).split()[1]) for one in found]
        return Figures([float(n) for n in number], [float(n) for n in number])

    mix = Mix(close=0.25, disagreement=0.25)
    made = live_questions.plan_traffic(
        store, project.id, 8, batch="b", overlap=2, mix=mix, scorer=scorer, now=utc_now()
    )
    assert Counter(one.reason for one in made.comparisons) == {"random": 4, "close": 2, "disagreement": 2}
    drawn = {one.id: int(str(one.messages[0]["content"]).split()[1]) for one in served}
    numbers = {one.interaction_id: drawn[one.interaction_id or ""] for one in made.comparisons}
    left = sorted(
        {drawn[one.interaction_id] for one in heard}
        - {numbers[one.interaction_id] for one in made.comparisons if one.reason == "random"}
    )
    for reason, expected in (("close", left[:2]), ("disagreement", left[-2:])):
        assert sorted(numbers[one.interaction_id] for one in made.comparisons if one.reason == reason) == expected
    assert len(heard) == 32  # four candidates for each question
    first = heard[0]
    shown = store.find(Response, interaction_id=first.interaction_id)
    assert first.first in {one.text for one in shown}


def test_coverage_evens_out_an_attribute_over_what_was_asked_before(
    store: Store, project: Project, served: list[Interaction]
) -> None:
    made = live_questions.plan_traffic(
        store, project.id, 10, batch="b", overlap=1, mix=Mix(coverage=1.0), slice_by="topic", now=utc_now()
    )
    by_id = {one.id: one.attributes["topic"] for one in served}
    assert Counter(by_id[one.interaction_id or ""] for one in made.comparisons) == {"refund": 5, "other": 5}
    again = live_questions.plan_traffic(
        store, project.id, 10, batch="c", overlap=1, mix=Mix(coverage=1.0), slice_by="topic", now=utc_now()
    )
    assert {by_id[one.interaction_id or ""] for one in again.comparisons} == {"other"}  # no refund is left


def test_a_mix_that_needs_scores_needs_a_reward_model(
    store: Store, project: Project, served: list[Interaction]
) -> None:
    with pytest.raises(BadInput, match="--reward"):
        live_questions.plan_traffic(store, project.id, 8, batch="b", overlap=2, mix=Mix(close=0.5), now=utc_now())


STAND_IN = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[-1])
config = json.loads((folder / "config.json").read_text())
lines = []
for row in map(json.loads, Path(config["inputs"]).read_text().splitlines()):
    for index, text in enumerate(row["responses"]):
        lines.append({"id": row["id"], "index": index, "score": float(len(text)), "score_sd": 3.0 + index})
(folder / "scores.jsonl").write_text("".join(json.dumps(one) + "\\n" for one in reversed(lines)))
(folder / "result.json").write_text("{}")
(folder / "done.json").write_text("{}")
"""


def test_scores_are_paired_by_id_whatever_their_order(tmp_path: Path) -> None:
    program = tmp_path / "score.py"
    program.write_text(STAND_IN)
    found = [
        Candidate("int_1", [{"role": "user", "content": "q"}], "four", "sixsix", ""),
        Candidate("int_2", [{"role": "user", "content": "q"}], "four", "two", ""),
    ]
    figures = next_questions.score(tmp_path, tmp_path, found, program=(sys.executable, str(program)))
    assert figures.difference == [-2.0, 1.0]
    assert figures.spread == [5.0, 5.0]
