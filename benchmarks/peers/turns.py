"""What the training benchmarks share: environments of the peers, processes that take turns, figures with their spread.

Each system (Plaudit, TRL) runs in a process of its own, driven over pipes: the benchmark sends one JSON line, the process does one step,
answers with one JSON line and waits. So systems alternate step by step on the same machine in the same minutes, and each one's memory
is its own. Standard library only: this file is imported in Plaudit's environment and in the peers'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

Json = dict[str, Any]

HERE = Path(__file__).resolve().parent  # the processes' scripts lie here
TORCH = "2.13.0"
TRL = "1.16.0"
TRL_WITH_PPO = "1.12.0"  # the last line that had PPO
INSTALLED = ".installed"  # written when an environment is complete

# --- the command line -------------------------------------------------------------------------------------------------------


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every training benchmark."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("--data", type=Path, help="folder of real data (hh-harmless/comparisons.jsonl.gz); made-up text where absent")
    add("--base", default="smollm2", help="smollm2, tiny (to try the script) or a prepared folder")
    add("--cache", type=Path, default=Path.home() / ".cache" / "plaudit", help="where prepared bases lie")
    add("--peers", type=Path, default=Path.home() / ".cache" / "plaudit" / "peers", help="environments of the peers")
    add("--steps", type=int, default=7, help="measured steps")
    add("--warmup", type=int, default=1, help="steps before them that are not counted")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=0, help="torch threads of every system; 0: one for each physical core")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of every system; auto: the faster")
    add("--only", choices=("plaudit", "trl"), help="run one side alone, to be merged")
    add("--merge", type=Path, metavar="FILE", help="JSON of a run made apart, whose systems are put beside these")
    add("--log", type=Path, help="file for what the systems print (a temporary one, if not told)")
    return found


def choose(options: argparse.Namespace, full_weights: bool = False) -> tuple[dict[str, str], int]:
    """({plaudit, trl} -> dtype, threads). Each side has the dtype that is the faster one here; ours trains full weights in fp32 only."""
    import torch

    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    faster = faster_dtype() if options.dtype == "auto" else options.dtype
    return {"plaudit": "float32" if full_weights else faster, "trl": faster}, threads


def faster_dtype(repeats: int = 20) -> str:
    """By the best of many products of a layer's size, both dtypes in turns: another process must not decide it."""
    import torch

    best = {"float32": float("inf"), "bfloat16": float("inf")}
    operands = {
        name: (torch.ones(256, 576, dtype=getattr(torch, name)), torch.ones(1536, 576, dtype=getattr(torch, name)))
        for name in best
    }
    for _ in range(repeats):
        for name, (x, w) in operands.items():
            start = time.perf_counter()
            torch.nn.functional.linear(x, w)
            best[name] = min(best[name], time.perf_counter() - start)
    say(f"a product in float32 takes {best['float32'] * 1e3:.2f} ms, in bfloat16 {best['bfloat16'] * 1e3:.2f} ms")
    return min(best, key=lambda name: best[name])


# --- environments of the peers ----------------------------------------------------------------------------------------------


