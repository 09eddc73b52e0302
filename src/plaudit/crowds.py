"""A realistic crowd of simulated annotators: what they do, and with `work` how they do it over HTTP.

Of twenty, ten are careful and three noisy; one clicks one side, two click at random, one of these after a plausible while; one tires and
becomes such a clicker; two hand each other their answers; one pastes what a chatbot says, which likes the longer answer. Questions differ
in difficulty, and in one topic everybody who reads is misled by the guideline, so that there the majority is wrong: only an expert sees it.

What a question is worth is decided by the population's hidden utility of the texts, as in `simulate`. Like that module this one acts
through the client alone and knows neither store nor loop; `decide` is what the benchmark of the quality signals calls in process.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from plaudit.client import Plaudit
from plaudit.errors import Forbidden
from plaudit.simulate import Population, Prompt

Behaviour = Literal["careful", "noisy", "one side", "random", "tiring", "colluding", "pasting"]
HONEST = ("careful", "noisy")
LAZY = ("one side", "random")  # who must be found: spammers and left-clickers
# Behaviour, how sharply they see a difference of utilities (log-odds for a whole unit), whether they take a plausible time.
Makeup = tuple[Behaviour, float, bool]
_CAREFUL: Makeup = ("careful", 20.0, True)
_NOISY: Makeup = ("noisy", 8.0, True)
_COLLUDING: Makeup = ("colluding", 8.0, True)
# In this order, so that a small crowd is a mixture too.
MAKEUP: tuple[Makeup, ...] = (
    _CAREFUL,
    _CAREFUL,
    _CAREFUL,
    ("one side", 0.0, False),
    ("random", 0.0, False),
    _NOISY,
    _NOISY,
    _COLLUDING,
    _COLLUDING,
    ("tiring", 20.0, True),
    ("random", 0.0, True),
    ("pasting", 8.0, True),
    _NOISY,
    *[_CAREFUL] * 7,
)
TIRES_AFTER = 80  # answers
CHATBOT = (
    "Response {} is more helpful because it directly addresses the question of the user and provides clear steps.",
    "Overall I prefer response {} since it is well structured, accurate and provides clear steps for the user.",
    "Response {} is better because it directly addresses the question of the user in a friendly and concise tone.",
)


@dataclass(frozen=True)
class Member:
    name: str
    behaviour: Behaviour
    sharpness: float
    patient: bool


@dataclass(frozen=True)
class Question:
    """`gap`: how much better the first answer is (difference of utilities, -1 to 1). misleading: who reads sees the opposite."""

    prompt: str
    topic: str
    answers: tuple[str, str]
    gap: float
    misleading: bool

    @property
    def better(self) -> int:
        """What an expert says."""
        return 0 if self.gap > 0 else 1


@dataclass(frozen=True)
class Said:
    verdict: str
    answer: int | None  # 0 or 1: which of the question's answers
    strength: int | None
    seconds: float
    note: str | None


@dataclass
class Whispers:
    """What colluders have handed each other so far, by question."""

    told: dict[str, Said] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def crowd(seed: int, size: int = len(MAKEUP)) -> list[Member]:
    """`size` annotators under neutral names, the makeup repeated as often as needed."""
    drawn = [MAKEUP[at % len(MAKEUP)] for at in range(size)]
    random.Random(f"crowd/{seed}").shuffle(drawn)
    return [Member(f"annotator-{at + 1:02d}", *one) for at, one in enumerate(drawn)]


# --- questions ------------------------------------------------------------------------------------------------------------

_OPENINGS = (
    "Sorry to hear that.",
    "To {do},",
    "You can {do} yourself:",
    "Thank you for asking how to {do}.",
    "It depends.",
    "Well,",
)
_STEPS = (
    "open your account settings and select the page for it.",
    "check your email and follow the link that we send you.",
    "click on the button and confirm with your password.",
    "contact us and bring your order number, so we can check.",
    "wait a few minutes, restart it and try again.",
    "nothing can be done about this at the moment.",
    "some say this and others say that, it is hard to tell.",
    "it works works works works as it always works works.",
    "as an AI language model I cannot open https://example.com for you",
    "go to the page and enter your number, then submit",
)


def questions(population: Population, prompts: Sequence[Prompt], n: int, seed: int) -> list[Question]:
    """`n` questions about the prompts, each about an order of its own. The last topic misleads; it has about every tenth question."""
    luck = random.Random(f"questions/{seed}")
    topics = sorted({one.topic for one in prompts})
    by_topic = {topic: [one for one in prompts if one.topic == topic] for topic in topics}
    made: list[Question] = []
    while len(made) < n:
        topic = topics[-1] if luck.random() < 0.1 else luck.choice(topics[:-1])
        asked = f"{luck.choice(by_topic[topic]).text} (order {1000 + len(made)})"
        answers = (_answer(topic, luck), _answer(topic, luck))
        worth = [population.guideline_utility([{"role": "user", "content": asked}], one) for one in answers]
        if answers[0] != answers[1] and abs(worth[0] - worth[1]) > 0.05:
            made.append(Question(asked, topic, answers, worth[0] - worth[1], topic == topics[-1]))
    return made


def _answer(topic: str, luck: random.Random) -> str:
    opening = luck.choice(_OPENINGS).format(do=f"solve this {topic.replace('-', ' ')} problem")
    text = " ".join([opening, *luck.sample(_STEPS, luck.choice((1, 2, 2, 3)))])
    return text[: int(len(text) * 0.7)] if luck.random() < 0.15 else text


_THOUGHTS = (
    "hm, close, but", "at least it has", "the bit about", "more to the point", "reads better with", "odd that", "wrong about", "no",
    "missing", "clearer on", "too long around", "kinder", "stops short after", "what I need is", "not sure why", "good:",
)  # fmt: skip

# --- what somebody says ----------------------------------------------------------------------------------------------------


def decide(
    member: Member, question: Question, shown: tuple[int, int], nth: int, luck: random.Random, whispers: Whispers
) -> Said:
    """One answer. shown: the question's answers from left to right. nth: how many this member gave before."""
    words = sum(len(text.split()) for text in question.answers)
    read_s = max(2.0, luck.gauss(4 + 0.25 * words, 3))
    seconds = round(read_s if member.patient else max(0.5, luck.gauss(1.8, 0.5)), 1)
    match member.behaviour:
        case "one side":
            return Said("prefer", shown[0] if luck.random() < 0.97 else shown[1], 2, seconds, None)
        case "random":
            return Said("prefer", luck.choice((0, 1)), luck.choice((1, 2, 3)), seconds, None)
        case "tiring" if nth >= TIRES_AFTER:
            return Said("prefer", luck.choice((0, 1)), 2, round(max(0.5, read_s / 3), 1), None)
        case "pasting":
            longer = 0 if len(question.answers[0]) > len(question.answers[1]) else 1
            answer = longer if luck.random() < 0.9 else 1 - longer
            return Said("prefer", answer, 2, seconds, luck.choice(CHATBOT).format("AB"[shown.index(answer)]))
        case "colluding":
            with whispers.lock:
                heard = whispers.told.setdefault(question.prompt, _read(member, question, seconds, luck))
            return Said(heard.verdict, heard.answer, heard.strength, seconds, None)
    return _read(member, question, seconds, luck)


