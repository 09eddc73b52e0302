"""The steps of `plaudit simulate annotators`: traffic and answers go over HTTP; what a lead does (questions, gold, keys, audits) happens here."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from plaudit import crowds, simulate
from plaudit.client import Plaudit
from plaudit.crowds import HONEST, LAZY, Question
from plaudit.domain import Comparison, ComparisonState, Interaction, Json, ResponseText, ReviewKind, Verdict, utc_now
from plaudit.errors import Conflict
from plaudit.loop import annotate, conduct, govern, planning, quality, reviews
from plaudit.store.database import Store

Tell = Callable[[str, int, int], None]  # what, done, of
EXPERT_RIGHT = 0.95
CLEAR = 0.25  # the least difference of utilities in a gold question: gold is made of what everybody agrees on


@dataclass(frozen=True)
class Told:
    """rows: each annotator's name, behaviour, n_answers, paused and signs. flagged: slices, with name, overturned and n."""

    rows: tuple[Json, ...]
    n_lazy: int
    n_lazy_found: int
    n_honest: int
    n_honest_accused: int
    misleading: str
    n_audits: int
    n_misleading_audits: int
    flagged: tuple[Json, ...]


@dataclass(frozen=True)
class Stage:
    """Where it plays, and how much of it: `overlap` votes for each of `n_questions`, `n_gold` questions with a known answer beside them."""

    store: Store
    project_id: str
    url: str
    overlap: int
    n_questions: int
    n_gold: int
    n_people: int
    seed: int


def run(stage: Stage, tell: Tell) -> Told:
    """Raises Conflict where the project has open questions that are not ours, Unavailable where no service answers at `stage.url`."""
    if stage.store.first(Comparison, project_id=stage.project_id, state=ComparisonState.OPEN) is not None:
        raise Conflict("This project has open questions, which simulated people would answer; give a home of its own.")
    population, prompts = simulate.load_population("support"), simulate.load_prompts("support")
    pool = crowds.questions(population, prompts, stage.n_questions + 8 * stage.n_gold, stage.seed)
    clear = [one for one in pool[stage.n_questions :] if not one.misleading and abs(one.gap) > CLEAR][: stage.n_gold]
    asked = [*pool[: stage.n_questions], *clear]
    members = crowds.crowd(stage.seed, stage.n_people)
    annotate.write_guideline(stage.store, stage.project_id, population.guideline, utc_now())
    keys = {one.name: _key(stage, one.name, "annotator", f"simulated {one.name}") for one in members}
    _plan(stage, asked, {one.prompt for one in clear}, tell)
    expected = stage.n_questions * stage.overlap + stage.n_people * min(quality.ONBOARDING, len(clear))
    tell("annotators answer", 0, expected)
    worked = crowds.work(
        stage.url, keys, members, asked, stage.seed, lambda n: tell("annotators answer", n, max(n, expected))
    )
    n_audits, n_misleading_audits = _audit(stage, asked)
    signs: dict[str, list[str]] = defaultdict(list)
    for one in conduct.suspicions(stage.store, stage.project_id):
        signs[one.name.removeprefix("simulated ")].append(f"{one.kind}: {one.why}")
    rows: list[Json] = [
        {
            "name": one.name,
            "behaviour": one.behaviour,
            "n_answers": worked.n_answers[one.name],
            "paused": one.name in worked.paused,
            "signs": signs[one.name],
        }
        for one in members
    ]
    named = {row["name"] for row in rows if row["paused"] or row["signs"]}
    lazy, honest = ([one.name for one in members if one.behaviour in kinds] for kinds in (LAZY, HONEST))
    return Told(
        rows=tuple(rows),
        n_lazy=len(lazy),
        n_lazy_found=len(named & set(lazy)),
        n_honest=len(honest),
        n_honest_accused=len(named & set(honest)),
        misleading=next((f"topic: {one.topic}" for one in asked if one.misleading), "none"),
        n_audits=n_audits,
        n_misleading_audits=n_misleading_audits,
        flagged=tuple(
            {"name": one.name, "overturned": one.overturned.mean, "n": one.overturned.n}
            for one in conduct.audited(stage.store, stage.project_id)
            if one.flagged
        ),
    )


def _key(stage: Stage, name: str, role: str, person: str | None) -> str:
    return govern.create_key(stage.store, stage.project_id, f"simulated {name}", [role], person, now=utc_now())[1]


def _plan(stage: Stage, asked: list[Question], golden: set[str], tell: Tell) -> None:
    """An application logs the questions over HTTP; the lead asks about them, and makes gold of those whose answer is known."""
    by_prompt = {one.prompt: one for one in asked}
    ids = []
    with Plaudit(stage.url, _key(stage, "application", "application", None)) as client:
        for n, one in enumerate(asked, start=1):
            about = {"user": f"simulated-{n}", "training_use": "allowed", "attributes": {"topic": one.topic}}
            ids.append(
                client.log([{"role": "user", "content": one.prompt}], [one.answers[0]], model="simulated", **about)
            )
            tell("questions", n, len(asked))
    talks = [talk for at in range(0, len(ids), 500) for talk in stage.store.find(Interaction, id=ids[at : at + 500])]
    extra = {talk.id: [ResponseText(by_prompt[talk.messages[-1]["content"]].answers[1])] for talk in talks}
    planned = planning.plan_comparisons(
        stage.store,
        stage.project_id,
        talks,
        extra,
        model="simulated",
        batch=f"simulated-{stage.seed}",
        overlap=stage.overlap,
        now=utc_now(),
    )
    for comparison in planned.comparisons:
        prompt = comparison.messages[-1]["content"]
        if prompt in golden:
            choice = comparison.response_ids[by_prompt[prompt].better]
            quality.make_gold(stage.store, stage.project_id, comparison.id, choice, "simulated lead", utc_now())


def _audit(stage: Stage, asked: list[Question]) -> tuple[int, int]:
    """An expert, right EXPERT_RIGHT of the time, decides every audit that waits. Returns how many, and how many of them mislead."""
    by_prompt = {one.prompt: one for one in asked}
    expert = govern.person(stage.store, stage.project_id, "simulated expert", utc_now())
    luck = random.Random(f"expert/{stage.seed}")
    waiting = [one for one in reviews.waiting(stage.store, stage.project_id, expert.id) if one.kind is ReviewKind.AUDIT]
    n_misleading = 0
    for one in waiting:
        comparison = stage.store.first(Comparison, id=one.comparison_id)
        assert comparison is not None
        question = by_prompt[comparison.messages[-1]["content"]]
        n_misleading += question.misleading
        right = luck.random() < EXPERT_RIGHT
        reviews.decide(
            stage.store,
            stage.project_id,
            expert.id,
            one.id,
            verdict=Verdict.PREFER,
            choice=comparison.response_ids[question.better if right else 1 - question.better],
            confidence=3,
            error_class="none",
            note=None,
            now=utc_now(),
        )
    return len(waiting), n_misleading
