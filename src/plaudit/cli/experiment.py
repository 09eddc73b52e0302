"""`plaudit experiment`: users meet the canary, and what they think of it."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plaudit.cli.options import Home, home_option, json_option, open_home, print_json
from plaudit.domain import Experiment, utc_now
from plaudit.errors import BadInput, NotFound

if TYPE_CHECKING:
    from plaudit.loop.experiment import Rules
    from plaudit.stats.looks import Period


@click.group()
def experiment() -> None:
    """Assign users to two Releases and look at the outcome."""


@experiment.command()
@click.option("--stages", default="0.1,0.5", show_default=True, help="Shares of all users in EACH arm, growing.")
@click.option("--rule", "rules", multiple=True, help="name=value, for example goal_margin=0.1; may be repeated.")
@click.option("--metric", "metrics", multiple=True, help="NAME:goal|guardrail|monitor:up|down; may be repeated.")
@click.option(
    "--margin", "margins", multiple=True, help="How much worse is tolerated: NAME=0.02, or a number for every goal."
)
@click.option("--release", "release_id", help="The canary (default: the newest).")
@click.option("--only", "segments", multiple=True, help="A pilot: users with name=value[,name=value]; may be repeated.")
@click.option(
    "--users",
    "allow_list",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A pilot: users named in this file, one a line.",
)
@click.option("--until", type=click.DateTime(), help="End of the pilot, UTC.")
@click.option("--cap", type=float, help="Money that the candidate's answers may cost.")
@click.option("--prompt-price", default=0.0, show_default=True, help="Per million prompt tokens.")
@click.option("--completion-price", default=0.0, show_default=True, help="Per million completion tokens.")
@click.option("--holdout", default=0.0, show_default=True, help="Share of users who keep the old Release for longer.")
@click.option("--layer", help="Experiments of one layer deal users alike (default: a layer of its own).")
@home_option
def start(
    stages: str,
    rules: tuple[str, ...],
    metrics: tuple[str, ...],
    margins: tuple[str, ...],
    release_id: str | None,
    segments: tuple[str, ...],
    allow_list: Path | None,
    until: datetime | None,
    cap: float | None,
    prompt_price: float,
    completion_price: float,
    holdout: float,
    layer: str | None,
    home: Path | None,
) -> None:
    """Enrol users for the canary against the live Release."""
    from plaudit.loop import experiment as stage
    from plaudit.loop import opening

    opened = open_home(home)
    canary, live = opening.opponents(opened.store, opened.project_id, release_id)
    names = allow_list.read_text().splitlines() if allow_list else None
    pilot = opening.pilot(segments, names, until, cap, prompt_price, completion_price)
    shares, given, declared = opening.shares(stages), _rules(rules), opening.metrics(metrics, margins)
    made = stage.start(
        opened.store,
        opened.project_id,
        canary.id,
        live.id,
        utc_now(),
        shares,
        given,
        by=getpass.getuser(),
        declared=declared,
        pilot=pilot,
        holdout=holdout,
        layer=layer,
    )
    whom = f"users of {canary.segment}" if canary.segment else "all users"
    whom = f"{whom} whom the pilot admits" if pilot else whom
    click.echo(f"{made.id} runs: {canary.id} against {live.id}, {shares[0]:.1%} of {whom} in each arm.")


@experiment.command()
@click.argument("experiment_id", required=False)
@click.option("--reason", default="by hand", show_default=True, help="Why; it is kept.")
@home_option
def stop(experiment_id: str | None, reason: str, home: Path | None) -> None:
    """End it without a verdict; the canary stays one, and nobody meets it until another experiment starts."""
    from plaudit.loop import experiment as stage

    opened = open_home(home)
    one = _experiment(opened, experiment_id)
    ended = stage.stop(opened.store, opened.project_id, one.id, getpass.getuser(), reason, utc_now())
    click.echo(f"{ended.id} is {ended.state}.")


@experiment.command()
@click.argument("experiment_id", required=False)
@click.option("--end", is_flag=True, help="Let them meet the live Release too.")
@home_option
@json_option
def holdout(experiment_id: str | None, end: bool, home: Path | None, as_json: bool) -> None:
    """What users say who kept the Release of before, against as many who met the new one."""
    from plaudit.loop import experiment as stage

    opened = open_home(home)
    one = _experiment(opened, experiment_id)
    if end:
        stage.end_holdout(opened.store, opened.project_id, one.id, getpass.getuser(), utc_now())
        click.echo(f"{one.id} holds nobody out any more.")
        return
    found = stage.long_term(opened.store, opened.project_id, one.id)
    if as_json:
        print_json({"id": one.id, "holdout": one.holdout, "verdict": found.verdict, **found.figures})
        return
    click.echo(f"{one.id}: {one.holdout:.1%} of all users keep {one.control_id}; since promotion: {found.verdict}")
    _print_figures(found.reasons, found.figures)


@experiment.command()
@click.argument("experiment_id", required=False)
@home_option
@json_option
def look(experiment_id: str | None, home: Path | None, as_json: bool) -> None:
    """The verdict now (default: of the newest experiment). Looking as often as you like is fine."""
    from plaudit.loop import experiment as stage

    opened = open_home(home)
    one = _experiment(opened, experiment_id)
    found = stage.look(opened.store, one.id, utc_now())
    if as_json:
        print_json({"id": one.id, "state": one.state, **found.figures})
        return
    click.echo(f"{one.id} ({one.state}, stage {one.stage + 1} of {len(one.stages)}): {found.verdict}")
    _print_figures(found.reasons, found.figures)


@experiment.command()
@click.argument("experiment_id", required=False)
@home_option
def advance(experiment_id: str | None, home: Path | None) -> None:
    """Enrol the next stage's users, where the look allows it."""
    from plaudit.loop import experiment as stage

    opened = open_home(home)
    one = _experiment(opened, experiment_id)
    stage.look(opened.store, one.id, utc_now())
    moved = stage.advance(opened.store, opened.project_id, one.id, getpass.getuser(), utc_now())
    click.echo(f"{moved.id} is at stage {moved.stage + 1}: {moved.stages[moved.stage]:.1%} of all users in each arm.")


