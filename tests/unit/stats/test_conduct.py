"""Signs of annotators who do not read, each on a crowd that is made for it, beside honest people who must not be accused."""

from __future__ import annotations

import numpy as np
import pytest

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
