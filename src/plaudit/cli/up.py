"""`plaudit up`: service, policy server and worker as children of one process, which holds the home, starts them again when they fall, and
takes them along when it ends. With `--role` some of them, for machines that share a store."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from plaudit.artifacts import write_secret
from plaudit.cli import lock, ports
from plaudit.cli.family import STOP_S, Child, Family, end_with, parent_option, told_to_stop
from plaudit.cli.models import prepare_base
from plaudit.cli.options import Home, home_option, json_option, open_home, print_json
from plaudit.domain import ApiKey, Person, Role, utc_now
from plaudit.loop import govern, people, release
from plaudit.settings import Settings, shown


@click.command()
@home_option
@click.option("--base", default=None, help="Base model: smollm2, tiny, a Hugging Face folder, or a hub id.")
@click.option("--role", default=None, help="all (default), or some of gateway, feedback, console, worker with commas.")
@click.option("--host", default=None, help="Address of the service (default 127.0.0.1).")
@click.option("--port", type=int, default=None, help="Port of the service (default 8484).")
@click.option("--policy-port", type=int, default=None, help="Port of the policy server (default 8485).")
@click.option("--upstream", default=None, help="Serve from this OpenAI-compatible URL instead of our policy server.")
@click.option("--model", default=None, help="The model's name at --upstream.")
@click.option("--worker/--no-worker", "with_worker", default=True, help="Start the worker too.")
@parent_option
@json_option
def up(
    home: Path | None,
    base: str | None,
    role: str | None,
    host: str | None,
    port: int | None,
    policy_port: int | None,
    upstream: str | None,
    model: str | None,
    with_worker: bool,
    parent: int | None,
    as_json: bool,
) -> None:
    """Start everything and stay until Ctrl-C."""
    end_with(parent, grace_s=STOP_S + 5)
    if upstream is not None and model is None:
        raise click.UsageError("--upstream needs --model, the model's name there.")
    opened = open_home(
        home, base=base, role=role, host=host, port=port, policy_port=policy_port, project=Settings.project
    )
    settings = opened.settings
    roles = settings.roles
    serves, chats, works = bool(roles - {"worker"}), "gateway" in roles, "worker" in roles and with_worker
    if serves:
        govern.check_address(opened.store, settings.host)
    addresses = {"service": settings.service_url} if serves else {}
    if chats:
        addresses["policy"] = shown(upstream or settings.policy_url)
    stop = told_to_stop(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    console = Console(stderr=as_json)
    with lock.held(settings.home, addresses, roles):
        if serves:
            ports.wait_until_free(settings.host, settings.port)
        name = model or base_name(settings.base)
        if chats:
            if upstream is None:
                ports.wait_until_free("127.0.0.1", settings.policy_port)
            release.register_base(opened.store, opened.project_id, name, upstream or settings.policy_url, utc_now())
        new_secret = first_key(opened) if serves else None
        sign_in = first_link(opened) if "console" in roles else None
        family = Family(settings.home / "logs", stop, _environment(settings))
        try:
            with console.status("Starting service and worker ..."):
                if serves:
                    family.start(_service(opened))
                if works:
                    family.start(_worker(opened))
            if chats and upstream is None:
                with console.status(f"Preparing the base model {settings.base} ..."):
                    folder = prepare_base(settings.base, settings.cache, remember=settings.home / "base.json")
                family.start(_policy_server(opened, folder, name))
            with console.status("Waiting until all of them answer ..."):
                family.wait_until_healthy()
            if not stop.is_set():
                ready = {"pid": os.getpid(), **addresses, "home": str(settings.home), "model": name}
                if as_json:
                    print_json({**ready, "admin_key_file": str(_key_file(settings))})
                else:
                    _say(console, ready, _key_file(settings), new_secret, sign_in)
                family.watch()
        finally:
            family.stop()
            opened.store.close()


def base_name(spec: str) -> str:
    """What a base model is called on the wire: the last part of a folder, else the spec."""
    return Path(spec).name if Path(spec).is_dir() else spec


def first_key(opened: Home) -> str | None:
    """The secret of the first admin key, in HOME/keys/admin.key (mode 600); None where an admin key was ever made, wherever."""
    if any(Role.ADMIN in key.roles for key in opened.store.find(ApiKey)):
        return None
    file = _key_file(opened.settings)
    _, secret = govern.create_key(opened.store, opened.project_id, "first admin", [Role.ADMIN], now=utc_now())
    write_secret(file, secret + "\n", replace=True)
    return secret


def _key_file(settings: Settings) -> Path:
    return settings.home / "keys" / "admin.key"


def first_link(opened: Home) -> str | None:
    """A link that signs the first admin in, also in HOME/keys/sign-in.link (mode 600); None once an admin has signed in.

    Made anew at every start until then: only the hash of the one before is known, and it ends.
    """
    file = opened.settings.home / "keys" / "sign-in.link"
    admins = [one for one in opened.store.find(Person, project_id=opened.project_id) if Role.ADMIN in one.roles]
    if any(people.has_signed_in(opened.store, admin.id) for admin in admins):
        file.unlink(missing_ok=True)
        return None
    _, _, secret = people.invite(opened.store, opened.project_id, "admin", [Role.ADMIN], utc_now())
    address = people.sign_in_link(opened.settings.service_url, secret)
    write_secret(file, address + "\n", replace=True)
    return address


def _say(
    console: Console, ready: Mapping[str, Any], key_file: Path, new_secret: str | None, sign_in: str | None
) -> None:
    console.print(f"[bold]Plaudit is up[/bold] on {ready['home']} (process {ready['pid']}). Ctrl-C stops it.")
    if "service" in ready:
        console.print(f"  service        {ready['service']}")
    if "policy" in ready:
        console.print(f"  policy server  {ready['policy']}  ({ready['model']})")
    if new_secret:
        console.print(f"  first admin key, shown this once: {new_secret}", soft_wrap=True)
    if key_file.exists():
        console.print(f"  admin key      {key_file}", soft_wrap=True)
    if sign_in:
        console.print(f"  sign in, once  {sign_in}", soft_wrap=True, highlight=False)


# --- the children ------------------------------------------------------------------------------------------------------


def _environment(settings: Settings) -> dict[str, str]:
    """What a command line decided here, for children that read the settings themselves."""
    told = ("base", "role", "host", "port", "policy_port")
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
        base += ["--parent", str(os.getpid())]
        adapters = []
        for served, checkpoint in release.to_load(opened.store, opened.project_id):
            adapters += ["--adapter", f"{served.model}={checkpoint.folder}"]
        return [sys.executable, "-m", "plaudit.policy_server", *base, *adapters]

    return Child("policy-server", command, f"http://127.0.0.1:{settings.policy_port}/healthz")
