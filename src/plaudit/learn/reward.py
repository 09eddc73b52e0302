"""`reward`: Bradley-Terry reward models on Preferences with soft labels, from a Snapshot or a file of pairs.

Pairs of one prompt lie in one row behind it, and answers that several of them share run once; layers below `first_layer` run once for the
whole training split. Nothing is chosen by looking at held-out rows: they are scored for the curve, and at the end beside two baselines.

One body (a decoder with an adapter, or its own trained weights) carries M members' heads for C criteria: 1 x 1 as a rule; C heads where
`heads` names criteria; an ensemble of K members is K bodies one after another on the same trunk, or one body with K x C heads. Where
`other_bases` are named, bodies stand on them in turn, and each base reads the pairs in its own tokens.

metrics.jsonl: phase `train` (loss, accuracy, learning_rate, gradient_norm, pairs, epoch, member), phase `validate` (accuracy, log_loss, n,
train_accuracy, train_loss, epoch, member). Shapes: n pairs, N responses, k pairs of a micro-batch, M members of a body, C criteria.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plaudit.artifacts import PreferenceRow, ThumbRow, write_atomic
from plaudit.errors import TrainingStopped
from plaudit.learn import card, checkpoint, distributed, losses, pairs_file, validation
from plaudit.learn.batches import group_lengths, length_buckets
from plaudit.learn.bodies import SEED_STEP, Body, bases_of, load_bases, restore, save, start_all
from plaudit.learn.closer_look import look_closer
from plaudit.learn.configs import RewardConfig
from plaudit.learn.nets import ScalarHead
from plaudit.learn.pairs_file import Pair
from plaudit.learn.probe import fit_probe
from plaudit.learn.questions import THUMB, Questions, Rows, criteria_of, encode, read_rows, thumb_weight
from plaudit.learn.rewards import RewardModel, pooled
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.validation import Floats

REFERENCE_PAIRS = 64
NAMED = 5  # rows that a message names


def pair_weights(config: RewardConfig, rows: Sequence[PreferenceRow], members: Sequence[int]) -> Tensor:
    """Weight of each pair for each member: its votes, mean 1, times how often its family was drawn for that member.   -> (n, M)"""
    weights = np.array([row.weight if config.use_weights else 1.0 for row in rows], dtype=np.float32)
    weights /= weights.mean()
    if config.members == 1 or not config.bootstrap:
        return torch.from_numpy(weights)[:, None].repeat(1, len(members))
    names = sorted({row.family for row in rows})
    place = {name: i for i, name in enumerate(names)}
    family = np.array([place[row.family] for row in rows])
    drawn = [
        np.bincount(
            np.random.default_rng([config.seed, member]).integers(0, len(names), len(names)), minlength=len(names)
        )
        for member in members
    ]
    return torch.from_numpy(np.stack([weights * counts[family] for counts in drawn], axis=1).astype(np.float32))


def sources_of(config: RewardConfig, rows: Sequence[PreferenceRow], n_thumbs: int) -> dict[str, dict[str, float]]:
    """source -> {n, weight}: how many training pairs came from where, and what each counts."""
    said = {one.source: one.weight for one in config.source_weights}
    counts = Counter(row.source for row in rows)
    found = {source: {"n": n, "weight": said.get(source, 1.0)} for source, n in sorted(counts.items())}
    return found | ({THUMB: {"n": n_thumbs, "weight": thumb_weight(config)}} if n_thumbs else {})


# --- training ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Targets:
    """What the pairs say, as a loss reads it: all (n, ...)."""

    probability: Tensor  # (n, 1)
    margin: Tensor  # (n, 1)
    criterion: Tensor  # (n,) which of the C heads
    weights: Tensor  # (n, M)
    up: Tensor  # (t,) of the thumbs
    thumb_weight: float

    @staticmethod
    def of(
        config: RewardConfig, rows: Sequence[PreferenceRow], thumbs: Sequence[ThumbRow], members: Sequence[int]
    ) -> Targets:
        margins = [row.margin if config.use_margins and isinstance(row, Pair) else 0.0 for row in rows]
        return Targets(
            torch.tensor([row.probability for row in rows], dtype=torch.float32)[:, None],
            torch.tensor(margins, dtype=torch.float32)[:, None],
            torch.tensor(criteria_of(config, rows)),
            pair_weights(config, rows, members),
            torch.tensor([thumb.up for thumb in thumbs], dtype=torch.float32),
            thumb_weight(config),
        )


def train(config: RewardConfig, run: RunFolder) -> dict[str, Any]:
    """Train, validate and write the Checkpoint; returns result.json's content. Raises PlauditErrors (see errors.py) a user can fix."""
    clock = Clock(run)
    torch.manual_seed(config.seed)
    rows = read_rows(config)
    write_atomic(run.folder / "rejected.jsonl", "".join(json.dumps(vars(one)) + "\n" for one in rows.rejected))
    bases = load_bases(config)
    bodies = start_all(config, bases)
    with clock.phase("trunk"):
        tell = clock.tell("trunk")
        data = [encode(base.tokenizer, rows.train, config, base.decoder, tell, rows.thumbs) for base in bases]
        test = [encode(base.tokenizer, rows.held_out, config, base.decoder, tell) for base in bases if rows.held_out]
    curve = learn(config, run, clock, bodies, data, test, rows)
    with clock.phase("normalise"):
        model, normalisation = finished_model(config, bodies, data)
    with clock.phase("validate"):
        result = {
            "program": "reward",
            "n_train": len(rows.train),
            "n_valid": len(rows.held_out),
            "n_rejected": len(rows.rejected),
            "rejected": pairs_file.reasons(rows.rejected),
            "n_other_criteria": rows.n_other_criteria,
            "sources": sources_of(config, rows.train, len(rows.thumbs)),
            "n_shared_families": len({row.family for row in rows.train} & {row.family for row in rows.held_out}),
            "cut": data[0].cut,
            **({"bases": bases_of(bases, data)} if config.other_bases else {}),
            "epochs": config.epochs,
            "members": config.members,
            "normalisation": normalisation,
            "curve": curve,
            **validate(config, bodies, test, rows),
        }
        if config.validation is not None:
            result |= look_closer(config, bases[0].tokenizer, model, rows)
    finish(config, run, model, result, clock)
    return result


