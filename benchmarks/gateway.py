"""What the gateway costs: over a fake upstream, with durable logging on.

    python benchmarks/gateway.py                       about two minutes on two cores that do nothing else
    python benchmarks/gateway.py --seconds 2           a quick look: does it run?

Four processes: a fake model server, a bare proxy (Starlette and aiohttp, as the gateway, but no keys, no filters, no rows), the service on a
throwaway home, and this client. Latencies are taken at a fixed rate, direct and through the gateway in turns, so that a busy moment hits
both, then direct and through the bare proxy, which says what any proxy costs here; the disk's own fsync is measured in the same folder.
Saturation is a closed loop over 64 connections (`wrk` where it is installed, else aiohttp, which costs the machine more than the server and
so says less). One JSON object last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from plaudit import openai_protocol as protocol
from plaudit.domain import utc_now
from plaudit.loop import govern, release
from plaudit.store.database import open_store

BODY = {"model": "plaudit", "messages": [{"role": "user", "content": "How do I reset my password?"}], "user": "u-1"}
TEXT = "Open the settings page, choose Security, then Reset. " * 4
N_CONNECTIONS = 64


# --- the other processes -----------------------------------------------------------------------------------------------


def upstream_app() -> Any:
    """A model server that costs nothing: whole answers and streams of 40 chunks, made once."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    whole = json.dumps(
        protocol.completion("x", 0, "m", [protocol.choice(0, TEXT, "stop")], protocol.usage(8, 40))
    ).encode()
    words = TEXT.split(" ")
    events = [protocol.event(protocol.chunk("x", 0, "m", 0, {"content": word + " "})) for word in words[:39]]
    events += [protocol.event(protocol.chunk("x", 0, "m", 0, {}, "stop")), protocol.DONE]

    async def completions(request: Request) -> Response:
        if b'"stream": true' not in await request.body():
            return Response(whole, media_type="application/json")

        async def stream() -> Any:
            for event in events:
                yield event

        return StreamingResponse(stream(), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])


def proxy_app(upstream: str) -> Any:
    """What the gateway would be without its purpose."""
    from contextlib import asynccontextmanager

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from plaudit.backends import open_session

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        async with open_session() as session:
            app.state.session = session
            yield

    async def completions(request: Request) -> Response:
        body = json.loads(await request.body())
        async with request.app.state.session.post(f"{upstream}/v1/chat/completions", json=body) as response:
            return Response(await response.read(), response.status, media_type="application/json")

    return Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])], lifespan=lifespan)


def serve(role: str, port: int, upstream: str) -> None:
    import uvicorn

    app = upstream_app() if role == "upstream" else proxy_app(upstream)
    uvicorn.run(app, port=port, log_level="error", access_log=False)


@contextmanager
def process(command: list[str], url: str) -> Iterator[tuple[int, float]]:
    """(process id, seconds until its port answers)."""
    began = time.perf_counter()
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    host, port = url.removeprefix("http://").split(":")
    try:
        while True:
            if started.poll() is not None:
                sys.exit(f"{command} ended at its start")
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                time.sleep(0.005)
        yield started.pid, time.perf_counter() - began
    finally:
        started.terminate()
        started.wait()


def free_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# --- measuring ---------------------------------------------------------------------------------------------------------


def fsync_ms(folder: Path, n: int = 200) -> list[float]:
    """Appending 4 KB and waiting for the disk, as a commit does."""
    taken = []
    with (folder / "fsync").open("ab", buffering=0) as opened:
        for _ in range(n):
            began = time.perf_counter()
            opened.write(bytes(4096))
            os.fsync(opened.fileno())
            taken.append((time.perf_counter() - began) * 1e3)
    return taken


async def whole_ms(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> float:
    began = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=BODY, headers=headers) as response:
        await response.read()
        assert response.status == 200, await response.text()
    return (time.perf_counter() - began) * 1e3


