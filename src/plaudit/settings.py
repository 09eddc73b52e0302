"""The only reader of the environment and of `plaudit.toml`. One frozen object, read at the doors; below them everything gets plain values.

Order: defaults, then `HOME/plaudit.toml`, then `PLAUDIT_<FIELD>` in the environment, then what a command line gives. An unknown name is
refused with the nearest valid one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from plaudit.errors import ConfigError

ROLES = ("gateway", "feedback", "console", "worker")


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
    project: str = field(default="default", metadata={"help": "Name of the project that commands act on."})
    role: str = field(
        default="all",
        metadata={
            "help": "What this process serves: all, or some of gateway, feedback, console and worker with commas."
        },
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address the service listens on; another one needs an API key first."}
    )
    port: int = field(default=8484, metadata={"help": "Port of the service: gateway, feedback and annotation API."})
    policy_port: int = field(default=8485, metadata={"help": "Port of the policy server."})
    base: str = field(
        default="smollm2", metadata={"help": "Base model: smollm2, tiny, a Hugging Face folder, or a hub id."}
    )
    training_use_default: str = field(
        default="unknown", metadata={"help": "Consent of an interaction that does not say: allowed, denied or unknown."}
    )
    personal_data: str = field(
        default="email=redact,iban=redact,card=redact,phone=redact,ip=redact,secret=redact",
        metadata={
            "help": "What becomes of personal data before annotators see it: KIND=detect, redact or drop, with commas."
        },
    )
    forbidden_models: str = field(
        default="",
        metadata={
            "help": "Models, with commas, * stands for anything, whose terms forbid training on what they write."
        },
    )
    overlap: int = field(default=3, metadata={"help": "How many distinct annotators answer a comparison."})
    lease_s: float = field(default=120.0, metadata={"help": "Seconds for which a comparison is lent to an annotator."})
    gold_fraction: float = field(
        default=0.07, metadata={"help": "Share of lent questions whose answer is known, where a project has gold."}
    )
    extra_votes: int = field(
        default=0,
        metadata={"help": "Votes beyond the overlap, at most, while the answers do not decide; then an expert."},
    )
    question_mix: str = field(
        default="",
        metadata={
            "help": "Shares of planned questions that are not random, such as close=.3,disagreement=.3,coverage=.1; empty: all random."
        },
    )
    question_slices: str = field(
        default="", metadata={"help": "Attribute of interactions whose values are the slices that coverage evens out."}
    )
    audit_fraction: float = field(
        default=0.05, metadata={"help": "Share of closed training comparisons that an expert looks at again."}
    )
    pay_per_answer: float = field(default=0.0, metadata={"help": "What one answer costs, in your currency."})
    annotation_budget: float = field(
        default=0.0,
        metadata={"help": "Once answers have cost this much, no further votes and audits; 0 sets no limit."},
    )
    upstream_timeout_s: float = field(
        default=120.0,
        metadata={"help": "Seconds the gateway waits for the model server's first byte or first chunk."},
    )
    upstream_idle_s: float = field(
        default=60.0, metadata={"help": "Seconds the gateway waits for each later chunk of a stream."}
    )
    strict_requests: bool = field(
        default=False,
        metadata={"help": "Refuse fields of a chat completion that have no effect here, instead of ignoring them."},
    )
    filters: tuple[Any, ...] = field(
        default=(),
        metadata={"help": "Rules on the text of prompts and answers: [[filters]] tables, in the order they act."},
    )
    on_store_failure: str = field(
        default="serve",
        metadata={"help": "While the store does not answer: serve (rows wait in HOME/spool) or refuse (503)."},
    )
    store_patience_s: float = field(
        default=1.0, metadata={"help": "Seconds a chat waits for the store before its rows go to HOME/spool."}
    )
    telemetry: bool = field(
        default=False, metadata={"help": "Emit OpenTelemetry spans of chats; needs the extra otel."}
    )
    max_body_bytes: int = field(
        default=1_000_000, metadata={"help": "Largest request body; a larger one is answered 413."}
    )
    body_timeout_s: float = field(
        default=30.0, metadata={"help": "Seconds in which a request's body must arrive; a slower one is refused."}
    )
    rate_per_key: float = field(
        default=0.0, metadata={"help": "Requests a second of one API key; more are answered 429. 0 sets no limit."}
    )
    rate_per_actor: float = field(
        default=0.0,
        metadata={"help": "Chats and feedback a second of one end user; more are answered 429. 0 sets no limit."},
    )
    rate_burst_s: float = field(
        default=10.0, metadata={"help": "Seconds' worth of either rate that may come at once, after a pause."}
    )
    feedback_origins: str = field(
        default="",
        metadata={
            "help": "Origins, with commas, whose pages may send feedback with a token (CORS); empty: only those of our own."
        },
    )
    feedback_keys: str = field(
        default="",
        repr=False,
        metadata={
            "help": "Keys that sign feedback tokens, id:secret with commas, the signing one first; empty means a file in the home."
        },
    )
    on_abuse: str = field(
        default="show",
        metadata={"help": "What the worker does with feedback that looks like abuse: show or quarantine."},
    )
    retention_days: float = field(
        default=0.0, metadata={"help": "Days after which the worker erases what users said; 0 keeps it."}
    )
    purge_days: float = field(
        default=30.0,
        metadata={"help": "Days after an erasure until Snapshots and Checkpoints built from it lose their content."},
    )
    shadow_fraction: float = field(
        default=0.1, metadata={"help": "Share of live requests that a Release in shadow gets a copy of."}
    )
    shadow_concurrency: int = field(
        default=2, metadata={"help": "Copies on their way at once; more are left out, and nobody waits for them."}
    )
    monitor_interval_s: float = field(
        default=30.0, metadata={"help": "Seconds between two measurements of production by the worker."}
    )
    monitor_sample: int = field(
        default=64, metadata={"help": "Answers of a measurement that the newest reward model scores; 0 scores none."}
    )
    audit_anchor: str = field(
        default="",
        metadata={
            "help": "File of signed heads of the audit log, best on another disk; empty means audit/anchors.jsonl in the home."
        },
    )
    mlflow_url: str = field(
        default="",
        repr=False,
        metadata={"help": "MLflow tracking server that the worker shows runs, versions and aliases in; empty: none."},
    )
    mlflow_token: str = field(default="", repr=False, metadata={"help": "Bearer token for it, where it wants one."})
    mlflow_prefix: str = field(
        default="plaudit", metadata={"help": "What the names of our experiments and models there begin with."}
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

    @property
    def treatments(self) -> dict[str, str]:
        """`personal_data`, taken apart. Raises ConfigError."""
        parts = [part.strip() for part in self.personal_data.split(",") if part.strip()]
        wrong = next((part for part in parts if "=" not in part), None)
        if wrong is not None:
            raise ConfigError(f"personal_data names {wrong!r}; give KIND=TREATMENT, such as email=redact.")
        return dict(part.split("=", 1) for part in parts)

    @property
    def never_learnt(self) -> tuple[str, ...]:
        """`forbidden_models`, taken apart."""
        return tuple(part.strip() for part in self.forbidden_models.split(",") if part.strip())

    @property
    def roles(self) -> frozenset[str]:
        """`role`, taken apart. Raises ConfigError."""
        named = frozenset(part.strip() for part in self.role.split(","))
        if named == {"all"}:
            return frozenset(ROLES)
        if not named <= frozenset(ROLES):
            raise ConfigError(f"role is {self.role!r}; give all, or some of {', '.join(ROLES)} with commas.")
        return named


def shown(url: str) -> str:
    """A URL without the password in it, for messages."""
    return re.sub(r"//([^/@:]*):[^/@]*@", r"//\1:***@", url)


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
    if isinstance(default, bool):
        return _flag(name, value)
    if isinstance(default, tuple):
        return _tables(name, value)
    try:
        if isinstance(default, Path):
            return Path(value).expanduser().absolute()
        return type(default)(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {value!r}; give a {type(default).__name__}.") from error


def _flag(name: str, value: Any) -> bool:
    """TOML has booleans, the environment has words."""
    if isinstance(value, bool):
        return value
    if str(value).lower() not in ("true", "false"):
        raise ConfigError(f"{name} is {value!r}; give true or false.")
    return str(value).lower() == "true"


def _tables(name: str, value: Any) -> tuple[Any, ...]:
    """A list of tables; in the environment, where there are none, a JSON list of objects."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ConfigError(f"{name} is {value!r}; give a JSON list of objects ({error}).") from error
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} is {value!r}; write [[{name}]] tables.")
    return tuple(value)
