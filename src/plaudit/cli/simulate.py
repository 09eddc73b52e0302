"""`plaudit simulate`: people who are not there, to see what Plaudit makes of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from plaudit.cli.options import home_option, json_option, open_home, print_json
from plaudit.errors import BadInput

if TYPE_CHECKING:
    from plaudit.demo_steps.annotators import Told


@click.group()
def simulate() -> None:
    """Simulated people, in a home of their own."""


@simulate.command()
@click.option("--url", default=None, help="The running service of this home (default: at the setting port).")
@click.option(
    "--questions",
    "n_questions",
    type=click.IntRange(1, 100_000),
    default=1500,
    show_default=True,
    help="Training questions.",
)
@click.option(
    "--gold", "n_gold", type=click.IntRange(0, 1000), default=60, show_default=True, help="Gold questions beside them."
)
@click.option("--people", "n_people", type=click.IntRange(3, 200), default=20, show_default=True, help="Annotators.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything that is drawn.")
@home_option
@json_option
def annotators(
    url: str | None, n_questions: int, n_gold: int, n_people: int, seed: int, home: Path | None, as_json: bool
) -> None:
    """A crowd, some of whom do not read, annotates over HTTP; then: who was found, who was accused, what audits see."""
    from plaudit.demo_steps.annotators import Stage, run

    opened = open_home(home)
    stage = Stage(
        opened.store,
        opened.project_id,
        url or opened.settings.service_url,
        opened.settings.overlap,
        n_questions,
        n_gold,
        n_people,
        seed,
    )
    bars: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:

        def tell(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=of)
            progress.update(bars[what], completed=done, total=of)

        told = run(stage, tell)
    if as_json:
        print_json(asdict(told))
    else:
        _show(told)


def _show(told: Told) -> None:
    table = Table("annotator", "does", "answers", "paused", "signs")
    for row in told.rows:
        paused = "by gold" if row["paused"] else ""
        table.add_row(row["name"], row["behaviour"], str(row["n_answers"]), paused, "; ".join(row["signs"]))
    Console().print(table)
    click.echo(
        f"Simulated: {told.n_lazy_found} of {told.n_lazy} who do not read were found, "
        f"{told.n_honest_accused} of {told.n_honest} honest ones accused."
    )
    shown = ", ".join(f"{row['name']} ({row['overturned']:.0%} of {row['n']})" for row in told.flagged) or "none"
    click.echo(f"{told.n_audits} audits decided; flagged as wrong: {shown}.")
    click.echo(f"Misleading is {told.misleading}, which {told.n_misleading_audits} of the audits are about.")


@simulate.command()
@click.option("--runs", default=200, show_default=True, help="Experiments of each kind.")
@click.option("--effect", default=0.15, show_default=True, help="Rise of the share of thumbs up that should be found.")
@click.option("--harm", default=0.15, show_default=True, help="Fall of it, while the reward rises by half a deviation.")
@click.option("--stages", default="0.1,0.5", show_default=True, help="Shares of all users in EACH arm, growing.")
@click.option("--max-users", default=6000, show_default=True, help="Enrolled users at which one ends undecided.")
@click.option("--looks", default=40, show_default=True, help="Looks at each of them.")
@click.option("--seed", default=0, show_default=True, help="Of the random numbers.")
@click.option("--url", help="A running service; users then ask there, and its own experiment looks.")
@click.option("--key", help="With --url: a key with the role application.")
@click.option("--users", default=200, show_default=True, help="With --url: how many users ask.")
@click.option("--messages", default=3, show_default=True, help="With --url: how many questions each asks.")
@click.option(
    "--population", default="support", show_default=True, help="With --url: support, bytes, or a Python file."
)
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Leave SVG files in this folder.")
@json_option
def traffic(
    runs: int,
    effect: float,
    harm: float,
    stages: str,
    max_users: int,
    looks: int,
    seed: int,
    url: str | None,
    key: str | None,
    users: int,
    messages: int,
    population: str,
    pictures: Path | None,
    as_json: bool,
) -> None:
    """What experiments would do: false promotions, power, and how many users meet a harmful release. Or users for a real one."""
    if url is not None:
        _visit(url, key, users, messages, population, seed, pictures, as_json)
        return
    from plaudit.loop import traffic as simulated
    from plaudit.loop.experiment import Rules

    changes = {
        "no better": simulated.Change(0.0, 0.5),
        "better": simulated.Change(effect, 0.5),
        "harmful": simulated.Change(-harm, 0.5),
    }
    try:
        shares = tuple(float(share) for share in stages.split(","))
    except ValueError:
        raise BadInput(f"--stages is {stages!r}; give shares with commas, such as 0.1,0.5.") from None
    rules = Rules(n_planned=max_users)
    found = simulated.trials(simulated.Crowd(), changes, rules, shares, runs, max_users, looks, seed)
    if pictures is not None:
        _draw(pictures, simulated.pictures(found))
    if as_json:
        print_json(found)
        return
    click.echo(f"Simulated: {runs} experiments of each kind, {looks} looks, at most {max_users} users, goal thumbs_up:")
    for name, one in found["changes"].items():
        said = ", ".join(
            f"{verdict} {share['mean']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"
            for verdict, share in one["verdicts"].items()
        )
        click.echo(f"{name} (thumbs up {one['liked']:+.2f}, reward {one['score_difference']:+.2f}): {said}")
        for what, key_of in (("met the candidate", "n_candidate"), ("enrolled", "n_users")):
            click.echo(f"  users {what}: median {one[key_of]['median']:.0f}, 95 % of runs {one[key_of]['p95']:.0f}")


def _visit(
    url: str, key: str | None, n: int, messages: int, population: str, seed: int, pictures: Path | None, as_json: bool
) -> None:
    from plaudit.demo_steps import traffic as real

    if key is None:
        raise BadInput("--url needs --key; make one with `plaudit key create NAME --role application`.")
    found = real.run(url, key, n, messages, population, seed)
    if pictures is not None:
        _draw(pictures, {"thumbs": real.picture(found)})
    if as_json:
        print_json(found)
        return
    click.echo(f"Simulated: {n} users asked {url}, {messages} messages each:")
    for name, arm in found["arms"].items():
        click.echo(f"{name}: {arm['users']} users, {arm['messages']} messages, {arm['up']} up, {arm['down']} down")


def _draw(folder: Path, pictures: dict[str, str]) -> None:
    from plaudit.loop import charts

    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in pictures.items():
        (folder / f"{name}.svg").write_text(charts.alone(svg), encoding="utf-8")