@experiment.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--control", required=True, help="The arm that the other is compared with.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    required=True,
    help="NAME:goal|guardrail|monitor:up|down, where up or down is what is better; may be repeated.",
)
@click.option("--alpha", default=0.05, show_default=True, help="Chance of a false rollback over all looks.")
@click.option(
    "--margin", "margins", multiple=True, help="How much worse is tolerated: NAME=0.02, or a number for every goal."
)
@click.option("--min-users", default=200, show_default=True, help="Users in each arm before anything but harm.")
@click.option("--planned-users", default=800, show_default=True, help="Users of both arms where bounds are tightest.")
@click.option("--looks", help="So many, or `hour`, `day`, `week`. Default 10; every time of a file of totals.")
@click.option("--cumulative", is_flag=True, help="Rows of `n,mean,variance` hold totals since the start.")
@click.option(
    "--share", default=0.5, show_default=True, help="Planned share of the candidate, without a column for it."
)
@click.option("--winsorise", default=0.01, show_default=True, help="Share of users cut at either end of a mean.")
@json_option
def analyse(
    file: Path,
    control: str,
    metrics: tuple[str, ...],
    alpha: float,
    margins: tuple[str, ...],
    min_users: int,
    planned_users: int,
    looks: str | None,
    cumulative: bool,
    share: float,
    winsorise: float,
    as_json: bool,
) -> None:
    """Analyse anybody's experiment from FILE (CSV, JSON Lines, Parquet); needs no service."""
    from plaudit.formats import experiment_file
    from plaudit.loop import opening
    from plaudit.stats.looks import Plan

    plan = Plan(alpha, min_users, planned_users, winsorise)
    wanted = opening.metrics(metrics, margins)
    read = experiment_file.read(file, control, [metric.name for metric in wanted], cumulative, share)
    found = experiment_file.report(read, wanted, plan, _looks(looks))
    if as_json:
        print_json(found)
        return
    for one in found["rejected"][:20]:
        click.echo(f"line {one['line']} left out: {one['reason']}", err=True)
    if found["n_rejected"] > 20:
        click.echo(f"{found['n_rejected']} lines left out in all.", err=True)
    for number, seen in enumerate(found["looks"], start=1):
        _print_look(seen, number == len(found["looks"]))
    for note in found["notes"]:
        click.echo(f"Note: {note}.")
    decision = found["decision"]
    click.echo(
        f"{found['candidate']} against {control}: {decision['verdict']} at look {decision['look']} of {decision['of']}"
    )


