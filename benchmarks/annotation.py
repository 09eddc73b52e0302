"""Many annotators at once on one store: is anything lent twice, given beyond its overlap, or stuck after clients died; and how long from an
answer to the next question.

    python benchmarks/annotation.py --questions 5000 --people 64 [--store postgresql://...]

Threads, each an annotator who answers as fast as the store lets them; in the first round one answer in fifty ends a client with its lease
in hand. Then all leases expire and everybody comes back. Exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from plaudit.domain import Annotation, Comparison, ComparisonState, EvaluationItem, Lease, Purpose, ResponseText
from plaudit.errors import Unavailable
from plaudit.loop import annotate, govern, planning
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def plan(store: Store, project_id: str, n: int) -> None:
    items = [
        EvaluationItem(
            messages=({"role": "user", "content": f"question {i}"},),
            family=f"family {i}",
            first=ResponseText("first"),
            second=ResponseText("second"),
            first_checkpoint_id=None,
            second_checkpoint_id=None,
        )
        for i in range(n)
    ]
    made = planning.plan_evaluation(store, project_id, items, batch="bench", overlap=3, now=NOW)
    with store.write() as tx:
        for one in made:
            tx.change(Comparison, one.id, purpose=Purpose.TRAINING)


def work(
    store: Store, project_id: str, person: str, now: datetime, deadly: bool, took: list[float], errors: list[Exception],
    later: list[Unavailable],
) -> None:  # fmt: skip
    draw = random.Random(person)

    def patiently(act: Callable[..., Any], *arguments: object) -> Any:
        """As a client that is told 503: the store did nothing, and is asked again after the pause it names."""
        while True:
            try:
                return act(store, project_id, person, *arguments)
            except Unavailable as error:
                later.append(error)
                time.sleep(error.retry_after_s)

    try:
        loan = patiently(annotate.lend, 120, now)
        while loan is not None:
            if deadly and draw.random() < 0.02:
                return
            started = time.perf_counter()
            body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": loan.lease.order[0], "seconds": 1.0}
            patiently(annotate.answer, body, now)
            loan = patiently(annotate.lend, 120, now)
            took.append(time.perf_counter() - started)
    except Exception as error:
        errors.append(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=5000)
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--store", default="", help="URL of an empty store; default: SQLite in a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(given.store or f"sqlite:///{folder}/store.sqlite")
        project = govern.ensure_project(store, NOW)
        plan(store, project.id, given.questions)
        crowd = [govern.person(store, project.id, f"annotator {n}", NOW).id for n in range(given.people)]
        took: list[float] = []
        errors: list[Exception] = []
        later: list[Unavailable] = []
        started = time.perf_counter()
        for hour in range(2):
            now = NOW + timedelta(hours=hour)
            threads = [
                threading.Thread(target=work, args=(store, project.id, who, now, hour == 0, took, errors, later))
                for who in crowd
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        seconds = time.perf_counter() - started
        answers, leases = store.find(Annotation), store.find(Lease)
        by_question = Counter(one.comparison_id for one in answers)
        lent = Counter((one.comparison_id, one.annotator_id, one.created_at) for one in leases)
        broken = {
            "errors": len(errors),
            "lent twice to one annotator": sum(n > 1 for n in lent.values()),
            "beyond the overlap": sum(n > 3 for n in by_question.values()),
            "stuck": given.questions - store.count(Comparison, state=ComparisonState.CLOSED),
        }
        store.close()
    cuts = statistics.quantiles(took, n=100)
    print(
        f"{len(answers)} answers by {given.people} annotators in {seconds:.0f} s; {len(leases) - len(answers)} leases died"
    )
    print(
        f"answer to next question: median {cuts[49] * 1000:.1f} ms, p95 {cuts[94] * 1000:.1f} ms (all {given.people} at once)"
    )
    print(f"told to come again: {len(later)} times")
    print(", ".join(f"{what}: {n}" for what, n in broken.items()))
    for said, n in Counter(f"{type(error).__name__}: {error}" for error in errors).most_common(5):
        print(f"  {n} times {said[:300]}")
    return int(any(broken.values()))


if __name__ == "__main__":
    sys.exit(main())
