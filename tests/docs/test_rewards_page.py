"""rewards.md: its tables are the terms of learn.configs, its examples are accepted, its function runs."""

from __future__ import annotations

import json

import pytest

from plaudit.learn import configs
from plaudit.learn.answers import Answers, checked
from plaudit.loop import pipeline

from .conftest import Page, code_in

SHARED = {name: default for name, _, default in configs.describe(configs.rewards.RewardTerm)}


def stated(section: Page) -> dict[str, str]:
    return {code_in(row[0])[0]: row[1].strip("`") for row in section.rows() if len(row) == 3}


def said(default: object) -> str:
    return "required" if default is ... else json.dumps(default)


def test_fields_of_every_term(pages) -> None:
    assert stated(pages["rewards.md"].section("Every term")) == {name: said(value) for name, value in SHARED.items()}


def test_kinds_and_their_fields(pages) -> None:
    section = pages["rewards.md"].section("The kinds")
    assert stated(section) == {
        f"{kind}.{name}": said(default)
        for kind, term in configs.TERMS.items()
        for name, _, default in configs.describe(term)
        if name not in SHARED
    }
    assert [code_in(row[0])[0] for row in section.rows() if len(row) == 2] == list(configs.TERMS)


@pytest.mark.parametrize("kind", configs.TERMS)
def test_every_field_of_a_term_is_documented(kind: str) -> None:
    for name, text, _ in configs.describe(configs.TERMS[kind]):
        assert len(text) >= 5, name


def test_the_examples_are_accepted(pages) -> None:
    block, turn = pages["rewards.md"].blocks("json")
    asked = pipeline.TurnConfig(**json.loads(turn)).ppo["reward"]
    made = configs.from_dict(
        configs.PPOConfig, {"snapshot": "s", "base": "b", "reward": configs.with_newest(asked, "/rm")}
    )
    assert made.reward[0].checkpoints == ("/rm",)
    decoder, rest, read = json.JSONDecoder(), block.strip(), []
    while rest:
        value, end = decoder.raw_decode(rest)
        read.append(configs.from_dict(configs.PPOConfig, {"snapshot": "s", "base": "b", **value}).reward)
        rest = rest[end:].strip()
    folder, function, terms = read
    assert [configs.reward_terms(reward)[0].kind for reward in (folder, function)] == ["model", "function"]
    assert [term.name for term in terms] == ["judge", "brief", "no_excuses", "polite"]


def test_the_function_gives_scores(pages) -> None:
    (block,) = pages["rewards.md"].blocks("python")
    names: dict[str, object] = {}
    exec(block, names)  # it is our own page
    answers = Answers([[], []], ["Yes, please.", "No."], [[1], [2]], [{}, {}])
    returned = names["polite"](answers.messages, answers.texts, answers.ids, answers.meta)  # type: ignore[operator]
    assert checked(returned, answers, "It").tolist() == [1.0, 0.0]
