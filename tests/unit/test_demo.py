"""What the demo decides by itself: which home it takes, what a twin changes, what a rerun repeats, how time and refusals are kept."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from plaudit import demo, simulate
from plaudit.demo_steps import gather, house, improve, offer, summary
from plaudit.demo_steps.house import Demo
from plaudit.demo_steps.improve import Hidden
from plaudit.demo_steps.plan import FULL, TINY, TWINS, Options, ppo_config, reward_config
from plaudit.demo_steps.screen import Screen
from plaudit.domain import (
    AuditEntry,
    Completion,
    CompletionStatus,
    EvaluationItem,
    Json,
    ResponseText,
    Run,
    TrainingUse,
    utc_now,
)
from plaudit.errors import AlreadyRunning, ConfigError, Refused, Unavailable
from plaudit.learn.configs import PPOConfig, RewardConfig, from_dict
from plaudit.loop import collect, govern
from plaudit.loop.pipeline import curation_of
from plaudit.settings import Settings
from plaudit.store.database import open_store


def a_demo(home: Path, **options: object) -> Demo:
    """A demo with its store, and nothing that runs."""
    chosen = Options(home, tiny=True, **options)  # type: ignore[arg-type]
    store = open_store(f"sqlite:///{home / 'store.sqlite'}")
    project = govern.ensure_project(store, utc_now())
    prompts = tuple(simulate.load_prompts("bytes"))
    return Demo(
        chosen, Settings(home=home), store, project.id, home / "base", simulate.load_population("bytes"), prompts, {}
    )


# --- the home ------------------------------------------------------------------------------------------------------------


def test_a_home_is_kept_for_the_same_demo_and_refused_to_another(tmp_path: Path) -> None:
    house.furnish(Options(tmp_path, tiny=True), fresh=False)
    settings = house.furnish(Options(tmp_path, tiny=True, baselines=True), fresh=False)
    assert (settings.base, settings.home) == ("tiny", tmp_path)
    assert settings.port != settings.policy_port
    for other in (
        Options(tmp_path, tiny=True, seed=1),
        Options(tmp_path, tiny=True, twin="spammers-only"),
        Options(tmp_path),
    ):
        with pytest.raises(ConfigError, match="--fresh"):
            house.furnish(other, fresh=False)


def test_fresh_empties_a_demo_but_nothing_else(tmp_path: Path) -> None:
    house.furnish(Options(tmp_path, tiny=True), fresh=False)
    (tmp_path / "store.sqlite").write_text("old")
    house.furnish(Options(tmp_path, tiny=True, seed=1), fresh=True)
    assert not (tmp_path / "store.sqlite").exists()
    stranger = tmp_path / "papers"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("four years")
    with pytest.raises(ConfigError, match="no demo"):
        house.furnish(Options(stranger, tiny=True), fresh=True)
    assert (stranger / "thesis.txt").read_text() == "four years"


def test_one_demo_on_a_home(tmp_path: Path) -> None:
    with house.held(tmp_path), pytest.raises(AlreadyRunning, match=str(tmp_path)), house.held(tmp_path):
        pass
    with house.held(tmp_path):
        pass


def test_another_population_or_other_prompts_are_another_demo(tmp_path: Path) -> None:
    people = tmp_path / "people.py"
    people.write_text("GUIDELINE = 'a'")
    first = Options(tmp_path, people=str(people)).identity()
    people.write_text("GUIDELINE = 'b'")
    assert Options(tmp_path, people=str(people)).identity() != first != Options(tmp_path).identity()
    with pytest.raises(ConfigError, match="no file 'nobody"):
        Options(tmp_path, people="nobody.py").identity()


# --- plans and twins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiny", [False, True])
def test_training_settings_are_whole_configs(tiny: bool, tmp_path: Path) -> None:
    options = Options(tmp_path, tiny)
    places: Json = {"snapshot": "s", "base": "b", "seed": 1}
    reward = from_dict(RewardConfig, {**reward_config(options), **places})
    ppo = from_dict(PPOConfig, {**ppo_config(options), **places, "reward": "r"})
    assert ppo.sampling.max_new_tokens == options.plan.max_tokens  # trained on what is served
    assert reward.max_response_tokens >= options.plan.max_tokens


def test_plans_are_held_to_the_same_bar() -> None:
    assert min(FULL.n_evaluation, TINY.n_evaluation) >= 100
    assert min(FULL.most_visits, TINY.most_visits) >= 400  # 200 users an arm
    assert FULL.denied_fraction == TINY.denied_fraction > 0


def test_each_twin_changes_what_it_says_and_no_more(tmp_path: Path) -> None:
    plain = a_demo(tmp_path)
    for twin in TWINS:
        twisted = replace(plain, options=replace(plain.options, twin=twin))
        changed = {
            "judges": twisted.crowd != plain.crowd,
            "annotators": twisted.training_crowd != plain.training_crowd,
            "ppo": ppo_config(twisted.options) != ppo_config(plain.options),
            "reward": reward_config(twisted.options) != reward_config(plain.options),
        }
        expected = {
            "shuffled-labels": {"judges", "annotators", "reward"},  # honest thumbs would undo these three
            "spammers-only": {"judges", "annotators", "reward"},
            "hackable-reward": {"annotators", "reward"},
            "equal-candidate": {"ppo"},
        }[twin]
        assert {name for name, is_so in changed.items() if is_so} == expected
    with pytest.raises(ConfigError, match="shuffled-labels"):
        Options(tmp_path, twin="shuffled")


# --- resuming ------------------------------------------------------------------------------------------------------------


def test_a_step_is_done_once(tmp_path: Path) -> None:
    holder = a_demo(tmp_path)
    calls: list[int] = []

    def act() -> Json:
        calls.append(1)
        if len(calls) == 1:
            raise Unavailable("The service is away.")
        return {"n": len(calls)}

    with pytest.raises(Unavailable):
        house.once(holder, "look", act, visits=70)
    assert house.once(holder, "look", act, visits=70) == {"n": 2}
    assert house.once(holder, "look", act, visits=70) == {"n": 2}
    assert house.once(holder, "look", act, visits=140) == {"n": 3}
    assert len(calls) == 3


def test_a_step_that_was_killed_is_taken_up_at_once(tmp_path: Path) -> None:
    holder = a_demo(tmp_path)

    class Killed(BaseException):
        pass

    def die() -> Json:
        raise Killed

    with pytest.raises(Killed):
        house.once(holder, "look", die)
    lease = holder.store.find(Run)[0].lease_expires_at
    assert lease is not None
    assert lease > utc_now() + timedelta(seconds=5)  # it is still held, by whom we are again
    assert house.once(holder, "look", lambda: {"n": 1}) == {"n": 1}


def test_who_was_answered_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = a_demo(tmp_path)
    holder.keys[house.APPLICATION] = "secret"
    planned = gather.visits(holder, "training", "user", 5)
    assert planned == gather.visits(holder, "training", "user", 5)
    for visit, status in ((planned[0], CompletionStatus.OK), (planned[1], CompletionStatus.ERROR)):
        body = {"messages": visit.prompt.messages, "responses": ["a"], "user": visit.user}
        made = collect.log_interaction(holder.store, holder.project_id, body, utc_now())
        if status is not CompletionStatus.OK:
            holder.store.change(Completion, made.id, status=status)
    asked: list[str] = []

    def ask(url: str, key: str, population: object, visits: list[simulate.Visit], **options: object) -> None:
        asked.extend(visit.user for visit in visits)

    monkeypatch.setattr(simulate, "ask", ask)
    assert gather.ask(holder, planned, lambda done, of: None) == 4
    assert asked == [visit.user for visit in planned[1:]]


def test_some_users_keep_their_words_out_of_training(tmp_path: Path) -> None:
    planned = gather.visits(a_demo(tmp_path), "training", "user", 200, denied_fraction=0.05)
    denied = sum(visit.training_use == TrainingUse.DENIED for visit in planned)
    assert 1 <= denied <= 25
    assert len({visit.prompt.text for visit in planned}) == 200  # all different while the pool lasts
    assert {visit.prompt.pool for visit in planned} == {"training"}


def test_seconds_add_up_over_crashes(tmp_path: Path) -> None:
    house.furnish(Options(tmp_path, tiny=True), fresh=False)
    screen = Screen(Console(file=io.StringIO()))

    def fails(tell: gather.Tell) -> str:
        raise Unavailable("away")

    with pytest.raises(Unavailable):
        demo.Clock(tmp_path, screen).step("ask", fails)
    first = demo.Clock(tmp_path, screen).seconds["ask"]
    clock = demo.Clock(tmp_path, screen)
    assert clock.step("ask", lambda tell: "done") == "done"
    assert clock.seconds["ask"] > first > 0
    assert clock.rows() == [{"name": "ask", "seconds": clock.seconds["ask"], "said": "done"}]


# --- what the report says of the ledger --------------------------------------------------------------------------------------


def test_a_refusal_is_kept_and_an_act_that_passes_is_a_bug(tmp_path: Path) -> None:
    holder = a_demo(tmp_path)

    def refused() -> None:
        raise Refused("Nobody has approved it.", ["nobody"])

    house.once(holder, "refused.canary", lambda: offer._refusal(refused))
    govern.audit(
        holder.store,
        holder.project_id,
        "Alice",
        "approver",
        "release.approve",
        "rel_1",
        {},
        {"stage": "canary"},
        utc_now(),
    )
    rows = offer.ledger(holder)
    assert [row["what"] for row in rows] == ["make it the canary without approval", "approve for canary"]
    assert rows[0]["outcome"] == "refused: Nobody has approved it."
    assert offer.n_refusals(holder) == 1
    assert holder.store.count(AuditEntry) == 1
    with pytest.raises(Unavailable, match="without it"):
        offer._refusal(lambda: None)


def test_examples_are_drawn_by_the_seed_alone(tmp_path: Path) -> None:
    answers = ResponseText("before"), ResponseText("after")
    items = [
        EvaluationItem(
            messages=({"role": "user", "content": f"question {at}"},),
            family="f",
            first=answers[1],
            second=answers[0],
            first_checkpoint_id=None,
            second_checkpoint_id=None,
        )
        for at in range(120)
    ]
    utility = Hidden(tuple(at / 120 for at in range(120)), (0.5,) * 120)
    hidden = {"items": items, "base": utility, "candidate": utility}

    def drawn(seed: int) -> list[Json]:
        rows: list[Json] = summary._examples(a_demo(tmp_path, seed=seed), hidden)["rows"]
        return rows

    assert drawn(0) == drawn(0) != drawn(1)
    assert len({row["prompt"] for row in drawn(0)}) == 20
    for row in drawn(0):  # prompt, texts and utilities belong together
        number = int(row["prompt"].removeprefix("question "))
        assert (row["base"], row["candidate"], row["base_utility"]) == ("before", "after", number / 120)


def test_users_are_frozen_and_reported_by_the_group_they_declare(tmp_path: Path) -> None:
    demo = a_demo(tmp_path)
    improve.configure(demo)
    curation = curation_of(json.loads((demo.settings.home / "turn.json").read_text())["snapshot"])
    (name,) = curation.group_by
    declared = {str(visit.attributes[name]) for visit in gather.visits(demo, "training", "user", 40)}
    span = {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 9}
    found = {"slices": {f"group:{name}": {"new": {"accuracy": span, "n": 11, "difference": {}}}}}
    found |= {"thumbs": {"by": {f"group:{name}": {"returning": {"auc": span, "n_up": 4, "n_down": 3}}}}}
    rows = summary._groups(found)
    assert {row["name"] for row in rows} == declared
    none = {"n_pairs": 0, "accuracy": None, "n_up": None, "n_down": None, "auc": None}
    assert rows[0] == {"name": "new", **none, "n_pairs": 11, "accuracy": span}
    assert rows[1] == {"name": "returning", **none, "n_up": 4, "n_down": 3, "auc": span}
    assert summary._groups({"slices": {}}) == [
        {"name": row["name"], **none} for row in rows
    ]  # a twin that leaves thumbs out


def test_where_ppo_loses_the_report_says_so() -> None:
    def row(label: str, low: float, high: float) -> Json:
        return {"label": label, "under_ppo": {"low": low, "high": high}}

    rows = [
        row("PPO", 0, 0),
        row("prompt", 0.1, 0.2),
        row("best of 4", -0.2, -0.1),
        row("SFT", -0.1, 0.1),
        row("top", -1, -1),
    ]
    said = improve.say_baselines({"rows": rows})
    for words in ("above prompt", "below best of 4", "not distinguishable from SFT"):
        assert words in said


def test_memory_counts_this_process(tmp_path: Path) -> None:
    with house.MemoryWatch(interval_s=0.01) as memory:
        pass
    assert memory.peak_bytes > 10_000_000


def test_notes_hold_configuration_and_timings_only(tmp_path: Path) -> None:
    house.furnish(Options(tmp_path, tiny=True), fresh=False)
    assert set(json.loads((tmp_path / "demo.json").read_text())) == {"config", "seconds", "peak_memory_bytes"}
