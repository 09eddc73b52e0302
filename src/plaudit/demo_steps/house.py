"""Where the demo lives: its home and configuration, `plaudit up` as a child, keys of the simulated people, the memory of all processes.

Every step is a fact in the store: a keyed Run, or rows that a rerun finds. `demo.json` remembers what was asked for and how long it took,
nothing else.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from plaudit import settings as settings_file
from plaudit import simulate
from plaudit.artifacts import write_atomic, write_secret
from plaudit.demo_steps.plan import MIN_NEW_PREFERENCES, MONITOR_INTERVAL_S, MONITOR_SAMPLE, OVERLAP, Options
from plaudit.domain import Json, Role, utc_now
from plaudit.errors import AlreadyRunning, ConfigError, PlauditError, Unavailable
from plaudit.loop import govern, train
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store

OWNER = (
    "demo"  # of its Runs: after a crash the next demo on this home takes them up at once, for HOME/demo.lock admits one
)
UP_S = 300.0
# Of the `plaudit up` of a demo that was killed: it sees that within a second, and its own watch gives it 15.
ENDING_S = 60.0
APPLICATION = "demo application"
APPROVERS = ("Alice Approver", "Bob Approver")


@dataclass(frozen=True)
class Demo:
    """What every step needs."""

    options: Options
    settings: Settings
    store: Store
    project_id: str
    base: Path  # the prepared base model
    population: simulate.Population
    prompts: tuple[simulate.Prompt, ...]
    keys: dict[str, str]  # person or application -> secret

    def pool(self, name: str) -> list[simulate.Prompt]:
        return [prompt for prompt in self.prompts if prompt.pool == name]

    @property
    def checkpoint_runs(self) -> Path:
        return self.settings.home / "runs"

    @property
    def crowd(self) -> simulate.Crowd:
        """Who judges, everywhere but in the twin whose training comparisons a biased crowd answers."""
        twin = self.options.twin
        kind = twin if twin in ("shuffled-labels", "spammers-only") else "standard"
        return simulate.crowd(kind, self.options.seed)

    @property
    def training_crowd(self) -> simulate.Crowd:
        return simulate.crowd("fooled", self.options.seed) if self.options.twin == "hackable-reward" else self.crowd


def once(demo: Demo, name: str, act: Callable[[], Json], **inputs: object) -> Json:
    """Do a step of the demo that is no training program, as a keyed Run: the outputs of the first time, however often it is asked for."""
    config, step = demo.options.identity(), f"demo.{name}"
    key = train.run_key(step, config, inputs)
    run = train.claim(demo.store, demo.project_id, step, key, config, dict(inputs), OWNER, utc_now())
    if run.finished_at is not None:
        return run.outputs
    try:
        outputs = act()
    except PlauditError as error:
        train.fail(demo.store, run, error.message, utc_now())
        raise
    return train.finish(demo.store, run, outputs, utc_now()).outputs


# --- the home ------------------------------------------------------------------------------------------------------------


@contextmanager
def held(home: Path) -> Iterator[None]:
    """One demo on a home. Raises AlreadyRunning."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "demo.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"A demo already runs on {home}; wait for its end, or give another --home.") from None
        yield


def furnish(options: Options, fresh: bool) -> Settings:
    """The home's settings file and demo.json. Raises ConfigError where the home holds another demo, or something that is no demo."""
    home = options.home
    notes = home / "demo.json"
    if home.exists() and not notes.is_file() and any(path.name != "demo.lock" for path in home.iterdir()):
        raise ConfigError(f"{home} holds something that is no demo; give another --home.")
    if fresh and notes.is_file():
        for path in home.iterdir():
            if path.name != "demo.lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if notes.is_file():
        before = read_notes(home)["config"]
        if before != options.identity():
            raise ConfigError(f"{home} holds a demo with other options ({before}); give --fresh or another --home.")
    else:
        write_notes(home, {"config": options.identity(), "seconds": {}, "peak_memory_bytes": 0})
    lines = {
        "base": json.dumps(options.plan.base),
        "overlap": OVERLAP,
        "monitor_interval_s": MONITOR_INTERVAL_S,
        "monitor_sample": MONITOR_SAMPLE,
        "min_new_preferences": MIN_NEW_PREFERENCES,
    }
    write_atomic(home / "plaudit.toml", "".join(f"{name} = {value}\n" for name, value in lines.items()))
    return settings_file.load(home, port=free_port(), policy_port=free_port())


def read_notes(home: Path) -> Json:
    notes: Json = json.loads((home / "demo.json").read_text())
    return notes


