"""Signs that an annotator may not be reading, and slices where experts overturn most annotators: the story beside the lead's page.

A page of its own, because it reads every answer; the lead's page reads sums.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Json
from plaudit.loop import conduct
from plaudit.loop.conduct import Suspicion
from plaudit.stats.audits import SliceAudit
from plaudit.web.door import door_of
from plaudit.web.pages.shell import Column, Table, answer
from plaudit.web.sign_in import signed_in

SIGNS = (
    Column("name", "Annotator", "brief"),
    Column("kind", "Sign", "brief"),
    Column("why", "In words", "words"),
    Column("figure", "Figure", "number"),
    Column("n", "Answers", "number"),
    Column("state", "State", "state"),
)
AUDITS = (
    Column("name", "Slice", "brief"),
    Column("state", "State", "state"),
    Column("overturned", "Overturned", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("n", "Audits", "number"),
    Column("elsewhere", "Elsewhere", "number"),
    Column("p", "p", "number"),
)


async def page(request: Request) -> Response:
    """GET /annotation/signs."""
    door, me = door_of(request), signed_in(request)
    found = await door.run(conduct.suspicions, door.store, me.project_id)
    slices = await door.run(conduct.audited, door.store, me.project_id)
    tables = [
        Table("signs", "Annotators", SIGNS, [_sign(one) for one in found], "No annotator shows a sign of not reading."),
        Table("audits", "Where most may be wrong", AUDITS, [_audit(one) for one in slices],
              "No slice has enough decided audits yet; experts decide them on the page Reviews."),
    ]  # fmt: skip
    n_people = len({one.annotator_id for one in found})
    return answer(request, "signs.html", tables, n_people=n_people, n_signs=len(found))


def _sign(one: Suspicion) -> Json:
    return {**vars(one), "state": "paused" if one.paused else "active"}


def _audit(one: SliceAudit) -> Json:
    rate = one.overturned
    return {
        "name": one.name,
        "state": "flagged" if one.flagged else "quiet",
        "overturned": rate.mean,
        "low": rate.low,
        "high": rate.high,
        "n": rate.n,
        "elsewhere": one.elsewhere,
        "p": one.p,
    }
