"""Forms as browsers send them."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

from plaudit.errors import BadInput, TooLarge
from plaudit.web.door import door_of


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; of a name given twice, the last. Raises TooLarge (before it is in memory), BadInput."""
    limit = door_of(request).settings.max_body_bytes
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise TooLarge(f"The form is larger than {limit} bytes (max_body_bytes).")
        pieces.append(piece)
    try:
        text = b"".join(pieces).decode("ascii")
        fields = parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=1000
        )
    except ValueError as error:
        raise BadInput(f"The form is not application/x-www-form-urlencoded ({error}).") from error
    if any("\x00" in value for _, value in fields):
        raise BadInput("The form has a NUL byte.")
    return dict(fields)
