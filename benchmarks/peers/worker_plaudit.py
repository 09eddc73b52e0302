"""Plaudit's side of the training benchmarks: one step for each turn. See turns.py.

    python peers/worker_plaudit.py JOB       JOB: JSON with `program` grpo | ppo | reward | generate | rates

The training programs run as `python -m plaudit.learn PROGRAM RUN_DIR` runs them. What is added: their run folder takes a turn for each
line of metrics.jsonl, and the reward function of the rollout (peers.turns:distinct) shows its tokens. A step's seconds are the program's own:
the state that it saves after each step, which TRL does not, is not among them.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from peers.turns import SEEN, Json, Turn, versions


def main() -> None:
    job: Json = json.loads(sys.argv[1])
    turn = Turn()
    from plaudit.learn import __main__ as program  # sets what torch reads at its import

    match job["program"]:
        case "generate":
            program._use_threads(job["threads"])
            generate(job, turn)
        case "rates":
            program._use_threads(job["threads"])
            rates(job, turn)
        case name:
            take_turns(job, turn)
            code = program.main([name, job["folder"]])
            turn.say(finished=True, code=code)


# --- training programs ------------------------------------------------------------------------------------------------------


def take_turns(job: Json, turn: Turn) -> None:
    """Make the run folder say what a step gave and wait."""
    from plaudit.learn import run_folder

    class Watched(run_folder.RunFolder):
        def resume_metrics(self, step: int) -> list[Json]:
            rows = super().resume_metrics(step)  # the last thing before the first step
            turn.ready(versions=versions("plaudit", "torch"), dtype=dtype_of(job))
            return rows

        def log(self, step: int, of: int, phase: str, seconds: float, **values: Any) -> Json:
            row = super().log(step, of, phase, seconds, **values)
            if phase in ("ppo", "grpo"):
                turn.done(seconds=seconds, phases=row["phases"], kl=row["kl"], score=row["score"], **rollout(job))
            elif phase == "train":
                turn.done(seconds=seconds, phases={}, pairs=row["pairs"])
            return row

    run_folder.RunFolder = Watched  # type: ignore[misc]


def rollout(job: Json) -> Json:
    """What was sampled in this step: prompts as ids, each once, and responses."""
    from plaudit.learn.tokens import ChatTokenizer

    tokenizer = ChatTokenizer.load(Path(job["base"]))
    first = SEEN["messages"][:: job["samples"]]
    prompts = [tokenizer.render(messages)[-job["prompt_tokens"] :] for messages in first]
    responses = [list(ids) for ids in SEEN["token_ids"]]
    SEEN.clear()
    return {"prompts": prompts, "responses": responses}


def dtype_of(job: Json) -> str:
    """What the loaded decoder computes in; exits where that is not what was asked for."""
    from plaudit.learn.nets import Decoder

    found = {str(one.dtype).removeprefix("torch.") for one in gc.get_objects() if issubclass(type(one), Decoder)}
    if found != {job["dtype"]}:
        sys.exit(f"Plaudit computes in {found}, not in {job['dtype']}; the comparison would not be fair.")
    return found.pop()


# --- generation -------------------------------------------------------------------------------------------------------------


def generate(job: Json, turn: Turn) -> None:
    """The decode loop that training uses."""
    import torch

    from plaudit.learn import decoders, rollout

    decoder = decoders.load(Path(job["base"]), getattr(torch, job["dtype"]))
    message = turn.ready(versions=versions("plaudit", "torch"), dtype=dtype_of(job))
    while True:
        choice = rollout.Sampling(job["new_tokens"], seed=message["seed"])
        start = time.perf_counter()
        made = rollout.generate(decoder, message["prompts"], job["samples"], choice, stop_ids=())
        seconds = time.perf_counter() - start
        n_tokens = sum(len(ids) for ids in made.rollout.response_ids)
        message = turn.done(seconds=seconds, phases={"sample": seconds}, new_tokens=n_tokens)


def rates(job: Json, turn: Turn) -> None:
    """What this machine can do now: FLOP/s of a large product in the dtype, bytes/s of reading and copying more than its caches hold."""
    import torch

    dtype = getattr(torch, job["dtype"])
    x = torch.randn(2048, 2048).to(dtype)
    big = torch.ones(1 << 26)  # 256 MB
    copy = torch.empty_like(big)

    def best(work: Any, n: int = 3) -> float:
        seconds = []
        for _ in range(n):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    turn.ready(versions=versions("torch"), dtype=job["dtype"])
    while True:
        start = time.perf_counter()
        flops = 2 * 2048**3 / best(lambda: x @ x)
        read = big.numel() * 4 / best(big.sum)
        copied = 2 * big.numel() * 4 / best(lambda: copy.copy_(big))
        seconds = time.perf_counter() - start
        turn.done(seconds=seconds, phases={}, flop_per_s=flops, bytes_per_s=max(read, copied))


if __name__ == "__main__":
    main()
