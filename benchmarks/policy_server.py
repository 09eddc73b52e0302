"""The policy server under several users at once, beside transformers' `generate`, one request at a time, in turns on the same prompts.

    python benchmarks/policy_server.py [--data DIR] [--users 8 --requests 16 --prompt-tokens 64 --new-tokens 64]

A round is the same requests for all three: transformers, which answers one after the other in a process without any HTTP; the server asked by
one user; the server asked by --users users, each sending its next request when the last one was answered. All have one dtype and all tokens are
generated (the base has no stop token). The server keeps no prompts (--prompt-cache-mb 0), since no user asks anything twice here.
Prints one line a round and one JSON object last: tokens per second, seconds of a request, and how many times the peer takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from peers import rl_step, turns
from peers.turns import Json, System


def main() -> None:
    parser = turns.parser(__doc__ or "")
    add = parser.add_argument
    add("--users", type=int, default=8, help="who ask at the same time")
    add("--requests", type=int, default=16, help="in a round, all users together")
    add("--prompt-tokens", type=int, default=64)
    add("--new-tokens", type=int, default=64)
    parser.set_defaults(steps=5)
    options = parser.parse_args()
    options.prompts = options.requests
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        base = rl_step.endless_base(options, Path(folder) / "base")
        dtype, threads = turns.choose(options)
        ids = [
            rl_step.render(base, messages)[-options.prompt_tokens :] for messages in rl_step.read_prompts(options, base)
        ]
        workload = {
            "base": options.base,
            "users": options.users,
            "requests": options.requests,
            "tokens": [options.prompt_tokens, options.new_tokens],
            "dtype": dtype,
            "threads": threads,
        }
        log = turns.log_file(options.log)
        turns.say(f"{json.dumps(workload)}; what the systems print goes to {log}")
        rows: dict[str, list[Json]] = {}
        about: dict[str, Json] = {}
        with serving(base, dtype["plaudit"], threads, log) as url, peers(options, base, dtype, threads, log) as others:
            for other in others:
                about[other.name] = turns.about_system(other.ready, [])
            for number in range(options.warmup + options.steps):
                prompts = random.Random(options.seed + number).sample(ids, options.requests)
                heard = {other.name: one_by_one(other, prompts, number) for other in others}
                if options.only != "trl":
                    for name, users in (("plaudit, 1 user", 1), (f"plaudit, {options.users} users", options.users)):
                        heard[name] = asyncio.run(ask(url, prompts, users, options.new_tokens, number))
                turns.say(
                    f"round {number}: " + ", ".join(f"{name} {row['seconds']:.2f} s" for name, row in heard.items())
                )
                if number >= options.warmup:
                    for name, row in heard.items():
                        rows.setdefault(name, []).append(row)
        found = {name: figures(each, options) | about.get(name, {}) for name, each in rows.items()}
        found = turns.merged(found, options.merge, workload)
        turns.report("policy_server", workload, found, ratios=turns.ratios(found))


def figures(rows: Sequence[Json], options: object) -> Json:
    n_tokens = options.requests * options.new_tokens  # type: ignore[attr-defined]
    waits = [seconds for row in rows for seconds in row["waits"]]
    return turns.steps_of(rows, n_tokens) | {"request_s": turns.spread(waits)}


@contextmanager
def serving(base: Path, dtype: str, threads: int, log: Path) -> Iterator[str]:
    """The policy server in a process of its own; its `/v1`."""
    command = [sys.executable, "-m", "plaudit.policy_server", "--base", str(base), "--name", "base", "--port", "0"]
    command += ["--dtype", dtype, "--threads", str(threads), "--prompt-cache-mb", "0"]
    with log.open("ab") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready "):
                turns.fail(f"The policy server did not start; see {log}.")
            yield line.split()[1]
        finally:
            process.terminate()
            process.wait()


@contextmanager
def peers(options: object, base: Path, dtype: dict[str, str], threads: int, log: Path) -> Iterator[list[System]]:
    if options.only == "plaudit":  # type: ignore[attr-defined]
        yield []
        return
    job = {
        "program": "generate",
        "base": str(base),
        "dtype": dtype["trl"],
        "threads": threads,
        "samples": 1,
        "new_tokens": options.new_tokens,  # type: ignore[attr-defined]
        "stock": False,
    }
    python = turns.environment(options.peers, turns.TRL)  # type: ignore[attr-defined]
    systems = [System("transformers", python, "worker_trl.py", job, log)]
    with turns.running(systems):
        yield systems


def one_by_one(system: System, prompts: Sequence[Sequence[int]], seed: int) -> Json:
    heard = [system.step(prompts=[ids], seed=seed + place) for place, ids in enumerate(prompts)]
    waits = [row["seconds"] for row in heard]
    return {
        "seconds": sum(waits),
        "phases": {"answers": sum(waits)},
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in heard),
        "waits": waits,
    }


async def ask(url: str, prompts: Sequence[Sequence[int]], users: int, new_tokens: int, seed: int) -> Json:
    """All prompts by this many users; each takes the next one when its last is answered."""
    left = iter(enumerate(prompts))
    waits: list[float] = []

    async def user(session: aiohttp.ClientSession) -> None:
        for place, ids in left:
            body = {"model": "base", "prompt": list(ids), "max_tokens": new_tokens, "seed": seed + place}
            start = time.perf_counter()
            async with session.post(f"{url}/completions", json=body | {"return_token_ids": True}) as response:
                answer = await response.json()
            waits.append(time.perf_counter() - start)
            if len(answer["choices"][0]["token_ids"]) != new_tokens:
                turns.fail(f"The server generated {answer['usage']}; {new_tokens} tokens were asked for.")

    start = time.perf_counter()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        await asyncio.gather(*(user(session) for _ in range(users)))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "phases": {"answers": seconds}, "peak_memory_bytes": peak_of_children(), "waits": waits}


def peak_of_children() -> int:
    """Highest resident memory of the server so far."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                status = (process / "status").read_text()
            except OSError:
                continue
            if b"plaudit.policy_server" in command and f"PPid:\t{os.getpid()}\n" in status:
                peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
                return int(peak.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
