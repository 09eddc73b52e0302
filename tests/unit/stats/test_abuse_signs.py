from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

from plaudit.stats.abuse import SIGNALS, suspects, worth_a_look

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Act:
    actor: str | None
    interaction_id: str
    at: datetime


def acts(*told: tuple[str | None, str, float]) -> list[Act]:
    return sorted((Act(actor, about, NOW + timedelta(seconds=s)) for actor, about, s in told), key=lambda act: act.at)


def found(*told: tuple[str | None, str, float]) -> list[tuple[str, str | None, str | None, int]]:
    """The suspects, which are the same among those worth a look."""
    all_of_them = acts(*told)
    spoken = [(one.actor, one.interaction_id, (one.at - NOW) // timedelta(microseconds=1)) for one in all_of_them]
    looked_at = [Act(who, about, NOW + timedelta(microseconds=at)) for who, about, at in worth_a_look(spoken)]
    seen = suspects(all_of_them)
    assert suspects(looked_at) == seen
    return [(one.signal, one.actor, one.interaction_id, one.n) for one in seen]


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


def test_few_are_worth_a_look_and_no_suspect_is_missed() -> None:
    signals = set()
    for seed in range(60):
        draw = Random(seed)
        seconds = draw.choice((60, 600, 6000))
        told = [
            (
                draw.choice((None, *"abcdefghi")),
                f"i{draw.randrange(draw.choice((6, 60)))}",
                round(draw.uniform(0, seconds), 1),
            )
            for _ in range(120)
        ]
        signals |= {signal for signal, *_ in found(*told)}
    assert signals == set(SIGNALS)
    calm = [(f"u{n % 50}", f"i{n}", n * 30 * 1_000_000) for n in range(1000)]
    told_often = [("u1", "shared", 10**12 + n * 10**9) for n in range(7)]
    assert worth_a_look([*calm, *told_often]) == told_often
