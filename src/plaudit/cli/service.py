"""`plaudit service`: gateway, API and console in this process; `plaudit up` starts it as a child."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from plaudit.cli.family import end_with, parent_option
from plaudit.cli.options import home_option, open_home
from plaudit.loop import govern

GRACEFUL_S = 5  # for requests in flight when it is told to stop


@click.command()
@home_option
@click.option("--role", default=None, help="all (default), or some of gateway, feedback, console with commas.")
@click.option("--host", default=None, help="Address to listen on (default: the setting host, 127.0.0.1).")
@click.option("--port", type=int, default=None, help="Port to listen on (default: the setting port, 8484).")
@parent_option
def service(home: Path | None, role: str | None, host: str | None, port: int | None, parent: int | None) -> None:
    """Serve the gateway, the API and the console until told to stop."""
    gc.disable()
    import uvicorn

    from plaudit.web.app import create_app

    end_with(parent)
    opened = open_home(home, role=role, host=host, port=port)
    govern.check_address(opened.store, opened.settings.host)
    app = create_app(opened.settings, opened.store)
    gc.freeze()  # what is imported stays: collections that look at all of it slow the start and stopped every request for 70 ms
    gc.enable()
    uvicorn.run(
        app,
        host=opened.settings.host,
        port=opened.settings.port,
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_S,
    )
    opened.store.close()