def environment(peers: Path, version: str) -> Path:
    """The Python of an environment that has this version of TRL, made where it does not exist. Exits where it cannot be made."""
    folder = peers / f"trl-{version}"
    python = folder / "bin" / "python"
    if (folder / INSTALLED).is_file():
        return python
    packages = [f"torch=={TORCH}", f"trl=={version}", "peft"]
    say(f"installing {' '.join(packages)} into {folder} (about 2 GB)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            fail(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    (folder / INSTALLED).write_text(" ".join(packages) + "\n")
    return python


# --- the benchmark's side of a process --------------------------------------------------------------------------------------


class System:
    """A process that does one step at a time."""

    def __init__(self, name: str, python: Path | str, script: str, job: Json, log: Path) -> None:
        """Start `script` (a file of this folder) with `job` as its argument; `start` waits until it is ready."""
        self.name, self.job, self.log = name, job, log
        # How OpenMP's threads wait is each system's own: Plaudit sets it as it starts, TRL leaves the default.
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [str(python), str(HERE / script), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("a"),
            env=os.environ | offline | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": str(job["threads"])},
            text=True,
        )
        self.ready: Json = {}

    def start(self) -> Json:
        """Wait until it has loaded."""
        self.ready = self._hear()
        return self.ready

    def step(self, **message: Any) -> Json:
        """Give it a turn; returns its figures."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def _hear(self) -> Json:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            said = self.log.read_text()[-3000:]
            fail(f"{self.name} ended with code {self._process.returncode}; the end of {self.log}:\n{said}")
        heard: Json = json.loads(line)
        return heard


@contextmanager
def running(systems: Sequence[System]) -> Iterator[None]:
    """Start the systems one after another, and end them whatever happens, SIGTERM too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        for system in systems:
            system.start()
            about = {key: value for key, value in system.ready.items() if key != "versions"}
            say(f"{system.name} is ready: {json.dumps(about)}")
        yield
    finally:
        for system in systems:
            system.close()


# --- the process's side -----------------------------------------------------------------------------------------------------


class Turn:
    """What a measured process says and hears. Everything else that it prints goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def ready(self, **about: Any) -> Json:
        """Say what was loaded, forget the memory that loading took, and wait for the first turn."""
        resident = _status("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        except OSError:
            about["peak_includes_loading"] = True
        return self.done(resident_bytes=resident, **about)

    def done(self, **figures: Any) -> Json:
        """Say what a step gave and wait for the next turn; the process ends where there is none."""
        self.say(**figures)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # the benchmark is over; nothing here needs to be finished
        heard: Json = json.loads(line)
        return heard

    def say(self, **figures: Any) -> None:
        self._out.write(json.dumps(figures | {"peak_memory_bytes": _status("VmHWM")}) + "\n")
        self._out.flush()


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status; 0 where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


class Phases:
    """Seconds by phase: wrap the functions that do the work. A phase inside a phase is counted once, for the inner one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[float] = []  # seconds of inner phases, for each open one

    def clear(self) -> None:
        self.seconds = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._stack.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            inner = self._stack.pop()
            if self._stack:
                self._stack[-1] += passed
            self.seconds[name] = self.seconds.get(name, 0.0) + passed - inner

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed under this name."""

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **named)

        return timed


def versions(*names: str) -> dict[str, str]:
    """Installed versions of packages, and Python's."""
    from importlib import metadata

    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


# --- a reward that needs no model --------------------------------------------------------------------------------------------

SEEN: Json = {}  # what `distinct` was shown first since this was cleared: the rollout; trap texts come after it


def distinct_fraction(ids: Sequence[int]) -> float:
    """Share of different tokens: cheap, and it differs between samples."""
    return len(set(ids)) / max(len(ids), 1)


def distinct(messages: list[Json], responses: list[str], token_ids: list[list[int]], meta: Any) -> list[float]:
    """The same, as Plaudit wants a function to be (`peers.turns:distinct`)."""
    if not SEEN:
        SEEN.update(messages=messages, token_ids=token_ids)
    return [distinct_fraction(ids) for ids in token_ids]


# --- figures ----------------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> Json:
    """Median, smallest and largest."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def by_phase(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median seconds of each phase; one that did not occur in a step took 0 there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: round(statistics.median([row.get(name, 0.0) for row in rows]), 3) for name in names}


def steps_of(rows: Sequence[Json], tokens: int) -> Json:
    """Figures of one system from its measured steps, each {seconds, phases, peak_memory_bytes}; `tokens` were generated in each."""
    seconds = [row["seconds"] for row in rows]
    return {
        "seconds": spread(seconds),
        "phases_s": by_phase([row["phases"] for row in rows]),
        "generated_tokens_per_s": round(tokens / statistics.median(seconds), 1),
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        "each_s": [round(value, 3) for value in seconds],
    }


def about_system(ready: Json, rows: Sequence[Json]) -> Json:
    """Versions, and the dtype that was seen at work."""
    seen = {row["dtype"] for row in rows if "dtype" in row} or {ready.get("dtype", "")}
    return {
        "versions": ready["versions"],
        "dtype": " and ".join(sorted(seen)),
        "resident_bytes": ready["resident_bytes"],
    }


def ratios(systems: Mapping[str, Json], ours: str = "plaudit") -> Json:
    """How many times longer a peer's step takes, for each of our variants and each peer: of the medians, and the median of the
    ratios step by step where both ran in one go."""
    out: Json = {}
    for name, mine in systems.items():
        for other, theirs in systems.items():
            if name.startswith(ours) and not other.startswith(ours):
                entry = {
                    "of_medians": round(theirs["seconds"]["median"] / mine["seconds"]["median"], 3),
                    "memory": round(mine["peak_memory_bytes"] / max(theirs["peak_memory_bytes"], 1), 3),
                }
                if len(mine["each_s"]) == len(theirs["each_s"]) and not (mine.get("merged") or theirs.get("merged")):
                    pairs = zip(theirs["each_s"], mine["each_s"], strict=True)
                    entry["step_by_step"] = spread([a / max(b, 1e-9) for a, b in pairs])
                out[f"{other} / {name}"] = entry
    return out


def merged(systems: dict[str, Json], path: Path | None, same: Json) -> dict[str, Json]:
    """With the systems of a run made apart. Exits where it measured another workload."""
    if path is None:
        return systems
    other = json.loads(path.read_text().strip().splitlines()[-1])
    if other["workload"] != same:
        fail(f"{path} measured {other['workload']}, this run {same}; only the same workload can be compared.")
    theirs = {name: entry | {"merged": True} for name, entry in other["systems"].items() if name not in systems}
    return systems | theirs


def report(name: str, workload: Json, systems: Json, **more: Any) -> None:
    """The last line: one JSON object."""
    print(json.dumps({"benchmark": name, "workload": workload, "systems": systems, **more, "run": about_run()}))


def about_run() -> Json:
    """Hardware, commit, date and how busy the machine was."""
    return {
        "command": " ".join(sys.argv),
        "commit": _commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load_average": [round(load, 2) for load in os.getloadavg()],
        },
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        " with changes" if git("status", "--porcelain", "../../src", "..") else ""
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unnamed")
    flags = next((line for line in lines if line.startswith("flags")), "")
    return name + "".join(f" {flag}" for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in flags)


def log_file(asked: Path | None) -> Path:
    if asked is not None:
        return asked
    handle, name = tempfile.mkstemp(prefix="plaudit-bench-", suffix=".log")
    os.close(handle)
    return Path(name)


def say(text: str) -> None:
    print(text, flush=True)


def fail(text: str) -> NoReturn:
    sys.exit(text)
