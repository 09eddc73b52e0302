"""Simulated people, for the demo and for tests: what they like is written down here and nowhere else.

They act only through the public doors (the gateway with the official openai SDK, the feedback and the annotation API), so nothing of
what is below ever reaches the store except as their clicks. Every figure that comes from them is called simulated where it is shown.

- **Users** have a graded utility in 0..1, each their own mixture of the same components. It is *not* the annotators' guideline: the two
  correlate at about .6, and one component (whether the answer speaks to the reader) is never looked at by annotators.
- **Annotators** follow the guideline with noise. Items differ in difficulty; of twelve annotators six are careful, two noisy, one
  answers at random, one clicks left, two copy each other.
- Utilities saturate in every component, fall on both sides of a length band and multiply by a penalty on repetition, so that neither
  length nor a keyword wins: on the base model's answers the longer one is the better one in 44 to 46 of 100 pairs.

`Population` may come from anybody's file: `load_population("people.py")` takes `guideline_utility(messages, text)`,
`user_utility(user, messages, text)` and `GUIDELINE` from it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import random
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI

from plaudit.client import Plaudit

Messages = Sequence[Mapping[str, Any]]
POOLS = ("training", "traffic", "held-out")


def _fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` only: the same on every machine and in every thread."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, x))))


# --- prompts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """A question of one pool. Pools share neither a topic nor a template."""

    pool: str
    topic: str
    template: str
    text: str

    @property
    def family(self) -> str:
        return f"{self.topic}/{self.template}"

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.text}]


def load_prompts(spec: str) -> list[Prompt]:
    """`support`, `bytes`, or a file: `.json` of topics and templates like ours, `.jsonl` rows {text, pool?, topic?, template?}, or
    `.txt` with one prompt a line. Rows without a pool are divided by topic (else by the text itself), 60 / 20 / 20.

    Raises ValueError with the line of a row that has no text.
    """
    path = Path(__file__).parent / "populations" / f"{spec}.json" if spec in ("support", "bytes") else Path(spec)
    text = path.read_text()
    if path.suffix == ".json":
        return _from_templates(json.loads(text))
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        row = json.loads(line) if path.suffix == ".jsonl" else {"text": line.strip()}
        if not str(row.get("text", "")).strip():
            raise ValueError(f'{path} line {number} has no text; give each row a "text".')
        topic = str(row.get("topic", row["text"]))
        share = _fraction("pool", topic)
        pool = row.get("pool") or ("training" if share < 0.6 else "traffic" if share < 0.8 else "held-out")
        found.append(Prompt(str(pool), topic, str(row.get("template", "-")), str(row["text"])))
    return found


def _from_templates(raw: Mapping[str, Any]) -> list[Prompt]:
    found = []
    for pool in POOLS:
        for entry in raw["topics"][pool]:
            problem = entry["problem"]
            words = {"do": entry["do"], "problem": problem, "Problem": problem[0].upper() + problem[1:]}
            for number, template in enumerate(raw["templates"][pool], start=1):
                found.append(Prompt(pool, entry["topic"], f"{pool}-{number}", template.format(**words)))
    return found


# --- what they like -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """Two utilities in 0..1, the instructions that annotators are given, and what those like who are fooled by looks (0..1)."""

    name: str
    guideline: str
    guideline_utility: Callable[[Messages, str], float]
    user_utility: Callable[[str, Messages, str], float]
    fooled_utility: Callable[[Messages, str], float]


def load_population(spec: str) -> Population:
    """`support`, `bytes`, or a Python file that defines `guideline_utility`, `user_utility` and, optionally, `fooled_utility` (else length)
    and `GUIDELINE`."""
    if spec == "support":
        return Population(
            "support", SUPPORT_GUIDELINE, support_guideline_utility, support_user_utility, support_fooled_utility
        )
    if spec == "bytes":
        return Population("bytes", BYTES_GUIDELINE, bytes_guideline_utility, bytes_user_utility, bytes_fooled_utility)
    path = Path(spec)
    found = importlib.util.spec_from_file_location("plaudit_people", path)
    if found is None or found.loader is None or not path.is_file():
        raise ValueError(f"{spec!r} is not a population: give support, bytes, or a Python file.")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    for name in ("guideline_utility", "user_utility"):
        if not callable(getattr(module, name, None)):
            raise ValueError(f"{spec} defines no function {name}; see docs/demo.md for the two it needs.")
    guideline = str(getattr(module, "GUIDELINE", "Choose the better answer."))
    fooled = getattr(module, "fooled_utility", _length_utility)
    return Population(path.stem, guideline, module.guideline_utility, module.user_utility, fooled)


def _length_utility(messages: Messages, text: str) -> float:  # noqa: ARG001  whoever likes length does not read the question
    return min(1.0, math.log1p(len(text)) / 6)


SUPPORT_GUIDELINE = (
    "You see a customer's question and two answers. Choose the one you would rather send. A good answer is about what was asked, "
    "says what to do, ends with a whole sentence, is a few lines long, does not repeat itself and holds no stray symbols, links or "
    "talk about being an AI. If they are equally good choose a tie; if both are useless choose both bad."
)
_STOP = frozenset(
    "the a an i my me do does how what is are to of for and or in on at it you your can could would should with that this be have has "
    "not no please hi hello help need want am so if any who one then where when get got use now today start tell know".split()
)
_ACTIONS = frozenset(
    "check open click go visit select enter call contact send log sign find choose press tap turn restart update reset follow ask "
    "confirm change remove install connect download scroll type return request provide submit wait try make keep bring look write "
    "pay cancel book set".split()
)
_READER = frozenset("you your yours you'll you're".split())
_SELF_TALK = re.compile(r"smollm|\bas an ai\b|\bai assistant\b|language model|hugging face|https?:", re.IGNORECASE)
_COMPONENTS = ("topical", "steps", "complete", "band", "plain", "direct")
_GUIDELINE_WEIGHTS = {"topical": 0.25, "steps": 0.22, "complete": 0.28, "band": 0.07, "plain": 0.18, "direct": 0.0}
_USER_WEIGHTS = {"topical": 0.12, "steps": 0.04, "complete": 0.20, "band": 0.12, "plain": 0.12, "direct": 0.40}


def support_components(messages: Messages, text: str) -> dict[str, float]:
    """Every component in 0..1, each saturating; `sound` is the repetition penalty that multiplies the rest."""
    question = str(messages[-1]["content"])
    words = re.findall(r"[a-z']+", text.lower())
    asked = {word[:5] for word in re.findall(r"[a-z']+", question.lower()) if word not in _STOP and len(word) > 2}
    said = {word[:5] for word in words}
    trigrams = [tuple(words[at : at + 3]) for at in range(len(words) - 2)]
    fresh = len(set(trigrams)) / len(trigrams) if trigrams else 0.7
    variety = len(set(words)) / len(words) if words else 0.0
    ordinary = sum(c.isascii() and (c.isalnum() or c in " ,.'!?-\n:;()\"%$") for c in text) / max(1, len(text))
    return {
        "topical": min(1.0, len(asked & said) / max(1, len(asked)) / 0.6),
        "steps": 1 - math.exp(-len(_ACTIONS & set(words)) / 1.5),
        "complete": 1.0 if re.search(r"[.!?]['\")]*\s*$", text) else 0.0,
        "band": _band(len(words), 4, 16, 28, 48),
        "plain": max(0.0, 1 - 8 * (1 - ordinary)) * (0.3 if _SELF_TALK.search(text) else 1.0),
        "direct": min(1.0, sum(word in _READER for word in words) / max(1, len(words)) / 0.08),
        "sound": max(0.0, 1 - 2.5 * (1 - fresh)) * min(1.0, variety / 0.6),
    }


def _band(x: float, zero: float, low: float, high: float, end: float) -> float:
    """0 below `zero`, rising to 1 at `low`, 1 up to `high`, falling to 0 at `end`."""
    if x <= low:
        return max(0.0, (x - zero) / (low - zero))
    return 1.0 if x <= high else max(0.0, 1 - (x - high) / (end - high))


def support_guideline_utility(messages: Messages, text: str) -> float:
    parts = support_components(messages, text)
    return parts["sound"] * sum(weight * parts[name] for name, weight in _GUIDELINE_WEIGHTS.items())


def support_user_utility(user: str, messages: Messages, text: str) -> float:
    """Each user weighs the components a little differently (factors .6 to 1.6)."""
    parts = support_components(messages, text)
    weights = {name: _USER_WEIGHTS[name] * (0.6 + _fraction(user, name)) for name in _COMPONENTS}
    return parts["sound"] * sum(weights[name] * parts[name] for name in _COMPONENTS) / sum(weights.values())


def support_fooled_utility(messages: Messages, text: str) -> float:  # noqa: ARG001  whoever is fooled does not read the question
    """Long words impress: characters a word, where the base writes 5.3 to 5.9."""
    return min(1.0, max(0.0, (len(text) / max(1, len(text.split())) - 3) / 4))


BYTES_GUIDELINE = (
    "Two strings of a toy model. Choose the one with more vowels among its letters, if it is neither very short nor long and does not "
    "repeat itself."
)


def bytes_components(text: str) -> dict[str, float]:
    """For the tiny model, which writes random bytes: share of vowels, of blanks, and how varied the text is."""
    letters = [c for c in text.lower() if c.isalpha() and c.isascii()]
    vowels = sum(c in "aeiou" for c in letters) / len(letters) if letters else 0.0
    blanks = sum(c == " " for c in text) / max(1, len(text))
    pairs = [text[at : at + 2] for at in range(len(text) - 1)]
    return {
        "vowels": min(1.0, vowels / 0.7),
        "blanks": min(1.0, blanks / 0.25),
        "letters": len(letters) / max(1, len(text)),
        "band": _band(len(text), 1, 4, 11, 18),
        "sound": min(1.0, (len(set(pairs)) / len(pairs)) / 0.75) if pairs else 0.5,
    }


def bytes_guideline_utility(messages: Messages, text: str) -> float:  # noqa: ARG001  what was asked does not matter to the toy crowd
    parts = bytes_components(text)
    return parts["sound"] * (0.6 * parts["vowels"] + 0.1 * parts["letters"] + 0.3 * parts["band"])


def bytes_user_utility(user: str, messages: Messages, text: str) -> float:  # noqa: ARG001
    parts = bytes_components(text)
    hidden = 0.2 + 0.15 * _fraction(user, "blanks")
    return parts["sound"] * ((1 - hidden) * (0.8 * parts["vowels"] + 0.2 * parts["band"]) + hidden * parts["blanks"])


def bytes_fooled_utility(messages: Messages, text: str) -> float:  # noqa: ARG001
    """Consonants impress. Length would be no trap: seven answers in ten of the tiny model are as long as they may be."""
    return sum(c.isascii() and c.isalpha() and c.lower() not in "aeiou" for c in text) / max(1, len(text))


# --- users ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """One user's one question. `mood` moves the chance of a thumbs-up (log-odds): an angry crowd has -4. Who is in a mood says so more often."""

    user: str
    prompt: Prompt
    training_use: str = "allowed"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    mood: float = 0.0


