"""`plaudit registry`: versions, where they came from, and whether their bytes are what was registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.errors import ConfigError


@click.group()
def registry() -> None:
    """Versions, their lineage, and whether their bytes are right."""


@registry.command(name="list")
@home_option
@json_option
def list_versions(home: Path | None, as_json: bool) -> None:
    """Every Checkpoint as a version, oldest first, with gate, releases and aliases."""
    from plaudit.loop import registry as stage

    opened = open_home(home)
    found = stage.versions(opened.store, opened.project_id)
    named = stage.aliases(opened.store, opened.project_id)
    if as_json:
        shown = {alias: {"id": one.id, "model": one.model} if one else None for alias, one in named.items()}
        print_json({"versions": [one.to_dict() for one in found], "aliases": shown})
        return
    table = Table("version", "checkpoint", "sha256", "made", "gate", "releases", "alias")
    for one in found:
        said = one.to_dict()
        releases = ", ".join(f"{each['id']} {each['state']}" for each in said["releases"])
        row = (one.name, one.checkpoint.id, one.checkpoint.sha256[:12], said["created_at"][:16], said["gate"] or "")
        table.add_row(*row, releases, ", ".join(one.aliases))
    Console().print(table)
    for alias, release in named.items():
        click.echo(f"{alias}: {f'{release.model} ({release.id})' if release else 'none'}")


@registry.command()
@click.argument("version")
@home_option
@json_option
def show(version: str, home: Path | None, as_json: bool) -> None:
    """All of VERSION: policy/3, an alias, an id of a Checkpoint or Release, or the start of its sha256."""
    from plaudit.loop import registry as stage

    opened = open_home(home)
    said = stage.version(opened.store, opened.project_id, version).to_dict()
    if as_json:
        print_json(said)
        return
    table = Table(show_header=False)
    for name, value in said.items():
        table.add_row(name, str(value) if value not in (None, []) else "")
    Console().print(table)


@registry.command()
@click.argument("version")
@click.option("--rows", is_flag=True, help="Every Preference and Annotation, instead of their numbers.")
@home_option
@json_option
def lineage(version: str, rows: bool, home: Path | None, as_json: bool) -> None:
    """What VERSION rests on: approvals, evaluations, runs, Snapshots, Preferences, Annotations."""
    from plaudit.loop import registry as stage

    opened = open_home(home)
    found = stage.lineage(opened.store, opened.project_id, version, rows)
    if as_json:
        print_json({"nodes": [vars(node) for node in found]})
        return
    nodes = {node.id: node for node in found}
    below = {id for node in found for id in node.rests_on}
    for top in (node for node in found if node.id not in below):
        Console().print(_tree(nodes, top, Tree(_line(top)), set()))


def _tree(nodes: dict[str, Any], node: Any, tree: Tree, seen: set[str]) -> Tree:
    for id in node.rests_on:
        if id not in nodes or id in seen:  # a run's inputs stand under its Checkpoint already
            continue
        seen.add(id)
        _tree(nodes, nodes[id], tree.add(_line(nodes[id])), seen)
    return tree


def _line(node: Any) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in node.facts.items() if not isinstance(value, dict))
    return f"{node.kind} {node.id}  {facts}"


@registry.command()
@click.argument("version", required=False)
@home_option
@json_option
def verify(version: str | None, home: Path | None, as_json: bool) -> None:
    """Read every byte of each Checkpoint and Snapshot (of VERSION: what it rests on). Exit code 1 where one is not what was registered."""
    from plaudit.loop import registry as stage

    opened = open_home(home)
    found = stage.verify(opened.store, opened.project_id, version)
    wrong = stage.problems(found)
    if as_json:
        print_json({"whole": not wrong, "artifacts": [vars(one) for one in found]})
    else:
        for one in wrong:
            click.echo(f"{one.kind} {one.id}: {one.problem}")
        click.echo(f"{len(found) - len(wrong)} of {len(found)} artifacts are what was registered.")
    if wrong:
        click.get_current_context().exit(1)


@registry.command()
@home_option
@json_option
def mirror(home: Path | None, as_json: bool) -> None:
    """Bring MLflow (the setting `mlflow_url`) up to date now; a worker does it by itself."""
    from plaudit.domain import Project
    from plaudit.loop import mirror as stage
    from plaudit.loop.mlflow_server import MlflowServer

    opened = open_home(home)
    settings = opened.settings
    if not settings.mlflow_url:
        raise ConfigError(
            "mlflow_url is empty; set it to the address of an MLflow server, such as http://127.0.0.1:5000."
        )
    with MlflowServer(settings.mlflow_url, settings.mlflow_token) as server:
        wrote = stage.mirror(opened.store, opened.store.get(Project, opened.project_id), server, settings.mlflow_prefix)
    if as_json:
        print_json(wrote.to_dict())
    else:
        counts = ", ".join(f"{n} {name}" for name, n in wrote.to_dict().items() if isinstance(n, int) and n)
        click.echo(f"{server.url}: {counts or 'up to date, nothing written'}.")
        for problem in wrote.problems:
            click.echo(problem)
    if wrote.problems:
        click.get_current_context().exit(1)
