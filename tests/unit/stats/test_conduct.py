"""Signs of annotators who do not read, each on a crowd that is made for it, beside honest people who must not be accused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from plaudit.stats import conduct
from plaudit.stats.aggregate import Votes
from plaudit.stats.conduct import ALPHA, Ballots, signs

N_HONEST = 9


def crowd(
    seed: int, *bad: str, n_items: int = 240, reliability: float = 0.85, strengths: bool = True
) -> tuple[Ballots, int]:
    """Nine honest annotators (0 to 8), then one for each of `bad`; each item has three votes. Returns (ballots, first bad worker)."""
    luck = np.random.default_rng(seed)
    n_workers = N_HONEST + len(bad)
    truth = luck.integers(0, 2, n_items)
    rows = []
    shared: dict[int, tuple[int, int]] = {}
    seen = np.zeros(n_workers, dtype=int)
    for item in range(n_items):
        for worker in luck.permutation(n_workers)[:3]:
            how = bad[worker - N_HONEST] if worker >= N_HONEST else "honest"
            first = int(luck.integers(0, 2))
            right = int(truth[item]) if luck.random() < reliability else 1 - int(truth[item])
            strength = int(luck.integers(1, 4)) if strengths else 0
            seconds, note = 30.0, None
            match how:
                case "first":
                    right = first
                case "last":
                    right = 1 - first
                case "coin":
                    right = int(luck.integers(0, 2))
                case "tired":
                    right = int(luck.integers(0, 2)) if seen[worker] > 15 else right
                case "hasty":
                    seconds = 1.0
                case "copy":
                    right, strength = shared.setdefault(item, (right, strength))
                case "paste":
                    note = f"Response {'AB'[right]} is better as it clearly and directly addresses what the user asked for."
            seen[worker] += 1
            rows.append((item, worker, right, first, seconds, strength, note))
    item, worker, label, first = (np.array([row[at] for row in rows]) for at in range(4))
    return (
        Ballots(
            Votes(item, worker, label, 2, first),
            np.array([row[4] for row in rows]),
            np.full(len(rows), 60),
            np.array([row[5] for row in rows]),
            [row[6] for row in rows],
            {at: int(truth[at]) for at in range(40)},
        ),
        N_HONEST,
    )


@pytest.mark.parametrize(
    ("how", "kind"),
    [("first", "one side"), ("last", "one side"), ("coin", "coin"), ("hasty", "haste"), ("paste", "pastes")],
)
def test_each_is_found_and_nobody_else_is_accused(how: str, kind: str) -> None:
    ballots, bad = crowd(3, how)
    found = signs(ballots)
    assert kind in {one.kind for one in found if one.worker == bad}
    assert {one.worker for one in found} == {bad}


def alone(n: int, k_first: int, k_fast: int, speed: float = 0.99) -> set[str]:
    """Kinds of signs of somebody who chose what stood first `k_first` times of n, and read `k_fast` answers in `speed` of the time they need."""
    at, zeros = np.arange(n), np.zeros(n, int)
    first = at % 2
    votes = Votes(at, zeros, np.where(at < k_first, first, 1 - first), 2, first)
    seconds = np.where(at < k_fast, speed, 1.01) * 6.0  # of 100 words
    return {one.kind for one in signs(Ballots(votes, seconds, np.full(n, 100), zeros, [None] * n, {}))}


def least(n: int, p: float, alpha: float) -> int:
    """The fewest of n that come about with a chance below alpha."""
    return next(k for k in range(n) if binom.sf(k - 1, n, p) < alpha)


def test_a_sign_needs_as_many_as_come_about_by_chance_once_in_a_thousand() -> None:
    """Against scipy's binomial: one fewer is none. Less than .06 s for a word is fast."""
    n = 200
    many, fast = least(n, 0.6, ALPHA / 2), least(n, 0.2, ALPHA)
    half = n // 2
    assert (alone(n, many, 0), alone(n, many - 1, 0)) == ({"one side"}, set())
    assert (alone(n, n - many, 0), alone(n, n - many + 1, 0)) == ({"one side"}, set())
    assert (alone(n, half, fast), alone(n, half, fast - 1), alone(n, half, n, 1.01)) == ({"haste"}, set(), set())


def test_two_who_copy_are_named_with_each_other() -> None:
    ballots, bad = crowd(5, "copy", "copy", n_items=480)
    copies = [one for one in signs(ballots) if one.kind == "copies"]
    assert [(one.worker, one.other, one.figure) for one in copies] == [(bad, bad + 1, 1.0), (bad + 1, bad, 1.0)]


def test_two_who_are_always_right_do_not_copy() -> None:
    """Without strengths they say the same to everything, as everybody does who is good at it."""
    ballots, _ = crowd(6, reliability=1.0, strengths=False)
    assert signs(ballots) == []


