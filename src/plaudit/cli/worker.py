"""`plaudit worker`: takes queued Runs and measures production; `plaudit up` starts it as a child."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import click

from plaudit.cli.family import end_with, parent_option, told_to_stop
from plaudit.cli.options import home_option, open_home


@click.command()
@home_option
@parent_option
def worker(home: Path | None, parent: int | None) -> None:
    """Work until told to stop."""
    from plaudit.loop import worker as loop_worker

    end_with(parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else it logs every request of webhooks and the mirror
    opened = open_home(home)
    stop = told_to_stop(signal.SIGTERM, signal.SIGINT)
    loop_worker.run(opened.settings, opened.store, stop)
    opened.store.close()