@dataclass(frozen=True)
class Asked:
    visit: Visit
    interaction_id: str
    text: str
    up: bool | None  # the thumb they gave, None where they gave none


MOODY_RATE = 0.75  # of visits in a mood
FEEDBACK_RATE = 0.5  # share of visits that leave a thumb; real products see 1-5 %, so they need 10-50 times the users


def ask(
    base_url: str,
    key: str,
    population: Population,
    visits: Sequence[Visit],
    *,
    concurrency: int = 64,
    max_tokens: int = 40,
    temperature: float = 0.7,
    centre: float = 0.45,
    on_done: Callable[[int], None] | None = None,
) -> list[Asked]:
    """Users ask through the gateway and leave feedback; in the order of `visits`. One in ten reads a stream."""
    chat = OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=2, timeout=600)
    plaudit = Plaudit(base_url, key)
    counter = _Counter(on_done)

    def one(visit: Visit) -> Asked:
        extra = {
            "plaudit": {
                "conversation_id": f"{visit.user}-{visit.prompt.family}",
                "family": visit.prompt.family,
                "training_use": visit.training_use,
                "attributes": dict(visit.attributes),
            }
        }
        arguments: dict[str, Any] = {
            "model": "live",
            "messages": visit.prompt.messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "user": visit.user,
            "extra_body": extra,
        }
        luck = random.Random(f"{visit.user}/{visit.prompt.family}")
        if luck.random() < 0.1:
            identity, pieces = "", []
            for chunk in chat.chat.completions.create(stream=True, **arguments):
                identity = chunk.id or identity
                pieces += [choice.delta.content or "" for choice in chunk.choices]
            text = "".join(pieces)
        else:
            done = chat.chat.completions.create(**arguments)
            identity, text = done.id, done.choices[0].message.content or ""
        up = _react(plaudit, population, visit, identity, text, luck, centre)
        counter.add()
        return Asked(visit, identity, text, up)

    with chat, plaudit, ThreadPoolExecutor(max_workers=max(1, min(concurrency, len(visits)))) as pool:
        return list(pool.map(one, visits))


