"""The folder of one run: config.json in; metrics.jsonl, progress.json, state/, checkpoint/ and result.json out.

`metrics.jsonl` has one JSON object a line, flushed as written; every line has `step`, `of`, `phase` and `seconds` (wall clock of that
piece of work). A killed run leaves at most half a line and steps after its last saved state: both are cut off when it resumes, so the
file never holds a step twice. `progress.json` says what the program is at between two lines, for whoever watches; nothing reads it back.
Of several processes that share a run the first alone writes, and reads what a killed run left.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from plaudit.artifacts import MANIFEST, write_atomic
from plaudit.errors import BadInput, ConfigError, NotFound, TrainingStopped
from plaudit.learn import distributed
from plaudit.learn.configs import from_dict, to_dict

T = TypeVar("T")


def read_config(folder: Path, kind: type[T]) -> T:
    """The run's config; the resolved one is written to config.resolved.json. Raises NotFound, BadInput (not JSON), ConfigError."""
    path = folder / "config.json"
    if not path.is_file():
        raise NotFound(f"{path} does not exist; a run folder starts with the config of its program.")
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); write the config again.") from error
    config = from_dict(kind, raw)
    resolved = folder / "config.resolved.json"
    text = json.dumps(to_dict(config), indent=1) + "\n"
    if resolved.is_file() and (folder / "state").exists() and resolved.read_text() != text:
        raise ConfigError(
            f"{path} changed after the run had started (see {resolved.name}); start a new run folder, or put the old config back."
        )
    write_atomic(resolved, text)
    return config


class RunFolder:
    """Paths and the metrics file of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.state = folder / "state"
        self.metrics = folder / "metrics.jsonl"
        self.progress = folder / "progress.json"

    @property
    def finished(self) -> bool:
        return (self.checkpoint / MANIFEST).is_file()

    def resume_metrics(self, step: int) -> list[dict[str, Any]]:
        """Cut the file back to lines of steps up to `step` (0: all of them go) and return them."""

        def cut() -> list[dict[str, Any]]:
            kept = [row for row in read_jsonl(self.metrics) if row["step"] <= step] if step else []
            write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
            return kept

        return distributed.from_first(cut)

    def log(self, step: int, of: int, phase: str, seconds: float, **values: Any) -> dict[str, Any]:
        """Append one line. Raises TrainingStopped where a figure is not finite: the last saved state stays as it is."""
        row = {"step": step, "of": of, "phase": phase, "seconds": round(seconds, 3), **values}
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise TrainingStopped(
                    f"{name} is {value} in step {step} of {self.folder}; lower the learning rate or look at the data of that step."
                )
        if distributed.is_first():
            with self.metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.progress.unlink(missing_ok=True)  # what was announced is over
        return row

    def announce(self, phase: str, step: int = 0, of: int = 0) -> None:
        """Say what is being done and how far it is (`of` 0: nobody knows). Cheap: no fsync, and a reader sees one note or the next."""
        if not distributed.is_first():
            return
        half = self.progress.with_name(f".{self.progress.name}.tmp")
        half.write_text(json.dumps({"phase": phase, "step": step, "of": of}))
        half.replace(self.progress)

    def write_result(self, result: Mapping[str, Any]) -> None:
        if distributed.is_first():
            write_atomic(self.folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


class Clock:
    """Seconds by phase of one step, or of the run; with `run` each phase is announced as it begins."""

    def __init__(self, run: RunFolder | None = None) -> None:
        self.run = run
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self.run is not None:
            self.run.announce(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def tell(self, name: str) -> Callable[[int, int], None]:
        """What work inside a phase calls with (done, of), so that nothing of more than some seconds is silent."""

        def told(step: int, of: int) -> None:
            if self.run is not None:
                self.run.announce(name, step, of)

        return told

    @property
    def total(self) -> float:
        return time.perf_counter() - self._start

    def rounded(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in self.seconds.items()}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of a file that a killed process may have left half written; [] where there is none."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