def write_notes(home: Path, notes: Json) -> None:
    write_atomic(home / "demo.json", json.dumps(notes, indent=1) + "\n")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def move_in(options: Options, settings: Settings, base: Path) -> Demo:
    """Open the store, load people and prompts, see to it that everybody has a key and that the approvers exist."""
    store = open_store(settings.database_url)
    project = govern.ensure_project(store, utc_now())
    plan = options.plan
    try:
        population = simulate.load_population(options.people or plan.people)
        prompts = simulate.load_prompts(options.prompts or plan.people)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name in APPROVERS:
        govern.person(store, project.id, name, utc_now())
    demo = Demo(options, settings, store, project.id, base, population, tuple(prompts), {})
    demo.keys.update(_keys(demo))
    return demo


def _keys(demo: Demo) -> dict[str, str]:
    file = demo.settings.home / "keys" / "demo.json"
    known: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
    wanted = {APPLICATION: Role.APPLICATION} | {person.name: Role.ANNOTATOR for person in demo.crowd.annotators}
    for name, role in wanted.items():
        if name not in known:
            who = None if name == APPLICATION else name
            _, known[name] = govern.create_key(demo.store, demo.project_id, name, [role], who, now=utc_now())
    write_secret(file, json.dumps(known), replace=True)
    return known


# --- processes -----------------------------------------------------------------------------------------------------------


def prepare_base(settings: Settings) -> Path:
    """The prepared base model. Outside the clock: a conversion happens once on a machine, not once a demo."""
    remember = settings.home / "base.json"  # the file in which `plaudit up` keeps the same answer
    if remember.is_file():
        folder = Path(json.loads(remember.read_text())["folder"])
        if (folder / "config.json").is_file():
            return folder
    command = [sys.executable, "-m", "plaudit.learn", "prepare", settings.base, str(settings.cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"The base model {settings.base} cannot be prepared: {_sentence(done.stderr)}")
    folder = Path(done.stdout.strip().splitlines()[-1])
    known = {"spec": settings.base, "cache": str(settings.cache), "folder": str(folder)}
    write_atomic(remember, json.dumps(known))
    return folder


def _sentence(stderr: str) -> str:
    last = (stderr.strip().splitlines() or ["it said nothing"])[-1]
    try:
        return str(json.loads(last)["message"])
    except (ValueError, KeyError, TypeError):
        return last


@contextmanager
def everything_up(settings: Settings) -> Iterator[None]:
    """Service, policy server and worker, until the block ends; they also end when this process is killed. Raises Unavailable."""
    logs = settings.home / "logs"
    logs.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "plaudit.cli", "up", "--json", "--home", str(settings.home)]
    command += ["--port", str(settings.port), "--policy-port", str(settings.policy_port), "--parent", str(os.getpid())]
    began = time.monotonic()
    process = _launch(command, logs)
    try:
        while not _ready(logs / "up.out"):
            if process.poll() is not None:
                said = _sentence((logs / "up.err").read_text())
                if "already runs" not in said or time.monotonic() > began + ENDING_S:
                    raise Unavailable(
                        f"`plaudit up` ended: {said.removeprefix('plaudit: ')} (its log: {logs / 'up.err'})"
                    )
                time.sleep(0.5)  # the one of a demo that was killed is about to end
                process = _launch(command, logs)
            if time.monotonic() > began + UP_S:
                raise Unavailable(f"`plaudit up` is not ready after {UP_S:.0f} s; see {logs}.")
            time.sleep(0.05)
        yield
    finally:
        _stop(process)


def _launch(command: list[str], logs: Path) -> subprocess.Popen[bytes]:
    with (logs / "up.out").open("wb") as out, (logs / "up.err").open("wb") as err:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)


def _ready(out: Path) -> bool:
    text = out.read_text()
    return text.endswith("\n") and '"service"' in text.splitlines()[-1]


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def command(demo: Demo, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `plaudit WORDS --home HOME` as a person would."""
    line = [sys.executable, "-m", "plaudit.cli", *words, "--home", str(demo.settings.home)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


class MemoryWatch:
    """The peak of the memory of this process and all below it: proportional share (PSS) where the system tells it, else resident.

    PSS is dear (the kernel walks every page), so it is read only where the resident sum, which counts shared pages several times, is
    higher than ever before.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        self.peak_bytes = 0
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me, highest = psutil.Process(), 0
        while True:
            family = [me, *me.children(recursive=True)]
            resident = sum(resident_bytes(one) for one in family)
            if resident > highest:
                highest = resident
                self.peak_bytes = max(self.peak_bytes, sum(memory_of(one) for one in family))
            if self._stop.wait(self._interval_s):
                return


def resident_bytes(process: psutil.Process) -> int:
    """0 for a process that has just ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def memory_of(process: psutil.Process) -> int:
    """Bytes of one process; pages that several share count once over all of them. 0 for one that has just ended."""
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resident_bytes(process)


def hardware() -> Json:
    """CPU, cores that may be used, memory, system, Python."""
    name = "unknown CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": name,
        "cores": cores,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{os.uname().sysname} {os.uname().machine}",
        "python": sys.version.split()[0],
    }