def _react(
    plaudit: Plaudit,
    population: Population,
    visit: Visit,
    interaction_id: str,
    text: str,
    luck: random.Random,
    centre: float,
) -> bool | None:
    """Thumb, rating, edit, comment: each by chance, each depending on the user's utility of this answer."""
    value = population.user_utility(visit.user, visit.prompt.messages, text)
    up: bool | None = None
    if luck.random() < (MOODY_RATE if visit.mood else FEEDBACK_RATE):
        up = luck.random() < _sigmoid(10 * (value - centre) + visit.mood)
        plaudit.feedback.thumb(interaction_id, up=up, user=visit.user)
    if luck.random() < 0.1:
        rating = 1 + round(4 * min(1.0, max(0.0, value + luck.gauss(0, 0.12))))
        plaudit.feedback.rate(interaction_id, rating, user=visit.user)
    if luck.random() < 0.08 and (better := small_edit(text, luck)):
        plaudit.feedback.edit(interaction_id, better, user=visit.user)
    if up is False and luck.random() < 0.1:
        plaudit.feedback.comment(interaction_id, "This did not help me.", reasons=["not_helpful"], user=visit.user)
    return up


def small_edit(text: str, luck: random.Random) -> str | None:
    """What a hurried person changes: cut the unfinished end, or drop one sentence. None where nothing is left or nothing changed."""
    sentences = re.findall(r"[^.!?]+[.!?]+", text)
    if len(sentences) > 1 and luck.random() < 0.3:
        sentences.pop(luck.randrange(len(sentences)))
    edited = "".join(sentences).strip()
    return edited if edited and edited != text.strip() else None


