"""What every page shares: the layout with its navigation, tables with their CSV and JSON twins, static files, error pages, headers.

A page is `answer(request, "runs.html", tables, ...)`: the same rows are its HTML and, with `?as=json` or `?as=csv` (and `&table=ID` for
another than the first), its twins. Pages hold no inline script and no inline style, so that the content security policy may forbid both.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from plaudit.errors import BadInput, NotFound, PlauditError, Refused
from plaudit.loop import govern
from plaudit.loop.govern import Permission
from plaudit.web.pages import words
from plaudit.web.sign_in import visitor

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # not no-referrer: then a form's Origin would be null, and refused
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",  # after signing out, Back shows nothing
}
FOREVER = "public, max-age=31536000, immutable"
TYPES: Mapping[str, str] = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
TITLES: Mapping[int, str] = {401: "Sign in", 403: "Not for you", 404: "Nothing here", 410: "Too late"}


@dataclass(frozen=True)
class Place:
    """One entry of the navigation; those see it who may open it."""

    label: str
    path: str
    permission: Permission


# Whoever signs in starts at the first that they may open.
PLACES: tuple[Place, ...] = (
    Place("Runs", "/runs", Permission.READ),
    Place("Snapshots", "/snapshots", Permission.READ),
    Place("Evaluations", "/evaluations", Permission.READ),
    Place("Releases", "/releases", Permission.READ),
    Place("Experiments", "/experiments", Permission.READ),
    Place("Registry", "/registry", Permission.READ),
    Place("Annotate", "/annotate", Permission.ANNOTATE),
    Place("Annotation", "/annotation", Permission.PLAN),
    Place("Reviews", "/reviews", Permission.REVIEW),
    Place("Abuse", "/abuse", Permission.OPERATE),
    Place("Chat", "/chat", Permission.CHAT),
    Place("People", "/people", Permission.ADMIN),
)


@dataclass(frozen=True)
class Column:
    """One column: `key` in the rows; `kind` text, brief (never wrapped), words (wide), number, moment, duration or
    state; `href` a link with {names} of the row."""

    key: str
    title: str
    kind: str = "text"
    href: str = ""

    def link(self, row: Mapping[str, Any]) -> str:
        return self.href.format_map({name: quote(str(value), safe="") for name, value in row.items()})


@dataclass(frozen=True)
class Table:
    """Rows that a page shows and its twins hold. `empty` says why there are none, and what to do."""

    id: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    empty: str


# --- answers -----------------------------------------------------------------------------------------------------------


def answer(request: Request, template: str, tables: Sequence[Table] = (), /, **values: Any) -> Response:
    """The page, or the twin of one of its tables that `?as=` asks for. Raises BadInput, NotFound for a twin that there is not."""
    wanted = request.query_params.get("as")
    if wanted is None:
        return page(request, template, 200, tables={table.id: table for table in tables}, **values)
    chosen = request.query_params.get("table", tables[0].id if tables else "")
    table = next((table for table in tables if table.id == chosen), None)
    if table is None:
        raise NotFound(f"This page has no table {chosen!r}; it has: {', '.join(t.id for t in tables) or 'none'}.")
    return twin(wanted, table.id, [column.key for column in table.columns], table.rows)


def twin(wanted: str, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Response:
    """Rows as a JSON or CSV file. Raises BadInput for another kind."""
    match wanted:
        case "json":
            listed = [{key: words.plain(row.get(key)) for key in columns} for row in rows]
            body = json.dumps({name: listed}, ensure_ascii=False, default=str)
            return Response(body, 200, {**HEADERS}, "application/json")
        case "csv":
            text = io.StringIO()
            writer = csv.writer(text)
            writer.writerow(columns)
            writer.writerows([_cell(row.get(key)) for key in columns] for row in rows)
            headers = {**HEADERS, "content-disposition": f'attachment; filename="{name}.csv"'}
            return Response(text.getvalue(), 200, headers, "text/csv")
        case _:
            raise BadInput(f"as is {wanted!r}; choose json or csv.")


def page(request: Request, template: str, status: int = 200, /, **values: Any) -> Response:
    """A rendered template inside the layout."""
    person = visitor(request)
    text = ENVIRONMENT.get_template(template).render(
        request=request,
        person=person,
        places=[place for place in PLACES if person is not None and govern.may(person.roles, place.permission)],
        **values,
    )
    return Response(text, status, {**HEADERS}, "text/html")


def go(path: str) -> Response:
    """303: what a form answers, so that a reload sends nothing twice."""
    return RedirectResponse(path, 303, {"cache-control": "no-store"})


def problem(request: Request, status: int, error: PlauditError | None, message: str) -> Response:
    """An error as a page of the same shell."""
    reasons = error.reasons if isinstance(error, Refused) else ()
    title = TITLES.get(status, "It failed" if status >= 500 else "That did not work")
    return page(request, "problem.html", status, title=title, message=message, reasons=reasons, status=status)


def wants_page(request: Request) -> bool:
    """Whether a person's browser asks, and an error should be a page: not on API routes, nor for twins fetched by a program."""
    return not request.url.path.startswith("/v1/") and "text/html" in request.headers.get("accept", "")


# --- static files ------------------------------------------------------------------------------------------------------


def _files() -> dict[str, tuple[str, bytes]]:
    """Name with the hash of the content in it -> (plain name, content)."""
    found = {}
    own = resources.files("plaudit.web.pages").joinpath("static").iterdir()
    for file in (*own, resources.files("plaudit").joinpath("client", "widget.js")):
        stem, _, ending = file.name.rpartition(".")
        if ending in TYPES:
            content = file.read_bytes()
            found[f"{stem}.{hashlib.sha256(content).hexdigest()[:12]}.{ending}"] = (file.name, content)
    return found


STATIC = _files()


def static(name: str) -> str:
    """The address of a static file, which changes with its content."""
    return "/static/" + next(hashed for hashed, (plain, _) in STATIC.items() if plain == name)


async def static_file(request: Request) -> Response:
    """GET /static/{name}."""
    found = STATIC.get(request.path_params["name"])
    if found is None:
        raise NotFound(f"There is no static file {request.path_params['name']!r}.")
    ending = found[0].rpartition(".")[2]
    return Response(found[1], 200, {**HEADERS, "cache-control": FOREVER}, TYPES[ending])


# --- inside ------------------------------------------------------------------------------------------------------------


def _cell(value: Any) -> Any:
    """A spreadsheet runs text that begins with one of these as a formula; OWASP, "CSV Injection"."""
    plain = words.plain(value)
    return f"'{plain}" if isinstance(plain, str) and plain[:1] in ("=", "+", "-", "@", "\t", "\r") else plain


def _twin_href(request: Request, table: Table, kind: str) -> str:
    return "?" + urlencode({**request.query_params, "table": table.id, "as": kind})


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plaudit.web.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=words.number, duration=words.duration, moment=words.moment, percent=words.percent)
    environment.globals.update(static=static, twin_href=_twin_href)
    return environment


ENVIRONMENT = _environment()
