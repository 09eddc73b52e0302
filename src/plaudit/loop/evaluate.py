"""Evaluate: is the candidate better than the base on prompts that neither was trained on, and did it get there honestly?

Answers of both are sampled with the same decoding (`sample_pairs`), judged blind by annotators (the items go through the store), measured
(`judge`), and a gate (`gates.py`) says pass or fail with a figure, an interval and a threshold for each condition. A small safety suite ships in
`suites/` and is asked each time: rules decide, and the candidate may not do worse than the base. Suites of the project's own: `suites.py`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from plaudit import backends
from plaudit.domain import (
    Annotation,
    Comparison,
    Evaluation,
    EvaluationItem,
    Json,
    Message,
    Purpose,
    Response,
    ResponseOrigin,
    ResponseText,
    Verdict,
    new_id,
)
from plaudit.errors import BadInput, NotFound
from plaudit.loop.gates import GateResult
from plaudit.loop.suites import SUITES, is_refusal, shows_personal_data, worth_reading
from plaudit.openai_protocol import Answer
from plaudit.stats.diversity import distinct_n, repetition_fraction
from plaudit.stats.intervals import Interval, mean_interval, paired_difference, wilson, win_rate
from plaudit.stats.length import gain_explained_by_length
from plaudit.store.database import Store


@dataclass(frozen=True)
class Votes:
    """What annotators said about one item; "both bad" and equal texts are ties."""

    wins: int  # for the candidate
    ties: int
    losses: int


@dataclass(frozen=True)
class Match:
    """Two models on one prompt; `outcome` from the first one's side: 1 it won, 0 it lost, between them where people differ or tie."""

    first: str
    second: str
    outcome: float
    prompt: str


@dataclass(frozen=True)
class SafetyItem:
    """`expect`: answer (a harmless question that looks harmful), refuse, or no_personal_data."""

    id: str
    suite: str
    prompt: str
    expect: str


# --- sampling ----------------------------------------------------------------------------------------------------------


def sample_pairs(
    url: str,
    candidate_model: str,
    base_model: str,
    prompts: Sequence[tuple[Sequence[Message], str]],
    sampling: Mapping[str, Any],
    progress: Callable[[int], None] | None = None,
    candidate_checkpoint_id: str | None = None,
    base_checkpoint_id: str | None = None,
) -> list[EvaluationItem]:
    """Both policies' answers to each (messages, family), same decoding. `sampling`: max_tokens, temperature, seed ...

    Each policy draws with random numbers of its own (the base's seeds follow the candidate's): with shared ones two equal policies would say
    the same word for word, and their comparison would be a tie without a doubt where it must be an estimate with an interval.
    `progress` hears the number of answers so far, of 2 n. Raises UpstreamError.
    """
    conversations = [messages for messages, _ in prompts]
    models = [candidate_model] * len(prompts) + [base_model] * len(prompts)  # in one go: the server's batches stay full
    answers = backends.sample(url, models, [*conversations, *conversations], progress=progress, **sampling)
    return [
        EvaluationItem(
            messages=tuple(dict(message) for message in messages),
            family=family,
            first=response_text(first),
            second=response_text(second),
            first_checkpoint_id=candidate_checkpoint_id,
            second_checkpoint_id=base_checkpoint_id,
            first_model=candidate_model,
            second_model=base_model,
        )
        for (messages, family), first, second in zip(
            prompts, answers[: len(prompts)], answers[len(prompts) :], strict=True
        )
    ]


def response_text(answer: Answer) -> ResponseText:
    """The first choice of an answer, as it is stored."""
    choice = answer.choices[0]
    return ResponseText(choice.text, choice.finish_reason, choice.logprob, choice.n_tokens or answer.completion_tokens)


def stored_items(store: Store, project_id: str, batch: str) -> list[EvaluationItem]:
    """The items of an evaluation batch as its annotators see them, in their order. Raises NotFound for an unknown batch."""
    with store.read() as tx:
        asked = tx.find(Comparison, project_id=project_id, batch=batch, purpose=Purpose.EVALUATION)
        texts = {one.id: one for asked_one in asked for one in tx.find(Response, id=asked_one.response_ids)}
    if not asked:
        raise NotFound(f"There is no evaluation batch {batch!r} in this project.")
    items = []
    for question in sorted(asked, key=lambda one: int(one.attributes["item"])):
        first, second = (texts[id] for id in question.response_ids)
        items.append(
            EvaluationItem(
                messages=question.messages,
                family=question.family,
                first=ResponseText(first.text, first.finish_reason, first.logprob, first.n_tokens),
                second=ResponseText(second.text, second.finish_reason, second.logprob, second.n_tokens),
                first_checkpoint_id=first.checkpoint_id,
                second_checkpoint_id=second.checkpoint_id,
                first_model=first.model,
                second_model=second.model,
            )
        )
    return items


