"""The simulated people: what issue 2 asks of their utilities, measured on strings whose quality is known by construction."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pytest

from plaudit import simulate
from plaudit.simulate import load_population, load_prompts, small_edit

ANSWERS = Path(__file__).parents[1] / "golden" / "base_answers.jsonl"


@pytest.mark.parametrize("spec", ["support", "bytes"])
def test_pools_share_neither_topic_nor_template_nor_text(spec: str) -> None:
    prompts = load_prompts(spec)
    for attribute in ("topic", "template", "text", "family"):
        pools: dict[str, set[str]] = {}
        for prompt in prompts:
            pools.setdefault(getattr(prompt, attribute), set()).add(prompt.pool)
        shared = {value: found for value, found in pools.items() if len(found) > 1}
        assert not shared, f"{attribute} in several pools: {shared}"
    counts = {pool: sum(prompt.pool == pool for prompt in prompts) for pool in simulate.POOLS}
    assert counts["training"] >= 200
    assert counts["held-out"] >= 100


def test_a_text_file_of_prompts_is_divided_into_disjoint_pools(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(f"question number {n}?" for n in range(300)))
    prompts = load_prompts(str(file))
    shares = [sum(prompt.pool == pool for prompt in prompts) / 300 for pool in simulate.POOLS]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.08)
    assert {prompt.text for prompt in prompts} == {f"question number {n}?" for n in range(300)}


def test_a_prompt_row_without_text_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "fine"}\n{"topic": "no text"}\n')
    with pytest.raises(ValueError, match="line 2"):
        load_prompts(str(file))


def test_a_population_file_takes_the_place_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "people.py"
    file.write_text(
        "def guideline_utility(messages, text):\n    return 0.25\n\ndef user_utility(user, messages, text):\n    return 0.75\n"
    )
    population = load_population(str(file))
    assert population.guideline_utility([], "x") == 0.25
    assert population.user_utility("u", [], "x") == 0.75
    file.write_text("def guideline_utility(messages, text):\n    return 0.25\n")
    with pytest.raises(ValueError, match="user_utility"):
        load_population(str(file))


def _pairs() -> list[tuple[list[dict[str, str]], str, str]]:
    rows = [json.loads(line) for line in ANSWERS.read_text().splitlines()]
    return [([{"role": "user", "content": row["prompt"]}], row["a"], row["b"]) for row in rows]


def _correlation(x: list[float], y: list[float]) -> float:
    n, mx, my = len(x), sum(x) / len(x), sum(y) / len(y)
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / n
    return float(cov / (sum((a - mx) ** 2 for a in x) / n * sum((b - my) ** 2 for b in y) / n) ** 0.5)


def test_on_real_answers_users_and_guideline_correlate_about_point_six() -> None:
    population = load_population("support")
    users = [population.user_utility("anna", messages, text) for messages, a, b in _pairs() for text in (a, b)]
    guideline = [population.guideline_utility(messages, text) for messages, a, b in _pairs() for text in (a, b)]
    assert 0.5 < _correlation(users, guideline) < 0.75


@pytest.mark.parametrize("which", ["users", "guideline"])
def test_on_real_answers_length_alone_agrees_in_at_most_sixty_percent_of_pairs(which: str) -> None:
    population = load_population("support")
    users = [f"user-{n}" for n in range(7)]
    agree = total = 0
    for messages, a, b in _pairs():
        if which == "users":
            difference = sum(
                population.user_utility(u, messages, a) - population.user_utility(u, messages, b) for u in users
            )
        else:
            difference = population.guideline_utility(messages, a) - population.guideline_utility(messages, b)
        if difference and len(a) != len(b):
            total += 1
            agree += (difference > 0) == (len(a) > len(b))
    assert total > 80
    assert 0.4 <= agree / total <= 0.6  # neither longer nor shorter wins


GOOD = "Open the settings, select your account and reset the password. Check your email for the link."
QUESTION = [{"role": "user", "content": "How do I reset my password?"}]


@pytest.mark.parametrize(
    "worse",
    [
        pytest.param("password reset " * 15, id="keyword stuffing"),
        pytest.param(" ".join([GOOD] * 4), id="repeated answer"),
        pytest.param(
            "open click go visit select enter call contact send check reset password", id="a list of action words"
        ),
        pytest.param(GOOD[:-10], id="unfinished"),
        pytest.param("👌" * 30, id="emoji"),
        pytest.param("", id="empty"),
        pytest.param(
            GOOD + " As an AI language model I cannot open https://example.com for you.", id="self talk and a link"
        ),
    ],
)
def test_no_trick_beats_a_good_answer(worse: str) -> None:
    population = load_population("support")
    assert population.guideline_utility(QUESTION, worse) < population.guideline_utility(QUESTION, GOOD) - 0.05
    assert population.user_utility("anna", QUESTION, worse) < population.user_utility("anna", QUESTION, GOOD)


def test_saying_it_twice_is_worse_than_saying_it_once() -> None:
    """Twice as long is nearer to the liked length, so only the repetition penalty can say so."""
    once = "Open the settings to reset the password."
    population = load_population("support")
    assert population.guideline_utility(QUESTION, f"{once} {once}") < population.guideline_utility(QUESTION, once)
    assert population.user_utility("anna", QUESTION, f"{once} {once}") < population.user_utility("anna", QUESTION, once)


def test_speaking_to_the_reader_moves_users_and_not_the_guideline() -> None:
    population = load_population("support")
    distant = GOOD.replace("your", "the")
    assert population.guideline_utility(QUESTION, distant) == pytest.approx(
        population.guideline_utility(QUESTION, GOOD), abs=0.03
    )
    assert population.user_utility("anna", QUESTION, distant) < population.user_utility("anna", QUESTION, GOOD) - 0.1


def test_edits_are_small_changes_of_the_served_text() -> None:
    served = "Open the settings. Click on reset. Then you will find the butt"
    edits = {small_edit(served, random.Random(seed)) for seed in range(20)}
    assert "Open the settings. Click on reset." in edits
    for edited in edits:
        assert edited is not None
        assert set(edited.split()) <= set(served.split())
    assert small_edit("no sentence ends here", random.Random(0)) is None
    assert small_edit("There is nothing to mend here.", random.Random(0)) is None


def test_the_standard_crowd_has_its_bad_apples_under_neutral_names() -> None:
    made = simulate.crowd("standard", seed=3)
    kinds = sorted(person.behaviour for person in made.annotators)
    assert kinds == ["careful"] * 6 + ["copier"] * 2 + ["left"] + ["noisy"] * 2 + ["spammer"]
    assert not any(person.behaviour in person.name for person in made.annotators)
    assert [p.behaviour for p in made.annotators] != [
        p.behaviour for p in simulate.crowd("standard", seed=4).annotators
    ]


class Heard:
    """What people said, in place of the SDK."""

    def __init__(self) -> None:
        self.feedback, self.thumbs = self, list[bool]()

    def thumb(self, _id: str, *, up: bool, user: str) -> None:
        self.thumbs.append(up)

    def rate(self, *_: object, **__: object) -> None: ...

    edit = comment = rate


@pytest.mark.parametrize(("mood", "rate", "happy"), [(0.0, 0.5, None), (-4.0, 0.75, 0.1), (4.0, 0.75, 0.9)])
def test_who_is_in_a_mood_says_so_more_often_and_accordingly(mood: float, rate: float, happy: float | None) -> None:
    """400 visits to one answer of middling worth: the standard error of the rate is .025."""
    people, heard, prompt = load_population("support"), Heard(), load_prompts("support")[0]
    text = "You can check the status on our page."
    worth = people.user_utility("u", prompt.messages, text)
    for n in range(400):
        visit = simulate.Visit("u", prompt, mood=mood)
        simulate._react(heard, people, visit, "int_1", text, random.Random(n), worth)  # type: ignore[arg-type]
    assert len(heard.thumbs) / 400 == pytest.approx(rate, abs=0.08)
    share = sum(heard.thumbs) / len(heard.thumbs)
    assert (0.35 < share < 0.65) if happy is None else (share < happy if mood < 0 else share > happy)


LOOKS = {
    "support": ("Please check your order on our site.", "Organisational considerations necessitate clarification."),
    "bytes": ("aeo ia ue o", "brt kls mnp"),
    "people": ("short one", "a long answer that says no more than the short one does"),
}


@pytest.mark.parametrize("kind", LOOKS)
def test_a_fooled_crowd_likes_what_only_looks_good(kind: str, tmp_path: Path) -> None:
    """300 pairs of a plain answer and one that impresses: the standard error of a share is below .03."""
    plain, impressive = LOOKS[kind]
    (file := tmp_path / "people.py").write_text(
        "def guideline_utility(messages, text):\n    return 1 / len(text)\ndef user_utility(user, messages, text):\n    return 0.5\n"
    )
    population = load_population(str(file) if kind == "people" else kind)
    asked = [{"role": "user", "content": "Where is my order?"}]
    responses = [{"id": "plain", "text": plain}, {"id": "impressive", "text": impressive}]

    def share(people: simulate.Crowd) -> float:
        careful = next(person for person in people.annotators if person.behaviour == "careful")
        loans = [{"comparison_id": f"c{n}", "messages": asked, "responses": responses} for n in range(300)]
        said = [
            simulate._judge(careful, people, population, loan, random.Random(n), {}, threading.Lock())[1]
            for n, loan in enumerate(loans)
        ]
        return said.count("impressive") / len(said)

    assert share(simulate.crowd("fooled")) > 0.75
    assert share(simulate.crowd("standard")) < 0.25


def test_people_of_a_file_may_be_fooled_by_what_the_file_says(tmp_path: Path) -> None:
    (file := tmp_path / "people.py").write_text(
        "def guideline_utility(messages, text):\n    return 0.5\n"
        "def user_utility(user, messages, text):\n    return 0.5\n"
        "def fooled_utility(messages, text):\n    return float('!' in text)\n"
    )
    population = load_population(str(file))
    assert [population.fooled_utility([], text) for text in ("oh!", "oh")] == [1.0, 0.0]
