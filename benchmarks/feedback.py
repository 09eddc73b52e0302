"""Durable feedback events per second on SQLite, over HTTP: the batch form, and one by one with many clients.

    python benchmarks/feedback.py [--events 20000] [--clients 32] [--seconds 5] [--interactions 1000]

A service with the Fake upstream in a process of its own, over a store of its own in a temporary folder: every answer waits for its commit
(WAL, synchronous=FULL). Beside it what the machine can do: one fsync of 4 KiB, and rows/s of a bare executemany into the same table.
Prints one JSON object on the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from plaudit.domain import Feedback, FeedbackKind, new_id, utc_now
from plaudit.loop import govern, release
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store

BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000, help="through the batch form")
    parser.add_argument("--clients", type=int, default=32, help="that send one by one")
    parser.add_argument("--seconds", type=float, default=5.0, help="for which they do")
    parser.add_argument("--interactions", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        figures = {"fsync_ms": fsync_ms(home), "bare_insert_rows_s": bare_insert(home / "bare.sqlite")}
        settings = Settings(home=home / "home")
        store = open_store(settings.database_url)
        project = govern.ensure_project(store, utc_now())
        release.register_base(store, project.id, "fake-1", "fake:", utc_now())
        key = govern.create_key(store, project.id, "bench", ["application"], now=utc_now())[1]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {**os.environ, "PLAUDIT_HOME": str(settings.home), "PLAUDIT_PORT": str(port)}
        command = [sys.executable, "-m", "plaudit.cli", "service"]
        service = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            figures |= asyncio.run(measure(f"http://127.0.0.1:{port}", key, options))
        finally:
            service.terminate()
            service.wait(timeout=30)
        n_stored = store.count(Feedback)
        store.close()
    assert n_stored == figures["events_acknowledged"], f"{n_stored} rows, {figures['events_acknowledged']} acknowledged"
    print(json.dumps(figures))


async def measure(url: str, key: str, options: argparse.Namespace) -> dict[str, Any]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"authorization": f"Bearer {key}"}) as session:
        await ready(session, url)
        lines = [
            {"messages": [{"role": "user", "content": f"question {n}"}], "responses": ["answer"], "user": f"u{n}"}
            for n in range(options.interactions)
        ]
        ids = []
        for start in range(0, len(lines), BATCH):
            said = await post(session, f"{url}/v1/interactions/batch", {"items": lines[start : start + BATCH]}, 207)
            ids += [one["id"] for one in said["results"]]
        batches = []
        started = time.perf_counter()
        for start in range(0, options.events, BATCH):
            items = [event(ids, n) for n in range(start, min(start + BATCH, options.events))]
            before = time.perf_counter()
            said = await post(session, f"{url}/v1/feedback/batch", {"items": items}, 207)
            batches.append(time.perf_counter() - before)
            assert all(one["code"] == 201 for one in said["results"]), said["results"][0]
        batch_s = time.perf_counter() - started
        waits: list[float] = []
        begun = time.perf_counter()

        async def client(number: int) -> None:
            n = 10_000_000 * (number + 1)
            while time.perf_counter() - begun < options.seconds:
                before = time.perf_counter()
                await post(session, f"{url}/v1/feedback", event(ids, n), 201)
                waits.append(time.perf_counter() - before)
                n += 1

        await asyncio.gather(*(client(number) for number in range(options.clients)))
        single_s = time.perf_counter() - begun
    return {
        "events_acknowledged": options.events + len(waits),
        "batch_events_s": round(options.events / batch_s),
        "batch_of_1000_p50_ms": round(1000 * statistics.median(batches), 1),
        "clients": options.clients,
        "single_events_s": round(len(waits) / single_s),
        "single_p50_ms": round(1000 * statistics.median(waits), 2),
        "single_p99_ms": round(1000 * sorted(waits)[int(0.99 * (len(waits) - 1))], 2),
    }


def event(ids: list[str], n: int) -> dict[str, Any]:
    """A thumb of a user of its own, so that every event is a row."""
    return {"interaction_id": ids[n % len(ids)], "kind": "thumb", "value": n % 3 != 0, "user": f"rater-{n}"}


async def post(session: aiohttp.ClientSession, url: str, body: Any, expected: int) -> Any:
    async with session.post(url, json=body) as answer:
        said = await answer.json()
        assert answer.status == expected, (answer.status, said)
        return said


async def ready(session: aiohttp.ClientSession, url: str) -> None:
    for _ in range(1200):
        try:
            async with session.get(f"{url}/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.05)
    raise SystemExit("the service did not start within a minute")


def fsync_ms(folder: Path, n: int = 50) -> float:
    """Median of writing and syncing 4 KiB: what a commit costs at least."""
    waits = []
    with (folder / "sync").open("wb") as file:
        for _ in range(n):
            before = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            waits.append(time.perf_counter() - before)
    return round(1000 * statistics.median(waits), 3)


def bare_insert(file: Path, n: int = 5000) -> int:
    """Rows/s of the same rows without a service, a look at what they are about, or an answer."""
    store: Store = open_store(f"sqlite:///{file}")
    now = utc_now()
    rows = [
        Feedback(
            id=new_id(Feedback),
            project_id="prj",
            interaction_id="int_0",
            response_idx=0,
            kind=FeedbackKind.THUMB,
            value={"up": True},
            actor=f"u{n}",
            natural_key=f"int_0/0/thumb/u{n}",
            body_sha256="0" * 64,
            created_at=now,
        )
        for n in range(n)
    ]
    started = time.perf_counter()
    for start in range(0, n, BATCH):
        store.add(*rows[start : start + BATCH])
    rate = n / (time.perf_counter() - started)
    store.close()
    return round(rate)


if __name__ == "__main__":
    main()
