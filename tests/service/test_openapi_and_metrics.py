"""`GET /openapi.json` and `GET /metrics`, and docs/api.md about both."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from plaudit.domain import Alert, AlertState, Project, Quarantine, Run, utc_now
from plaudit.errors import BadInput, Unavailable
from plaudit.loop import govern
from plaudit.web.app import ROUTES
from plaudit.web.metrics import BUCKETS_S, Histogram, Metrics, spool_bytes
from plaudit.web.openapi import document, statuses
from plaudit.web.operations import OPERATIONS

DOCS = Path(__file__).parents[2] / "docs"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "user": "planted-user"}


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_every_route_is_described_with_the_statuses_of_its_page() -> None:
    assert set(OPERATIONS) == {f"{method} {path}" for method, path, _, _ in ROUTES}
    permissions = {f"{method} {path}": permission for method, path, _, permission in ROUTES}
    shown = re.findall(r"^\| `([A-Z]+ /\S*)` \| \w+ \| ([0-9, ]+) \|$", (DOCS / "api.md").read_text(), re.MULTILINE)
    for route, said in shown:
        may = {int(status) for status in said.split(", ")}
        assert may <= set(statuses(permissions[route], OPERATIONS[route])), route
        own = {status for status in OPERATIONS[route].answers if status < 400}
        assert own == {status for status in may if status < 400}, route
    assert len(shown) == len(ROUTES)
    paths = document(ROUTES, OPERATIONS)["paths"]
    said = paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(said) == {"application/json", "text/event-stream"}
    asked = paths["/v1/assignment"]["get"]["parameters"]
    assert {one["name"]: one["required"] for one in asked} == {"user": True, "conversation_id": False}


def test_the_document_shows_what_the_process_serves(start_service) -> None:
    service = start_service(role="feedback")
    served = httpx.get(f"{service.url}/openapi.json").json()
    assert served["openapi"].startswith("3.1")
    assert "/v1/feedback" in served["paths"]
    assert "/v1/chat/completions" not in served["paths"]
    feedback = served["paths"]["/v1/feedback"]["post"]
    assert feedback["security"] == [{"key": []}, {"token": []}]
    assert served["paths"]["/v1/interactions"]["post"]["security"] == [{"key": []}]
    assert feedback["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Feedback"}
    assert served["components"]["schemas"]["ThumbFeedback"]["required"] == ["interaction_id", "kind", "value"]
    ids = [one["operationId"] for path in served["paths"].values() for one in path.values()]
    assert len(ids) == len(set(ids))


def read(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_metrics_count_what_was_done_and_name_nobody(start_service) -> None:
    service = start_service()
    application, operator = service.key("application"), service.key("operator")
    alert = {
        "rule": "errors",
        "blocking": False,
        "value": 1.0,
        "threshold": 0.1,
        "message": "x",
        "opened_at": utc_now(),
    }
    other = Project(id="prj_other", project_id="prj_other", name="other", created_at=utc_now())
    held = {"project_id": service.project.id, "interaction_id": None, "reason": "x", "by": "x", "n_feedback": 0}
    service.store.add(
        other,
        Quarantine(id="qrt_1", actor="a", created_at=utc_now(), **held),
        Quarantine(id="qrt_2", actor="b", created_at=utc_now(), lifted_at=utc_now(), **held),
        Run(id="run_1", project_id=service.project.id, step="ppo", key="k", turn=1, created_at=utc_now()),
        *(
            Alert(id=f"alr_{n}", project_id=project, state=state, severity="critical", **alert)
            for n, (project, state) in enumerate(
                [
                    (service.project.id, AlertState.FIRING),
                    (service.project.id, AlertState.RESOLVED),
                    (other.id, AlertState.FIRING),
                ]
            )
        ),
    )
    with httpx.Client(base_url=service.url, timeout=60) as client:
        assert client.get("/metrics", headers=bearer(application)).status_code == 403
        said = client.post("/v1/chat/completions", json=CHAT, headers=bearer(application)).json()["id"]
        with client.stream(
            "POST", "/v1/chat/completions", json={**CHAT, "stream": True}, headers=bearer(application)
        ) as events:
            events.read()
        thumb = {"interaction_id": said, "kind": "thumb", "value": True}
        for _ in range(2):
            client.post("/v1/feedback", json=thumb, headers=bearer(application))
        client.post(
            "/v1/feedback/batch",
            json={"items": [{**thumb, "value": False}, {"kind": "x"}]},
            headers=bearer(application),
        )
        assert client.get("/planted-path").status_code == 404
        assert client.request("PROPFIND", "/planted-path").status_code in (404, 405)
        answer = client.get("/metrics", headers=bearer(operator))
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    figures = read(answer.text)
    chats = 'method="POST",route="/v1/chat/completions",status="200"'
    assert figures[f"plaudit_http_requests_total{{{chats}}}"] == 2
    assert figures['plaudit_http_requests_total{method="GET",route="/metrics",status="403"}'] == 1
    assert figures['plaudit_http_requests_total{method="GET",route="other",status="404"}'] == 1
    assert [name for name in figures if 'method="other",route="other"' in name]
    for name in ("gateway_overhead", "upstream_wait"):
        assert figures[f"plaudit_{name}_seconds_count"] == figures[f'plaudit_{name}_seconds_bucket{{le="+Inf"}}'] == 2
    assert figures["plaudit_store_commit_seconds_count"] >= 2
    assert [
        figures[f'plaudit_feedback_total{{kind="thumb",status="{one}"}}']
        for one in ("recorded", "replayed", "superseded")
    ] == [1, 1, 1]
    assert figures['plaudit_alerts_firing{severity="critical"}'] == 1
    assert (figures["plaudit_quarantines"], figures['plaudit_runs{state="queued"}']) == (1, 1)
    assert (figures["plaudit_store_up"], figures["plaudit_spooling"], figures["plaudit_spool_bytes"]) == (1, 0, 0)
    assert "planted" not in answer.text
    named = set(re.findall(r"^# TYPE (\S+)", answer.text, re.MULTILINE))
    section = (DOCS / "api.md").read_text().partition("## GET /metrics")[2].partition("\n## ")[0]
    assert named == set(re.findall(r"^\| `(plaudit_\w+)`", section, re.MULTILINE))
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool (Debian package prometheus) to check the text with")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=answer.text, text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_metrics_come_while_the_store_is_away(start_service, monkeypatch: pytest.MonkeyPatch) -> None:
    service = start_service(store_patience_s=30.0)
    operator = service.key("operator")
    with httpx.Client(base_url=service.url, timeout=60, headers=bearer(operator)) as client:
        assert read(client.get("/metrics").text)["plaudit_store_up"] == 1
        monkeypatch.setattr(type(service.store), "find", away)
        figures = read(client.get("/metrics").text)
    assert figures["plaudit_store_up"] == 0
    assert "plaudit_http_request_seconds_count" in str(figures)


def away(*_: object, **__: object) -> None:
    raise Unavailable("The store is away.")


def test_a_bound_belongs_to_its_bucket_and_a_failed_item_is_no_feedback(tmp_path: Path) -> None:
    seen = Histogram()
    for seconds in (BUCKETS_S[1], BUCKETS_S[1] + 1e-9, BUCKETS_S[-1] + 1):
        seen.observe(seconds)
    assert [place for place, n in enumerate(seen.counts) if n] == [1, 2, len(BUCKETS_S)]
    counted = Metrics()
    counted.chat(1.0, 0.75)
    counted.chat(0.5, 0.625)  # two clocks: no overhead is below none
    assert (counted.overhead.sum, counted.upstream.sum) == (0.25, 1.375)
    counted.said([BadInput("x")])
    assert counted.feedback == {}
    for name in ("spool-1.jsonl", "refused-1.jsonl"):
        (tmp_path / name).write_text("four")
    assert spool_bytes(tmp_path) == 4


def test_the_figures_are_for_operators_and_admins() -> None:
    may = {role for role, permissions in govern.PERMISSIONS.items() if govern.Permission.MEASURE in permissions}
    assert may == {"operator", "admin"}
