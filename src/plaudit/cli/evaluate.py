"""`plaudit evaluate`: a Checkpoint against the base, suites, judges, a leaderboard, and what the gate says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from plaudit.cli.options import Home, home_option, json_option, open_home, print_json
from plaudit.domain import Checkpoint, CheckpointKind, Evaluation, Json, Release, utc_now
from plaudit.errors import BadInput, NotFound

max_tokens_option = click.option("--max-tokens", default=128, show_default=True, help="Of each answer.")
url_option = click.option("--url", default=None, help="OpenAI-compatible server (default: the live release's).")


@click.group()
def evaluate() -> None:
    """Compare a Checkpoint with the base and ask the gate."""


@evaluate.command()
@click.argument("checkpoint_id", required=False)
@home_option
@json_option
def run(checkpoint_id: str | None, home: Path | None, as_json: bool) -> None:
    """Ask annotators about CHECKPOINT_ID (default: the newest policy), or read the verdict once they have answered."""
    from plaudit.loop import pipeline

    opened = open_home(home)
    policies = [
        c for c in opened.store.find(Checkpoint, project_id=opened.project_id) if c.kind == CheckpointKind.POLICY
    ]
    chosen = [c for c in policies if checkpoint_id in (None, c.id)]
    if not chosen:
        raise NotFound(f"There is no policy Checkpoint {checkpoint_id or 'yet'}; train one with `plaudit train ppo`.")
    turn = pipeline.turn_of(opened.settings, opened.store, opened.project_id, number=0)
    report = pipeline.evaluate_checkpoint(turn, chosen[-1].id)
    if as_json:
        print_json({"checkpoint_id": chosen[-1].id, "waiting": report.waiting, "outputs": dict(report.outputs)})
    elif report.waiting:
        click.echo(f"Waiting: {report.waiting}. Run this again when they are.")
    else:
        _show(opened.store.get(Evaluation, report.outputs["verdict"]["evaluation_id"]))


@evaluate.command()
@click.argument("evaluation_id", required=False)
@home_option
@json_option
def show(evaluation_id: str | None, home: Path | None, as_json: bool) -> None:
    """The gate's conditions in an Evaluation (default: the newest that has a gate)."""
    opened = open_home(home)
    found = [
        one
        for one in opened.store.find(Evaluation, project_id=opened.project_id)
        if one.id == evaluation_id or (evaluation_id is None and one.gate is not None)
    ]
    if not found:
        raise NotFound(f"There is no Evaluation {evaluation_id or 'yet'}; make one with `plaudit evaluate run`.")
    last = found[-1]
    if as_json:
        print_json({"id": last.id, "gate": last.gate, "reasons": list(last.reasons), "figures": last.figures})
    else:
        _show(last)


@evaluate.command()
@click.argument("evaluation_id")
@click.option("--person", required=True, help="Who answers for it; a Person whose role has the permission override.")
@click.option("--reason", required=True, help="Why, in a sentence; it is kept on the audit log.")
@home_option
def override(evaluation_id: str, person: str, reason: str, home: Path | None) -> None:
    """Let the Release of a failed gate pass, on record. Approvals are needed all the same, from other people."""
    from plaudit.loop import gates

    opened = open_home(home)
    made = gates.override(opened.store, opened.project_id, evaluation_id, person, reason, utc_now())
    click.echo(f"{person} ({made.role}) overrode the gate of {evaluation_id}: entry {made.seq} of the audit log.")


# --- suites ------------------------------------------------------------------------------------------------------------


@evaluate.command()
@json_option
def suites(as_json: bool) -> None:
    """The suites in the package."""
    from plaudit.loop import suites as stage

    found = [stage.load(stage.Source(name)) for name in stage.PACKAGED]
    if as_json:
        print_json({"suites": [{"name": one.name, "n": len(one.items), "sha256": one.sha256} for one in found]})
        return
    table = Table("suite", "items", "rules")
    for one in found:
        rules = sorted({name for item in one.items for rule in item.expect for name in rule})
        table.add_row(one.name, str(len(one.items)), ", ".join(rules))
    Console().print(table)


