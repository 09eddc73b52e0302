"""python -m plaudit.learn PROGRAM RUN_DIR      reward | sft | dpo | ppo | grpo | best_of | score; reads RUN_DIR/config.json, writes RUN_DIR
python -m plaudit.learn prepare SPEC CACHE   a base model: smollm2 | tiny | a folder | a hub id; prints the folder
python -m plaudit.learn export CHECKPOINT BASE peft|merged OUT [EVALUATION.json]    what vLLM, peft and transformers load; JSON says what last
python -m plaudit.learn stay                 lines ["score", RUN_DIR] on stdin, one after another; the exit code of each on stdout
python -m plaudit.learn on ADDRESS WORKERS STORAGE PROGRAM RUN_DIR    the same on a Ray cluster (cluster.py)

What a pipeline, a cluster or a person launches, alone or as `torchrun --nproc-per-node=2 -m plaudit.learn PROGRAM RUN_DIR`. Kill it
at any moment and run it again: it resumes; a finished run says so and exits 0.
Exit codes: 0 done; 2 a PlauditError, and the last line of stderr is {"code", "message"}; anything else is a bug with a traceback.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from pathlib import Path

# Before torch is imported: threads that wait for work must sleep. Spinning ones made one decode step 25 times slower beside another process.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "4000")  # sleeping at once makes a small parallel product ten times slower
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from plaudit.errors import BadInput, PlauditError, TrainingStopped
from plaudit.learn.configs import (
    PROGRAMS,
    BestOfConfig,
    DPOConfig,
    GRPOConfig,
    PPOConfig,
    RewardConfig,
    ScoreConfig,
    SFTConfig,
)


def main(arguments: list[str]) -> int:
    """Run one program; returns the exit code."""
    try:
        _dispatch(arguments)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        full = TrainingStopped(f"The disk is full ({error.filename or 'run folder'}); free some space and run again.")
        return _refuse(full)
    except PlauditError as error:
        return _refuse(error)
    return 0


def _refuse(error: PlauditError) -> int:
    print(json.dumps({"code": error.code, "message": error.message}), file=sys.stderr, flush=True)
    return 2


def _dispatch(arguments: list[str]) -> None:
    match arguments:
        case ["prepare", spec, cache]:
            from plaudit.learn import base_models, decoders

            base = base_models.prepare(spec, Path(cache))
            decoders.prove(base)
            print(base)
        case ["export", checkpoint, base, form, out, *rest] if len(rest) < 2:
            from plaudit.learn import export

            evaluation = json.loads(Path(rest[0]).read_text()) if rest else None
            print(json.dumps(export.export(Path(checkpoint), Path(base), form, Path(out), evaluation)))
        case [("reward" | "sft" | "dpo" | "ppo" | "grpo" | "best_of" | "score") as program, folder]:
            run(program, Path(folder))
        case ["stay"]:
            _stay()
        case ["on", address, workers, storage, program, folder] if program in PROGRAMS:
            from plaudit.learn import cluster

            cluster.train(address, int(workers), storage, program, Path(folder))
        case _:
            raise BadInput(
                f"Cannot run {' '.join(arguments)!r}; usage: python -m plaudit.learn {'|'.join(PROGRAMS)} RUN_DIR, "
                "python -m plaudit.learn prepare SPEC CACHE, or python -m plaudit.learn export CHECKPOINT BASE peft|merged OUT [EVALUATION.json]."
            )


def _stay() -> None:
    """Programs one after another until stdin ends. What each prints to stderr goes to its folder's log, as if it were alone."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever prints must not answer
        for line in sys.stdin:
            program, folder = json.loads(line)
            with (Path(folder) / "stderr.log").open("wb") as log:
                os.dup2(log.fileno(), 2)
            try:
                code = main([program, folder])
            except Exception:
                traceback.print_exc()
                code = 1
            print(code, file=answers, flush=True)


def run(program: str, folder: Path) -> None:
    """Run one program in this process, or in this one of several. Raises PlauditErrors."""
    from plaudit.learn import distributed

    with distributed.joined():
        _train(program, folder)


def _train(program: str, folder: Path) -> None:
    from plaudit.learn import distributed
    from plaudit.learn.run_folder import RunFolder, read_config

    run = RunFolder(folder)
    if run.finished:
        print(f"{run.checkpoint} is already finished; nothing to do.")
        return
    config = read_config(folder, PROGRAMS[program])
    run.announce("load")
    _use_threads(config.compute.threads)
    if isinstance(config, BestOfConfig | ScoreConfig):
        distributed.check_alone(program)
    match config:
        case RewardConfig():
            from plaudit.learn import reward

            reward.train(config, run)
        case SFTConfig():
            from plaudit.learn import sft

            sft.train(config, run)
        case DPOConfig():
            from plaudit.learn import dpo

            dpo.train(config, run)
        case PPOConfig():
            from plaudit.learn import ppo

            ppo.train(config, run)
        case GRPOConfig():
            from plaudit.learn import grpo

            grpo.train(config, run)
        case BestOfConfig():
            from plaudit.learn import best_of

            best_of.select(config, run)
        case ScoreConfig():
            from plaudit.learn import score

            score.measure(config, run)
    run.progress.unlink(missing_ok=True)
    print(f"{folder} is done.")


def _use_threads(threads: int) -> None:
    """One thread for each physical core that this process may use, shared with the run's others here, unless the config says otherwise."""
    import psutil
    import torch

    physical = psutil.cpu_count(logical=False) or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, min(physical, allowed) // together))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