async def first_token_ms(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> float:
    began = time.perf_counter()
    taken = 0.0
    async with session.post(f"{url}/v1/chat/completions", json={**BODY, "stream": True}, headers=headers) as response:
        assert response.status == 200, await response.text()
        async for piece in response.content.iter_any():
            if not taken and b'"content":"Open' in piece.replace(b'": "', b'":"'):
                taken = (time.perf_counter() - began) * 1e3
    return taken


async def in_turns(
    one: Callable[..., Awaitable[float]], urls: dict[str, str], headers: dict[str, str], rate: float, seconds: float
) -> dict[str, list[float]]:
    """Each place gets `rate` requests a second, begun on time whatever the others take: waiting in a queue counts."""
    taken: dict[str, list[float]] = {name: [] for name in urls}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(name: str) -> None:
            taken[name].append(await one(session, urls[name], headers))

        await asyncio.gather(*(ask(name) for name in urls for _ in range(10)))  # warm up: connections, statements
        for name in urls:
            taken[name].clear()
        began, tasks = time.perf_counter(), []
        for number in range(int(rate * seconds) * len(urls)):
            await asyncio.sleep(max(0.0, began + number / (rate * len(urls)) - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(list(urls)[number % len(urls)])))
        await asyncio.gather(*tasks)
    return taken


async def saturated(url: str, headers: dict[str, str], seconds: float) -> float:
    """Requests a second over N_CONNECTIONS that each wait for their answer."""
    n_done, end = 0, time.perf_counter() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            nonlocal n_done
            while time.perf_counter() < end:
                await whole_ms(session, url, headers)
                n_done += 1

        await asyncio.gather(*(client() for _ in range(N_CONNECTIONS)))
    return n_done / seconds


def wrk(url: str, headers: dict[str, str], seconds: float, folder: Path) -> float:
    script = folder / "post.lua"
    lines = [
        'wrk.method = "POST"',
        f"wrk.body = [[{json.dumps(BODY)}]]",
        'wrk.headers["Content-Type"] = "application/json"',
    ]
    script.write_text("\n".join([*lines, *(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())]))
    command = ["wrk", "-t1", f"-c{N_CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    said = subprocess.run([*command, f"{url}/v1/chat/completions"], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said:
        sys.exit(said)
    return float(said.split("Requests/sec:")[1].split()[0])


def cpu_s(pid: int) -> float:
    """Of a process so far: what a request costs the machine, however busy it is."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def percentiles(taken: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(taken, p)), 3) for p in (50, 90, 99)} | {"n": len(taken)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second for latencies")
    parser.add_argument("--data", help="accepted for uniformity; this benchmark reads no data")
    parser.add_argument("--role", choices=("upstream", "proxy"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--upstream", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        serve(arguments.role, arguments.port, arguments.upstream)
        return
    with tempfile.TemporaryDirectory(prefix="plaudit-gateway-") as folder, ExitStack() as stack:
        print(json.dumps(measure(Path(folder), arguments.rate, arguments.seconds, stack)))


def measure(folder: Path, rate: float, seconds: float, stack: ExitStack) -> dict[str, Any]:
    upstream, proxy, gateway = free_url(), free_url(), free_url()
    store = open_store(f"sqlite:///{folder / 'store.sqlite'}")
    project = govern.ensure_project(store, utc_now())
    release.register_base(store, project.id, "m", upstream + "/v1", utc_now())
    _, key = govern.create_key(store, project.id, "benchmark", ["application"], now=utc_now())
    store.close()
    headers = {"Authorization": f"Bearer {key}"}
    here = [sys.executable, __file__, "--upstream", upstream]
    service = [sys.executable, "-m", "plaudit.cli", "service", "--home", str(folder)]
    pids = {}
    for role, url in (("upstream", upstream), ("proxy", proxy)):
        pids[role], _ = stack.enter_context(process([*here, "--role", role, "--port", url.rpartition(":")[2]], url))
    pids["gateway"], start_s = stack.enter_context(process([*service, "--port", gateway.rpartition(":")[2]], gateway))
    idle_bytes = psutil.Process(pids["gateway"]).memory_info().rss

    places = {"direct": upstream, "gateway": gateway}
    disk = fsync_ms(folder)
    whole = asyncio.run(in_turns(whole_ms, places, headers, rate, seconds))
    first = asyncio.run(in_turns(first_token_ms, places, headers, rate / 4, seconds))
    bare = asyncio.run(in_turns(whole_ms, {"direct": upstream, "gateway": proxy}, headers, rate, seconds / 2))
    disk += fsync_ms(folder)
    print(f"{rate:g} requests/s, milliseconds: direct, through the gateway; fsync of 4 KB")
    for name, taken in (("whole", whole["direct"]), ("whole via gateway", whole["gateway"]), ("whole via bare proxy", bare["gateway"]),
                        ("first token", first["direct"]), ("first token via gateway", first["gateway"]), ("fsync", disk)):  # fmt: skip
        print(f"  {name:24} {percentiles(taken)}", flush=True)

    tool = "wrk" if shutil.which("wrk") else "aiohttp"
    rates: dict[str, float] = {}
    cpu_ms: dict[str, float] = {}
    for name, url in (("proxy", proxy), ("gateway", gateway)) * 2:  # the better of two, in turns
        before = cpu_s(pids[name])
        half = seconds / 2
        reached = wrk(url, headers, half, folder) if tool == "wrk" else asyncio.run(saturated(url, headers, half))
        rates[name] = max(rates.get(name, 0.0), reached)
        spent = (cpu_s(pids[name]) - before) * 1e3 / (reached * half)
        cpu_ms[name] = min(cpu_ms.get(name, spent), spent)
        print(
            f"  {name:8} {reached:8.0f} requests/s, {spent:.2f} ms of CPU each ({tool}, {N_CONNECTIONS} connections)",
            flush=True,
        )

    def beyond(taken: dict[str, list[float]], p: int) -> float:
        return float(np.percentile(taken["gateway"], p) - np.percentile(taken["direct"], p))

    fsync = {p: float(np.percentile(disk, p)) for p in (50, 99)}
    return {
        "rate": rate,
        "direct_ms": percentiles(whole["direct"]),
        "gateway_ms": percentiles(whole["gateway"]),
        "fsync_ms": percentiles(disk),
        "overhead_p50_ms": round(beyond(whole, 50), 3),
        "overhead_p99_ms": round(beyond(whole, 99), 3),
        "overhead_beyond_fsync_p50_ms": round(beyond(whole, 50) - fsync[50], 3),
        "overhead_beyond_fsync_p99_ms": round(beyond(whole, 99) - fsync[99], 3),
        "bare_proxy_overhead_p50_ms": round(beyond(bare, 50), 3),
        "bare_proxy_overhead_p99_ms": round(beyond(bare, 99), 3),
        "first_token_overhead_p50_ms": round(beyond(first, 50), 3),
        "first_token_overhead_beyond_fsync_p50_ms": round(beyond(first, 50) - fsync[50], 3),
        "requests_per_s": {name: round(value) for name, value in rates.items()},
        "cpu_ms_per_request": {name: round(value, 3) for name, value in cpu_ms.items()},
        "saturated_with": tool,
        "start_s": round(start_s, 3),
        "memory_idle_mb": round(idle_bytes / 1e6, 1),
        "memory_after_mb": round(psutil.Process(pids["gateway"]).memory_info().rss / 1e6, 1),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
