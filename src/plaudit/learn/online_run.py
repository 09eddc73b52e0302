"""One run of an on-policy program: its steps, what guards say of them, the state it resumes from, the Checkpoint it ends in.

`experience.py` is one step; `ppo.py` and `grpo.py` hand their own parts of it to `run_steps`. Numbers in brackets are lines of the checklist in
docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.learn import checkpoint, distributed, losses, policy_card
from plaudit.learn.advantages import RunningMoments, adaptive_kl_coef
from plaudit.learn.configs import OnlineConfig
from plaudit.learn.experience import Config, Data, Learner, Observed, Old, Row, run_trunks
from plaudit.learn.nets import Decoder
from plaudit.learn.readings import Floats, Sampled, distances, spring_traps, text_figures
from plaudit.learn.rewards import features, normed
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.tokens import at_tokens, fitted, from_text, pack

MAX_TRAP_TOKENS = 512  # a padded text is cut here
OPENING = 16  # tokens: means of longer texts lie nearer to each other, and nearly every response has as many


def sampled_of(learner: Learner[OnlineConfig], seen: Observed, old: Old) -> Sampled:
    """A rollout as guards see it."""

    def kl_to(reference: Tensor) -> list[float]:
        return torch.where(seen.counts, losses.kl_k1(old.logprobs, reference), 0.0).sum(dim=1).tolist()

    figures: dict[str, list[float]] = {
        "score": seen.scored.total.tolist(),
        "tokens": seen.rollout.lengths().float().tolist(),
        "kl": kl_to(seen.reference),
    }
    if seen.base is not None:
        figures["kl_base"] = kl_to(seen.base)
    for name, values in (("gold", seen.gold), ("disagreement", seen.scored.disagreement)):
        if values is not None:
            figures[name] = values.tolist()
    if "entropy" in old.columns:
        entropy = torch.where(seen.counts, old.columns["entropy"], 0.0)
        figures["entropy"] = (entropy.sum(dim=1) / seen.counts.sum(dim=1)).tolist()
    states = opening_states(learner.base, seen)
    if states is not None:
        figures["embedding_distance"] = distances(states.double().numpy(), seen.rollout.group)
    ids = seen.rollout.response_ids
    texts = [learner.reward.tokenizer.decode(one) for one in ids]
    return Sampled(list(seen.rollout.group), [list(one) for one in ids], figures | text_figures(texts, ids))


@torch.no_grad()
def opening_states(base: Decoder, seen: Observed) -> Tensor | None:
    """Mean state of each response's first OPENING tokens in the deepest frozen layer that the rollout was run through anyway: what it says,
    in a space that does not move while the policy learns. None where no layer is frozen.   -> (N, D) fp32"""
    trunk = max((one for one in seen.trunks.values() if one is not None), key=lambda one: one.layer, default=None)
    if trunk is None or trunk.layer == 0:
        return None
    table = torch.zeros(seen.rollout.n, trunk.hidden.shape[-1])
    for batch in seen.packs:
        counts = batch.counts[:, :OPENING]
        hidden = at_tokens(trunk.hidden[batch.source.clamp(min=0)], batch)[:, :OPENING]
        states = features(normed(base, hidden, trunk.layer)) * counts[..., None]
        table[batch.response] = states.sum(dim=1) / counts.sum(dim=1, keepdim=True)
    return distributed.assembled(table, table.shape)


def watch(learner: Learner[Config], seen: Observed, old: Old, step: int) -> tuple[Row, bool]:
    """Let the guards look; on the first rollout, which is the reference's own, at trap texts too. Returns what metrics.jsonl says of it, and
    whether a guard that acts alarms."""
    guards, config = learner.guards, learner.config
    tokenizer = learner.reward.tokenizer

    def score(prompts: Sequence[Sequence[Mapping[str, Any]]], texts: Sequence[Sequence[str]]) -> list[Floats]:
        longest = max(MAX_TRAP_TOKENS, config.sampling.max_new_tokens)
        asked = from_text(tokenizer, prompts, texts, None, config.sampling.max_prompt_tokens, longest)
        asked = fitted(asked, learner.base.config.max_positions)
        mine = distributed.share(range(asked.n))
        packs = pack(asked, mine, config.compute.micro_tokens)
        trunks = run_trunks(learner.base, asked, learner.reward.depths, config.compute.micro_tokens, mine)
        found = learner.reward.score(asked, packs, trunks, prompts).total
        return [np.asarray(part, dtype=np.float64) for part in torch.split(found, [len(row) for row in texts])]

    if step == 1 and config.guards.traps:
        n = min(config.guards.traps, len(seen.messages))
        answers = [tokenizer.decode(seen.rollout.response_ids[seen.rollout.group.index(i)]) for i in range(n)]
        total = seen.scored.total.tolist()
        guards.traps = spring_traps(score, seen.messages[:n], answers, total, tokenizer.eos_id is not None)
    row, alarms = guards.look(step, sampled_of(learner, seen, old))
    if not alarms or config.guards.on_critical == "warn":
        return row, False
    went = {
        "stop": f"ended after {step - 1} steps",
        "best": f"went back to the policy after {max(guards.best_step - 1, 0)} steps",
    }
    guards.done = f"Because of {' and '.join(alarms)}, rollout {step}, the run {went[config.guards.on_critical]}."
    return row, True


def run_steps(
    learner: Learner[Config],
    run: RunFolder,
    program: str,
    collect: Callable[[Learner[Config], int, Clock], Data],
    describe: Callable[[Learner[Config], Data], Row],
    optimise: Callable[[Learner[Config], Data, int], Row],
) -> dict[str, Any]:
    """Run to the end or the KL budget, from the last saved state where there is one, and write the Checkpoint; returns result.json's content.

    `collect` samples and observes, `describe` gives its figures (`kl` among them), `optimise` updates.
    """
    config = learner.config
    restore(learner, run)
    if not learner.kept:
        learner.kept = learner.best = learner.copies(run)
    history = run.resume_metrics(learner.step)
    stopped = any(row["stop"] for row in history)
    while not stopped and learner.step <= config.steps:
        clock = Clock(run)
        step = learner.step + 1
        measuring = step == config.steps + 1
        data = collect(learner, step, clock)
        row = describe(learner, data)
        with clock.phase("guards"):
            said, alarm = watch(learner, data.seen, data.old, step)
        row |= said
        over = config.kl.budget is not None and row["kl"] > config.kl.budget
        if not over:
            learner.kept = learner.copies(run)
            learner.kept_step, learner.kept_kl = step - 1, row["kl"]
            if learner.guards.best_step == step:
                learner.best, learner.best_step, learner.best_kl = learner.kept, step - 1, row["kl"]
        if alarm and config.guards.on_critical == "best":
            learner.kept, learner.kept_step, learner.kept_kl = learner.best, learner.best_step, learner.best_kl
        if over or alarm:
            load_trained(learner, learner.kept)
        stopped = over or alarm or measuring
        row["stop"] = "guard" if alarm else "budget" if over else "end" if measuring else ""
        if not stopped:
            with clock.phase("update"):
                row |= optimise(learner, data, step)
            if config.kl.target is not None:
                learner.kl_coef = adaptive_kl_coef(
                    learner.kl_coef, row["kl"], config.kl.target, row["n"], config.kl.horizon
                )
        learner.step = step
        n_tokens = row["response_tokens"] * row["n"]
        row |= {"phases": clock.rounded(), "tokens_per_second": n_tokens / clock.total}
        history.append(run.log(step, config.steps + 1, program, clock.total, **row))
        if step % config.compute.save_every == 0 or stopped:
            save(learner, run)
    return finish(learner, run, program, history)


def load_trained(learner: Learner[OnlineConfig], weights: Mapping[str, Tensor]) -> None:
    """Put policy and heads back to these weights."""
    for name, parameter in learner.trained().items():
        parameter.copy_(weights[name])


def save(learner: Learner[OnlineConfig], run: RunFolder) -> None:
    """All that `restore` needs for the next step to be, bit for bit, what it would have been [16]."""
    checkpoint.save_state(
        run.state,
        {
            "step": learner.step,
            "trained": learner.trained(),
            "kept": learner.kept,
            "kept_step": learner.kept_step,
            "kept_kl": learner.kept_kl,
            "best": learner.best,
            "best_step": learner.best_step,
            "best_kl": learner.best_kl,
            "guards": learner.guards.state(),
            "optimizer": learner.adam.state(),
            "generator": learner.generator.get_state(),
            "order": learner.order,
            "kl_coef": learner.kl_coef,
            "moments": asdict(learner.moments),
            "reward": learner.reward.state(),
        },
    )


def restore(learner: Learner[OnlineConfig], run: RunFolder) -> None:
    """Continue from the last saved state, if there is one."""
    state = checkpoint.load_state(run.state)
    if state is None:
        return
    load_trained(learner, state["trained"])
    learner.adam.load(state["optimizer"])
    learner.generator.set_state(state["generator"])
    learner.step, learner.order, learner.kl_coef = state["step"], state["order"], state["kl_coef"]
    learner.moments = RunningMoments(**state["moments"])
    learner.reward.restore(state["reward"])
    learner.kept, learner.kept_step, learner.kept_kl = state["kept"], state["kept_step"], state["kept_kl"]
    learner.best, learner.best_step, learner.best_kl = state["best"], state["best_step"], state["best_kl"]
    learner.guards.restore(state["guards"])


CURVE = (
    "step",
    "reward",
    "score",
    "score_sd",
    "kl",
    "kl_se",
    "kl_k3",
    "response_tokens",
    "eos_fraction",
    "explained_variance",
)


def finish(learner: Learner[OnlineConfig], run: RunFolder, program: str, history: list[Row]) -> dict[str, Any]:
    """Write result.json, then the Checkpoint of the kept weights, its manifest last."""
    config = learner.config
    load_trained(learner, learner.kept)
    kept = history[learner.kept_step]  # the rollout that measured the kept weights
    phases: dict[str, float] = {}
    for row in history:
        for name, seconds in row["phases"].items():
            phases[name] = phases.get(name, 0.0) + seconds
    result = {
        "program": program,
        "stop": history[-1]["stop"],
        "steps": learner.kept_step,
        "kl": kept["kl"],
        "kl_se": kept["kl_se"],
        "kl_budget": config.kl.budget,
        "score_first": history[0]["score"],
        "score": kept["score"],
        "seconds": sum(row["seconds"] for row in history),
        "phases": {name: round(seconds, 3) for name, seconds in phases.items()},
        "reward": learner.reward.lineage(),
        "guards": learner.guards.result(),
        "curve": [{name: row[name] for name in CURVE if name in row} for row in history],
    }
    run.write_result(result)
    write_checkpoint(learner, run, result, {name: result[name] for name in ("kl", "score", "steps")})
    return result


def write_checkpoint(learner: Learner[OnlineConfig], run: RunFolder, result: Row, metrics: Row) -> None:
    """The policy Checkpoint of the weights of now: an adapter, or a folder that is a base of its own."""
    if not distributed.is_first():
        return
    config, base = learner.config, Path(learner.config.base)
    parents = {
        "snapshot": config.snapshot,
        "start": config.start,
        **learner.reward.parents(),
        "judge": config.guards.judge,
    }
    card, pictures = policy_card.write(result, config, learner.guards.card())
    more = (learner.heads.get("value"), card, learner.reward.lineage(), pictures)
    if learner.adapter is None:
        checkpoint.save_full_policy(run.checkpoint, learner.decoder, base, parents, metrics, *more)
    else:
        checkpoint.save_policy(run.checkpoint, learner.adapter, base, parents, metrics, *more)
