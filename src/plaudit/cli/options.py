"""What every command needs: where the home is, and its settings, store and project opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from plaudit import settings as settings_file
from plaudit.domain import Project, TrainingUse, utc_now
from plaudit.loop import govern
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store

Command = Callable[..., Any]


def home_option(command: Command) -> Command:
    """`--home FOLDER`, as a Path or None (then PLAUDIT_HOME, then `.plaudit`)."""
    text = "Folder of this installation (default: PLAUDIT_HOME, else .plaudit)."
    return click.option("--home", type=click.Path(path_type=Path, file_okay=False), default=None, help=text)(command)


def json_option(command: Command) -> Command:
    """`--json`, as the flag `as_json`: one JSON object on the last line, for machines."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")(command)


@dataclass(frozen=True)
class Home:
    """An opened installation."""

    settings: Settings
    store: Store
    project: Project

    @property
    def project_id(self) -> str:
        return self.project.id


def open_home(home: Path | None, **overrides: Any) -> Home:
    """Settings, store and project of a home: the one that the setting `project` names, or `plaudit --project`. Creates what is missing, but no
    project besides the default one. Raises ConfigError, NotFound, Unavailable."""
    context = click.get_current_context(silent=True)
    named = context.find_root().params.get("project") if context is not None else None
    settings = settings_file.load(home, **{"project": named, **overrides})
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)  # people's words are in it
    store = open_store(settings.database_url)
    project = govern.ensure_project(store, utc_now(), TrainingUse(settings.training_use_default))
    if settings.project != project.name:
        from plaudit.loop import projects

        project = projects.find(store, settings.project)
    return Home(settings, store, project)


def print_json(value: Mapping[str, Any]) -> None:
    """One line, for machines."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))
