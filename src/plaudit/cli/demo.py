"""`plaudit demo`: the guided loop with simulated people."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click
from rich.console import Console

from plaudit.cli.options import json_option, print_json
from plaudit.demo_steps.plan import TWINS


@click.command()
@click.option("--tiny", is_flag=True, help="The tiny model and its crowd: the same path in one to two minutes.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything that is drawn.")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-home"),
    show_default=True,
    help="Where it lives. It is kept, and the same command continues there.",
)
@click.option("--fresh", is_flag=True, help="Start over: empties the home of an earlier demo.")
@click.option("--baselines", is_flag=True, help="Also: a system prompt, best of 4, SFT, and the ceiling of best of 16.")
@click.option("--twin", type=click.Choice(list(TWINS)), default=None, help="A negative twin: no gain may be claimed.")
@click.option("--people", type=click.Path(dir_okay=False), default=None, help="Python file of another population.")
@click.option("--prompts", type=click.Path(dir_okay=False), default=None, help="JSON, JSONL or TXT file of prompts.")
@click.option("--open", "opens", is_flag=True, help="Open the report in a browser at the end.")
@json_option
def demo(
    tiny: bool,
    seed: int,
    home: Path,
    fresh: bool,
    baselines: bool,
    twin: str | None,
    people: str | None,
    prompts: str | None,
    opens: bool,
    as_json: bool,
) -> None:
    """Turn the whole loop once, with simulated people, and write a report."""
    from plaudit import demo as guided
    from plaudit.demo_steps.plan import Options
    from plaudit.demo_steps.screen import Screen

    options = Options(home.absolute(), tiny, seed, baselines, twin, people, prompts)
    summary = guided.run(options, Screen(Console(stderr=as_json)), fresh)
    if opens:
        webbrowser.open((options.home / "report.html").as_uri())
    if as_json:
        print_json(summary)
