"""`plaudit agreement`: every measure of agreement of anybody's label file, each with its interval."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.aggregate import show_groups, show_read, shown
from plaudit.cli.options import json_option, print_json


@click.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option(
    "--repeats",
    type=click.Choice(("last", "all")),
    default="last",
    show_default=True,
    help="Of a worker's several labels for one item, count the last, or all as votes of their own.",
)
@json_option
def agreement(labels: Path, repeats: str, as_json: bool) -> None:
    """Measure how much the votes in LABELS agree (.csv, .tsv, .jsonl, .parquet; columns item, worker, label, optionally group)."""
    from plaudit.loop.label_files import agreement_file

    report = agreement_file(labels, keep_repeats=repeats == "all")
    if as_json:
        print_json(asdict(report))
        return
    click.echo(
        f"{report.n_votes} votes of {report.n_workers} workers on {report.n_items} items with two votes or more, "
        f"{len(report.labels)} labels"
    )
    table = Table("measure", "value", "95 % interval", "n")
    rows = {"raw agreement": report.raw, "Gwet's AC1": report.ac1, "Fleiss' kappa": report.fleiss}
    rows |= {f"Krippendorff's alpha, {level}": one for level, one in report.alpha.items()}
    kappa = report.cohen_kappa
    rows["Cohen's kappa, mean of pairs"] = kappa.mean if kappa else None
    frame = report.symmetrised or {}
    names = {"ac1": "AC1", "fleiss": "Fleiss' kappa", "alpha": "alpha"}
    rows |= {f"{names[name]}, symmetrised frame": one for name, one in frame.items()}
    for name, one in rows.items():
        bounds = f"{one.low:.3f} to {one.high:.3f}" if one else ""
        table.add_row(name, f"{one.mean:.3f}" if one else "undefined", bounds, str(one.n) if one else "")
    Console().print(table)
    if kappa:
        click.echo(
            f"Cohen's kappa: {kappa.n_pairs} pairs of workers share {kappa.min_shared} items or more"
            + (f", {kappa.n_undefined} of them undefined" if kappa.n_undefined else "")
        )
        for pair in kappa.pairs[:5]:
            click.echo(f"  {pair.first}, {pair.second}: {shown(pair.kappa) or 'undefined'}, n {pair.n_items}")
    if report.groups:
        show_groups(report.groups)
    show_read(report.read)
