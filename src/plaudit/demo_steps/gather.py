"""Steps 2 to 6: users ask, a second answer is drawn, annotators compare, their answers are joined and frozen.

Each finds by itself what is done already: an interaction is known by its user, a comparison by its interaction, a lease by its annotator.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plaudit import backends, simulate
from plaudit.demo_steps.house import APPLICATION, Demo
from plaudit.demo_steps.plan import OVERLAP
from plaudit.domain import (
    Comparison,
    ComparisonState,
    Completion,
    CompletionStatus,
    Feedback,
    Interaction,
    Json,
    Purpose,
    ResponseText,
    SnapshotRecord,
    TrainingUse,
    utc_now,
)
from plaudit.loop import annotate, planning, release
from plaudit.loop.asking import Asking
from plaudit.openai_protocol import Answer

Tell = Callable[[int, int], None]  # done, of
TURN = "turn-1"
GROUP = "group"  # the attribute that a user declares
GROUPS = ("new", "returning")


@dataclass(frozen=True)
class Gathered:
    """What steps 5 and 6 found."""

    report: Json  # an AggregateReport
    record: SnapshotRecord


def visits(
    demo: Demo, pool: str, prefix: str, n: int, *, denied_fraction: float = 0.0, mood: float = 0.0
) -> list[simulate.Visit]:
    """`n` users called `prefix-...`, each with one prompt of the pool, all different while the pool lasts. The same again for one seed."""
    prompts = demo.pool(pool)
    order: list[simulate.Prompt] = []
    luck = random.Random(f"{demo.options.seed}/{prefix}")
    while len(order) < n:
        order += luck.sample(prompts, len(prompts))
    return [
        simulate.Visit(
            user=f"{prefix}-{at:04d}",
            prompt=prompt,
            training_use=TrainingUse.DENIED if luck.random() < denied_fraction else TrainingUse.ALLOWED,
            attributes={GROUP: luck.choice(GROUPS)},
            mood=mood,
        )
        for at, prompt in enumerate(order[:n])
    ]


def ask(demo: Demo, planned: Sequence[simulate.Visit], tell: Tell) -> int:
    """Those who have not been answered yet ask now, over HTTP, and leave feedback. Returns how many asked."""
    answered = {one.id for one in demo.store.find(Completion, status=CompletionStatus.OK)}
    done = {one.actor for one in demo.store.find(Interaction, project_id=demo.project_id) if one.id in answered}
    left = [visit for visit in planned if visit.user not in done]
    tell(0, len(left))
    if left:
        simulate.ask(
            demo.settings.service_url,
            demo.keys[APPLICATION],
            demo.population,
            left,
            concurrency=demo.options.plan.concurrency,
            max_tokens=demo.options.plan.max_tokens,
            temperature=demo.options.plan.temperature,
            centre=demo.options.plan.demand,
            on_done=lambda count: tell(count, len(left)),
        )
    return len(left)


def ask_training(demo: Demo, tell: Tell) -> str:
    """Step 2."""
    plan = demo.options.plan
    ask(demo, visits(demo, "training", "user", plan.n_users, denied_fraction=plan.denied_fraction), tell)
    interactions = [one for one in demo.store.find(Interaction, project_id=demo.project_id) if _is(one, "user")]
    denied = sum(one.training_use is not TrainingUse.ALLOWED for one in interactions)
    known = {one.id for one in interactions}
    n_feedback = sum(one.interaction_id in known for one in demo.store.find(Feedback, project_id=demo.project_id))
    return (
        f"{len(interactions)} interactions ({denied} not for training), {n_feedback} pieces of feedback, all simulated"
    )


def _is(one: Interaction, prefix: str) -> bool:
    """Whether one of the users called `prefix-...` asked."""
    return (one.actor or "").startswith(f"{prefix}-")


def draw_second(demo: Demo, tell: Tell, *, prefix: str = "user", batch: str = TURN, most: int | None = None) -> str:
    """Step 3: one more answer of the live policy to each interaction that may be trained on, and a Comparison of the two."""
    asked = {one.interaction_id for one in demo.store.find(Comparison, project_id=demo.project_id, batch=batch)}
    wanted = [
        one
        for one in demo.store.find(Interaction, project_id=demo.project_id)
        if one.training_use is TrainingUse.ALLOWED and _is(one, prefix)
    ][:most]
    left = [one for one in wanted if one.id not in asked]
    live = release.live(demo.store, demo.project_id)
    tell(0, len(left))
    plan = demo.options.plan
    answers = backends.sample(
        live.upstream,
        live.model,
        [one.messages for one in left],
        concurrency=plan.concurrency,
        progress=lambda count: tell(count, len(left)),
        max_tokens=plan.max_tokens,
        temperature=plan.temperature,
        seed=demo.options.seed,
    )
    planned = planning.plan_comparisons(
        demo.store,
        demo.project_id,
        left,
        {one.id: [response_text(answer)] for one, answer in zip(left, answers, strict=True)},
        model=live.model,
        checkpoint_id=live.checkpoint_id,
        batch=batch,
        overlap=OVERLAP,
        asking=Asking(demo.settings.treatments, demo.settings.never_learnt),
        now=utc_now(),
    )
    skipped = ", ".join(f"{n} skipped: {why}" for why, n in planned.skipped.items())
    n = demo.store.count(Comparison, project_id=demo.project_id, batch=batch)
    return f"{n} comparisons" + (f" ({skipped})" if skipped else "")


def response_text(answer: Answer) -> ResponseText:
    choice = answer.choices[0]
    n_tokens = choice.n_tokens if choice.n_tokens is not None else answer.completion_tokens
    return ResponseText(choice.text, choice.finish_reason, choice.logprob, n_tokens)


def work_off(demo: Demo, crowd: simulate.Crowd, tell: Tell) -> int:
    """Simulated annotators answer over HTTP until nothing is left to lend. Returns how many answers they gave."""
    open_ones = demo.store.find(Comparison, project_id=demo.project_id, state=ComparisonState.OPEN)
    wanted = sum(one.overlap for one in open_ones)
    tell(0, wanted)
    if not open_ones:
        return 0
    keys = {person.name: demo.keys[person.name] for person in crowd.annotators}
    worked = simulate.annotate(
        demo.settings.service_url, keys, crowd, demo.population, on_done=lambda count: tell(count, wanted)
    )
    return worked.n_annotations


def annotate_training(demo: Demo, tell: Tell) -> str:
    """Step 4."""
    annotate.write_guideline(demo.store, demo.project_id, demo.population.guideline, utc_now())
    work_off(demo, demo.training_crowd, tell)
    closed = demo.store.find(
        Comparison, project_id=demo.project_id, purpose=Purpose.TRAINING, state=ComparisonState.CLOSED, batch=TURN
    )
    return f"{len(closed)} comparisons have their {OVERLAP} simulated answers each"


def describe_agreement(report: Json) -> str:
    agreement = report["agreement"]
    if not agreement:
        return f"{report['n_preferences']} preferences, no agreement to measure"
    raw, ac1 = agreement["raw"]["mean"], agreement["ac1"]["mean"]
    return f"{report['n_preferences']} preferences by {report['method']}; raw agreement {raw:.2f}, AC1 {ac1:.2f} (simulated)"


def counts_of(record: SnapshotRecord, table: str) -> Json:
    """{train, valid, test} of one table of the Snapshot."""
    found: Json = record.counts[table]
    return found


def describe_snapshot(record: SnapshotRecord) -> str:
    found = {table: counts_of(record, table) for table in ("preferences", "prompts")}
    parts = ", ".join(f"{sum(by_split.values())} {table}" for table, by_split in found.items())
    return f"snapshot {record.sha256[:12]}: {parts}"