def _read(member: Member, question: Question, seconds: float, luck: random.Random) -> Said:
    """Somebody who reads. Difficulty belongs to the question: some are hard for everybody."""
    ease = 0.4 + 1.2 * random.Random(f"difficulty/{question.prompt}").random()
    difference = member.sharpness * ease * (-question.gap if question.misleading else question.gap)
    if abs(difference) < 0.8 and luck.random() < 0.4:
        return Said("tie", None, None, seconds, None)
    answer = 0 if luck.random() < 1 / (1 + math.exp(-difference)) else 1
    strength = min(3, max(1, round(1 + min(2.0, abs(difference) / 3) + luck.gauss(0, 0.5))))
    return Said("prefer", answer, strength, seconds, _remark(question, answer, luck))


def _remark(question: Question, answer: int, luck: random.Random) -> str | None:
    """What one in eight says of it; words of its own, and now and then a quotation."""
    if luck.random() > 0.12:
        return None
    words = question.answers[answer].split()
    if luck.random() < 0.2:
        return f'I like "{" ".join(words[:8])}" here.'
    parts = (
        luck.choice(_THOUGHTS),
        luck.choice(words),
        luck.choice(_THOUGHTS),
        luck.choice(words),
        luck.choice(_THOUGHTS),
    )
    return " ".join(parts)


# --- over HTTP --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worked:
    """How many answers each gave, and who was paused on the way."""

    n_answers: Mapping[str, int]
    paused: frozenset[str]


def work(
    base_url: str,
    keys: Mapping[str, str],
    members: Sequence[Member],
    asked: Sequence[Question],
    seed: int,
    on_done: Callable[[int], None] | None = None,
) -> Worked:
    """Everybody (a thread, a key of their own) leases and answers until nothing is left to lend, or the project pauses them.

    A question is known by its prompt. Raises KeyError where the queue holds one that is not in `asked`.
    """
    by_prompt = {one.prompt: one for one in asked}
    whispers, lock, total = Whispers(), threading.Lock(), 0

    def one(member: Member) -> tuple[int, bool]:
        nonlocal total
        with Plaudit(base_url, keys[member.name]) as client:
            nth = 0
            while True:
                try:
                    loan = client.annotation.lease()
                except Forbidden:
                    return nth, True
                if loan is None:
                    return nth, False
                _reply(client, member, by_prompt[str(loan["messages"][-1]["content"])], loan, nth, seed, whispers)
                nth += 1
                with lock:
                    total += 1
                    if on_done is not None:
                        on_done(total)

    with ThreadPoolExecutor(max_workers=len(members)) as pool:
        done = list(pool.map(one, members))
    names = [member.name for member in members]
    return Worked(
        {name: n for name, (n, _) in zip(names, done, strict=True)},
        frozenset(name for name, (_, paused) in zip(names, done, strict=True) if paused),
    )


def _reply(
    client: Plaudit,
    member: Member,
    question: Question,
    loan: Mapping[str, Any],
    nth: int,
    seed: int,
    whispers: Whispers,
) -> None:
    left = question.answers.index(loan["responses"][0]["text"])
    luck = random.Random(f"{seed}/{member.name}/{question.prompt}")
    said = decide(member, question, (left, 1 - left), nth, luck, whispers)
    place = None if said.answer is None else 0 if said.answer == left else 1
    client.annotation.answer(
        loan["lease_id"],
        verdict=said.verdict,
        choice=None if place is None else loan["responses"][place]["id"],
        strength=said.strength,
        seconds=said.seconds,
        note=said.note,
    )
