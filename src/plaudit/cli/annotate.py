"""`plaudit annotate`: the guideline, and what follows from the answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import utc_now
from plaudit.loop.conclusions import AggregateReport
from plaudit.stats.aggregate import Method
from plaudit.stats.intervals import Interval


@click.group()
def annotate() -> None:
    """The guideline, and Preferences from answers."""


@annotate.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@home_option
def guideline(file: Path, home: Path | None) -> None:
    """Make the text in FILE the guideline's next version; equal text changes nothing."""
    from plaudit.loop import annotate as stage

    opened = open_home(home)
    current = stage.write_guideline(opened.store, opened.project_id, file.read_text(), utc_now())
    click.echo(f"The guideline is at version {current.version}.")


@annotate.command()
@click.option(
    "--method",
    type=click.Choice(get_args(Method)),
    default="auto",
    show_default=True,
    help="How votes are joined; auto chooses and says why.",
)
@click.option("--batch", default=None, help="Only this batch of comparisons.")
@home_option
@json_option
def aggregate(method: Method, batch: str | None, home: Path | None, as_json: bool) -> None:
    """Conclude Preferences from all answers; show agreement and annotators."""
    from plaudit.loop import annotate as stage

    opened = open_home(home)
    report = stage.aggregate(opened.store, opened.project_id, method=method, batch=batch, now=utc_now())
    if as_json:
        print_json(asdict(report))
    else:
        _show(report, Console())


def _show(report: AggregateReport, console: Console) -> None:
    console.print(
        f"{report.n_preferences} Preferences ({report.n_written} new or changed) from {report.n_votes} votes on "
        f"{report.n_comparisons} comparisons, by {report.method}: {report.reason}."
    )
    found = report.agreement
    if found is not None:
        measures = {"raw": found.raw, "AC1": found.ac1, "Krippendorff's alpha": found.alpha}
        console.print("Agreement: " + ", ".join(f"{name} {_shown(value)}" for name, value in measures.items()))
    table = Table("annotator", "answers", "ties", "both bad", "skips", "first", "median s", "reliability")
    for row in report.annotators:
        table.add_row(
            row.name,
            *(str(count) for count in (row.n_answers, row.n_ties, row.n_both_bad, row.n_skips)),
            "" if row.first_fraction is None else f"{row.first_fraction:.0%}",
            "" if row.median_seconds is None else f"{row.median_seconds:.1f}",
            _shown(row.reliability),
        )
    console.print(table)


def _shown(value: Interval | None) -> str:
    return "undefined" if value is None else f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"