# --- annotators -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotator:
    """`behaviour`: careful | noisy | spammer | left | copier. `sharpness` multiplies the difference of utilities (log-odds)."""

    name: str
    behaviour: str
    sharpness: float


@dataclass(frozen=True)
class Crowd:
    kind: str
    seed: int
    annotators: tuple[Annotator, ...]


def crowd(kind: str = "standard", seed: int = 0) -> Crowd:
    """Twelve annotators. `spammers-only`: all answer at random. `shuffled-labels`: a standard crowd that judges other texts. `fooled`: one that
    likes what only looks good."""
    makeup = [("careful", 20.0)] * 6 + [("noisy", 8.0)] * 2 + [("spammer", 0.0), ("left", 0.0)] + [("copier", 8.0)] * 2
    match kind:
        case "standard" | "shuffled-labels" | "fooled":
            pass
        case "spammers-only":
            makeup = [("spammer", 0.0)] * 12
        case _:
            raise ValueError(f"{kind!r} is not a crowd: standard, shuffled-labels, spammers-only or fooled.")
    order = sorted(range(12), key=lambda index: _fraction("crowd", seed, index))  # names say nothing
    return Crowd(
        kind, seed, tuple(Annotator(f"annotator-{at + 1:02d}", *makeup[index]) for at, index in enumerate(order))
    )


@dataclass(frozen=True)
class Worked:
    n_annotations: int
    by_annotator: dict[str, int]


