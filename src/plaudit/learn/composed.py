"""The reward that a policy learns to please: one reward model, or a sum of terms that are each measured and logged apart.

    total = sum over terms of weight * clip(normalise(value))

A term's value comes from reward models (one, or an ensemble), a rule (rule_terms.py), your own function (own_function.py) or a remote
scorer (http_scorer.py). `normalise: reference` takes off the mean and divides by the sd of the *first* rollout that is scored: in ppo
and grpo its policy is the reference itself, which the doctor checks. Those two numbers belong to the training state.

A program does, in this order: `load`; `restore(state)` where it resumes; run the frozen trunk at each of `depths`; `score`; `state()` into
what it saves; at the end `parents()` and `lineage()` into the Checkpoint, `lineage()` into result.json.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit import artifacts
from plaudit.errors import ConfigError
from plaudit.learn import answers, checkpoint, distributed, http_scorer, own_function, rule_terms
from plaudit.learn.answers import Answers, Messages
from plaudit.learn.configs import FunctionTerm, HttpTerm, ModelTerm, Reward, Term, reward_terms, to_dict
from plaudit.learn.http_scorer import Scorer
from plaudit.learn.nets import Decoder
from plaudit.learn.own_function import OwnFunction
from plaudit.learn.readers import Readers, Texts, texts_of
from plaudit.learn.rewards import RewardModel, member_scores, prefix_scores, score_responses
from plaudit.learn.tokens import ChatTokenizer, Pack, Rollout, Trunk

Json = dict[str, Any]
MIN_SD = 1e-6  # a term that is constant on the reference's samples is centred and not scaled


@dataclass(frozen=True)
class Scores:
    """What a rollout is worth. sum over terms of weight * terms[name] is the total."""

    total: Tensor  # (N,)
    terms: dict[str, Tensor]  # name -> (N,), normalised and clipped where asked, not weighted
    disagreement: (
        Tensor | None
    )  # (N,) sd over the members of the ensemble, of several the largest; None where there is no ensemble


@dataclass(frozen=True)
class Members:
    """The reward models of a model term and where each Checkpoint came from."""

    models: tuple[RewardModel, ...]
    ids: tuple[str, ...]


@dataclass
class ComposedReward:
    """Loaded terms. All that ever changes is `normaliser`."""

    terms: tuple[Term, ...]
    parts: dict[str, Members | OwnFunction | Scorer]  # by the term's name; a rule needs none
    tokenizer: ChatTokenizer
    normaliser: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # name -> (mean, sd) on the reference's samples

    @classmethod
    def load(
        cls,
        config: Reward,
        base: Path,
        decoder: Decoder,
        tokenizer: ChatTokenizer,
        environ: Mapping[str, str] | None = None,
        readers: Readers | None = None,
    ) -> ComposedReward:
        """Load Checkpoints, import functions, read the tokens that http terms name from `environ` (the process's own, if not told).

        Raises PlauditErrors: a Checkpoint that is missing, broken or of a base that `readers` do not find, a function that is not there,
        a pattern that cannot be read, a variable not set.
        """
        parts: dict[str, Members | OwnFunction | Scorer] = {}
        terms = reward_terms(config)
        for term in terms:
            match term:
                case ModelTerm():
                    parts[term.name] = _load_members(term, base, decoder, readers)
                case FunctionTerm():
                    parts[term.name] = own_function.load(term)
                case HttpTerm():
                    parts[term.name] = http_scorer.load(term, os.environ if environ is None else environ)
                case _:
                    rule_terms.check_rule(term)
        return cls(terms, parts, tokenizer)

    @property
    def depths(self) -> tuple[int, ...]:
        """The layers at which `score` wants a trunk: below them, all its reward models are the base."""
        return tuple(sorted({model.first_layer for model in self._models() if model.reads_ids}))

    def _models(self) -> list[RewardModel]:
        return [model for part in self.parts.values() if isinstance(part, Members) for model in part.models]

    def score(
        self, rollout: Rollout, packs: Sequence[Pack], trunks: Mapping[int, Trunk | None], messages: Sequence[Messages]
    ) -> Scores:
        """Score a rollout.   N responses, all of them in the processes' `packs`; trunks by depth (None runs from the embedding); G conversations

        `messages[g]` is what prompt g was rendered from. The first rollout ever scored sets the normaliser. Raises TrainingStopped where
        a function or a scorer fails, or gives back anything but N finite numbers.
        """
        total, terms, spreads = torch.zeros(rollout.n), dict[str, Tensor](), list[Tensor]()
        read: Answers | None = None
        foreign = any(model.reads_text for model in self._models())
        texts = texts_of(rollout, messages, self.tokenizer) if foreign else None
        for term in self.terms:
            part = self.parts.get(term.name)
            if isinstance(term, ModelTerm):
                assert isinstance(part, Members)
                own, members = (
                    distributed.assembled(found, (len(found), rollout.n))
                    for found in _score_models(part.models, packs, trunks, texts)
                )
                value = combine(own if term.combine == "mean" else members, term.combine, term.sd_coef)
                if len(members) > 1:
                    spreads.append(members.std(dim=0, correction=0))
            else:
                read = read or answers.read(rollout, messages, self.tokenizer)
                # Of several processes one asks, about the whole rollout.
                value = distributed.from_first(partial(_score_text, term, part, read))
            terms[term.name] = self._scaled(term, value)
            total += term.weight * terms[term.name]
        return Scores(total, terms, torch.stack(spreads).max(dim=0).values if spreads else None)

    @property
    def reads_prefixes(self) -> bool:
        """Whether there are reward models, all on this base, so that a beginning, cut at any of its tokens, has a score too."""
        models = self._models()
        return bool(models) and not any(model.reads_text for model in models)

    def prefix_scores(self, packs: Sequence[Pack], trunks: Mapping[int, Trunk | None]) -> Tensor:
        """What the model terms say of each response up to each of its tokens, weighted, in units of each model's spread.   -> (N, R)"""
        sums = [
            term.weight * prefix_scores(model, packs, trunks[model.first_layer]) / model.sd / len(part.models)
            for term in self.terms
            if isinstance(part := self.parts.get(term.name), Members)
            for model in part.models
        ]
        return torch.stack(sums).sum(dim=0)

    def _scaled(self, term: Term, value: Tensor) -> Tensor:
        """(N,) -> (N,) normalised, then clipped, where the term asks for it."""
        if term.normalise == "reference":
            if term.name not in self.normaliser:
                self.normaliser[term.name] = (float(value.mean()), float(value.std(correction=0)))
            mean, sd = self.normaliser[term.name]
            value = (value - mean) / (sd if sd > MIN_SD else 1.0)
        return value if term.clip is None else value.clamp(-term.clip, term.clip)

    def parents(self) -> dict[str, str]:
        """Role -> Checkpoint folder, for the new Checkpoint's own: `reward`, then `reward_2` and so on."""
        folders = [folder for term in self.terms if isinstance(term, ModelTerm) for folder in term.checkpoints]
        return {f"reward_{i}" if i > 1 else "reward": folder for i, folder in enumerate(folders, start=1)}

    def lineage(self) -> Json:
        """What the reward was: each term's config with Checkpoint ids for folders, the sha256 of a function's source, addresses without query."""
        return {"terms": [self._trace(term) for term in self.terms]}

    def _trace(self, term: Term) -> Json:
        said, part = to_dict(term), self.parts.get(term.name)
        match part:
            case Members():
                said["checkpoints"] = list(part.ids)
            case OwnFunction():
                said["source_sha256"] = part.source_sha256
            case Scorer():
                said["url"] = http_scorer.public(part.term.url)
        return said

    def state(self) -> Json:
        """What `restore` needs; plain values."""
        return {"lineage": self.lineage(), "normaliser": {name: list(pair) for name, pair in self.normaliser.items()}}

    def restore(self, state: Json) -> None:
        """Go on with a saved normaliser. Raises ConfigError where a term is no longer what it was when the run began."""
        for before, now in zip(state["lineage"]["terms"], self.lineage()["terms"], strict=True):
            changed = [key for key in now if before.get(key) != now[key]]
            if changed:
                raise ConfigError(
                    f"The reward's term {now['name']!r} changed since this run began: {changed[0]} was "
                    f"{before.get(changed[0])!r} and is {now[changed[0]]!r}; put it back, or start a new run folder."
                )
        self.normaliser = {name: (mean, sd) for name, (mean, sd) in state["normaliser"].items()}


def combine(scores: Tensor, how: str, sd_coef: float) -> Tensor:
    """One score from K members' (Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization").   (K, N) -> (N,)

    mean; minimum (their worst-case optimisation); mean_minus_sd: mean - sd_coef * sd with the sd of a population, so that with two
    members and sd_coef 1 it is the minimum. (Their uncertainty-weighted form takes off the variance; an sd has the score's unit.)
    """
    match how:
        case "mean":
            return scores.mean(dim=0)
        case "minimum":
            return scores.min(dim=0).values
        case "mean_minus_sd":
            return scores.mean(dim=0) - sd_coef * scores.std(dim=0, correction=0)
    raise AssertionError(how)


def _score_models(
    models: Sequence[RewardModel], packs: Sequence[Pack], trunks: Mapping[int, Trunk | None], texts: Texts | None
) -> tuple[Tensor, Tensor]:
    """C Checkpoints with K members in all, a model alone being its own member: their scores (C, N) as `score` would give them, each in
    units of the whole Checkpoint's spread, and the members' (K, N), each in units of its own."""
    own, members = [], []
    for model in models:
        trunk = trunks[model.first_layer] if model.reads_ids else None
        if model.members:
            each = member_scores(model, packs, trunk, texts)
            spreads = torch.tensor([member.sd for member in model.members])
            own.append((each * spreads[:, None]).mean(dim=0) / model.sd)  # the mean of their raw scores
            members.append(each)
        else:
            own.append(score_responses(model, packs, trunk, texts) / model.sd)
            members.append(own[-1][None])
    return torch.stack(own), torch.cat(members)


def _score_text(term: Term, part: Members | OwnFunction | Scorer | None, read: Answers) -> Tensor:
    match part:
        case OwnFunction():
            return own_function.score(part, read)
        case Scorer():
            return http_scorer.score(part, read)
    assert not isinstance(term, ModelTerm | FunctionTerm | HttpTerm)
    return rule_terms.score_rule(term, read)


def _load_members(term: ModelTerm, base: Path, decoder: Decoder, readers: Readers | None) -> Members:
    folders = [Path(folder) for folder in term.checkpoints]
    models = tuple(checkpoint.load_reward(folder, base, decoder, readers) for folder in folders)
    if sum(len(model.members) or 1 for model in models) == 1 and term.combine != "mean":
        raise ConfigError(
            f"The term {term.name!r} combines its members by {term.combine!r}, but {term.checkpoints[0]} is one reward model; "
            "give several Checkpoints or an ensemble, or combine: mean."
        )
    return Members(models, tuple(artifacts.read_manifest(folder).id for folder in folders))
