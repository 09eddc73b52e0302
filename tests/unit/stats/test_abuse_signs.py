from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from plaudit.stats.abuse import suspects

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Act:
    actor: str | None
    interaction_id: str
    at: datetime


def acts(*told: tuple[str | None, str, float]) -> list[Act]:
    return sorted((Act(actor, about, NOW + timedelta(seconds=s)) for actor, about, s in told), key=lambda act: act.at)


def found(*told: tuple[str | None, str, float]) -> list[tuple[str, str | None, str | None, int]]:
    return [(one.signal, one.actor, one.interaction_id, one.n) for one in suspects(acts(*told))]


def test_eleven_acts_within_a_minute_are_a_burst_and_ten_are_not() -> None:
    quick = [("ada", f"i{n}", n * 5.9) for n in range(11)]
    assert found(*quick) == [("burst", "ada", None, 11)]
    assert found(*quick[:10]) == []
    assert found(*[("ada", f"i{n}", n * 6.0) for n in range(11)]) == []
    assert found(*quick, ("ada", "later", 500)) == [("burst", "ada", None, 11)]
    assert found(*[(f"u{n}", f"i{n}", n * 0.01) for n in range(100)]) == []  # many people at once are no burst


def test_three_answers_judged_within_a_second_of_the_one_before_are_clicks() -> None:
    assert found(("ada", "a", 0), ("ada", "b", 0.9), ("ada", "c", 1.8), ("ada", "d", 2.7)) == [
        ("clicks", "ada", None, 3)
    ]
    assert found(("ada", "a", 0), ("ada", "b", 0.9), ("ada", "c", 1.8), ("ada", "d", 2.8)) == []
    assert found(*[("ada", "a", n * 0.1) for n in range(5)]) == []  # second thoughts on one answer


def test_seven_judgements_of_one_answer_are_repeats() -> None:
    told = [("ada", "a", n * 100.0) for n in range(7)]
    assert found(*told) == [("repeats", "ada", None, 7)]
    assert found(*told[:6], ("ada", "b", 900)) == []


def test_eight_people_on_one_answer_within_ten_minutes_are_a_brigade() -> None:
    told = [(f"u{n}", "a", n * 80.0) for n in range(8)]
    assert found(*told, ("u0", "a", 5000)) == [("brigade", None, "a", 9)]
    assert found(*told[:7], ("u0", "a", 570)) == []
    assert found(*[(f"u{n}", "a", n * 90.0) for n in range(8)]) == []
    assert found(*[(None, "a", n * 1.0) for n in range(20)]) == []  # of nobody nothing can be said