def test_who_tires_is_dated() -> None:
    """With every truth known: the sum over possible starts needs more votes than a coin from the first answer on."""
    luck = np.random.default_rng(0)
    n, turn = 200, 80
    truth = luck.integers(0, 2, n)
    said = np.where(np.arange(n) < turn, truth, luck.integers(0, 2, n))
    votes = Votes(np.arange(n), np.zeros(n, int), said, 2, luck.integers(0, 2, n))
    plain = np.zeros(n, int)
    found = signs(Ballots(votes, np.full(n, 9.0), plain, plain, [None] * n, dict(enumerate(truth.tolist()))))
    assert [one.kind for one in found] == ["drift"]
    assert found[0].since is not None
    assert abs(found[0].since - turn) < 25  # a coin is right as long as one who reads, now and then
    wrong = np.where(np.arange(80) < 50, truth[:80], 1 - truth[:80])
    votes = Votes(np.arange(80), np.zeros(80, int), wrong, 2, votes.first[:80])
    (drift,) = signs(
        Ballots(votes, np.full(80, 9.0), plain[:80], plain[:80], [None] * 80, dict(enumerate(truth[:80].tolist())))
    )
    assert (drift.since, drift.figure, drift.n) == (50, 0.0, 80)


def test_honest_people_are_rarely_accused_and_coins_mostly_are() -> None:
    """The negative control beside it: 40 crowds of nine honest ones with the lowest reliability that is promised, 5 of them with a coin among them.
    At the rate that is promised, 6 ALPHA of 360, four or more accused would come once in 50 times."""
    accused = sum(len({one.worker for one in signs(crowd(seed, reliability=0.75)[0])}) for seed in range(40))
    assert accused <= max(3, 6 * ALPHA * 360)
    coins = [one for seed in range(5) for one in signs(crowd(seed, "coin", n_items=480)[0]) if one.worker == N_HONEST]
    assert len({id(one) for one in coins if one.kind == "coin"}) >= 4


def test_few_votes_say_nothing() -> None:
    votes = Votes(np.arange(11), np.zeros(11, int), np.zeros(11, int), 2, np.zeros(11, int))
    zeros = np.zeros(11, int)
    assert signs(Ballots(votes, np.zeros(11), np.full(11, 50), zeros, [None] * 11, {})) == []


def test_nobodys_own_vote_speaks_for_itself_and_gold_speaks_louder() -> None:
    """Of who voted alone nothing is known, of a tie neither; gold, and where two agree: more than SURE is never made of votes."""
    item = np.array([*range(30), *range(30), 30, 31, 32, 33])
    worker = np.array([*[0] * 30, *[1] * 30, 0, 0, 0, 0])
    label = np.array([*[0, 1] * 30, 0, 2, 0, 1])  # two agree on 30; alone; a tie; right and wrong on gold
    votes, n = Votes(item, worker, label, 3, np.zeros(64, int)), np.zeros(64, int)
    said = conduct._others_say(Ballots(votes, np.full(64, 9.0), n, n, [None] * 64, {32: 0, 33: 0}))
    assert said[60:] == pytest.approx([said[60], 0.5, conduct.GOLD_SURE, 1 - conduct.GOLD_SURE])
    assert said[60] == pytest.approx(0.5, abs=0.05)
    assert 0.75 < said[0] <= conduct.SURE


def test_agreeing_on_gold_copies_nobody() -> None:
    """Two who are right on all gold, and on the rest agree with a third of their own 6 times of 10."""
    gold, n = 60, 60
    rows = [(at, who, at % 2) for at in range(gold) for who in (0, 1)]
    rows += [(gold + who * n + at, who, at % 2) for who in (0, 1) for at in range(n)]
    rows += [(gold + who * n + at, 2 + who, at % 2 if at % 10 < 6 else 1 - at % 2) for who in (0, 1) for at in range(n)]
    item, worker, label = np.array(rows).T
    zeros = np.zeros(len(rows), int)

    def kinds(known: dict[int, int]) -> set[str]:
        votes = Votes(item, worker, label, 2, np.arange(len(rows)) // 2 % 2)
        return {
            one.kind for one in signs(Ballots(votes, np.full(len(rows), 9.0), zeros, zeros, [None] * len(rows), known))
        }

    assert "copies" in kinds({})
    assert "copies" not in kinds({at: at % 2 for at in range(gold)})


@pytest.mark.parametrize(
    ("n_questions", "n_own", "found"), [(2, 0, False), (3, 0, True), (3, 12, True), (3, 13, False)]
)
def test_pasted_is_what_three_questions_share_and_half_of_the_long_notes(
    n_questions: int, n_own: int, found: bool
) -> None:
    n = 12 + n_own
    words = "this one is much better than the other answer there".split()
    source = [at // n_questions if at < 12 else 100 + at for at in range(n)]
    notes = [" ".join(f"{word}{of}" for word in words) for of in source]
    zeros, at = np.zeros(n, int), np.arange(n)
    ballots = Ballots(Votes(at, zeros, at % 2, 2, at // 2 % 2), np.full(n, 9.0), zeros, zeros, notes, {})
    assert ("pastes" in {one.kind for one in signs(ballots)}) == found
