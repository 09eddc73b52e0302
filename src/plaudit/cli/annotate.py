"""`plaudit annotate`: the guideline, the questions, and what follows from the answers."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.domain import ComparisonKind, TrainingUse, utc_now
from plaudit.loop.asking import Asking
from plaudit.loop.conclusions import AggregateReport
from plaudit.stats.aggregate import Method
from plaudit.stats.intervals import Interval

if TYPE_CHECKING:
    from plaudit.loop.next_questions import Scorer


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
@click.option(
    "--kind",
    type=click.Choice(("pairwise", "rating")),
    default="pairwise",
    show_default=True,
    help="Which of two answers is better, or how good is the one that the user was shown.",
)
@click.option(
    "--criterion", "criteria", multiple=True, help="Judged beside the whole, such as accuracy; give it again."
)
@click.option(
    "--forbidden-models",
    multiple=True,
    help="Models, * stands for anything, whose terms forbid training, beside those of the setting: nothing is asked about their answers.",
)
@click.option("--mix", default=None, help="Shares that are not random (default: the setting `question_mix`).")
@click.option(
    "--reward",
    type=click.Path(path_type=Path),
    default=None,
    help="Run folder or Checkpoint of the reward model that finds close and disputed questions.",
)
@home_option
@json_option
def plan(
    n: int,
    overlap: int | None,
    batch: str,
    kind: str,
    criteria: tuple[str, ...],
    forbidden_models: tuple[str, ...],
    mix: str | None,
    reward: Path | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Make training comparisons: what users were shown against a second answer of the live release, drawn now."""
    from plaudit.loop import live_questions
    from plaudit.stats.selection import read_mix

    opened = open_home(home)
    wanted = opened.settings.overlap if overlap is None else overlap
    with Console(stderr=True).status("Drawing second answers ...") as status:
        made = live_questions.plan_traffic(
            opened.store,
            opened.project_id,
            n,
            batch=batch,
            overlap=wanted,
            kind=ComparisonKind(kind),
            criteria=criteria,
            asking=Asking(opened.settings.treatments, (*opened.settings.never_learnt, *forbidden_models)),
            mix=read_mix(opened.settings.question_mix if mix is None else mix),
            scorer=None if reward is None else _scorer(reward, opened.settings.cache),
            slice_by=opened.settings.question_slices,
            now=utc_now(),
            progress=lambda done: status.update(f"Drawing second answers ... {done}"),
        )
    if as_json:
        ids = [one.id for one in made.comparisons]
        print_json(
            {
                "comparisons": ids,
                "batch": batch,
                "overlap": wanted,
                "skipped": dict(made.skipped),
                "found": dict(made.found),
            }
        )
        return
    click.echo(f"{len(made.comparisons)} comparisons wait in batch {batch}, each for {wanted} annotators.")
    for why, count in made.skipped.items():
        click.echo(f"  {count} skipped: {why}")
    for what, count in made.found.items():
        click.echo(f"  {count} found in them: {what}")


def _scorer(reward: Path, cache: Path) -> Scorer:
    from plaudit.cli.score import base_of, reward_in
    from plaudit.loop import next_questions

    checkpoint = reward_in(reward).absolute()
    base = base_of(reward, checkpoint, None, cache)
    return lambda found: next_questions.score(checkpoint, base, found)


