"""Whether a port can be had, and who has it where not."""

from __future__ import annotations

import socket
import time

from plaudit.errors import Unavailable

PATIENCE_S = 10.0  # the children of a killed `up` need a moment to see that it is gone


def is_free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port), reuse_port=False).close()
    except OSError:
        return False
    return True


def wait_until_free(host: str, port: int) -> None:
    """Raises Unavailable where another program keeps the port."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_free(host, port):
        if time.monotonic() > deadline:
            raise Unavailable(f"Port {port} on {host} is taken by another program; give another one.")
        time.sleep(0.2)
