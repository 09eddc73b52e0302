"""`plaudit simulate annotators` against a running service, as anybody would run it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from plaudit.cli.main import plaudit
from plaudit.crowds import HONEST, LAZY
from plaudit.domain import Annotation, Comparison, ComparisonState, Interaction, Purpose, Review


def simulate(service, *options: str):
    command = ["simulate", "annotators", "--home", str(service.settings.home), "--url", service.url, *options]
    return CliRunner().invoke(plaudit, command)


@pytest.mark.slow
def test_a_crowd_works_over_http_and_the_lazy_are_found(start_service) -> None:
    """Seven people, of whom two do not read. With 24 gold questions, of which each gets 10 first, a coin is paused 5 times of 6."""
    service = start_service(audit_fraction=1.0)  # a share would be a matter of luck
    done = simulate(service, "--questions", "24", "--gold", "24", "--people", "7", "--seed", "2", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["n_lazy"], told["n_lazy_found"], told["n_honest_accused"]) == (2, 2, 0)
    assert {row["behaviour"] for row in told["rows"]} >= {*HONEST, *LAZY}
    assert sum(row["n_answers"] for row in told["rows"]) == service.store.count(Annotation)
    asked = service.store.find(Comparison, project_id=service.project.id, batch="simulated-2")
    training = [one for one in asked if one.state is ComparisonState.CLOSED]
    assert len(training) == 24
    assert service.store.count(Comparison, purpose=Purpose.GOLD) == 24
    assert told["n_audits"] == service.store.count(Review) == 24
    audited = {one.comparison_id for one in service.store.find(Review)}
    topics = {one.id: one.attributes["topic"] for one in service.store.find(Interaction)}
    misleading = told["misleading"].removeprefix("topic: ")
    about = [one for one in asked if one.id in audited and topics[one.interaction_id] == misleading]
    assert told["n_misleading_audits"] == len(about)
    shown = CliRunner().invoke(plaudit, ["annotate", "signs", "--home", str(service.settings.home), "--json"])
    signs = json.loads(shown.stdout.splitlines()[-1])["signs"]
    assert sorted(f"{one['kind']}: {one['why']}" for one in signs) == sorted(
        s for row in told["rows"] for s in row["signs"]
    )


def test_it_refuses_a_home_with_questions_of_other_people(start_service) -> None:
    service = start_service()
    assert simulate(service, "--questions", "3", "--gold", "0", "--people", "3").exit_code == 0
    with service.store.write() as tx:
        one = service.store.first(Comparison)
        tx.change(Comparison, one.id, state=ComparisonState.OPEN)
    again = simulate(service, "--questions", "3", "--gold", "0", "--people", "3")
    assert "home of its own" in str(again.exception) + again.output
