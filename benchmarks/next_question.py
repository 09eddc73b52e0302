"""From submit to the next question on a warm server: `python benchmarks/next_question.py [--questions 5000] [--answers 200]`.

A service on a socket of its own (uvicorn in a thread, SQLite with durable commits in a temporary folder), a queue of open questions with
conversations and answers of a screen's length. One annotator answers by the form of the page: POST /annotate, and GET /annotate where it
sends them, which lends the next question and renders it. Prints milliseconds of both together; exits with 1 where the median is 100 ms or
more.
"""

from __future__ import annotations

import argparse
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import uvicorn

from plaudit.domain import DEFAULT_PROJECT, Annotation, Comparison, EvaluationItem, Purpose, ResponseText, utc_now
from plaudit.loop import govern, people, planning
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store
from plaudit.web.app import create_app

BOUND_MS = 100
WARM = 20  # answers before the clock runs


def plan(store: Store, n: int) -> None:
    said = (
        "Open the **settings**, choose *Devices*, then:\n\n1. remove the old one\n2. wait a minute\n3. add it again\n\n"
        * 4
    )
    items = [
        EvaluationItem(
            messages=(
                {"role": "user", "content": f"My device {i} is not found. " + "It worked yesterday. " * 10},
                {"role": "assistant", "content": "Which light does it show?"},
                {"role": "user", "content": "The orange one."},
            ),
            family=f"family {i}",
            first=ResponseText(said),
            second=ResponseText(said.upper()),
            first_checkpoint_id=None,
            second_checkpoint_id=None,
        )
        for i in range(n)
    ]
    made = planning.plan_evaluation(store, DEFAULT_PROJECT, items, batch="bench", overlap=3, now=utc_now())
    with store.write() as tx:
        for one in made:
            tx.change(Comparison, one.id, purpose=Purpose.TRAINING)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--questions", type=int, default=5000)
    options.add_argument("--answers", type=int, default=200)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        settings = Settings(home=Path(folder))
        store = open_store(settings.database_url)
        govern.ensure_project(store, utc_now())
        plan(store, given.questions)
        secret = people.invite(store, DEFAULT_PROJECT, "Ann", ("annotator",), utc_now())[2]
        server = uvicorn.Server(uvicorn.Config(create_app(settings, store), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {"accept": "text/html", "sec-fetch-site": "same-origin"}
        took: list[float] = []
        with httpx.Client(base_url=url, headers=headers, timeout=60) as browser:
            browser.post("/sign-in", data={"invitation": secret})
            page = browser.get("/annotate")
            for _ in range(WARM + given.answers):
                (lease,) = re.findall(r'name="lease_id" value="([^"]+)"', page.text)
                choice = re.findall(r'name="verdict" value="([^"]+)"', page.text)[0]
                form = {"lease_id": lease, "act": "answer", "verdict": choice, "reason-0": "yes", "seconds": "4"}
                began = time.perf_counter()
                sent = browser.post("/annotate", data=form)
                assert sent.status_code == 303, sent.text
                page = browser.get(sent.headers["location"])
                took.append((time.perf_counter() - began) * 1000)
                assert page.status_code == 200, page.text
        server.should_exit = True
        thread.join(10)
        n = store.count(Annotation)
        store.close()
    assert n == WARM + given.answers, n
    cuts = statistics.quantiles(took[WARM:], n=100)
    print(
        f"{given.questions:,} questions, {given.answers} answers after {WARM}; the next page has {len(page.content) / 1000:.0f} kB"
    )
    print(
        f"submit to next question: median {cuts[49]:.1f} ms, p95 {cuts[94]:.1f} ms, greatest {max(took[WARM:]):.1f} ms"
    )
    return int(cuts[49] >= BOUND_MS)


if __name__ == "__main__":
    sys.exit(main())
