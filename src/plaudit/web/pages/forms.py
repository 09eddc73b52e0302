"""Forms as browsers send them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.requests import Request

from plaudit.errors import BadInput, TooLarge
from plaudit.web.door import door_of

MAX_UPLOAD_BYTES = 50_000_000
_BOUNDARY = re.compile(r'^multipart/form-data\s*;.*boundary=(?:"([^"]{1,70})"|([^\s;]{1,70}))', re.IGNORECASE)
_PARAMETER = re.compile(r'\b(name|filename)="([^"]*)"')


@dataclass(frozen=True)
class Upload:
    """A form with one file in it."""

    fields: dict[str, str]
    name: str  # as the browser calls the file
    content: bytes


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; of a name given twice, the last. Raises TooLarge (before it is in memory), BadInput."""
    body = await _read(request, door_of(request).settings.max_body_bytes, "(max_body_bytes)")
    try:
        text = body.decode("ascii")
        fields = parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=1000
        )
    except ValueError as error:
        raise BadInput(f"The form is not application/x-www-form-urlencoded ({error}).") from error
    if any("\x00" in value for _, value in fields):
        raise BadInput("The form has a NUL byte.")
    return dict(fields)


def confirmed(form: dict[str, str]) -> str:
    """The reason of an act that users feel; its box must be ticked. Raises BadInput."""
    if not form.get("sure"):
        raise BadInput("sure is not ticked; tick the box beside the button, so that nothing happens by a slip.")
    reason = form.get("reason", "").strip()
    if not reason:
        raise BadInput("reason is empty; say in a sentence why: it is kept in the audit log.")
    return reason


async def read_upload(request: Request) -> Upload:
    """A multipart form with one file (RFC 7578). Raises TooLarge (before it is in memory), BadInput."""
    found = _BOUNDARY.search(request.headers.get("content-type", ""))
    if found is None:
        raise BadInput("The form is not multipart/form-data with a boundary; send it with a file.")
    body = await _read(request, MAX_UPLOAD_BYTES, "for a page; use the command line for larger files")
    fields, file = {}, None
    for part in (b"\r\n" + body).split(b"\r\n--" + (found[1] or found[2]).encode())[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        names = dict(_PARAMETER.findall(head.decode("utf-8", "replace")))
        if "filename" in names:
            file = names["filename"], content
        elif "name" in names:
            fields[names["name"]] = content.decode("utf-8", "replace").replace("\x00", "")
    if file is None or not file[1]:
        raise BadInput("No file was sent, or an empty one; choose a file.")
    return Upload(fields, *file)


async def _read(request: Request, limit: int, what: str) -> bytes:
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise TooLarge(f"The form is larger than {limit} bytes {what}.")
        pieces.append(piece)
    return b"".join(pieces)
