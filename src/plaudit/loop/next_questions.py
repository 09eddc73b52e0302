"""Which questions to ask next: a mix of random, close, disputed and little-covered ones, by what a reward model says of the two answers.

The rule is `stats.selection`; here are its figures. `score` runs `learn score` as a process, so that the service needs no torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from plaudit import artifacts
from plaudit.domain import Comparison, Interaction, Message
from plaudit.errors import BadInput
from plaudit.loop import programs
from plaudit.stats import selection
from plaudit.stats.selection import Mix
from plaudit.store.database import Transaction
from plaudit.store.feedback import shown_responses

OVERSAMPLE = (
    4  # candidates for each question that is asked, where the mix is not all random: so many second answers are drawn
)
BATCH = 500  # ids in one question to the store


@dataclass(frozen=True)
class Candidate:
    """A question that could be asked: what the user was shown against a further answer."""

    interaction_id: str
    messages: Sequence[Message]
    first: str
    second: str
    slice: str


@dataclass(frozen=True)
class Figures:
    """Of each candidate: score of the first answer less the second's, and how much an ensemble's members differ (None without one)."""

    difference: Sequence[float]
    spread: Sequence[float] | None


Scorer = Callable[[Sequence[Candidate]], Figures]


def candidates(tx: Transaction, asked: Sequence[Interaction], second: Sequence[str], slice_by: str) -> list[Candidate]:
    """Interactions with an answer that somebody was shown. slice_by: attribute whose value is the slice."""
    found = []
    for one, other in zip(asked, second, strict=True):
        shown = [response for response in shown_responses(tx, one.id) or [] if response.text.strip()]
        if shown:
            found.append(Candidate(one.id, one.messages, shown[0].text, other, _slice(one, slice_by)))
    return found


def asked_before(tx: Transaction, project_id: str, slice_by: str) -> Counter[str]:
    """How many questions there are of each slice."""
    about = [one.interaction_id for one in tx.find(Comparison, project_id=project_id) if one.interaction_id is not None]
    counts: Counter[str] = Counter()
    for at in range(0, len(about), BATCH):
        by_id = {one.id: _slice(one, slice_by) for one in tx.find(Interaction, id=about[at : at + BATCH])}
        counts.update(by_id[id] for id in about[at : at + BATCH] if id in by_id)
    return counts


def _slice(one: Interaction, slice_by: str) -> str:
    return str(one.attributes.get(slice_by, "")) if slice_by else ""


def choose(
    n: int, mix: Mix, found: Sequence[Candidate], luck: Sequence[float], before: Counter[str], scorer: Scorer | None
) -> dict[str, str]:
    """interaction id -> why it is asked about. Raises BadInput where the mix needs scores and there is nobody who scores."""
    if mix.needs_scores and scorer is None:
        raise BadInput(
            "The mix asks for close or disputed questions, which a reward model finds; name one with --reward."
        )
    figures = scorer(found) if mix.needs_scores and scorer is not None and found else None
    chosen = selection.choose(
        n,
        mix,
        luck,
        difference=figures.difference if figures else None,
        spread=figures.spread if figures else None,
        slices=[one.slice for one in found],
        asked=before,
    )
    return {found[at].interaction_id: reason for at, reason in chosen}


def score(
    checkpoint: Path, base: Path, found: Sequence[Candidate], *, program: tuple[str, ...] = programs.PROGRAM
) -> Figures:
    """Both answers' scores by the reward Checkpoint. Members' scores of the two answers are taken as independent, so an ensemble's spread is
    larger than that of the difference; its order is what counts. Raises what the program raises."""
    with TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.jsonl"
        rows = [
            {"id": at, "messages": list(one.messages), "responses": [one.first, one.second]}
            for at, one in enumerate(found)
        ]
        artifacts.write_atomic(inputs, "".join(json.dumps(row) + "\n" for row in rows))
        config = {"inputs": str(inputs), "base": str(base), "reward": str(checkpoint)}
        programs.alone("score", config, Path(folder) / "score", None, program=program)
        lines = [json.loads(line) for line in (Path(folder) / "score" / "scores.jsonl").read_text().splitlines()]
    by_place = {(line["id"], line["index"]): line for line in lines}
    pairs = [(by_place[at, 0], by_place[at, 1]) for at in range(len(found))]
    spread = [math.hypot(one["score_sd"], other["score_sd"]) for one, other in pairs if "score_sd" in one]
    return Figures(
        [one["score"] - other["score"] for one, other in pairs], spread if len(spread) == len(pairs) else None
    )
