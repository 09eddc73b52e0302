"""Who is found among simulated annotators, and who is accused without reason; and whether audits see the topic where the majority is wrong.

    python benchmarks/annotators.py [--crowds 50] [--questions 1500] [--seed 0] [--audited 0.1]

Every crowd answers twice: with gold, and where nobody is checked by known answers (the signs alone). Each has 20 annotators (13 honest, 3 who
do not read, one who tires, two who collude, one who pastes), questions at overlap 3 of which about a tenth mislead whoever reads, 60 gold
questions (10 first, then 7 of 100), an expert who is right 19 times of 20 on a random tenth (`--audited`). In process: who is asked what is drawn
here, while what people say (`crowds.decide`), who is paused (`quality.gold_fault`), the signs (`stats.conduct`) and the audit
(`stats.audits`) are what the product runs. `plaudit simulate annotators` drives the same people over HTTP.

An honest annotator is accused where any sign names them, or gold pauses them. Exits with 1 where, in either column, more than 1 of 100 honest
are accused, under 95 of 100 of those who click at random or on one side are found, or a misleading topic is missed in more than 5 of 100
crowds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from plaudit import crowds
from plaudit.crowds import HONEST, LAZY, Member, Question, Said, Whispers
from plaudit.loop import quality
from plaudit.loop.conduct import unquoted
from plaudit.simulate import load_population, load_prompts
from plaudit.stats import audits, conduct
from plaudit.stats.aggregate import Votes, dawid_skene
from plaudit.stats.intervals import Interval, wilson

N_GOLD, OVERLAP, EXPERT_RIGHT = 60, 3, 0.95
TIE = 2
OTHERS = ("tiring", "colluding", "pasting")


@dataclass
class Played:
    """One crowd's answers. rows: (item, member, side 0 / 1 / tie, side shown first, what was said); items from len(asked) on are gold."""

    members: list[Member]
    asked: list[Question]
    gold: list[Question]
    rows: list[tuple[int, int, int, int, Said]] = field(default_factory=list)
    paused: dict[int, str] = field(default_factory=dict)


def play(seed: int, n_questions: int, with_gold: bool = True) -> Played:
    """A crowd answers until the questions have their votes or nobody is left who may."""
    population, prompts = load_population("support"), load_prompts("support")
    luck = random.Random(f"play/{seed}")
    pool = crowds.questions(population, prompts, n_questions + 6 * N_GOLD * with_gold, seed)
    asked = pool[:n_questions]
    # Gold is made of what everybody agreed on, so of clear questions.
    clear = [one for one in pool[n_questions:] if not one.misleading and abs(one.gap) > 0.25][:N_GOLD]
    played = Played(crowds.crowd(seed), asked, clear)
    whispers, given = Whispers(), Counter[int]()
    right: dict[int, list[bool]] = defaultdict(list)
    left = {m: luck.sample(range(len(clear)), len(clear)) for m in range(len(played.members))}
    open_items = {m: luck.sample(range(n_questions), n_questions) for m in range(len(played.members))}
    n_votes = [0] * n_questions
    active = list(range(len(played.members)))
    while active:
        m = luck.choice(active)
        onboarding = len(right[m]) < quality.ONBOARDING
        if left[m] and (onboarding or luck.random() < quality.DEFAULT_RULES.gold_fraction):
            item = n_questions + left[m].pop()
        else:
            while open_items[m] and n_votes[open_items[m][-1]] >= OVERLAP:
                open_items[m].pop()
            if not open_items[m]:
                active.remove(m)
                continue
            item = open_items[m].pop()
            n_votes[item] += 1
        question = asked[item] if item < n_questions else clear[item - n_questions]
        shown = luck.choice(((0, 1), (1, 0)))
        said = crowds.decide(played.members[m], question, shown, given[m], luck, whispers)
        given[m] += 1
        played.rows.append((item, m, TIE if said.answer is None else said.answer, shown[0], said))
        if item >= n_questions:
            right[m].append(said.answer == question.better)
            if (why := quality.gold_fault(right[m])) is not None:
                played.paused[m] = why
                active.remove(m)
    return played


def judge(played: Played, seed: int, audited: float) -> tuple[list[conduct.Sign], list[audits.SliceAudit]]:
    """What the product says of this crowd."""
    n = len(played.asked)
    item, member, label, first = (np.array([row[at] for row in played.rows]) for at in range(4))
    votes = Votes(item, member, label, 3, first)
    known = {n + at: one.better for at, one in enumerate(played.gold) if n + at < votes.n_items}
    questions = [*played.asked, *played.gold]
    signs = conduct.signs(
        conduct.Ballots(
            votes=votes,
            seconds=np.array([row[4].seconds for row in played.rows]),
            words=np.array([sum(len(text.split()) for text in questions[row[0]].answers) for row in played.rows]),
            strength=np.array([row[4].strength or 0 for row in played.rows]),
            notes=[unquoted(row[4].note, questions[row[0]].answers) for row in played.rows],
            gold=known,
        )
    )
    luck = random.Random(f"expert/{seed}")
    posterior = dawid_skene(votes, known or None).posterior
    looked_at = [at for at in range(n) if luck.random() < audited]
    decisions = [
        q.better if luck.random() < EXPERT_RIGHT else 1 - q.better for q in (played.asked[at] for at in looked_at)
    ]
    overturned = [
        (0 if posterior[at, 0] > posterior[at, 1] else 1) != said for at, said in zip(looked_at, decisions, strict=True)
    ]
    return signs, audits.by_slice([[f"topic: {played.asked[at].topic}"] for at in looked_at], overturned)


