"""Users without an account: a pseudonym that the browser keeps in a cookie and cannot make up, so that nobody picks their own arm of an
experiment or speaks as somebody else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import NamedTuple

PREFIX = "anon_"


class Visitor(NamedTuple):
    """`user` goes to `assign`, chats and logs; `cookie` to the browser, for a year or so; `new` where the browser brought none of ours."""

    user: str
    cookie: str
    new: bool


def visitor(secret: str, cookie: str | None = None) -> Visitor:
    """Who this is, by the cookie that they brought; somebody new where there is none or it was not signed with `secret`.

    `secret` is the application's own (any text, the same in all its processes); another secret makes everybody somebody new.
    """
    user, _, signature = (cookie or "").partition(".")
    if user.startswith(PREFIX) and hmac.compare_digest(signature.encode(), _sign(secret, user).encode()):
        return Visitor(user, f"{user}.{signature}", new=False)
    user = PREFIX + secrets.token_hex(12)
    return Visitor(user, f"{user}.{_sign(secret, user)}", new=True)


def _sign(secret: str, user: str) -> str:
    mac = hmac.digest(f"plaudit visitor {secret}".encode(), user.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