@experiment.command()
@click.option("--users-per-day", type=float, help="New named users; measured where not given.")
@click.option("--feedback-rate", type=float, help="Share of messages with a thumb; measured where not given.")
@click.option("--down-share", type=float, help="Share of the thumbs that are down; measured where not given.")
@click.option("--messages-per-user", type=float, help="Measured where not given.")
@click.option(
    "--return-fraction", type=float, help="Share of users with a second conversation; measured where not given."
)
@click.option("--harm", type=float, help="Factor on thumbs-down that must be found (default: 1.5; with --metric 1).")
@click.option(
    "--gain", type=float, help="Factor on thumbs-down that should be promoted (default: 0.7; with --metric 1)."
)
@click.option("--metric", "metrics", multiple=True, help="As of `experiment start`, on stored users; may be repeated.")
@click.option("--margin", "margins", multiple=True, help="As of `experiment start`.")
@click.option(
    "--effect", "amounts", multiple=True, help="NAME=0.05: what `gain` and `harm` change; every goal needs one."
)
@click.option("--stages", default="0.1,0.5", show_default=True, help="Shares of all users in EACH arm, growing.")
@click.option("--rule", "rules", multiple=True, help="name=value, as of `experiment start`; may be repeated.")
@click.option("--runs", default=100, show_default=True, help="Experiments of each kind.")
@click.option("--max-users", default=4000, show_default=True, help="Enrolled users at which one ends undecided.")
@click.option("--days", default=28.0, show_default=True, help="How far back to measure.")
@click.option("--seed", default=0, show_default=True, help="Of the random numbers.")
@home_option
@json_option
def simulate(
    harm: float | None,
    gain: float | None,
    metrics: tuple[str, ...],
    margins: tuple[str, ...],
    amounts: tuple[str, ...],
    stages: str,
    rules: tuple[str, ...],
    runs: int,
    max_users: int,
    days: float,
    seed: int,
    home: Path | None,
    as_json: bool,
    **given: float | None,
) -> None:
    """How long an experiment would take, how many users it needs and what it would find, before it starts."""
    import numpy as np

    from plaudit.loop import opening, rehearsal
    from plaudit.store.experiment import Window

    said = {name: value for name, value in given.items() if value is not None}
    declared, now = opening.metrics(metrics, margins), utc_now()
    if declared and said.keys() - {"users_per_day"}:
        raise BadInput(
            "With --metric everything that users do is taken from the store; only --users-per-day can be said."
        )
    effects = rehearsal.effects(
        (1.0 if declared else 1.5) if harm is None else harm,
        (1.0 if declared else 0.7) if gain is None else gain,
        declared,
        opening.amounts(amounts),
    )
    crowd = None
    if {"users_per_day", "feedback_rate", "down_share"} <= said.keys():
        traffic = rehearsal.Traffic(**said)  # type: ignore[arg-type]
    else:
        opened, since = open_home(home), now - timedelta(days=days)
        if declared:
            crowd = rehearsal.population(opened.store, Window(opened.project_id, since, now), declared)
        traffic = replace(rehearsal.measure(opened.store, opened.project_id, since), **said)  # type: ignore[arg-type]
    found = rehearsal.simulate(
        traffic,
        _rules(rules),
        opening.shares(stages),
        effects,
        runs,
        max_users,
        np.random.default_rng(seed),
        declared,
        crowd,
    )
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{traffic.users_per_day:.3g} users a day, {traffic.messages_per_user:.3g} messages each, "
        f"{traffic.down_per_message:.3g} thumbs-down a message; {runs} simulated experiments of each kind:"
    )
    for name, one in found["effects"].items():
        _print_effect(name, one, found["group_sequential"]["inflation"])


