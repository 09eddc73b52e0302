"""`plaudit monitor`: production in figures, and what fires."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import Alert, AlertState, Measurement


@click.group()
def monitor() -> None:
    """Measure production, list alerts."""


@monitor.command()
@home_option
@json_option
def run(home: Path | None, as_json: bool) -> None:
    """Measure what happened since the last window, now (the worker does it by itself when there is enough)."""
    from plaudit.loop import train, worker

    opened = open_home(home)
    rows = worker.monitor_once(opened.settings, opened.store, opened.project_id, train.new_owner(), force=True)
    _print(rows, as_json)


@monitor.command()
@click.option("--metric", default=None, help="Only this one, with its history.")
@home_option
@json_option
def show(metric: str | None, home: Path | None, as_json: bool) -> None:
    """The newest window, or the history of one metric."""
    opened = open_home(home)
    wanted = {"metric": metric} if metric else {}
    rows = opened.store.find(Measurement, project_id=opened.project_id, order="window_end", **wanted)
    _print(rows if metric else [row for row in rows if row.window_end == rows[-1].window_end], as_json)


@monitor.command()
@click.option("--all", "resolved_too", is_flag=True, help="Resolved ones too.")
@home_option
@json_option
def alerts(resolved_too: bool, home: Path | None, as_json: bool) -> None:
    """What fires now."""
    opened = open_home(home)
    states = list(AlertState) if resolved_too else [AlertState.PENDING, AlertState.FIRING]
    found = opened.store.find(Alert, project_id=opened.project_id, state=states)
    if as_json:
        print_json({"alerts": [vars(alert) for alert in found]})
        return
    table = Table("rule", "state", "severity", "blocks retraining", "since", "says")
    for alert in found:
        since = f"{alert.opened_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(alert.rule, alert.state, alert.severity, "yes" if alert.blocking else "", since, alert.message)
    Console().print(table if found else "Nothing fires.")


@monitor.command()
def rules() -> None:
    """The alert rules, with direction and thresholds."""
    from plaudit.loop.monitor import RULES

    for rule in RULES:
        blocks = ", and then blocks retraining" if rule.blocking else ""
        click.echo(
            f"{rule.name}: {rule.metric} has the {rule.direction} {rule.warn:g}, critical at {rule.critical:g}{blocks}; "
            f"clears at {rule.clear:g} (from n = {rule.min_samples})"
        )


def _print(rows: list[Measurement], as_json: bool) -> None:
    if as_json:
        print_json({"measurements": [vars(row) for row in rows]})
        return
    table = Table("metric", "of", "value", "95 % interval", "n", "until")
    for row in rows:
        interval = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
        of = ", ".join(f"{name} {value}" for name, value in row.labels.items())
        table.add_row(row.metric, of, f"{row.value:.3f}", interval, str(row.n), f"{row.window_end:%Y-%m-%d %H:%M:%S}")
    Console().print(table if rows else "There is nothing to measure yet.")
