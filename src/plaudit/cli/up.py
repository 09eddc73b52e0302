"""`plaudit up`: service, policy server and worker as children of one process, which holds the home, starts them again when they fall, and
takes them along when it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from plaudit.cli import lock, ports
from plaudit.cli.family import Child, Family
from plaudit.cli.models import prepare_base
from plaudit.cli.options import Home, home_option, json_option, open_home, print_json
from plaudit.domain import Role, utc_now
from plaudit.loop import govern, release
from plaudit.settings import Settings


@click.command()
@home_option
@click.option("--base", default=None, help="Base model: smollm2, tiny, a Hugging Face folder, or a hub id.")
@click.option("--host", default=None, help="Address of the service (default 127.0.0.1).")
@click.option("--port", type=int, default=None, help="Port of the service (default 8484).")
@click.option("--policy-port", type=int, default=None, help="Port of the policy server (default 8485).")
@click.option("--upstream", default=None, help="Serve from this OpenAI-compatible URL instead of our policy server.")
@click.option("--model", default=None, help="The model's name at --upstream.")
@click.option("--worker/--no-worker", "with_worker", default=True, help="Start the worker too.")
@json_option
def up(
    home: Path | None,
    base: str | None,
    host: str | None,
    port: int | None,
    policy_port: int | None,
    upstream: str | None,
    model: str | None,
    with_worker: bool,
    as_json: bool,
) -> None:
    """Start everything and stay until Ctrl-C."""
    if upstream is not None and model is None:
        raise click.UsageError("--upstream needs --model, the model's name there.")
    opened = open_home(home, base=base, host=host, port=port, policy_port=policy_port)
    settings = opened.settings
    addresses = {"service": settings.service_url, "policy": upstream or settings.policy_url}
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    console = Console(stderr=as_json)
    with lock.held(settings.home, addresses):
        for wanted in [settings.port] if upstream else [settings.port, settings.policy_port]:
            ports.wait_until_free(settings.host, wanted)
        name = model or base_name(settings.base)
        release.register_base(opened.store, opened.project_id, name, addresses["policy"], utc_now())
        new_secret = first_key(opened)
        family = Family(settings.home / "logs", stop, _environment(settings))
        try:
            with console.status("Starting service and worker ..."):
                family.start(_service(opened))
                if with_worker:
                    family.start(_worker(opened))
            if upstream is None:
                with console.status(f"Preparing the base model {settings.base} ..."):
                    folder = prepare_base(settings.base, settings.cache, remember=settings.home / "base.json")
                family.start(_policy_server(opened, folder, name))
            with console.status("Waiting until all of them answer ..."):
                family.wait_until_healthy()
            if not stop.is_set():
                ready = {"pid": os.getpid(), **addresses, "home": str(settings.home), "model": name}
                key_file = settings.home / "keys" / "admin.key"
                if as_json:
                    print_json({**ready, "admin_key_file": str(key_file)})
                else:
                    _say(console, ready, key_file, new_secret)
                family.watch()
        finally:
            family.stop()
            opened.store.close()


def base_name(spec: str) -> str:
    """What a base model is called on the wire: the last part of a folder, else the spec."""
    return Path(spec).name if Path(spec).is_dir() else spec


def first_key(opened: Home) -> str | None:
    """The secret of the first admin key, in HOME/keys/admin.key (mode 600); None where that was made before."""
    file = opened.settings.home / "keys" / "admin.key"
    if file.exists():
        return None
    _, secret = govern.create_key(opened.store, opened.project_id, "first admin", [Role.ADMIN], now=utc_now())
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(file, secret + "\n")
    return secret


def write_private(file: Path, text: str) -> None:
    """A file that only its owner can read, from its first byte on."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)


def _say(console: Console, ready: Mapping[str, Any], key_file: Path, new_secret: str | None) -> None:
    console.print(f"[bold]Plaudit is up[/bold] on {ready['home']} (process {ready['pid']}). Ctrl-C stops it.")
    console.print(f"  service        {ready['service']}")
    console.print(f"  policy server  {ready['policy']}  ({ready['model']})")
    if new_secret:
        console.print(f"  first admin key, shown this once: {new_secret}", soft_wrap=True)
    console.print(f"  admin key      {key_file}", soft_wrap=True)


# --- the children ------------------------------------------------------------------------------------------------------


def _environment(settings: Settings) -> dict[str, str]:
    """What a command line decided here, for children that read the settings themselves."""
    told = ("base", "host", "port", "policy_port")
    return {f"PLAUDIT_{name.upper()}": str(getattr(settings, name)) for name in told}


def _service(opened: Home) -> Child:
    settings = opened.settings
    options = ["--home", str(settings.home), "--host", settings.host, "--port", str(settings.port)]
    command = [sys.executable, "-m", "plaudit.cli", "service", *options, "--parent", str(os.getpid())]
    return Child("service", lambda: command, f"{settings.service_url}/readyz")


def _worker(opened: Home) -> Child:
    options = ["--home", str(opened.settings.home), "--parent", str(os.getpid())]
    command = [sys.executable, "-m", "plaudit.cli", "worker", *options]
    return Child("worker", lambda: command, None)


def _policy_server(opened: Home, folder: Path, name: str) -> Child:
    settings = opened.settings

    def command() -> list[str]:
        base = ["--base", str(folder), "--name", name, "--port", str(settings.policy_port)]
        adapters = []
        for served, checkpoint in release.to_load(opened.store, opened.project_id):
            adapters += ["--adapter", f"{served.model}={checkpoint.folder}"]
        return [sys.executable, "-m", "plaudit.policy_server", *base, *adapters]

    return Child("policy-server", command, f"http://127.0.0.1:{settings.policy_port}/healthz")