def _print_effect(name: str, one: dict[str, Any], inflation: float) -> None:
    shares = ", ".join(f"{verdict} {_percent(share)}" for verdict, share in one["verdicts"].items())
    click.echo(f"{name} (x {one['factor']:g}): {shares}")
    for what, key in (("users", "n_users"), ("of them with the candidate", "n_candidate"), ("days", "days")):
        click.echo(f"  {what}: median {one[key]['median']:.4g}, 95 % of runs within {one[key]['p95']:.4g}")
    if one["read_once_users"]:
        _print_read_once(one["read_once_users"], inflation)
    for metric in one["metrics"]:
        ended = {"goal": f": met in {_percent(metric['met'])}", "guardrail": f": fired in {_percent(metric['fired'])}"}
        left = metric["variance_fraction"]
        past = "" if left is None else f"; users' past leaves {left:.0%} of the variance"
        click.echo(f"  {metric['name']} {metric['role']} ({metric['moved']:+g}){ended.get(metric['role'], '')}{past}")
        if metric["read_once_users"]:
            _print_read_once(metric["read_once_users"], inflation)


def _print_read_once(n_users: int, inflation: float) -> None:
    click.echo(f"  a z-test read once needs {n_users} users, one with 5 fixed looks at most {n_users * inflation:.0f}")


def _percent(share: dict[str, float]) -> str:
    return f"{share['mean']:.0%} [{share['low']:.0%}, {share['high']:.0%}]"


@experiment.command()
@click.option("--runs", default=200, show_default=True, help="How often the stored users are dealt anew into two arms.")
@click.option("--looks", default=10, show_default=True, help="Looks at each of them.")
@click.option("--days", default=28.0, show_default=True, help="How far back the traffic is taken from.")
@click.option("--rule", "rules", multiple=True, help="name=value, as of `experiment start`; may be repeated.")
@click.option("--metric", "metrics", multiple=True, help="As of `experiment start`; may be repeated.")
@click.option("--margin", "margins", multiple=True, help="As of `experiment start`.")
@click.option("--seed", default=0, show_default=True, help="Of the arms.")
@home_option
@json_option
def aa(
    runs: int,
    looks: int,
    days: float,
    rules: tuple[str, ...],
    metrics: tuple[str, ...],
    margins: tuple[str, ...],
    seed: int,
    home: Path | None,
    as_json: bool,
) -> None:
    """Replay stored traffic with shuffled arms and count false alarms."""
    from plaudit.loop import opening, rehearsal

    opened = open_home(home)
    since = utc_now() - timedelta(days=days)
    found = rehearsal.replay(
        opened.store, opened.project_id, since, _rules(rules), runs, looks, seed, opening.metrics(metrics, margins)
    )
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['n_users']} users, {found['n_messages']} messages, {runs} times dealt into two equal arms, {looks} looks:"
    )
    for what, key in (
        (f"false rollbacks (at most {found['alpha']:.0%} are allowed)", "false_rollbacks"),
        ("holds for a broken assignment", "false_holds"),
        ("alarms of a z-test read at every look", "naive"),
    ):
        share = found[key]
        click.echo(f"  {what}: {share['mean']:.1%} [{share['low']:.1%}, {share['high']:.1%}]")
    for name, share in found["false_goals"].items():
        click.echo(f"  goal {name} met at any look: {share['mean']:.1%} [{share['low']:.1%}, {share['high']:.1%}]")
    for name, count in found["first_fired"].items():
        click.echo(f"  {name} fired first in {count}")
    if not found["enough_users"]:
        click.echo("Note: with so few users only the e-processes are tried; bounds begin at min_users in each arm.")


