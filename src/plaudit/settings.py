"""The only reader of the environment and of `plaudit.toml`. One frozen object, read at the doors; below them everything gets plain values.

Order: defaults, then `HOME/plaudit.toml`, then `PLAUDIT_<FIELD>` in the environment, then what a command line gives. An unknown name is
refused with the nearest valid one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from plaudit.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """Every setting with its help text; `docs/settings.md` lists the same."""

    home: Path = field(
        default=Path(".plaudit"),
        metadata={"help": "Folder of everything this installation keeps: store, snapshots, checkpoints, runs."},
    )
    cache: Path = field(
        default=Path("~/.cache/plaudit"), metadata={"help": "Folder of converted base models, shared by all homes."}
    )
    store_url: str = field(
        default="", metadata={"help": "SQLAlchemy URL of the store; empty means SQLite in the home."}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "Address the service listens on."})
    port: int = field(default=8484, metadata={"help": "Port of the service: gateway, feedback and annotation API."})
    policy_port: int = field(default=8485, metadata={"help": "Port of the policy server."})
    base: str = field(
        default="smollm2", metadata={"help": "Base model: smollm2, tiny, a Hugging Face folder, or a hub id."}
    )
    training_use_default: str = field(
        default="unknown", metadata={"help": "Consent of an interaction that does not say: allowed, denied or unknown."}
    )
    overlap: int = field(default=3, metadata={"help": "How many distinct annotators answer a comparison."})
    lease_s: float = field(default=120.0, metadata={"help": "Seconds for which a comparison is lent to an annotator."})
    upstream_timeout_s: float = field(
        default=120.0,
        metadata={"help": "Seconds the gateway waits for the model server's first byte, and between chunks."},
    )
    max_body_bytes: int = field(
        default=1_000_000, metadata={"help": "Largest request body; a larger one is answered 413."}
    )
    monitor_interval_s: float = field(
        default=30.0, metadata={"help": "Seconds between two measurements of production by the worker."}
    )
    min_new_preferences: int = field(
        default=100, metadata={"help": "New preferences since the last turn that make the loop due."}
    )

    @property
    def database_url(self) -> str:
        return self.store_url or f"sqlite:///{self.home / 'store.sqlite'}"

    @property
    def service_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def policy_url(self) -> str:
        return f"http://127.0.0.1:{self.policy_port}/v1"  # it is ours alone, whatever the service listens on


NAMES = tuple(spec.name for spec in fields(Settings))


def load(home: Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings for `home` (else PLAUDIT_HOME, else `.plaudit`). Raises ConfigError for unknown names and wrong values."""
    environ = os.environ if environ is None else environ
    root = home or Path(environ.get("PLAUDIT_HOME", Settings.home))
    values: dict[str, Any] = {}
    file = root / "plaudit.toml"
    if file.is_file():
        try:
            values.update(tomllib.loads(file.read_text()))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file} is not valid TOML ({error}); correct that line.") from error
        for name in values:
            _known(name, str(file))
    for key, value in environ.items():
        name = key.removeprefix("PLAUDIT_").lower()
        if key.startswith("PLAUDIT_") and name in NAMES:
            values[name] = value
    for name, value in overrides.items():
        _known(name, "the command line")
        if value is not None:
            values[name] = value
    values["home"] = root
    return Settings(**{name: _convert(name, values.get(name, getattr(Settings, name))) for name in NAMES})


def _known(name: str, where: str) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{where} sets {name!r}, which is not a setting; did you mean {near!r}?")


def _convert(name: str, value: Any) -> Any:
    default = getattr(Settings, name)
    try:
        if isinstance(default, Path):
            return Path(value).expanduser().absolute()
        return type(default)(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {value!r}; give a {type(default).__name__}.") from error
