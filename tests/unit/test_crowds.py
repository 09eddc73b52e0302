"""Simulated annotators: what each behaviour does with the same questions."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from plaudit import crowds
from plaudit.crowds import Member, Question, Said, Whispers
from plaudit.simulate import load_population, load_prompts


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return crowds.questions(load_population("support"), load_prompts("support"), 300, seed=1)


def said(
    behaviour: str, asked: list[Question], sharpness: float = 20.0, whispers: Whispers | None = None
) -> list[Said]:
    """Answers to every question; the order shown alternates."""
    member = Member("somebody", behaviour, sharpness, patient=True)  # type: ignore[arg-type]
    heard = whispers or Whispers()
    return [
        crowds.decide(member, one, (nth % 2, 1 - nth % 2), nth, random.Random(f"{behaviour}/{nth}"), heard)
        for nth, one in enumerate(asked)
    ]


def right(asked: list[Question], answers: list[Said], misleading: bool = False) -> float:
    chosen = [
        (one, answer)
        for one, answer in zip(asked, answers, strict=True)
        if one.misleading is misleading and answer.answer is not None
    ]
    return sum(answer.answer == one.better for one, answer in chosen) / len(chosen)


def test_a_crowd_has_its_bad_apples_under_neutral_names() -> None:
    members = crowds.crowd(3)
    assert Counter(one.behaviour for one in members) == {
        "careful": 10, "noisy": 3, "random": 2, "colluding": 2, "one side": 1, "tiring": 1, "pasting": 1,
    }  # fmt: skip
    assert not any(one.behaviour.split()[0] in one.name for one in members)
    assert [one.behaviour for one in members] != [one.behaviour for one in crowds.crowd(4)]
    assert {"one side", "random", "careful"} <= {one.behaviour for one in crowds.crowd(0, size=5)}


def test_questions_differ_and_one_topic_misleads(asked: list[Question]) -> None:
    assert len({one.prompt for one in asked}) == len(asked)
    assert len({one.topic for one in asked if one.misleading}) == 1
    assert 0.05 < sum(one.misleading for one in asked) / len(asked) < 0.16
    assert 0.4 < sum(one.better == 0 for one in asked) / len(asked) < 0.6


def test_who_reads_is_right_but_where_the_guideline_misleads(asked: list[Question]) -> None:
    careful, noisy = said("careful", asked), said("noisy", asked, 8.0)
    assert right(asked, careful) > right(asked, noisy) + 0.03
    assert min(right(asked, careful), 0.15 + right(asked, noisy)) > 0.85
    assert right(asked, careful, misleading=True) < 0.3


def test_who_does_not_read_shows_it(asked: list[Question]) -> None:
    one_side = said("one side", asked, 0.0)
    assert sum(answer.answer == nth % 2 for nth, answer in enumerate(one_side)) > 0.9 * len(asked)
    assert 0.4 < right(asked, said("random", asked, 0.0)) < 0.6
    tiring = said("tiring", asked)
    assert right(asked[:80], tiring[:80]) > 0.8
    assert 0.35 < right(asked[80:], tiring[80:]) < 0.65


def test_colluders_say_the_same_and_a_chatbot_writes_its_notes(asked: list[Question]) -> None:
    whispers = Whispers()
    one, other = said("colluding", asked, 8.0, whispers), said("colluding", asked, 8.0, whispers)
    assert [(a.answer, a.strength) for a in one] == [(a.answer, a.strength) for a in other]
    notes = {answer.note for answer in said("pasting", asked)}
    assert None not in notes
    assert len(notes) <= 2 * len(crowds.CHATBOT)