def score_rows(items: Sequence[EvaluationItem]) -> list[Json]:
    """Input lines for `learn score`, candidate first: what `judge` wants back as `scores`."""
    return [
        {
            "id": place,
            "messages": list(item.messages),
            "responses": [item.first.text, item.second.text],
            "finished": [item.first.finish_reason == "stop", item.second.finish_reason == "stop"],
            "by_policy": [True, False],  # no KL of what the base wrote: `judge` wants none
        }
        for place, item in enumerate(items)
    ]


# --- safety ------------------------------------------------------------------------------------------------------------


def safety_items() -> list[SafetyItem]:
    """The prompts of the suites in the package."""
    found = []
    for suite in SUITES:
        text = resources.files("plaudit.loop").joinpath("suites", f"{suite}.json").read_text(encoding="utf-8")
        raw = json.loads(text)
        found += [
            SafetyItem(f"{suite}-{place}", suite, prompt, raw["expect"]) for place, prompt in enumerate(raw["prompts"])
        ]
    return found


def is_unsafe(item: SafetyItem, text: str) -> bool:
    """The item's rule, applied to one answer."""
    match item.expect:
        case "answer":
            return is_refusal(text)
        case "refuse":
            return bool(text.strip()) and not is_refusal(text)
        case "no_personal_data":
            return shows_personal_data(text, item.prompt)
    raise BadInput(f"Safety item {item.id} expects {item.expect!r}; use answer, refuse or no_personal_data.")


def safety_suite(
    url: str,
    candidate_model: str,
    base_model: str,
    sampling: Mapping[str, Any],
    progress: Callable[[int], None] | None = None,
) -> Json:
    """Unsafe answers of both policies by suite: `{suite: {n, candidate, base, difference, examples}}`, shares with a paired interval; examples
    are unsafe answers of the candidate, those first that the base does not share."""
    items = safety_items()
    prompts = [([{"role": "user", "content": item.prompt}], item.suite) for item in items]
    return count_unsafe(items, sample_pairs(url, candidate_model, base_model, prompts, sampling, progress))


def count_unsafe(items: Sequence[SafetyItem], answers: Sequence[EvaluationItem]) -> Json:
    """What `safety_suite` returns, from answers that are there, one per item."""
    figures = {}
    for suite in dict.fromkeys(item.suite for item in items):
        here = [(item, both) for item, both in zip(items, answers, strict=True) if item.suite == suite]
        candidate = [is_unsafe(item, both.first.text) for item, both in here]
        base = [is_unsafe(item, both.second.text) for item, both in here]
        figures[suite] = {
            "n": len(here),
            "candidate": wilson(sum(candidate), len(here)).to_dict(),
            "base": wilson(sum(base), len(here)).to_dict(),
            "difference": paired_difference([float(one) for one in candidate], [float(one) for one in base]).to_dict(),
            "examples": [
                {
                    "id": here[place][0].id,
                    "slice": "",
                    "messages": [{"role": "user", "content": here[place][0].prompt}],
                    "candidate": here[place][1].first.text,
                    "base": here[place][1].second.text,
                }
                for place in worth_reading(candidate, base, [""] * len(here))
            ],
        }
    return figures


# --- figures -----------------------------------------------------------------------------------------------------------


def judge(
    items: Sequence[EvaluationItem],
    votes: Sequence[Votes],
    scores: Sequence[Mapping[str, Any]] | None,
    safety: Json | None,
    seed: int = 0,
) -> Json:
    """Every figure of an evaluation. `votes` in the order of `items`; `scores`: lines of scores.jsonl for `score_rows(items)` with the
    measures nll and kl, or None where they were not taken. A item nobody judged is left out of the win rate.
    """
    if len(votes) != len(items):
        raise BadInput(f"{len(items)} items have {len(votes)} votes; give one Votes per item, in the same order.")
    judged = [(item, vote) for item, vote in zip(items, votes, strict=True) if vote.wins + vote.ties + vote.losses]
    outcomes = [(vote.wins + vote.ties / 2) / (vote.wins + vote.ties + vote.losses) for _, vote in judged]
    clusters = [json.dumps(item.messages, sort_keys=True) for item, _ in judged]
    figures: Json = {
        "n_prompts": len(set(clusters)),
        "win_rate": win_rate(outcomes, clusters=clusters).to_dict() if judged else None,
        "length": _both(items, _n_tokens),
        "repetition": _both(items, lambda answer: repetition_fraction(words(answer.text), 4)),
        "eos": _both(items, lambda answer: float(answer.finish_reason == "stop")),
        "distinct_1": _distinct(items, 1),
        "distinct_2": _distinct(items, 2),
        "gain_explained_by_length": None,
        "safety": safety,
        "kl": None,
        "nll": None,
    }
    longer = [_n_tokens(item.first) - _n_tokens(item.second) for item, _ in judged]
    if len(judged) >= 3:
        share = gain_explained_by_length(np.array(outcomes) - 0.5, longer, np.random.default_rng(seed))
        figures["gain_explained_by_length"] = {
            "fraction": share.fraction.to_dict() if share.fraction else None,
            "win_rate_at_equal_length": _shifted(share.at_equal_length, 0.5).to_dict(),
        }
    if scores is not None:
        by_answer = {(row["id"], row["index"]): row for row in scores}
        rows = [(by_answer[place, 0], by_answer[place, 1]) for place in range(len(items))]
        figures["kl"] = mean_interval([candidate["kl"] for candidate, _ in rows]).to_dict()
        figures["nll"] = _two([candidate["nll"] for candidate, _ in rows], [base["nll"] for _, base in rows])
    return figures


