"""`plaudit aggregate`: anybody's label file in, posteriors and reliabilities out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import json_option, print_json
from plaudit.stats.aggregate import Method
from plaudit.stats.intervals import Interval

if TYPE_CHECKING:
    from plaudit.loop.label_files import Accuracy, AggregateFile, GroupReport, Read

SHOWN = 20  # workers in the table
FILE = click.Path(path_type=Path)


@click.command()
@click.argument("labels", type=FILE)
@click.option(
    "--gold", type=FILE, help="Items whose label is known (item, truth): they are held fixed and teach who is reliable."
)
@click.option(
    "--truth", type=FILE, help="Items whose label is known (item, truth), to measure with; no method sees them."
)
@click.option(
    "--method",
    type=click.Choice(get_args(Method)),
    default="auto",
    show_default=True,
    help="How votes are joined; auto chooses on the gold items and says why.",
)
@click.option(
    "--history", type=FILE, help="The confusion file that an earlier run wrote: what is known of the workers already."
)
@click.option(
    "--repeats",
    type=click.Choice(("last", "all")),
    default="last",
    show_default=True,
    help="Of a worker's several labels for one item, count the last, or all as votes of their own.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for posteriors, annotators and confusion."
)
@json_option
def aggregate(
    labels: Path,
    gold: Path | None,
    truth: Path | None,
    method: Method,
    history: Path | None,
    repeats: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Aggregate LABELS (.csv, .tsv, .jsonl, .parquet; columns item, worker, label and optionally position, seconds, group)."""
    from plaudit.loop.label_files import aggregate_file

    report = aggregate_file(
        labels, gold=gold, truth=truth, history=history, method=method, keep_repeats=repeats == "all", out=out
    )
    if as_json:
        print_json(asdict(report))
    else:
        _show(report, Console())


def _show(report: AggregateFile, console: Console) -> None:
    click.echo(
        f"{report.n_votes} votes of {report.n_workers} workers on {report.n_items} items, {len(report.labels)} labels"
        + (f", {report.n_gold} gold items" if report.n_gold else "")
    )
    click.echo(f"method: {report.method} ({report.reason})")
    click.echo(f"{report.n_differ} items have another label than the majority gives them.")
    if report.accuracy:
        _show_accuracy(report.accuracy, report.method)
    _show_workers(report, console)
    if len(report.workers) > SHOWN:
        where = "annotators.csv has all" if report.written else "--out DIR writes all"
        click.echo(f"the {SHOWN} least reliable of {len(report.workers)} workers; {where}")
    if report.groups:
        show_groups(report.groups)
    show_read(report.read)
    for path in report.written:
        click.echo(path)


def _show_workers(report: AggregateFile, console: Console) -> None:
    """The least reliable, with the columns that anything is known for."""
    rows = report.workers[:SHOWN]
    columns = {
        "reliability": [shown(row.reliability) for row in rows],
        "on gold": [shown(row.gold_accuracy) for row in rows],
        "chose the first": [shown(row.left_fraction) for row in rows],
        "left bias": [shown(row.left_bias) for row in rows],
        "median s": ["" if row.median_seconds is None else f"{row.median_seconds:.1f}" for row in rows],
    }
    known = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table("worker", "votes", *known)
    for i, row in enumerate(rows):
        table.add_row(row.worker, str(row.n_votes), *(cells[i] for cells in known.values()))
    console.print(table)


def _show_accuracy(found: Accuracy, method: str) -> None:
    click.echo(f"accuracy on {found.method.n} items: {method} {shown(found.method)}, majority {shown(found.majority)}")
    if found.gain:
        click.echo(f"  {method} - majority: {shown(found.gain)}")
    if found.n_gold:
        click.echo(f"  {found.n_gold} gold items of the truth file are left out: the methods were told.")
    if found.n_without_votes:
        click.echo(f"  {found.n_without_votes} items of the truth file were labelled by nobody.")


def show_groups(found: GroupReport) -> None:
    """Do groups differ more than their members, and where most."""
    if found.agreement:
        one = found.agreement
        click.echo(
            f"groups {', '.join(found.groups)}: agreement within {shown(one.within)}, between {shown(one.between)}, "
            f"gap {shown(one.gap)} on {one.n_items} items"
        )
    for item in found.disputed[:5]:
        votes = "; ".join(
            f"{group}: {', '.join(f'{label} {n}' for label, n in cast.items())}" for group, cast in item.votes.items()
        )
        click.echo(f"  {item.item}: {votes}")


def show_read(read: Read) -> None:
    """Notes, and the rows that were turned away."""
    for note in read.notes:
        click.echo(f"note: {note}")
    if read.n_rejected:
        click.echo(f"{read.n_rejected} rows were rejected, the others went in:")
        for row in read.rejected:
            click.echo(f"  {row}")
        if read.n_rejected > len(read.rejected):
            click.echo(f"  and {read.n_rejected - len(read.rejected)} more")


def shown(value: Interval | None) -> str:
    """.812 [.79, .83]; empty where there is nothing to show."""
    return "" if value is None else f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
