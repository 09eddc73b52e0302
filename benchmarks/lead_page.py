"""How long the lead's page takes: `python benchmarks/lead_page.py [--annotators 64] [--questions 5000]`.

A project with three answers to each question, 2 % gold, one criterion on a tenth of the questions, on SQLite in a temporary folder. The page
is asked for over the application itself (no socket), after a first request that loads what is loaded once. Prints wall and processor
milliseconds of a request; exits with 1 where the median wall time is 300 ms or more.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from starlette.testclient import TestClient

from plaudit.domain import (
    DEFAULT_PROJECT,
    Annotation,
    Comparison,
    ComparisonState,
    Person,
    Purpose,
    Verdict,
    new_id,
    utc_now,
)
from plaudit.loop import govern, people
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store
from plaudit.web.app import create_app

OVERLAP, GOLD, DISAGREE = 3, 0.02, 0.2
BOUND_MS = 300
NEWEST = datetime(2026, 6, 1, tzinfo=UTC)


def fill(store: Store, n_people: int, n_questions: int, seed: int = 0) -> None:
    draw, about = random.Random(seed), {"project_id": DEFAULT_PROJECT}
    crowd = [Person(id=new_id(Person), name=f"Annotator {at}", created_at=NEWEST, **about) for at in range(n_people)]
    store.add(*crowd)
    for start in range(0, n_questions, 2000):
        rows: list[object] = []
        for at in range(start, min(start + 2000, n_questions)):
            when = NEWEST - timedelta(minutes=5 * (n_questions - at))
            gold = draw.random() < GOLD
            answered = at < 0.95 * n_questions
            ids = (f"res_{at}a", f"res_{at}b")
            asked = Comparison(
                id=new_id(Comparison), **about, interaction_id=None, purpose=Purpose.GOLD if gold else Purpose.TRAINING,
                messages=({"role": "user", "content": f"Question {at}? " + "words " * 60},), family=str(at), response_ids=ids,
                overlap=OVERLAP, batch=f"week {at // 3000}", gold_choice=ids[0] if gold else None,
                state=ComparisonState.OPEN if gold or not answered else ComparisonState.CLOSED, created_at=when,
            )  # fmt: skip
            rows.append(asked)
            for person in draw.sample(crowd, OVERLAP if answered else 1):
                choice = ids[draw.random() < DISAGREE]
                for criterion in ("overall", "tone") if at % 10 == 0 else ("overall",):
                    given = Annotation(
                        id=new_id(Annotation), **about, comparison_id=asked.id, annotator_id=person.id, guideline_id=None,
                        criterion=criterion, verdict=Verdict.PREFER, choice=choice, order=draw.choice((ids, ids[::-1])),
                        seconds=draw.uniform(2, 60), reasons=("more correct",), created_at=when,
                    )  # fmt: skip
                    rows.append(given)
        store.add(*rows)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--annotators", type=int, default=64)
    options.add_argument("--questions", type=int, default=5000)
    options.add_argument("--requests", type=int, default=10)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder))
        store = open_store(settings.database_url)
        govern.ensure_project(store, utc_now())
        fill(store, given.annotators, given.questions)
        secret = people.invite(store, DEFAULT_PROJECT, "Lea", ("lead",), utc_now())[2]
        with TestClient(
            create_app(settings, store), base_url="http://127.0.0.1", headers={"accept": "text/html"}
        ) as client:
            client.post("/sign-in", data={"invitation": secret}, headers={"sec-fetch-site": "same-origin"})
            took = []
            for _ in range(given.requests + 1):
                wall, cpu = time.perf_counter(), time.process_time()
                page = client.get("/annotation")
                took.append(((time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000))
                assert page.status_code == 200, page.text
        n = store.count(Annotation)
        store.close()
    walls, cpus = zip(*took[1:], strict=True)
    print(
        f"{given.annotators} annotators, {given.questions:,} questions, {n:,} annotations, page of {len(page.content) / 1000:.0f} kB"
    )
    print(
        f"{given.requests} requests after the first: wall ms {median(walls):.0f} (greatest {max(walls):.0f}), processor ms {median(cpus):.0f}"
    )
    return int(median(walls) >= BOUND_MS)


if __name__ == "__main__":
    sys.exit(main())
