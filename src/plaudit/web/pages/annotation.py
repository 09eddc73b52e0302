"""The lead's page of annotation: queue, burn-down, agreement over time, annotators, disputes, flags, gold, guideline, cost; and what a lead does
there."""

from __future__ import annotations

from datetime import timedelta

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import utc_now
from plaudit.errors import BadInput
from plaudit.formats import catalogue
from plaudit.loop import annotate, quality, reviews
from plaudit.loop.quality import Rules
from plaudit.web.annotation_rules import rules_of
from plaudit.web.door import door_of
from plaudit.web.pages import annotation_files, markdown
from plaudit.web.pages import annotation_tables as tables
from plaudit.web.pages.forms import read_form
from plaudit.web.pages.shell import answer, go
from plaudit.web.sign_in import signed_in

# --- the page -----------------------------------------------------------------------------------------------------------


async def page(request: Request) -> Response:
    """GET /annotation."""
    return await _page(request)


async def _page(request: Request, preview: str | None = None) -> Response:
    door, me = door_of(request), signed_in(request)
    rules, now = rules_of(door.settings), utc_now()
    seen = await door.run(tables.see, door.store, me.project_id, now)
    costs = await door.run(quality.cost, door.store, me.project_id, rules)
    found = await door.run(tables.tables_of, seen, rules, costs, now)
    weeks = next(table.rows for table in found if table.id == "agreement")
    burn, burn_words = tables.burn_picture(seen, now)
    current = seen.guidelines[0].text if seen.guidelines else ""
    return answer(
        request,
        "annotation.html",
        found,
        costs=costs,
        rules=rules,
        burn=burn,
        burn_words=burn_words,
        curve=tables.agreement_picture(weeks),
        text=current if preview is None else preview,
        preview=markdown.render(preview) if preview else "",
        candidates=tables.candidates(seen),
        annotators=tables.annotators(seen),
        readers=annotation_files.READERS,
        writers=tuple(catalogue.WRITERS),
        snapshots=await door.run(annotation_files.snapshots_of, door.store, me.project_id),
        batches=seen.batches,
        domains=seen.domains,
        paused=[one.person_id for one in seen.standings.values() if one.paused_at is not None],
    )


# --- what a lead does -----------------------------------------------------------------------------------------------------


async def guideline(request: Request) -> Response:
    """POST /annotation/guideline: the next version; with `act` preview only a look at it."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    text = form.get("text", "").replace("\r\n", "\n")
    if form.get("act") == "preview":
        return await _page(request, preview=text)
    await door.run(annotate.write_guideline, door.store, me.project_id, text, utc_now())
    return go("/annotation#guideline")


async def annotator(request: Request) -> Response:
    """POST /annotation/annotator: pause, resume, qualify a person, or assign work to them (`act`)."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    who, now = form.get("person", ""), utc_now()
    match form.get("act"):
        case "pause":
            reason = form.get("reason", "")
            await door.run(quality.pause, door.store, me.project_id, who, reason, me.name, now)
        case "resume":
            await door.run(quality.resume, door.store, me.project_id, who, me.name, now)
        case "qualify":
            days = form.get("days", "")
            if not days.isdecimal() or int(days) > 3650:
                raise BadInput(f"days is {days!r}; give a whole number from 0 (ends it) to 3650.")
            until = now + timedelta(days=int(days)) if int(days) else None
            await door.run(quality.qualify, door.store, me.project_id, who, form.get("domain", ""), until, me.name, now)
        case "assign" | "unassign" as act:
            kind, _, of = form.get("work", "").partition(":")
            batch, domain = (of, None) if kind == "batch" else (None, of)
            await door.run(
                lambda: quality.assign(
                    door.store,
                    me.project_id,
                    who,
                    batch=batch,
                    domain=domain,
                    end=act == "unassign",
                    by=me.name,
                    now=now,
                )
            )
        case other:
            raise BadInput(f"act is {other!r}; give pause, resume, qualify, assign or unassign.")
    return go("/annotation#annotators-title")


async def gold(request: Request) -> Response:
    """POST /annotation/gold: make gold of what is ticked, or retire one (`act`)."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    if form.get("act") == "retire":
        await door.run(quality.retire_gold, door.store, me.project_id, form.get("gold", ""), me.name, utc_now())
        return go("/annotation#gold-title")
    ticked = [value for name, value in form.items() if name.startswith("item-")]
    if not ticked:
        raise BadInput("Nothing is ticked; tick the questions that should become gold.")
    for value in ticked:
        id, _, choice = value.partition(":")
        await door.run(quality.make_gold, door.store, me.project_id, id, choice, me.name, utc_now())
    return go("/annotation#gold-title")


async def question(request: Request) -> Response:
    """POST /annotation/question: a flagged one is kept or dropped, a disputed one sent to an expert (`act`)."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    id, act, now = form.get("comparison", ""), form.get("act"), utc_now()
    rules: Rules = rules_of(door.settings)
    if act == "expert":
        await door.run(reviews.ask, door.store, me.project_id, id, me.name, now)
    elif act in ("keep", "drop"):
        await door.run(quality.resolve_flag, door.store, me.project_id, id, act == "keep", me.name, rules, now)
    else:
        raise BadInput(f"act is {act!r}; give keep, drop or expert.")
    return go("/annotation")
