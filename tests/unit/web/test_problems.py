from __future__ import annotations

import json

import pytest
from starlette.requests import Request

from plaudit import errors
from plaudit.web import problems


def answer(error: errors.PlauditError, path: str) -> tuple[int, dict, dict]:
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "scheme": "http"}
    request = Request({**scope, "server": ("h", 1)})
    response = problems.on_plaudit_error(request, error)
    return response.status_code, json.loads(bytes(response.body))["error"], dict(response.headers)


@pytest.mark.parametrize(
    ("error", "ours", "openai"),
    [
        (errors.BadInput("m"), 422, 400),
        (errors.NotFound("m"), 404, 404),
        (errors.Conflict("m"), 409, 409),
        (errors.Unauthorized("m"), 401, 401),
        (errors.Forbidden("m"), 403, 403),
        (errors.Expired("m"), 410, 401),
        (errors.TooLarge("m"), 413, 413),
        (errors.RateLimited("m", 3), 429, 429),
        (errors.Unavailable("m"), 503, 503),
        (errors.UpstreamError("m", 504), 504, 504),
        (errors.Corrupt("m"), 500, 500),
    ],
)
def test_every_error_has_its_status_on_both_kinds_of_route(error, ours, openai) -> None:
    status, body, headers = answer(error, "/v1/feedback")
    assert (status, body) == (ours, {"code": error.code, "message": "m"})
    status, body, _ = answer(error, "/v1/chat/completions")
    assert (status, body["code"], body["message"]) == (openai, error.code, "m")
    assert body["type"].endswith("_error")
    assert ("retry-after" in headers) == (ours in (429, 503))


def test_a_refusal_carries_its_reasons() -> None:
    status, body, _ = answer(errors.Refused("no", ["too few", "alert"]), "/v1/x")
    assert (status, body["reasons"]) == (409, ["too few", "alert"])


def test_every_class_of_the_tree_is_mapped() -> None:
    unmapped = {
        "error",
        "upstream_error",
        "training_stopped",
        "corrupt",
        "already_running",
    }  # 500, or a status of its own
    codes = {
        kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PlauditError)
    }
    assert codes - set(problems.STATUS) == unmapped


def test_a_bug_says_nothing_of_itself() -> None:
    scope = {"type": "http", "method": "GET", "path": "/v1/x", "headers": [], "query_string": b"", "server": ("h", 1)}
    response = problems.on_bug(Request(scope), ValueError("secret"))
    assert response.status_code == 500
    assert b"secret" not in bytes(response.body)
    assert response.headers["x-content-type-options"] == "nosniff"  # nothing further out adds it
