"""Everything Plaudit raises on purpose.

    PlauditError
    ├── BadInput            bad_input           the caller sent something malformed or out of range
    │   └── ConfigError     config_error        a setting or a command's option is wrong
    ├── NotFound            not_found           an id that names nothing (or nothing of yours)
    ├── Conflict            conflict            an illegal transition, a key used again with another body, a lost race
    │   └── AlreadyRunning  already_running     another process holds this home
    ├── Unauthorized        unauthorized        no key, or a key we do not know
    ├── Forbidden           forbidden           a key that may not do this
    ├── Expired             expired             a token or a lease whose time has passed
    ├── TooLarge            too_large           a body over the limit
    ├── RateLimited         rate_limited        too fast; carries `retry_after_s`
    ├── Unavailable         unavailable         the store, or a part that should answer, does not; `retry_after_s`
    ├── UpstreamError       upstream_error      the model server failed; carries its `status`
    ├── Corrupt             corrupt             a file whose hash is not the one in its manifest
    ├── Refused             refused             a rule of the house says no (gate, approval, trigger); carries `reasons`
    └── TrainingStopped     training_stopped    NaN, a full disk, a diverged run: the last good checkpoint is kept

Each class has a stable `code`. Nothing here knows HTTP: `web/problems.py` maps codes to statuses. A message is one sentence that says
what happened, the offending value and what to do; the command line prints it without a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class PlauditError(Exception):
    """Root of the tree; `str(error)` is a sentence for the person who can fix it."""

    code = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadInput(PlauditError):
    code = "bad_input"


class ConfigError(BadInput):
    code = "config_error"


class NotFound(PlauditError):
    code = "not_found"


class Conflict(PlauditError):
    code = "conflict"


class AlreadyRunning(Conflict):
    code = "already_running"


class Unauthorized(PlauditError):
    code = "unauthorized"


class Forbidden(PlauditError):
    code = "forbidden"


class Expired(PlauditError):
    code = "expired"


class TooLarge(PlauditError):
    code = "too_large"


class RateLimited(PlauditError):
    code = "rate_limited"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(PlauditError):
    code = "unavailable"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpstreamError(PlauditError):
    code = "upstream_error"

    def __init__(self, message: str, status: int = 502, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Corrupt(PlauditError):
    code = "corrupt"


class Refused(PlauditError):
    code = "refused"

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)


class TrainingStopped(PlauditError):
    code = "training_stopped"