@evaluate.command()
@click.argument("source")
@click.option("--model", required=True, help="The model that is asked.")
@click.option("--against", default=None, help="Another one, asked the same; differences are paired.")
@url_option
@click.option(
    "--columns",
    default="{}",
    help="JSON of the suite's fields: prompt, slice, group, expect, label, rules, limit, name.",
)
@max_tokens_option
@click.option("--temperature", default=0.0, show_default=True, help="Of each answer.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=None, help="JSONL of every item and reply."
)
@home_option
@json_option
def suite(
    source: str,
    model: str,
    against: str | None,
    url: str | None,
    columns: str,
    max_tokens: int,
    temperature: float,
    out: Path | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Ask a model the prompts of SOURCE, a JSONL or CSV file or a packaged suite, and count by rules what went wrong."""
    from plaudit.artifacts import write_atomic
    from plaudit.loop import suites as stage

    opened = open_home(home)
    loaded = stage.load(stage.parse_source({"path": source, **_object(columns)}))
    where = url or _upstream(opened)
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": 0}
    replies = [stage.ask(where, each, loaded, sampling) for each in (model, against) if each is not None]
    figures = stage.figures(loaded, *replies)
    if out is not None:
        rows = stage.rows(loaded, *replies)
        write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    _record(opened, model, f"suite {loaded.name}", figures)
    if as_json:
        print_json({"suite": loaded.name, "model": model, "against": against, **figures})
        return
    table = Table("slice", "n", model, *([against, "difference"] if against else []))
    for name, part in ((loaded.name, figures), *figures["slices"].items()):
        cells = [part[column] for column in ("candidate", "base", "difference") if column in part]
        table.add_row(name, str(part["n"]), *(_interval(cell) for cell in cells))
    Console().print(table)
    if "abstained" in figures:
        click.echo(f"abstained: {_interval(figures['abstained']['candidate'])}")
    for example in figures["examples"]:
        click.echo(f"- {example['id']}: {example['messages'][-1]['content'][:80]!r} -> {example['candidate'][:120]!r}")


# --- judges ------------------------------------------------------------------------------------------------------------


@evaluate.command()
@click.argument("batch")
@url_option
@click.option("--model", default=None, help="A model that judges, in both orders.")
@click.option(
    "--rubric",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=None,
    help="File of the rubric (default: our own).",
)
@click.option("--reward", default=None, help="Instead: a reward Checkpoint that no policy of the batch was trained on.")
@home_option
@json_option
def judge(
    batch: str,
    url: str | None,
    model: str | None,
    rubric: Path | None,
    reward: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Have BATCH, the answers of an evaluation, judged by a model or by a held-out reward model; beside what people said."""
    from plaudit.loop import annotate, judges, pipeline
    from plaudit.loop import evaluate as stage

    if (model is None) == (reward is None):
        raise BadInput("Give --model or --reward, and not both: one of them judges.")
    opened = open_home(home)
    items = stage.stored_items(opened.store, opened.project_id, batch)
    if reward is not None:
        turn = pipeline.turn_of(opened.settings, opened.store, opened.project_id, number=0)
        said = pipeline.judge_by_reward(turn, batch, reward)
    else:
        text = rubric.read_text() if rubric else judges.RUBRIC
        said = judges.ask(url or _upstream(opened), str(model), items, text)
    votes = annotate.evaluation_votes(opened.store, opened.project_id, batch)
    people = [(v.wins + v.ties / 2) / n if (n := v.wins + v.ties + v.losses) else None for v in votes]
    figures = judges.figures(items, said, people)
    _record(opened, items[0].first_model, f"judge {model or reward}", figures)
    if as_json:
        print_json({"batch": batch, "judge": model or reward, **figures})
        return
    for name in ("win_rate", "at_equal_length", "consistent", "first_shown", "agreement_with_people"):
        click.echo(f"{name.replace('_', ' '):>24}: {_interval(figures[name]) if figures[name] else 'not measured'}")
    click.echo(f"A win rate of {figures['detectable']:.3f} or more would be seen with 80 % power.")


@evaluate.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False, exists=True))
@home_option
@json_option
def leaderboard(file: Path | None, home: Path | None, as_json: bool) -> None:
    """Every policy that people compared, in one order (Bradley-Terry), or those of FILE: CSV or JSONL of first, second, outcome, prompt."""
    from plaudit.loop import evaluate as stage
    from plaudit.stats.leaderboard import leaderboard as rank

    opened = open_home(home)
    found = stage.read_matches(file) if file else stage.matches(opened.store, opened.project_id)
    if not found:
        raise NotFound("Nobody has compared two policies yet; `plaudit evaluate run` asks annotators, or give a FILE.")
    standings = rank(
        [one.first for one in found],
        [one.second for one in found],
        [one.outcome for one in found],
        np.random.default_rng(0),
        clusters=[one.prompt for one in found],
    )
    if as_json:
        print_json({"n": len(found), "standings": [one.to_dict() for one in standings]})
        return
    table = Table("rank", "policy", "strength", "beats another", "comparisons")
    for one in standings:
        ranks = f"{one.rank} ({one.ranks[0]}-{one.ranks[1]})"
        table.add_row(ranks, one.name, _interval(one.strength.to_dict()), f"{one.win_rate:.3f}", str(one.n))
    Console().print(table)


# --- inside ------------------------------------------------------------------------------------------------------------


def _show(found: Evaluation) -> None:
    table = Table("", "condition", "rows")
    for condition in found.figures["conditions"]:
        verdict = "pass" if condition["passed"] else "[red]fail[/red]"
        table.add_row(verdict, condition["text"], condition.get("rows", ""))
    Console().print(f"{found.id}  {found.checkpoint_id}  gate: {found.gate or 'not asked'}")
    Console().print(table)


def _record(opened: Home, model: str, name: str, figures: Json) -> None:
    """Keep the figures where the model is one of our Checkpoints; they inform, no gate was asked."""
    from plaudit.loop.evaluate import record_evaluation

    offered: Sequence[Release] = opened.store.find(Release, project_id=opened.project_id)
    made = next((one.checkpoint_id for one in reversed(offered) if one.model == model and one.checkpoint_id), None)
    if made is not None:
        record_evaluation(opened.store, opened.project_id, made, name, figures, None, utc_now())


def _upstream(opened: Home) -> str:
    from plaudit.loop import release

    return release.live(opened.store, opened.project_id).upstream


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadInput(f"--columns is {text!r}, which is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise BadInput(f"--columns is {text!r}; give a JSON object.")
    return found


def _interval(part: Json) -> str:
    return f"{part['mean']:.3f} [{part['low']:.3f}, {part['high']:.3f}] (n = {part['n']})"
