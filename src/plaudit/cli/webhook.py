"""`plaudit webhook`: somebody else's URL that is told of feedback, alerts and changes of state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import Delivery, Webhook, utc_now


@click.group()
def webhook() -> None:
    """Tell a URL of feedback, alerts and changes of state."""


@webhook.command()
@click.argument("url")
@click.option("--event", "events", multiple=True, help="feedback, alert or state; may be repeated. Default: all.")
@home_option
@json_option
def add(url: str, events: tuple[str, ...], home: Path | None, as_json: bool) -> None:
    """Tell URL from now on, and show the secret that signs, this once."""
    from plaudit.loop import webhooks

    opened = open_home(home)
    made = webhooks.add(opened.store, opened.project_id, url, events, utc_now())
    if as_json:
        print_json({"id": made.id, "url": made.url, "events": list(made.events), "secret": made.secret})
    else:
        click.echo(f"{made.id}  {made.url}  ({', '.join(made.events)})")
        click.echo(made.secret)


@webhook.command(name="list")
@home_option
@json_option
def list_webhooks(home: Path | None, as_json: bool) -> None:
    """Who is told, what waits and what was given up."""
    opened = open_home(home)
    rows = []
    for one in opened.store.find(Webhook, project_id=opened.project_id, ended_at=None):
        waits = opened.store.find(Delivery, webhook_id=one.id, delivered_at=None, given_up_at=None)
        lost = opened.store.count(Delivery, webhook_id=one.id, delivered_at=None) - len(waits)
        said = next((delivery.error for delivery in waits if delivery.error), None)
        row: dict[str, Any] = {
            "id": one.id,
            "url": one.url,
            "events": list(one.events),
            "waiting": len(waits),
            "given_up": lost,
        }
        rows.append({**row, "error": said})
    if as_json:
        print_json({"webhooks": rows})
        return
    table = Table("id", "url", "events", "waiting", "given up", "last error")
    for row in rows:
        cells = (row["id"], row["url"], ", ".join(row["events"]), row["waiting"], row["given_up"], row["error"] or "")
        table.add_row(*map(str, cells))
    Console().print(table if rows else "Nobody is told.")


@webhook.command()
@click.argument("webhook_id")
@home_option
def remove(webhook_id: str, home: Path | None) -> None:
    """Tell it nothing more; what was on its way is given up."""
    from plaudit.loop import webhooks

    opened = open_home(home)
    ended = webhooks.end(opened.store, opened.project_id, webhook_id, utc_now())
    click.echo(f"{ended.id}  {ended.url}  is told nothing more.")