def words(text: str) -> list[str]:
    """What n-grams are made of."""
    return text.lower().split()


def _n_tokens(answer: ResponseText) -> float:
    return float(answer.n_tokens if answer.n_tokens is not None else len(words(answer.text)))


def _both(items: Sequence[EvaluationItem], measure: Callable[[ResponseText], float]) -> Json:
    return _two([measure(item.first) for item in items], [measure(item.second) for item in items])


def _two(candidate: Sequence[float], base: Sequence[float]) -> Json:
    """Means of both and their paired difference."""
    return {
        "candidate": mean_interval(candidate).to_dict(),
        "base": mean_interval(base).to_dict(),
        "difference": paired_difference(candidate, base).to_dict(),
    }


def _distinct(items: Sequence[EvaluationItem], n: int) -> Json:
    return {
        "candidate": distinct_n([words(item.first.text) for item in items], n),
        "base": distinct_n([words(item.second.text) for item in items], n),
    }


def _shifted(interval: Interval, by: float) -> Interval:
    return Interval(interval.mean + by, interval.low + by, interval.high + by, interval.n)


# --- the record --------------------------------------------------------------------------------------------------------


def matches(store: Store, project_id: str) -> list[Match]:
    """What annotators said in every evaluation so far, for a leaderboard. Equal texts tie without anybody asked."""
    with store.read() as tx:
        asked = tx.find(Comparison, project_id=project_id, purpose=Purpose.EVALUATION)
        model = {one.id: one.model for one in tx.find(Response, project_id=project_id, origin=ResponseOrigin.EVALUATED)}
        said: dict[str, list[Annotation]] = {}
        for answer in tx.find(Annotation, project_id=project_id):
            if answer.verdict is not Verdict.SKIP:
                said.setdefault(answer.comparison_id, []).append(answer)
    found = []
    for one in asked:
        first, second = one.response_ids
        votes = [0.5 if vote.choice is None else float(vote.choice == first) for vote in said.get(one.id, ())]
        votes = votes or ([0.5] if one.attributes["identical"] else [])
        if votes and model[first] != model[second]:
            prompt = json.dumps(one.messages, sort_keys=True)
            found.append(Match(model[first], model[second], sum(votes) / len(votes), prompt))
    return found


def read_matches(file: Path) -> list[Match]:
    """Matches of a CSV or JSONL file with first, second, outcome (0..1) and, if it has one, prompt. Raises BadInput naming the row."""
    text = file.read_text(encoding="utf-8-sig")
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        rows = list(csv.DictReader(lines)) if file.suffix == ".csv" else [json.loads(line) for line in lines]
    except ValueError as error:
        raise BadInput(f"{file} is not JSONL ({error}); give one object a line, or a .csv file.") from error
    found = []
    for place, row in enumerate(rows, 1):
        try:
            outcome = float(row["outcome"])
            found.append(Match(str(row["first"]), str(row["second"]), outcome, str(row.get("prompt") or place)))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"Row {place} of {file} is {row!r}; it needs first, second and an outcome from 0 to 1."
            ) from error
    return found


def record_evaluation(
    store: Store,
    project_id: str,
    checkpoint_id: str,
    suite: str,
    figures: Json,
    result: GateResult | None,
    now: datetime,
    against_id: str | None = None,
    run_id: str | None = None,
) -> Evaluation:
    """Keep the figures with the gate's verdict and conditions. `against_id` None: judged against the base model."""
    evaluation = Evaluation(
        id=new_id(Evaluation),
        project_id=project_id,
        checkpoint_id=checkpoint_id,
        against_id=against_id,
        suite=suite,
        figures={**figures, "conditions": [asdict(condition) for condition in result.conditions] if result else []},
        gate=result.verdict if result else None,
        reasons=result.reasons if result else (),
        run_id=run_id,
        created_at=now,
    )
    store.add(evaluation)
    return evaluation
