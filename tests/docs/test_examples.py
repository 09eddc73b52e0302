"""What a reader may copy runs: the files of examples/, and the Python of the quickstart, against a service with the Fake upstream."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
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

    # A person's own curl: the program's last line, with the token in the place of a key.
    curl = shlex.split(said[2])
    assert "plk_" not in said[2]
    if shutil.which("curl") is None:
        pytest.skip("there is no curl to try the printed line with")
    done = subprocess.run(curl, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["status"] == "recorded"
    assert {"rating": 5} in [one.value for one in service.store.find(Feedback)]


def test_chat_app(service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application in this process, asked as its page asks it."""
    monkeypatch.setenv("PLAUDIT_URL", service.url)
    monkeypatch.setenv("PLAUDIT_KEY", service.key("application"))
    names = runpy.run_path(str(EXAMPLES / "chat_app.py"))

    async def use() -> dict[str, str]:
        transport = httpx.ASGITransport(names["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as browser:
            assert '<script src="/plaudit/widget.js" defer>' in (await browser.get("/")).text
            assert "plaudit-feedback" in (await browser.get("/plaudit/widget.js")).text
            answer = (await browser.post("/ask", json={"text": "Is it open?"})).json()
            thumb = {"interaction_id": answer["id"], "kind": "thumb", "value": {"up": False}}
            said = await browser.post("/plaudit/feedback", json={"token": answer["token"], "items": [thumb]})
            assert [one["code"] for one in said.json()["results"]] == [201]
        await names["client"].close()
        return answer

    answer = asyncio.run(use())
    names["capture"].close()
    (feedback,) = service.store.find(Feedback)
    assert (feedback.interaction_id, feedback.value, feedback.actor) == (answer["id"], {"up": False}, "u-17")
    assert service.store.find(Response, interaction_id=answer["id"])[0].text == answer["text"]


def test_adopting_capture_takes_at_most_ten_lines() -> None:
    marked = re.compile(r"(#|//|<!--) plaudit( -->)?$")
    lines = (EXAMPLES / "chat_app.py").read_text().partition('"""\n\n')[2].splitlines()
    adopted = [line for line in lines if marked.search(line)]
    assert 5 <= len(adopted) <= 10
    assert [
        line for line in lines if "plaudit" in re.sub(r'model="plaudit"', "", line.lower()) and line not in adopted
    ] == []


def test_import_logs(service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "logs.jsonl"
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "import_logs.py"), str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{file}: 2 interactions\n"
    monkeypatch.setenv("PLAUDIT_HOME", str(service.home))
    for _ in range(2):
        imported = CliRunner().invoke(plaudit, ["interactions", "import", str(file)])
        assert imported.exit_code == 0, imported.output
    said = {one.actor: one for one in service.store.find(Interaction)}
    assert set(said) == {"u-17", "u-18"}
    (thumb,) = service.store.find(Feedback)
    assert (thumb.interaction_id, thumb.value) == (said["u-18"].id, {"up": False})
    assert said["u-17"].created_at.isoformat() == "2026-01-05T09:30:00+00:00"


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
