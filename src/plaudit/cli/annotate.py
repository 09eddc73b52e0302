"""`plaudit annotate`: the guideline, the questions, and what follows from the answers."""

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
    """The guideline, questions about traffic, and Preferences from answers."""


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
@click.option("--n", type=int, default=50, show_default=True, help="Interactions to ask about, at most.")
@click.option(
    "--overlap",
    type=click.IntRange(1, 25),
    default=None,
    help="Annotators who answer each (default: the setting `overlap`).",
)
@click.option("--batch", default="traffic", show_default=True, help="Name of the batch that they join.")
@home_option
@json_option
def plan(n: int, overlap: int | None, batch: str, home: Path | None, as_json: bool) -> None:
    """Make training comparisons: what users were shown against a second answer of the live release, drawn now."""
    from plaudit.loop import pipeline

    opened = open_home(home)
    wanted = opened.settings.overlap if overlap is None else overlap
    with Console(stderr=True).status("Drawing second answers ...") as status:
        made = pipeline.plan_traffic(
            opened.store,
            opened.project_id,
            n,
            batch=batch,
            overlap=wanted,
            now=utc_now(),
            progress=lambda done: status.update(f"Drawing second answers ... {done}"),
        )
    if as_json:
        ids = [one.id for one in made.comparisons]
        print_json({"comparisons": ids, "batch": batch, "overlap": wanted, "skipped": dict(made.skipped)})
        return
    click.echo(f"{len(made.comparisons)} comparisons wait in batch {batch}, each for {wanted} annotators.")
    for why, count in made.skipped.items():
        click.echo(f"  {count} skipped: {why}")


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
    for other in report.others:
        console.print(f"\ncriterion {other.criterion}:")
        _show(other, console)


def _shown(value: Interval | None) -> str:
    return "undefined" if value is None else f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"
