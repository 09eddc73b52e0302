"""What a reader may copy runs: the files of examples/, and the Python of the quickstart, against a service with the Fake upstream."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from plaudit.cli.main import plaudit
from plaudit.domain import (
    Feedback,
    FeedbackKind,
    Interaction,
    InteractionSource,
    Preference,
    Response,
    TrainingUse,
    utc_now,
)
from plaudit.loop import annotate

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, service, *words: str) -> str:
    environment = {**os.environ, "PLAUDIT_URL": service.url, "PLAUDIT_KEY": service.key("application")}
    line = [sys.executable, str(EXAMPLES / name), *words]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_chat_with_feedback(service) -> None:
    said = run_example("chat_with_feedback.py", service, "Is", "it", "open?").splitlines()
    (interaction,) = service.store.find(Interaction)
    (feedback,) = service.store.find(Feedback)
    assert interaction.messages[0]["content"] == "Is it open?"
    assert interaction.training_use is TrainingUse.ALLOWED
    assert said[0] == service.store.find(Response, interaction_id=interaction.id)[0].text
    assert said[1] == f"{interaction.id}: thumb recorded"
    assert (feedback.interaction_id, feedback.kind, feedback.value) == (
        interaction.id,
        FeedbackKind.THUMB,
        {"up": True},
    )
    assert feedback.actor == "u-17"


def test_log_from_elsewhere(service) -> None:
    said = run_example("log_from_elsewhere.py", service)
    (interaction,) = service.store.find(Interaction)
    assert interaction.source is InteractionSource.LOGGED
    assert interaction.served_release_id is not None
    assert {one.kind: one.value for one in service.store.find(Feedback)} == {
        FeedbackKind.CHOICE: {"chosen": 1},
        FeedbackKind.COMMENT: {"text": "The other one guessed.", "reasons": ["made_up"]},
    }
    assert said.strip() == f"{interaction.id} by fake-1: comment recorded"


def test_every_example_has_a_test() -> None:
    source = ast.parse(Path(__file__).read_text())
    tests = {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
    assert {f"test_{path.stem}" for path in EXAMPLES.glob("*.py")} <= tests


def test_the_quickstart_leads_to_preferences(service, pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_URL", service.url)
    monkeypatch.setenv("PLAUDIT_HOME", str(service.home))
    monkeypatch.setenv("PLAUDIT_KEY", service.key("application"))
    monkeypatch.setenv("PLAUDIT_ANNOTATOR_KEY", service.key("annotator", "Ann"))
    names: dict[str, object] = {}
    (plan,) = [line for line in pages["quickstart.md"].text.splitlines() if line.startswith("plaudit annotate plan")]
    for number, block in enumerate(pages["quickstart.md"].blocks("python"), start=1):
        if "annotation.lease" in block:
            planned = CliRunner().invoke(plaudit, shlex.split(plan, comments=True)[1:])
            assert "1 comparisons wait in batch traffic, each for 1 annotators." in planned.output
        exec(compile(block, f"quickstart.md, block {number}", "exec"), names)
    names["client"].close()
    for one in ("plaudit", "ann"):
        names[one].close()
    assert {one.kind for one in service.store.find(Feedback)} == {FeedbackKind.THUMB, FeedbackKind.EDIT}
    report = annotate.aggregate(service.store, service.project_id, now=utc_now())
    assert (report.n_votes, service.store.count(Preference)) == (1, 1)