def _print_figures(reasons: Sequence[str], figures: dict[str, Any]) -> None:
    for reason in reasons:
        click.echo(f"  {reason}")
    users = figures.get("n_users", {})
    click.echo(f"  users: {users.get('candidate', 0)} candidate, {users.get('control', 0)} control")
    declared = {metric["name"] for metric in figures.get("metrics", [])}
    for guardrail in figures.get("guardrails", []):
        if guardrail["name"] in declared:
            continue
        bounds = "" if guardrail["low"] is None else f" [{guardrail['low']:+.3f}, {guardrail['high']:+.3f}]"
        value = "not yet" if guardrail["value"] is None else f"{guardrail['value']:.3g}{bounds}"
        click.echo(f"  {guardrail['name']}: {value} against {guardrail['threshold']:.3g} (n = {guardrail['n']})")
    for metric in figures.get("metrics", []):
        _print_metric(metric, True)
    if pilot := figures.get("pilot"):
        cap = "" if pilot["cap"] is None else f" of {pilot['cap']:.4g}"
        until = f", until {pilot['ends_at'][:16]}" if pilot["ends_at"] else ""
        click.echo(f"  pilot: has cost {pilot['spent']:.4g}{cap} ({pilot['n_tokens']} tokens){until}")


def _print_look(look: dict[str, Any], last: bool) -> None:
    users = look["n_users"]
    double = f", {look['n_double']} in both left out" if look["n_double"] else ""
    click.echo(
        f"look {look['number']}, {look['at'][:16]}: {look['verdict']} ({look['decided_by']}), "
        f"{users['candidate']} candidate and {users['control']} control users{double}, ratio p = {look['ratio_p']:.2g}"
    )
    for reason in look["reasons"]:
        click.echo(f"    {reason}")
    for metric in look["metrics"]:
        _print_metric(metric, last)


def _print_metric(metric: dict[str, Any], rates: bool) -> None:
    bounds, evidence = metric["difference"], ""
    said = f"{bounds['mean']:+.4g} [{bounds['low']:+.4g}, {bounds['high']:+.4g}]" if bounds else metric["waits"]
    if metric["e_value"] is not None:
        evidence = f"; e = {metric['e_value']:.3g} of {metric['e_threshold']:.3g}"
    if adjusted := metric.get("adjusted"):  # looks of before have none
        left = (
            f"{adjusted['n_users']} users with a past, which leaves {adjusted['variance_fraction']:.0%} of the variance"
        )
        evidence += f"; {left}" if adjusted["n_users"] else "; not adjusted, for nobody has a past"
    plain = ""
    if rates and metric["control"] is not None and metric["candidate"] is not None:
        plain = f" ({metric['candidate']:.4g} against {metric['control']:.4g})"
    click.echo(f"  {metric['name']} {metric['role']} {metric['state']}: {said}{plain}{evidence}")


def _looks(text: str | None) -> int | Period | None:
    match text:
        case None | "hour" | "day" | "week":
            return text
        case _ if text.isdigit():
            return int(text)
        case _:
            raise BadInput(f"--looks is {text!r}; give a number, hour, day or week.")


def _experiment(opened: Home, experiment_id: str | None) -> Experiment:
    wanted = {"id": experiment_id} if experiment_id else {}
    found = opened.store.first(Experiment, project_id=opened.project_id, **wanted)
    if found is None:
        raise NotFound(f"There is no experiment {experiment_id or 'yet'}; begin one with `plaudit experiment start`.")
    return found


def _rules(given: tuple[str, ...]) -> Rules:
    from plaudit.loop import experiment as stage
    from plaudit.loop import opening

    return stage.rules_from(opening.rules(given))
