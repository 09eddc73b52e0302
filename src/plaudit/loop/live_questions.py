"""Questions about live traffic: what the live Release answered, against a second answer drawn now or rated alone. (`plaudit annotate plan`)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from plaudit import artifacts, backends
from plaudit.domain import ComparisonKind, Interaction, Json
from plaudit.errors import BadInput
from plaudit.loop import evaluate, next_questions, planning, release
from plaudit.loop.asking import Asking
from plaudit.stats.selection import RANDOM, Mix
from plaudit.store import annotation as waiting
from plaudit.store.database import Store

MAX_PLANNED = 5000
ALL_RANDOM = Mix()
NEWEST = 20_000  # interactions among which those to compare are drawn


def plan_traffic(
    store: Store,
    project_id: str,
    n: int,
    *,
    batch: str,
    overlap: int,
    kind: ComparisonKind = ComparisonKind.PAIRWISE,
    criteria: Sequence[str] = (),
    asking: Asking = planning.AS_IT_IS,
    mix: Mix = ALL_RANDOM,
    scorer: next_questions.Scorer | None = None,
    slice_by: str = "",
    now: datetime,
    progress: Callable[[int], None] | None = None,
) -> planning.Plan:
    """Training Comparisons about up to `n` interactions that the live Release answered: what the user was shown against a second answer,
    drawn now with the same decoding and a seed of its own; or with kind rating what the user was shown alone.

    Chosen at random (by a hash of id and time) among the newest that allow training and that no Comparison is about. With another `mix`
    second answers are drawn for OVERSAMPLE times as many, of which `next_questions.choose` takes `n`; each Comparison keeps the reason.
    `progress` hears the number of second answers so far. Raises BadInput, NotFound (nothing is live), UpstreamError.
    """
    if not 1 <= n <= MAX_PLANNED:
        raise BadInput(f"n is {n}; plan 1 to {MAX_PLANNED} comparisons at a time.")
    if kind is ComparisonKind.RATING and mix != ALL_RANDOM:
        raise BadInput(
            f"The mix is {mix}, but only questions about two answers are chosen by one; leave it out for ratings."
        )
    live = release.live(store, project_id)
    with store.read() as tx:
        pool = waiting.not_yet_compared(tx, project_id, live.id, NEWEST)
        n_drawn = n if mix == ALL_RANDOM else n * next_questions.OVERSAMPLE
        chosen = sorted(pool, key=lambda id: _luck(id, now))[:n_drawn]
        asked = tx.find(Interaction, id=chosen)
    if kind is ComparisonKind.RATING:
        return planning.plan_ratings(
            store, project_id, asked, batch=batch, overlap=overlap, criteria=criteria, asking=asking, now=now
        )
    criteria = planning.check_criteria(criteria)  # before answers are drawn for them
    requests = [_again(one, live.model, int(_luck(one.id, now)[:7], 16)) for one in asked]
    answers = backends.complete_many(live.upstream, requests, progress=progress)
    second = {one.id: [evaluate.response_text(answer)] for one, answer in zip(asked, answers, strict=True)}
    reasons = dict.fromkeys(second, RANDOM)
    if mix != ALL_RANDOM:
        with store.read() as tx:
            found = next_questions.candidates(tx, asked, [second[one.id][0].text for one in asked], slice_by)
            before = next_questions.asked_before(tx, project_id, slice_by) if mix.coverage else Counter[str]()
        luck = [int(_luck(one.interaction_id, now)[:13], 16) / 16**13 for one in found]
        reasons = next_questions.choose(n, mix, found, luck, before, scorer)
    plans = [
        planning.plan_comparisons(
            store,
            project_id,
            [one for one in asked if reasons.get(one.id) == reason],
            second,
            model=live.model,
            checkpoint_id=live.checkpoint_id,
            batch=batch,
            overlap=overlap,
            reason=reason,
            criteria=criteria,
            asking=asking,
            now=now,
        )
        for reason in dict.fromkeys(reasons.values())
    ]
    return planning.Plan(
        tuple(one for plan in plans for one in plan.comparisons),
        dict(sum((Counter(plan.skipped) for plan in plans), Counter[str]())),
        dict(sum((Counter(plan.found) for plan in plans), Counter[str]())),
    )


def _luck(id: str, now: datetime) -> str:
    return artifacts.sha256_of([id, now.isoformat()])


def _again(asked: Interaction, model: str, seed: int) -> Json:
    """The request that gives one more answer to an interaction, drawn as the first one was."""
    used = {name: value for name, value in asked.sampling.items() if value is not None}
    return {**used, "model": model, "messages": list(asked.messages), "n": 1, "seed": seed}
