"""The business's own metrics: what became of a user, one by one and in batches."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import utc_now
from plaudit.errors import PlauditError
from plaudit.loop import outcomes
from plaudit.openai_protocol import Json
from plaudit.web.access import key_of
from plaudit.web.api.feedback import batch_of, results_response
from plaudit.web.door import door_of, read_json
from plaudit.web.problems import json_response, problem


async def record(request: Request) -> Response:
    """POST /v1/outcomes: 201, or 200 where this very one was recorded before."""
    door = door_of(request)
    body = await read_json(request)
    (result,) = await door.run(outcomes.record, door.store, key_of(request).project_id, [body], utc_now())
    if isinstance(result, PlauditError):
        raise result
    status, said = _result(result)
    return json_response(said, status)


async def record_batch(request: Request) -> Response:
    """POST /v1/outcomes/batch: 207, a status for each, all in one transaction."""
    door = door_of(request)
    items = batch_of(await read_json(request), "outcomes")
    results = await door.run(outcomes.record, door.store, key_of(request).project_id, items, utc_now())
    return results_response([problem(one) if isinstance(one, PlauditError) else _result(one) for one in results])


def _result(recorded: outcomes.Recorded) -> tuple[int, Json]:
    said = {"id": recorded.outcome.id, "status": "replayed" if recorded.replayed else "recorded"}
    return 200 if recorded.replayed else 201, said
