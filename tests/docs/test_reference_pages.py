"""What the code offers and what its page says are the same set, in both directions."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import pytest

from plaudit import artifacts, domain, errors, openai_protocol, simulate
from plaudit.cli.main import plaudit as root
from plaudit.demo_steps import plan
from plaudit.errors import PlauditError, UpstreamError
from plaudit.learn import configs
from plaudit.loop import collect, experiment, gates, govern, metrics, monitor, suites
from plaudit.loop.pipeline import TurnConfig
from plaudit.policy_server import __main__ as policy_server
from plaudit.settings import Settings
from plaudit.stats.aggregate import Method
from plaudit.web import problems
from plaudit.web.app import ROUTES

from .conftest import ROOT, Page, code_in

PACKAGE = ROOT / "src" / "plaudit"


def default_of(spec: Any) -> Any:
    return spec.default_factory() if spec.default is MISSING else spec.default


def stated(page: Page) -> dict[str, str]:
    """name -> what its table says of the default."""
    return {code_in(row[0])[0]: row[1].strip("`") for row in page.rows()}


# --- settings, configs, rules ------------------------------------------------------------------------------------------


def test_settings(pages) -> None:
    shown = stated(Page(pages["settings.md"].path, pages["settings.md"].text.partition("## A turn")[0]))
    assert shown == {spec.name: str(default_of(spec)) or "empty" for spec in fields(Settings)}


def test_turn_file(pages) -> None:
    shown = stated(pages["settings.md"].section("A turn's own file"))
    assert shown == {spec.name: str(default_of(spec)) or "empty" for spec in fields(TurnConfig)}


@pytest.mark.parametrize("program", configs.PROGRAMS)
def test_training_config(pages, program: str) -> None:
    shown = stated(pages["training.md"].section(f"The config of {program}"))
    assert shown == {name: said_default(value) for name, _, value in configs.describe(configs.PROGRAMS[program])}


def said_default(value: Any) -> str:
    if value is ...:
        return "required"
    if isinstance(value, dict):
        return "below"
    return "all seven" if value == configs.parts.LINEAR_LAYERS else json.dumps(value)


@pytest.mark.parametrize(("heading", "kind"), [("The gate", gates.GateRules), ("The ramp", experiment.Rules)])
def test_release_rules(pages, heading: str, kind: type) -> None:
    shown = stated(pages["release.md"].section(heading))
    assert {name: float(value) for name, value in shown.items()} == {s.name: default_of(s) for s in fields(kind)}


def test_the_gate_names_its_suites(pages) -> None:
    assert all(suite in pages["release.md"].section("The gate").text for suite in suites.SUITES)


def test_training_programs(pages) -> None:
    opening = Page(pages["training.md"].path, pages["training.md"].text.partition("## Bases")[0])
    assert {code_in(row[0])[0] for row in opening.rows()} == set(configs.PROGRAMS)


# --- HTTP --------------------------------------------------------------------------------------------------------------


def test_routes(pages) -> None:
    shown = {(*code_in(row[0])[0].split(), row[1]) for row in pages["api.md"].section("Routes").rows()}
    assert shown == {(method, path, str(may or "none")) for method, path, _, may in ROUTES}


def test_every_route_has_a_section(pages) -> None:
    shown = {heading for heading in pages["api.md"].headings() if re.match("[A-Z]+ /", heading)}
    assert shown == {f"{method} {path}" for method, path, _, _ in ROUTES}


def test_roles(pages) -> None:
    shown = {code_in(row[0])[0]: set(row[1].split(", ")) for row in pages["api.md"].section("Roles").rows()}
    assert shown == {str(role): set(map(str, may)) for role, may in govern.PERMISSIONS.items()}


def test_feedback_kinds_and_what_supersedes(pages) -> None:
    rows = [
        row for row in pages["api.md"].section("POST /v1/feedback").rows() if row[2] in ("supersedes", "accumulates")
    ]
    shown = {code_in(row[0])[0]: row[2] == "accumulates" for row in rows}
    assert shown == {str(kind): kind in collect.ACCUMULATES for kind in domain.FeedbackKind}


def test_forwarded_fields_of_a_chat(pages) -> None:
    text = pages["api.md"].section("POST /v1/chat/completions").text
    listed = text[text.index("as they came:") : text.index("Ours,")]
    assert set(code_in(listed)) == set(openai_protocol.FORWARDED)


def every_error(kind: type[PlauditError] = PlauditError) -> Iterator[type[PlauditError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from every_error(below)


def test_error_codes_and_statuses(pages) -> None:
    table = Page(pages["errors.md"].path, pages["errors.md"].text.partition("## Exit codes")[0]).rows()
    shown = {code_in(row[0])[0]: (row[1], row[2]) for row in table}
    expected = {}
    for kind in every_error():
        if kind is UpstreamError:
            expected[kind.code] = ("its own", "its own")
            continue
        ours = openai_protocol.status_of(kind("x"))
        expected[kind.code] = (str(problems.STATUS.get(kind.code, ours)), str(ours))
    assert shown == expected
    assert {kind.__module__ for kind in every_error()} == {errors.__name__}


def test_codes_that_only_http_has(pages) -> None:
    quoted = set(
        re.findall(
            r'"([a-z]+_[a-z_]+)"', inspect.getsource(problems.on_http_exception) + inspect.getsource(problems.on_bug)
        )
    )
    codes = {name for name in quoted if name in ("bad_request", "internal_error", "not_found")}
    assert codes == {"bad_request", "internal_error", "not_found"}
    assert codes <= set(code_in(pages["errors.md"].prose))


# --- the command line --------------------------------------------------------------------------------------------------


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from commands(below, (*path, name))


COMMANDS = dict(commands(root))


def usage(path: tuple[str, ...], command: click.Command) -> str:
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    words = [str(one.name).upper() if one.required else f"[{str(one.name).upper()}]" for one in arguments]
    return "`" + " ".join(["plaudit", *path, *words]) + "`"


def test_commands(pages) -> None:
    shown = {heading for heading in pages["cli.md"].headings() if heading.startswith("`plaudit ")}
    assert shown == {usage(path, command) for path, command in COMMANDS.items()}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_options(pages, path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    shown = pages["cli.md"].section(usage(path, command)).names()
    assert sorted(shown) == sorted(name for one in options for name in (*one.opts, *one.secondary_opts))


def test_options_of_the_policy_server(pages, capsys) -> None:
    with pytest.raises(SystemExit):
        policy_server._parse(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert set(pages["cli.md"].section("`python -m plaudit.policy_server`").names()) == options


# --- states, verdicts, methods -----------------------------------------------------------------------------------------


def test_release_states_and_their_transitions(pages) -> None:
    shown = {code_in(row[0])[0]: set(code_in(row[2])) for row in pages["release.md"].section("States").rows()}
    assert shown == {str(state): set(map(str, after)) for state, after in domain.RELEASE_TRANSITIONS.items()}


def test_guardrails(pages) -> None:
    named = set(code_in(pages["release.md"].section("A look, in this order").text))
    in_code = set(re.findall(r'\("([a-z_]+)", ', inspect.getsource(experiment._guardrails)))
    assert len(in_code) == experiment.N_GUARDRAILS
    assert in_code <= named


def test_declared_metrics(pages) -> None:
    shown = pages["experiments.md"].section("Declared metrics").rows()
    own = {"outcome:NAME", "signal:NAME"}
    assert {code_in(row[0])[0] for row in shown} == {*metrics.MEASURED, *own}
    assert {code_in(row[0])[0]: row[1] for row in shown if code_in(row[0])[0] not in own} == dict(metrics.MEASURED)


def test_verdicts(pages) -> None:
    assert set(pages["annotation.md"].section("Verdicts").names()) == set(domain.Verdict)


def test_aggregation_methods(pages) -> None:
    assert set(pages["annotation.md"].section("From votes to Preferences").names()) == set(Method.__args__)


# --- snapshots, training, checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", artifacts.TABLES)
def test_snapshot_columns(pages, table: str) -> None:
    shown = pages["snapshots.md"].section(f"{table}.parquet").names()
    assert shown == [spec.name for spec in fields(artifacts.TABLES[table])]


def test_manifest_fields(pages) -> None:
    shown = pages["snapshots.md"].section("manifest.json").names()
    assert shown == [spec.name for spec in fields(artifacts.Manifest)]


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def keys_of(node: ast.AST) -> set[str]:
    """Literal keys of the dicts that a function builds or fills by name."""
    found = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Dict):
            found |= {key.value for key in one.keys if isinstance(key, ast.Constant)}
        elif isinstance(one, ast.Subscript) and isinstance(one.ctx, ast.Store) and isinstance(one.slice, ast.Constant):
            found.add(one.slice.value)
    return {name for name in found if isinstance(name, str)}


def logged_names(node: ast.AST) -> set[str]:
    """Keywords of `run.log(...)`."""
    calls = [one for one in ast.walk(node) if isinstance(one, ast.Call) and ast.unparse(one.func) == "run.log"]
    return {word.arg for call in calls for word in call.keywords if word.arg}


# Where the fields of a line come from: functions whose dicts are logged, besides the keywords of run.log everywhere.
METRICS = {
    "reward": ("reward.py", ("update", "curve_point")),
    "ppo": ("ppo.py", ("describe", "gradient")),
    "grpo": ("grpo.py", ("describe", "gradient")),
    "best_of": ("best_of.py", ()),
    "sft": ("sft.py", ("update",)),
    "dpo": ("dpo.py", ("update", "figures", "measure")),
    "score": ("score.py", ()),
}


@pytest.mark.parametrize("program", METRICS)
def test_metrics(pages, program: str) -> None:
    file, sources = METRICS[program]
    found = functions(PACKAGE / "learn" / file)
    expected = set.union(*map(logged_names, found.values()), *(keys_of(found[name]) for name in sources))
    if program in ("sft", "dpo"):  # logged by epochs.py, the validation's line as a dict
        expected |= {"epoch", "loss", "n"}
    if program in (
        "ppo",
        "grpo",
    ):  # logged by what they share, with a name for each of the reward's terms
        shared = functions(PACKAGE / "learn" / "experience.py") | functions(PACKAGE / "learn" / "online_run.py")
        expected |= set.union(*(keys_of(shared[name]) for name in ("figures_of", "run_epochs", "run_steps")))
        expected |= {"guard_<name>", "guards"}  # guards.py's, which have a page of their own
        expected = (expected | {"term_<name>", "term_<name>_sd"}) - {"ratio"}  # which is looked at, not logged
    assert set(pages["training.md"].section(f"Metrics of {program}").names()) == expected


def test_metrics_of_every_line(pages) -> None:
    log = functions(PACKAGE / "learn" / "run_folder.py")["log"]
    assert set(pages["training.md"].section("Metrics of every program").names()) == keys_of(log)


def test_files_of_a_checkpoint(pages) -> None:
    text = (PACKAGE / "learn" / "checkpoint.py").read_text()
    in_code = set(re.findall(r'"([a-z_]+\.(?:json|safetensors|md))"', text)) | {artifacts.MANIFEST}
    assert set(pages["training.md"].section("The Checkpoint folder").names()) == in_code


def test_the_checklist_has_a_line_for_every_number_in_the_code(pages) -> None:
    source = "".join(
        (PACKAGE / "learn" / file).read_text() for file in ("experience.py", "online_run.py", "ppo.py", "grpo.py")
    )
    # In prose and comments only: a space before the bracket, which no index has.
    cited = {int(part) for group in re.findall(r" \[(\d+(?:, \d+)*)\]", source) for part in group.split(", ")}
    assert len(cited) > 5
    lines = {
        int(n) for n in re.findall(r"^(\d+)\. ", pages["training.md"].section("The PPO checklist").text, re.MULTILINE)
    }
    assert lines == set(range(1, 17))
    assert cited <= lines


# --- monitoring --------------------------------------------------------------------------------------------------------


def measured() -> set[str]:
    """Every metric that code stores: named in a (name, labels, value) tuple or as Measurement(metric=...)."""
    found, patterns = set(), set()
    for path in sorted((PACKAGE / "loop").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Tuple) and len(node.elts) == 3 and isinstance(node.elts[1], ast.Dict | ast.Name):
                name = node.elts[0]
                if isinstance(name, ast.Constant) and path.name == "monitor.py":
                    found.add(name.value)
                elif isinstance(name, ast.JoinedStr) and path.name == "monitor.py":
                    patterns.add(ast.unparse(name))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Measurement":
                found |= {
                    w.value.value for w in node.keywords if w.arg == "metric" and isinstance(w.value, ast.Constant)
                }
    assert patterns == {"f'{metric}_mean'", "f'{metric}_change'"}
    assert 'for metric in ("kl", "nll")' in inspect.getsource(monitor._of_scores)
    return found | {"kl_mean", "nll_mean"} | {f"{metric}_change" for metric in monitor.CHANGES}


def test_measurements(pages) -> None:
    assert {code_in(row[0])[0] for row in pages["monitoring.md"].section("Measurements").rows()} == measured()


def test_alert_rules(pages) -> None:
    shown = [tuple(cell.strip("`") for cell in row) for row in pages["monitoring.md"].section("Alert rules").rows()]
    assert shown == [
        (
            rule.name,
            rule.metric,
            str(rule.direction),
            *(f"{value:g}" for value in (rule.warn, rule.critical, rule.clear, rule.min_samples, rule.for_windows)),
            "yes" if rule.blocking else "",
        )
        for rule in monitor.RULES
    ]
    assert {rule.metric for rule in monitor.RULES} <= measured()


# --- demo, architecture ------------------------------------------------------------------------------------------------


def test_twins(pages) -> None:
    assert set(pages["demo.md"].section("Negative twins").names()) == set(plan.TWINS)


def test_demo_steps(pages) -> None:
    source = (PACKAGE / "demo.py").read_text()
    in_code = set(re.findall(r'step\(\s*"([^"]+)"', source)) - {"baselines"} | {"report"}
    rows = pages["demo.md"].section("Steps and time budget").rows()
    assert {row[0] for row in rows} - {"**sum**"} == in_code
    seconds = [int(row[2].strip("*")) for row in rows]
    assert sum(seconds[:-1]) == seconds[-1] == 600


def test_sizes_of_the_demo(pages) -> None:
    shown = {code_in(row[0])[0]: tuple(row[1:3]) for row in pages["demo.md"].section("Sizes").rows()}
    sizes = [spec.name for spec in fields(plan.DemoPlan) if spec.type in ("int", "float")]
    assert shown == {name: (f"{getattr(plan.FULL, name):g}", f"{getattr(plan.TINY, name):g}") for name in sizes}


def test_rules_that_the_demo_sets_itself(pages) -> None:
    text = pages["demo.md"].text
    assert f"`goal_margin` {plan.GOAL_MARGIN} and `min_stage_users` {plan.MIN_STAGE_USERS}" in text
    assert f"from {plan.MIN_NEW_PREFERENCES} new Preferences" in text
    assert f"looks every {plan.MONITOR_INTERVAL_S:g} s" in text


def test_summary_keys(pages) -> None:
    node = functions(PACKAGE / "demo_steps" / "summary.py")["summarise"]
    top = next(one.value for one in ast.walk(node) if isinstance(one, ast.Return) and isinstance(one.value, ast.Dict))
    assert [row[0].strip("`") for row in pages["demo.md"].section("summary.json").rows()] == [
        key.value for key in top.keys if isinstance(key, ast.Constant)
    ]


def test_the_example_people_and_prompts_load(pages, tmp_path: Path) -> None:
    (people,), (rows,) = pages["demo.md"].blocks("python"), pages["demo.md"].blocks("jsonl")
    (tmp_path / "people.py").write_text(people)
    (tmp_path / "prompts.jsonl").write_text(rows)
    population = simulate.load_population(str(tmp_path / "people.py"))
    prompts = simulate.load_prompts(str(tmp_path / "prompts.jsonl"))
    assert {prompt.pool for prompt in prompts} >= set(simulate.POOLS)
    for text in ("", "Yes.", "Thank you, please open Settings and choose Address.", "word " * 200):
        for value in (
            population.guideline_utility(prompts[0].messages, text),
            population.user_utility("user-1", prompts[0].messages, text),
        ):
            assert 0 <= value <= 1


def test_the_tree(pages) -> None:
    tree = next(block for block in pages["architecture.md"].blocks("") if "src/plaudit/" in block)
    shown = set(re.findall(r"^  ([a-z_]+(?:\.py|/)) ", tree.partition("tests/")[0], re.MULTILINE))
    there = {path.name + "/" * path.is_dir() for path in PACKAGE.iterdir()} - {
        "__init__.py",
        "__pycache__/",
        "py.typed",
    }
    assert shown == there