@dataclass
class Tally:
    """Counts over crowds, by behaviour: how many there were, were named (by a sign or by gold), were paused by gold; and which signs."""

    crowds: int = 0
    of: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    paused_by_gold: Counter[str] = field(default_factory=Counter)
    signs: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wrong_topic_flagged: int = 0  # crowds
    other_topic_flagged: int = 0

    def share(self, behaviours: Iterable[str]) -> Interval:
        """Named, of all of these behaviours."""
        return wilson(sum(self.named[one] for one in behaviours), sum(self.of[one] for one in behaviours))


def tally(n_crowds: int, n_questions: int, with_gold: bool = True, first_seed: int = 0, audited: float = 0.1) -> Tally:
    told = Tally()
    for seed in range(first_seed, first_seed + n_crowds):
        played = play(seed, n_questions, with_gold)
        signs, slices = judge(played, seed, audited)
        wrong = {f"topic: {one.topic}" for one in played.asked if one.misleading}
        told.crowds += 1
        told.wrong_topic_flagged += any(one.flagged and one.name in wrong for one in slices)
        told.other_topic_flagged += any(one.flagged and one.name not in wrong for one in slices)
        for at, member in enumerate(played.members):
            mine = {one.kind for one in signs if one.worker == at}
            told.of[member.behaviour] += 1
            told.named[member.behaviour] += bool(mine) or at in played.paused
            told.paused_by_gold[member.behaviour] += at in played.paused
            told.signs[member.behaviour].update(mine)
        if sys.stderr.isatty():
            print(f"\r{told.crowds} of {n_crowds} crowds", end="", file=sys.stderr)
    return told


def show(title: str, told: Tally) -> None:
    print(f"{title}:")
    print(f"{'behaviour':<12}{'n':>6}{'named':>8}{'share':>8}  {'95 %':<16}{'by gold':>8}  signs")
    for behaviour in (*HONEST, *LAZY, *OTHERS):
        rate, n = told.share([behaviour]), told.of[behaviour]
        signs = ", ".join(f"{kind} {count}" for kind, count in sorted(told.signs[behaviour].items()))
        counts = f"{n:>6}{told.named[behaviour]:>8}{rate.mean:>8.3f}  [{rate.low:.3f}, {rate.high:.3f}]"
        print(f"{behaviour:<12}{counts:<38}  {told.paused_by_gold[behaviour]:>8}  {signs}")


def table(columns: dict[str, Tally]) -> str:
    """The two side by side, as RESULTS.md has them."""

    def share(told: Tally, behaviours: Iterable[str]) -> str:
        rate = told.share(behaviours)
        return f"{sum(told.named[one] for one in behaviours)} of {rate.n} [{rate.low:.3f}, {rate.high:.3f}]"

    def topics(told: Tally) -> str:
        return f"{told.wrong_topic_flagged} of {told.crowds}, {told.other_topic_flagged}"

    def others(told: Tally) -> str:
        return ", ".join(f"{told.named[one]} of {told.of[one]}" for one in OTHERS)

    rows = {
        "honest people accused": [share(told, HONEST) for told in columns.values()],
        "spammers and left-clickers found": [share(told, LAZY) for told in columns.values()],
        "topic where the majority is wrong flagged, another one": [topics(told) for told in columns.values()],
        "tiring, colluding, pasting people named": [others(told) for told in columns.values()],
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    return "\n".join([*lines, *(f"| {what} | " + " | ".join(cells) + " |" for what, cells in rows.items())])


def fails(told: Tally) -> bool:
    accused, found = told.share(HONEST), told.share(LAZY)
    return accused.mean > 0.01 or found.mean < 0.95 or told.wrong_topic_flagged < 0.95 * told.crowds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crowds", type=int, default=50)
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0, help="of the first crowd")
    parser.add_argument("--audited", type=float, default=0.1, help="share of the questions that an expert looks at")
    given = parser.parse_args()
    columns = {
        title: tally(given.crowds, given.questions, with_gold, given.seed, given.audited)
        for title, with_gold in (("with gold", True), ("without gold", False))
    }
    for title, told in columns.items():
        show(title, told)
    print(table(columns))
    print(json.dumps({title: vars(told) for title, told in columns.items()}))
    return int(any(fails(told) for told in columns.values()))


if __name__ == "__main__":
    sys.exit(main())
