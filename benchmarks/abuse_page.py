"""How long the page of abuse takes: `python benchmarks/abuse_page.py [--rows 200000] [--actors 5000] [--requests 5]`.

A week of feedback of simulated users on SQLite in a temporary folder: each piece on an answer of its own at a random moment, and beside them
eight users of each kind that the page finds (bursts, clicks, repeats) and eight brigades. The page of a week and of a day is asked for over
the application itself (no socket), after a first request that loads what is loaded once. Prints wall and processor milliseconds of a request;
exits with 1 where the median processor time of a day, with which the page opens, is 300 ms or more.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from statistics import median

from starlette.testclient import TestClient

from plaudit.domain import DEFAULT_PROJECT, Feedback, FeedbackKind, new_id, utc_now
from plaudit.loop import govern, people
from plaudit.settings import Settings
from plaudit.stats.abuse import BURST_ACTS, CLICKS, CROWD, REPEATS
from plaudit.store.database import Store, open_store
from plaudit.web.app import create_app

EACH = 8  # suspects of a kind
BOUND_MS = 300
WEEK_S = 7 * 86_400.0
Said = tuple[float, str, str]  # seconds into the week, who, about what


def said(n_rows: int, n_actors: int, seed: int = 0) -> Iterator[Said]:
    draw = random.Random(seed)
    for nth in range(EACH):
        start = draw.uniform(0, WEEK_S - 3600)
        yield from ((start + 3 * at, f"burst-{nth}", f"int_burst_{nth}_{at}") for at in range(BURST_ACTS + 1))
        yield from ((start + 0.5 * at, f"clicks-{nth}", f"int_clicks_{nth}_{at}") for at in range(CLICKS + 1))
        yield from ((start + 60 * at, f"repeats-{nth}", f"int_repeats_{nth}") for at in range(REPEATS + 2))
        yield from ((start + 60 * at, f"crowd-{nth}-{at}", f"int_brigade_{nth}") for at in range(CROWD))
    for at in range(n_rows):
        yield draw.uniform(0, WEEK_S), f"user-{draw.randrange(n_actors)}", f"int_{at}"


def fill(store: Store, n_rows: int, n_actors: int) -> int:
    begin, n = utc_now() - timedelta(days=7) + timedelta(minutes=10), 0
    given = sorted(said(n_rows, n_actors))
    for start in range(0, len(given), 5000):
        rows = [
            Feedback(
                id=new_id(Feedback), project_id=DEFAULT_PROJECT, interaction_id=about, response_idx=0, kind=FeedbackKind.THUMB,
                value={"up": False}, actor=actor, natural_key=None, body_sha256="0" * 64, created_at=begin + timedelta(seconds=0.99 * at),
            )
            for at, actor, about in given[start : start + 5000]
        ]  # fmt: skip
        store.add(*rows)
        n += len(rows)
    return n


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--actors", type=int, default=5000)
    options.add_argument("--requests", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder))
        store = open_store(settings.database_url)
        govern.ensure_project(store, utc_now())
        n = fill(store, given.rows, given.actors)
        print(
            f"{n:,} pieces of feedback of {given.actors:,} simulated users and {EACH} suspects of each kind in a week"
        )
        secret = people.invite(store, DEFAULT_PROJECT, "Otto", ("operator",), utc_now())[2]
        with TestClient(
            create_app(settings, store), base_url="http://127.0.0.1", headers={"accept": "text/html"}
        ) as client:
            client.post("/sign-in", data={"invitation": secret}, headers={"sec-fetch-site": "same-origin"})
            slow = False
            for hours in (168, 24):
                took = []
                for _ in range(given.requests + 1):
                    wall, cpu = time.perf_counter(), time.process_time()
                    page = client.get(f"/abuse?hours={hours}")
                    took.append(((time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000))
                    assert page.status_code == 200, page.text
                found = client.get(f"/abuse?hours={hours}&as=json").json()["signals"]
                walls, cpus = zip(*took[1:], strict=True)
                counts = ", ".join(f"{row['signal']} {row['n_suspects']}" for row in found)
                print(
                    f"{hours:3} h: wall ms {median(walls):.0f} (greatest {max(walls):.0f}), processor ms {median(cpus):.0f}; {counts}"
                )
                slow = median(cpus) >= BOUND_MS  # the last is the day
        store.close()
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