@annotate.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--batch", default=None, help="Name of the batch that they join (default: the first file's name).")
@click.option(
    "--kind",
    type=click.Choice(("pairwise", "rating")),
    default=None,
    help="Compare each two responses, or rate each (default: rate one that stands alone, compare several).",
)
@click.option(
    "--overlap",
    type=click.IntRange(1, 25),
    default=None,
    help="Annotators who answer each (default: the setting `overlap`).",
)
@click.option(
    "--criterion", "criteria", multiple=True, help="Judged beside the whole, such as accuracy; give it again."
)
@click.option("--domain", default=None, help="Of rows that name none: only who is qualified for it is asked.")
@click.option(
    "--priority", type=int, default=0, show_default=True, help="Of rows that name none; the highest comes first."
)
@click.option(
    "--training-use",
    type=click.Choice([use.value for use in TrainingUse]),
    default=None,
    help="Consent of what is read (default: the setting `training_use_default`); only `allowed` is asked about.",
)
@home_option
@json_option
def create(
    files: tuple[Path, ...],
    batch: str | None,
    kind: str | None,
    overlap: int | None,
    criteria: tuple[str, ...],
    domain: str | None,
    priority: int,
    training_use: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Ask about prompts and responses of your own: FILES in JSONL, CSV, TSV or Parquet.

    A row has `prompt` or `messages`, and `responses` or `response`, `response_2`, ...; a row that cannot be used is named, the good ones go
    in. The same file twice adds nothing.
    """
    from plaudit.formats import questions as rows
    from plaudit.loop import questions

    opened = open_home(home)
    form = questions.Form(
        batch=batch or files[0].name,
        overlap=opened.settings.overlap if overlap is None else overlap,
        kind=ComparisonKind(kind) if kind else None,
        criteria=criteria,
        domain=domain,
        priority=priority,
        asking=Asking(opened.settings.treatments, opened.settings.never_learnt),
    )
    use = TrainingUse(training_use or opened.settings.training_use_default)
    found = (one for file in files for one in rows.read(file))
    report = questions.ask(opened.store, opened.project_id, found, form, training_use=use, now=utc_now())
    if as_json:
        print_json(report.to_json())
        return
    click.echo(
        f"{report.n_questions} questions wait in batch {form.batch}, each for {form.overlap} annotators; "
        f"{report.n_known} were there, {report.n_rejected} rows rejected."
    )
    for what, count in report.found.items():
        click.echo(f"  {count} found in them: {what}")
    for one in report.rejected[:20]:
        click.echo(f"  {one.file} line {one.line}: {one.reason}")


@annotate.command()
@home_option
@json_option
def annotators(home: Path | None, as_json: bool) -> None:
    """Who is paused, qualified and assigned."""
    from plaudit.loop import quality

    opened = open_home(home)
    rows = quality.annotators(opened.store, opened.project_id, utc_now())
    if as_json:
        print_json({"annotators": rows})
        return
    table = Table("annotator", "paused", "qualified for", "assigned")
    for row in rows:
        ends = [
            f"{one['domain']} {'ended' if one['ended'] else 'until'} {one['until'][:10]}" for one in row["qualified"]
        ]
        work = [*(f"batch {name}" for name in row["batches"]), *(f"domain {name}" for name in row["domains"])]
        table.add_row(row["name"], row["paused"] or "", ", ".join(ends), ", ".join(work))
    Console().print(table)


@annotate.command()
@click.argument("person")
@click.option("--batch", default=None, help="The open questions of this batch.")
@click.option("--domain", default=None, help="The open questions of this domain, for which they are qualified.")
@click.option("--end", is_flag=True, help="Take it back.")
@home_option
@json_option
def assign(person: str, batch: str | None, domain: str | None, end: bool, home: Path | None, as_json: bool) -> None:
    """Lend PERSON the questions of a batch or a domain before all others."""
    _act(home, as_json, person, "unassign" if end else "assign", batch=batch, domain=domain)


@annotate.command()
@click.argument("person")
@click.argument("domain")
@click.option("--days", type=click.IntRange(0, 3650), default=365, show_default=True, help="For so long; 0 ends it.")
@home_option
@json_option
def qualify(person: str, domain: str, days: int, home: Path | None, as_json: bool) -> None:
    """Lend PERSON questions of DOMAIN, until the qualification ends."""
    until = (utc_now() + timedelta(days=days)).isoformat() if days else None
    _act(home, as_json, person, "qualify", domain=domain, until=until)


def _act(home: Path | None, as_json: bool, person: str, act: str, **about: str | None) -> None:
    from plaudit.loop import quality

    opened = open_home(home)
    body = {"person": person, "act": act, **about}
    row = quality.act(opened.store, opened.project_id, "command line", body, utc_now())
    if as_json:
        print_json(row)
        return
    work = [*(f"batch {name}" for name in row["batches"]), *(f"domain {name}" for name in row["domains"])]
    domains = [one["domain"] for one in row["qualified"] if not one["ended"]]
    click.echo(
        f"{row['name']} is assigned {', '.join(work) or 'nothing'}, and qualified for {', '.join(domains) or 'nothing'}."
    )


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


@annotate.command()
@home_option
@json_option
def signs(home: Path | None, as_json: bool) -> None:
    """Who may not be reading what they answer, and the slices where experts overturn more than elsewhere. Reasons to look, no proof."""
    from plaudit.loop import conduct

    opened = open_home(home)
    found = conduct.suspicions(opened.store, opened.project_id)
    slices = conduct.audited(opened.store, opened.project_id)
    if as_json:
        print_json({"signs": [asdict(one) for one in found], "audits": [asdict(one) for one in slices]})
        return
    table = Table("annotator", "sign", "why", "paused")
    for one in found:
        table.add_row(one.name, one.kind, one.why, "yes" if one.paused else "")
    Console().print(table if found else "No annotator shows a sign of not reading.")
    audits = Table("slice", "overturned", "elsewhere", "p", "")
    for row in slices:
        elsewhere = "" if row.elsewhere is None else f"{row.elsewhere:.0%}"
        audits.add_row(row.name, _shown(row.overturned), elsewhere, f"{row.p:.3f}", "look here" if row.flagged else "")
    Console().print(audits if slices else "No slice has enough decided audits.")
