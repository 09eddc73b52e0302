"""Signs that feedback was not given by somebody who read: bursts, sub-second clicks, repeat raters, brigades. Acts in, suspects out.

Each is a reason to look, not a proof: an application that sends its users' feedback in batches looks like a burst.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from operator import sub
from typing import Literal, Protocol

BURST_ACTS = 10  # of one actor within BURST_SPAN; whoever reads what they judge gives fewer, second thoughts included
BURST_SPAN = timedelta(seconds=60)
CLICK_SPAN = timedelta(seconds=1)  # between two answers; nobody reads one in less
CLICKS = 3  # that quick, since one may be a slip
REPEATS = 5  # changes of mind about one answer
CROWD = 8  # people on one answer within CROWD_SPAN: an answer has one user, or the few it was shared with
CROWD_SPAN = timedelta(minutes=10)
SIGNALS: tuple[Signal, ...] = ("burst", "clicks", "repeats", "brigade")
Signal = Literal["burst", "clicks", "repeats", "brigade"]
Spoken = tuple[str | None, str, int]  # an act as (actor, interaction id, microseconds)


class Act(Protocol):
    """One piece of feedback as an event."""

    @property
    def actor(self) -> str | None: ...
    @property
    def interaction_id(self) -> str: ...
    @property
    def at(self) -> datetime: ...


@dataclass(frozen=True)
class Suspect:
    """Whose feedback (`actor`), or on which answer (`interaction_id`), looks like abuse; `n` acts of it do."""

    signal: Signal
    actor: str | None
    interaction_id: str | None
    n: int
    first_at: datetime
    last_at: datetime


def worth_a_look(spoken: Sequence[Spoken]) -> list[Spoken]:
    """Those among acts in order of time without which no suspect is found: `suspects` says of them what it says of all. Of a week's acts few
    are left, and to find them takes a tenth of the time."""
    times: dict[str, list[int]] = defaultdict(list)
    for actor, _, at in spoken:
        if actor is not None:
            times[actor].append(at)
    burst, click = (span // timedelta(microseconds=1) for span in (BURST_SPAN, CLICK_SPAN))
    hasty = {
        actor
        for actor, theirs in times.items()
        if min(map(sub, theirs[BURST_ACTS:], theirs), default=burst) < burst
        or sum(map(click.__gt__, map(sub, theirs[1:], theirs))) >= CLICKS
    }
    fewest = min(REPEATS + 2, CROWD)
    crowded = {answer for answer, n in Counter([answer for _, answer, _ in spoken]).items() if n >= fewest}
    return [one for one in spoken if one[0] in hasty or one[1] in crowded]


def suspects(acts: Sequence[Act]) -> list[Suspect]:
    """Every suspect among acts in order of time, by signal and then by who. Acts without an actor tell nothing of one."""
    by_actor: dict[str, list[Act]] = defaultdict(list)
    by_answer: dict[str, list[Act]] = defaultdict(list)
    for act in acts:
        if act.actor is not None:
            by_actor[act.actor].append(act)
            by_answer[act.interaction_id].append(act)
    found = []
    for actor, theirs in sorted(by_actor.items()):
        for signal, members in (("burst", _burst(theirs)), ("clicks", _clicks(theirs)), ("repeats", _repeats(theirs))):
            if members:
                found.append(Suspect(signal, actor, None, len(members), members[0].at, members[-1].at))  # type: ignore[arg-type]
    for answer, told in sorted(by_answer.items()):
        members = _brigade(told)
        if members:
            found.append(Suspect("brigade", None, answer, len(members), members[0].at, members[-1].at))
    return sorted(found, key=lambda one: SIGNALS.index(one.signal))


def _burst(acts: Sequence[Act]) -> list[Act]:
    """Those of more than BURST_ACTS within BURST_SPAN."""
    return _crowded(acts, BURST_ACTS + 1, BURST_SPAN)


def _clicks(acts: Sequence[Act]) -> list[Act]:
    """Those within CLICK_SPAN after one about another answer, where there are CLICKS of them."""
    quick = [
        act
        for before, act in pairwise(acts)
        if act.interaction_id != before.interaction_id and act.at - before.at < CLICK_SPAN
    ]
    return quick if len(quick) >= CLICKS else []


def _repeats(acts: Sequence[Act]) -> list[Act]:
    """Those about an answer that was judged more than REPEATS times after the first."""
    about: dict[str, list[Act]] = defaultdict(list)
    for act in acts:
        about[act.interaction_id].append(act)
    return sorted((act for told in about.values() if len(told) > REPEATS + 1 for act in told), key=lambda act: act.at)


def _brigade(acts: Sequence[Act]) -> list[Act]:
    """The first acts of CROWD different actors within CROWD_SPAN, and all of theirs."""
    first: dict[str, Act] = {}
    for act in acts:
        first.setdefault(str(act.actor), act)
    crowd = {str(act.actor) for act in _crowded(list(first.values()), CROWD, CROWD_SPAN)}
    return [act for act in acts if act.actor in crowd]


def _crowded(acts: Sequence[Act], n: int, span: timedelta) -> list[Act]:
    """Acts that lie, with n - 1 others, within less than `span`; in order of time."""
    members: set[int] = set()
    for nth in range(n - 1, len(acts)):
        if acts[nth].at - acts[nth - n + 1].at < span:
            members |= set(range(nth - n + 1, nth + 1))
    return _at(acts, sorted(members))


def _at(acts: Sequence[Act], places: Iterable[int]) -> list[Act]:
    return [acts[place] for place in places]