def plan(config: RewardConfig, body: Body, data: Questions, weights: Tensor) -> list[list[list[int]]]:
    """Batches of groups for each epoch, of about `batch_pairs` pairs each; without groups that no member of this body drew."""
    generator = torch.Generator().manual_seed(config.seed + SEED_STEP * body.members[0])
    drawn = (weights > 0).any(dim=1)
    alive = [g for g, pairs in enumerate(data.pairs) if data.thumbs[g] or bool(drawn[pairs].any())]
    lengths = group_lengths(data.data)
    n_pairs = sum(len(data.pairs[g]) or 1 for g in alive)
    size = max(1, round(config.batch_pairs * len(alive) / n_pairs))
    return [
        [[alive[i] for i in batch] for batch in length_buckets([lengths[g] for g in alive], size, generator)]
        for _ in range(config.epochs)
    ]


def learn(
    config: RewardConfig,
    run: RunFolder,
    clock: Clock,
    bodies: list[Body],
    data: Sequence[Questions],
    test: Sequence[Questions],
    rows: Rows,
) -> list[dict[str, Any]]:
    """Train each body in turn, from the last saved state on; returns the learning curve. `data` and `test` (empty: nothing is held out) are
    the pairs as each base reads them."""
    targets = [Targets.of(config, rows.train, rows.thumbs, body.members) for body in bodies]
    plans = [plan(config, body, data[body.stand], target.weights) for body, target in zip(bodies, targets, strict=True)]
    sizes = [sum(len(epoch) for epoch in batches) for batches in plans]
    saved = restore(bodies, run)
    now, curve = saved if saved is not None else (0, [])
    run.resume_metrics(sum(body.update for body in bodies))
    for b in range(now, len(bodies)):
        body, target, batches = bodies[b], targets[b], [batch for epoch in plans[b] for batch in epoch]
        if body.update == 0 and config.probe:
            with clock.phase("probe"):
                probe_heads(body, data[body.stand], rows.train, target)
                distributed.level(body.trained().values())
        points = curve_points(config, plans[b]) if test else {}
        while body.update < sizes[b]:
            step_clock = Clock()
            pairs, figures = update(body, config, data[body.stand], batches[body.update], target, rows.train, sizes[b])
            body.update += 1
            done, of = sum(sizes[:b]) + body.update, sum(sizes)
            epoch = -(-body.update * config.epochs // sizes[b])
            run.log(done, of, "train", step_clock.total, epoch=epoch, pairs=pairs, **figures, member=b)
            if body.update in points:
                step_clock = Clock()
                point = curve_point(config, body, test[body.stand], rows.held_out)
                curve.append({"update": body.update, "epoch": epoch, "member": b, **point})
                run.log(done, of, "validate", step_clock.total, epoch=epoch, **point, member=b)
            if body.update % config.compute.save_every == 0 or body.update == sizes[b]:
                save(bodies, b, curve, run)
    return curve


def update(
    body: Body,
    config: RewardConfig,
    data: Questions,
    groups: Sequence[int],
    target: Targets,
    rows: Sequence[PreferenceRow],
    n_updates: int,
) -> tuple[int, dict[str, float]]:
    """One optimizer step on the pairs of these groups: each member's weighted mean over all of them, whatever micro-batches and processes.

    Raises TrainingStopped naming the rows where the loss or its gradient is not finite; no weight has moved then.
    """
    pairs = sorted(pair for group in groups for pair in data.pairs[group])
    packs, trunk, names = data.batcher.packs(distributed.share(groups))
    n_thumbs = sum(len(data.thumbs[group]) for group in groups)
    totals = (target.weights[pairs].sum(dim=0) + target.thumb_weight * n_thumbs).clamp(min=1e-12)  # (M,)
    n_members = len(body.members)
    loss_sum, right = 0.0, 0.0
    for batch in packs:
        scores = body.scores(pooled(body.model, batch, trunk))  # (responses, M, C)
        index = names[batch.response].tolist()
        place = {response: i for i, response in enumerate(index)}
        here = sorted(pair for group in {data.data.group[i] for i in index} for pair in data.pairs[group])
        own = target.criterion[here]
        chosen, rejected = (
            scores[[place[int(side[pair])] for pair in here], :, own] for side in (data.chosen, data.rejected)
        )  # (k, M)
        share = target.weights[here] / totals / n_members
        wrong = share * losses.bradley_terry(chosen, rejected, target.probability[here], target.margin[here])
        loss = wrong.sum()
        if not bool(torch.isfinite(loss)):
            bad = [pair for pair, ok in zip(here, torch.isfinite(wrong).all(dim=1).tolist(), strict=True) if not ok]
            raise TrainingStopped(
                f"The loss of update {body.update + 1} is {float(loss.detach())}; {_named(rows, bad or here)}; "
                "lower the learning rate or look at these rows; the last saved state stays as it is."
            )
        loss = loss + _thumb_loss(data, target, index, scores, totals)
        centred = (share * losses.centring(chosen, rejected)).sum()
        (loss + config.centring * centred).backward()  # type: ignore[no-untyped-call]
        loss_sum += float(loss.detach())
        right += float(((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).sum()) / n_members
    loss_sum, right = distributed.total(loss_sum, right)
    try:
        norm, rate = body.adam.step(body.update, n_updates)
    except TrainingStopped as error:
        raise TrainingStopped(f"{error.message.rstrip('.')}; {_named(rows, pairs)}.") from error
    body.seen = [a + b for a, b in zip(body.seen, (len(pairs), right, loss_sum * len(pairs)), strict=True)]
    figures = {"loss": loss_sum, "accuracy": right / max(1, len(pairs)), "learning_rate": rate, "gradient_norm": norm}
    return len(pairs), figures


def _thumb_loss(data: Questions, target: Targets, index: Sequence[int], scores: Tensor, totals: Tensor) -> Tensor:
    """-log P(thumb) of every thumb on these responses, where the score is the log-odds of a thumb up; a head's bias, which cancels in
    pairs, learns how willing the users are. Each counts as `thumb_weight` pairs."""
    place = {response: i for i, response in enumerate(index)}
    here = [t for group in {data.data.group[i] for i in index} for t in data.thumbs[group]]
    if not here:
        return torch.zeros(())
    logits = scores[[place[int(data.liked[t])] for t in here], :, 0]  # (k, M)
    said = target.up[here][:, None].expand_as(logits)
    wrong = F.binary_cross_entropy_with_logits(logits, said, reduction="none")
    return (target.thumb_weight / totals / logits.shape[1] * wrong).sum()


def _named(rows: Sequence[PreferenceRow], pairs: Sequence[int]) -> str:
    some = ", ".join(rows[pair].preference_id for pair in pairs[:NAMED])
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    return f"its rows are {some}{more}"


@torch.no_grad()
def probe_heads(body: Body, data: Questions, rows: Sequence[PreferenceRow], target: Targets) -> None:
    """Set each head to a logistic regression on the states it will read, before anything is trained."""
    states: list[Tensor] = []
    for block in data.batcher.blocks():
        packs, trunk, names = data.batcher.packs(block)
        found = torch.cat([pooled(body.model, batch, trunk) for batch in packs])
        states.append(found[names[torch.cat([batch.response for batch in packs])].argsort()])
    every = torch.cat(states).double()
    n_criteria = len(body.heads) // len(body.members)
    for h, head in enumerate(body.heads):
        member, criterion = divmod(h, n_criteria)
        some = ((target.criterion == criterion) & (target.weights[:, member] > 0)).nonzero()[:, 0]
        if not len(some):
            continue
        weight, bias, _ = fit_probe(
            np.asarray(every[data.chosen[some]]),
            np.asarray(every[data.rejected[some]]),
            target.probability[some, 0].double().numpy(),
            target.weights[some, member].double().numpy(),
            [rows[int(i)].family for i in some],
            np.asarray(every[data.liked]),
            target.up.numpy(),
            target.thumb_weight,
        )
        head.bias.fill_(bias)  # type: ignore[operator]
        head.weight.copy_(torch.from_numpy(weight))  # type: ignore[operator]


# --- what the scores say ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def all_scores(body: Body, data: Questions, groups: Sequence[int] | None = None) -> Tensor:
    """Raw scores of the responses of these groups (all, if not told), in order of their index.   -> (N, M, C)"""
    scores = []
    for block in data.batcher.blocks(groups):
        packs, trunk, names = data.batcher.packs(distributed.share(block))
        scores += [(names[batch.response], body.scores(pooled(body.model, batch, trunk))) for batch in packs]
    scores = distributed.gathered(scores)
    return torch.cat([found for _, found in scores])[torch.cat([index for index, _ in scores]).argsort()]


def gaps(body: Body, data: Questions) -> Tensor:
    """score(chosen) - score(rejected) of each pair under each head.   -> (n, M, C)"""
    scores = all_scores(body, data)
    return scores[data.chosen] - scores[data.rejected]


def own_gaps(config: RewardConfig, found: Tensor, rows: Sequence[PreferenceRow]) -> Floats:
    """Logits by the head that each row trains.   (n, M, C) -> (n, M)"""
    return np.asarray(found[torch.arange(len(rows)), :, torch.tensor(criteria_of(config, rows))], dtype=np.float64)


def curve_points(config: RewardConfig, batches: list[list[list[int]]]) -> set[int]:
    """Updates after which the held-out rows are scored: evenly over each epoch, its end always."""
    n = config.validation.points_per_epoch if config.validation is not None else 1
    size = len(batches[0])
    return {epoch * size + -(-size * (i + 1) // n) for epoch in range(len(batches)) for i in range(n)}


def curve_point(config: RewardConfig, body: Body, test: Questions, rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """Held-out accuracy and log loss, and those of the training pairs met since the last point (each scored just before its update)."""
    logits = own_gaps(config, gaps(body, test), rows).mean(axis=1)
    n_seen, right, loss = body.seen
    body.seen = [0.0, 0.0, 0.0]
    found = validation.figures(logits, rows)
    return {
        "accuracy": found["accuracy"]["mean"],
        "log_loss": found["log_loss"],
        "n": found["n"],
        "train_accuracy": right / max(n_seen, 1),
        "train_loss": loss / max(n_seen, 1),
    }


@torch.no_grad()
def finished_model(
    config: RewardConfig, bodies: list[Body], data: Sequence[Questions]
) -> tuple[RewardModel, dict[str, float]]:
    """The bodies as one RewardModel whose mean score on reference completions is 0, and {mean_before, sd} of these.

    The reference is the responses of every k-th training pair, at most REFERENCE_PAIRS: enough for an error of the mean under .1 sd. Each
    head's bias is set there, so every head, member and sum of them is centred.
    """
    asked = data[0]  # groups and places are the same on every base: they come from the texts
    n = len(asked.chosen)
    every = range(0, n, -(-n // REFERENCE_PAIRS))
    groups = [g for g, pairs in enumerate(asked.pairs) if any(pair in every for pair in pairs)]
    index = [r for g in groups for r, group in enumerate(asked.data.group) if group == g]
    place = {response: i for i, response in enumerate(index)}
    reference = [place[int(side[pair])] for pair in every for side in (asked.chosen, asked.rejected)]
    mix = torch.tensor([head.weight for head in config.heads] or [1.0])
    totals, members = [], []
    for body in bodies:
        scores = all_scores(body, data[body.stand], groups)[reference]  # (R, M, C)
        means = scores.mean(dim=0)
        for head, mean in zip(body.heads, means.flatten(), strict=True):
            head.bias -= mean
        total = scores @ mix  # (R, M)
        totals.append(total)
        n_criteria = len(mix)
        for m in range(len(body.members)):
            heads: list[ScalarHead] = list(body.heads)[m * n_criteria : (m + 1) * n_criteria]  # type: ignore[assignment]
            names = [head.criterion for head in config.heads]
            members.append(
                replace(
                    body.model,
                    head=weighted_sum(heads, mix) if names else heads[0],
                    heads=dict(zip(names, heads, strict=True)) if names else {},
                    sd=float(total[:, m].std()) or 1.0,
                )
            )
    whole = torch.cat(totals, dim=1).mean(dim=1)
    figures = {"mean_before": float(whole.mean()), "sd": float(whole.std()) or 1.0}
    if len(members) == 1:
        return members[0], figures
    return replace(members[0], sd=figures["sd"], members=tuple(members)), figures


def weighted_sum(heads: Sequence[ScalarHead], mix: Tensor) -> ScalarHead:
    """One head that gives sum of mix[i] * heads[i]: heads are linear."""
    head = ScalarHead(len(heads[0].weight))
    head.weight.data = (mix[:, None] * torch.stack([one.weight.data for one in heads])).sum(dim=0)
    head.bias.data = (mix * torch.stack([one.bias.data for one in heads])).sum()
    return head


def validate(config: RewardConfig, bodies: list[Body], test: Sequence[Questions], rows: Rows) -> dict[str, Any]:
    """Held-out figures by each row's own head, beside the baselines; of several heads or members also each one's."""
    if not test:
        return {"valid": None, "baselines": {}, "difference": {}}
    found = torch.cat([gaps(body, test[body.stand]) for body in bodies], dim=1)  # (n, members, C)
    own = own_gaps(config, found, rows.held_out)
    logits = own.mean(axis=1)
    out: dict[str, Any] = {"valid": validation.figures(logits, rows.held_out), "baselines": {}, "difference": {}}
    if config.validation is not None:
        out |= validation.report(logits, rows.held_out, rows.votes)
    if config.baselines:
        beside = validation.against_baselines(logits, rows.held_out, rows.train, config.use_weights)
        out |= beside if config.validation is not None else {name: beside[name] for name in ("baselines", "difference")}
    if config.heads:
        mix = torch.tensor([head.weight for head in config.heads])
        total = np.asarray((found @ mix).mean(dim=1), dtype=np.float64)
        out["one_score"] = {"accuracy": validation.accuracy(total, rows.held_out)}
        for head in config.heads:
            mine = [i for i, row in enumerate(rows.held_out) if row.criterion == head.criterion]
            some = [rows.held_out[i] for i in mine]
            out["one_score"][head.criterion] = {
                "own_head": validation.accuracy(logits[mine], some),
                "one_score": validation.accuracy(total[mine], some),
            }
    if config.members > 1:
        out["ensemble"] = {
            "accuracy": [validation.accuracy(own[:, m], rows.held_out)["mean"] for m in range(config.members)],
            "logit_sd": float(own.std(axis=1, ddof=1).mean()),
        }
    return out


# --- the end ----------------------------------------------------------------------------------------------------------------


def finish(config: RewardConfig, run: RunFolder, model: RewardModel, result: dict[str, Any], clock: Clock) -> None:
    """result.json, then the Checkpoint with its card, its manifest last."""
    with clock.phase("card"):
        text, pictures = card.write(result, config) if config.validation is not None else ("", {})
    result["seconds"], result["phases"] = round(clock.total, 3), clock.rounded()
    run.write_result(result)
    if not distributed.is_first():
        return
    valid = result["valid"]
    checkpoint.save_reward(
        run.checkpoint,
        model,
        Path(config.base),
        parents={"snapshot": config.snapshot} if config.snapshot else {"preferences": config.preferences},
        metrics={"accuracy": valid["accuracy"]["mean"], "log_loss": valid["log_loss"], "ece": valid["ece"]}
        if valid
        else {"accuracy": None},
        card=text,
        pictures=pictures,
    )