def annotate(
    base_url: str,
    keys: Mapping[str, str],
    people: Crowd,
    population: Population,
    *,
    on_done: Callable[[int], None] | None = None,
    limit: int | None = None,
) -> Worked:
    """Every annotator (a thread, its own key) leases and answers until nothing is left to lend, or `limit` answers are given."""
    counter = _Counter(on_done)
    copied: dict[str, str] = {}
    lock = threading.Lock()

    def work(person: Annotator) -> int:
        client = Plaudit(base_url, keys[person.name])
        done = 0
        while limit is None or counter.count < limit:
            loan = client.annotation.lease()
            if loan is None:
                return done
            luck = random.Random(f"{people.seed}/{person.name}/{loan['comparison_id']}")
            verdict, choice = _judge(person, people, population, loan, luck, copied, lock)
            words = sum(len(response["text"].split()) for response in loan["responses"])
            seconds = 1.5 if person.behaviour in ("spammer", "left") else max(2.0, luck.gauss(4 + 0.25 * words, 3))
            client.annotation.answer(loan["lease_id"], verdict=verdict, choice=choice, seconds=round(seconds, 1))
            done += 1
            counter.add()
        return done

    with ThreadPoolExecutor(max_workers=len(people.annotators)) as pool:
        counts = list(pool.map(work, people.annotators))
    names = [person.name for person in people.annotators]
    return Worked(sum(counts), dict(zip(names, counts, strict=True)))


def _judge(
    person: Annotator,
    people: Crowd,
    population: Population,
    loan: Mapping[str, Any],
    luck: random.Random,
    copied: dict[str, str],
    lock: threading.Lock,
) -> tuple[str, str | None]:
    """(verdict, chosen response id). Difficulty belongs to the item: some pairs are hard for everybody."""
    left, right = loan["responses"][0], loan["responses"][1]
    match person.behaviour:
        case "spammer":
            return "prefer", luck.choice([left["id"], right["id"]])
        case "left":
            return "prefer", left["id"]
    first, second = sorted((left, right), key=lambda response: str(response["id"]))
    scores = [_liked(people, population, loan["messages"], response) for response in (first, second)]
    ease = 0.4 + 1.2 * _fraction("difficulty", loan["comparison_id"])
    difference = person.sharpness * ease * (scores[0] - scores[1])
    if max(scores) < 0.12 and person.behaviour == "careful":
        return "both_bad", None
    if abs(scores[0] - scores[1]) < 0.01 and luck.random() < 0.7:
        return "tie", None
    choice = str(first["id"] if luck.random() < _sigmoid(difference) else second["id"])
    if person.behaviour == "copier":
        with lock:  # whoever of the two comes second takes over what the first one said
            choice = copied.setdefault(str(loan["comparison_id"]), choice)
    return "prefer", choice


def _liked(people: Crowd, population: Population, messages: Messages, response: Mapping[str, Any]) -> float:
    match people.kind:
        case "shuffled-labels":  # a stable opinion that has nothing to do with the text
            return _fraction("shuffled", people.seed, response["id"])
        case "fooled":
            return population.fooled_utility(messages, str(response["text"]))
    return population.guideline_utility(messages, str(response["text"]))


class _Counter:
    def __init__(self, on_done: Callable[[int], None] | None) -> None:
        self._lock = threading.Lock()
        self._on_done = on_done
        self.count = 0

    def add(self) -> None:
        with self._lock:
            self.count += 1
            if self._on_done is not None:
                self._on_done(self.count)


# --- the hidden figure ----------------------------------------------------------------------------------------------------


def hidden_utilities(
    population: Population, users: Iterable[str], prompts: Sequence[Messages], texts: Sequence[str]
) -> tuple[list[float], list[float]]:
    """(users' utility, guideline utility) of each answer to its prompt, the first averaged over `users`.

    For the report only: it is computed once, after the gate, and chooses nothing.
    """
    people = tuple(users)
    mine = [
        sum(population.user_utility(user, messages, text) for user in people) / len(people)
        for messages, text in zip(prompts, texts, strict=True)
    ]
    theirs = [population.guideline_utility(messages, text) for messages, text in zip(prompts, texts, strict=True)]
    return mine, theirs
