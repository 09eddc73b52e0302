"""Several processes, one run: `torchrun --nproc-per-node=2 -m plaudit.learn PROGRAM RUN_DIR`, or a Ray cluster (cluster.py).

Every process reads the same config, draws the same random orders and takes the same decisions; only forward and backward passes are
shared out. What they compute comes together by adding up: a loss is divided by what the *whole* minibatch counts, so the sum of the
processes' gradients is the gradient that one process would have, and a table of figures is 0 where another process has the row. So two
processes train what one trains, up to rounding (tests/invariance/test_processes.py), and nothing else in a program knows of them.
The first process alone writes. With one process every function here returns what it was given.

No DistributedDataParallel: it averages gradients over processes, which is a wrong mean where they hold different numbers of tokens, and
it expects one backward pass for each update, where a minibatch here has one for each micro-batch. Gradients of an adapter are small, so
hiding their transport behind the backward pass would gain little. Left out: sharded weights (FSDP), GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from plaudit.errors import ConfigError, PlauditError

T = TypeVar("T")
BUCKET_BYTES = 64 << 20  # gradients travel together up to this size: many small messages cost more than their bytes


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that torchrun (its environment says so) started; leave when all of them are done. Alone: nothing."""
    ours = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo")
    try:
        yield
        if size() > 1:
            dist.barrier()  # the first may still be writing the Checkpoint; nobody is done before it is
    finally:
        if ours:
            dist.destroy_process_group()


def size() -> int:
    """How many processes share this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def check_alone(program: str) -> None:
    """Raises ConfigError where a program that shares nothing out runs in several processes."""
    if size() > 1:
        raise ConfigError(f"{program} runs in one process, not in {size()}; start it without torchrun or --on.")


def share(items: Sequence[T]) -> list[T]:
    """This process's part of a batch: every size()-th item, so that items sorted by length are dealt out evenly. May be empty."""
    return list(items[rank() :: size()])


def total(*values: float) -> tuple[float, ...]:
    """Sums over the processes, in fp64."""
    if size() == 1:
        return values
    table = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(table)
    return tuple(table.tolist())


def totals(figures: Mapping[str, float]) -> dict[str, float]:
    """`total` of each figure; all processes name the same ones in the same order."""
    return dict(zip(figures, total(*figures.values()), strict=True))


def assembled(part: Tensor, shape: Sequence[int]) -> Tensor:
    """A table of this shape from what each process holds in its upper left corner, 0 where it has nothing; bool or floating."""
    if size() == 1:
        return part
    table = torch.zeros(tuple(shape), dtype=torch.uint8 if part.dtype == torch.bool else part.dtype)
    table[tuple(slice(0, length) for length in part.shape)] = part
    dist.all_reduce(table)
    return table.bool() if part.dtype == torch.bool else table


def gathered(items: Sequence[T]) -> list[T]:
    """The items of all processes, the first's first. They are pickled, so few and small ones."""
    if size() == 1:
        return list(items)
    parts: list[Any] = [None] * size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, in all of them: files only it can read, functions and servers that are asked once.

    A PlauditError that it raises is raised in all of them.
    """
    if size() == 1:
        return make()
    box: list[Any] = [None]
    if is_first():
        try:
            box = [("made", make())]
        except PlauditError as error:
            box = [("raised", error)]
    dist.broadcast_object_list(box, src=0)
    how, what = box[0]
    if how == "raised":
        raise what
    made: T = what
    return made


@torch.no_grad()
def level(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first's values, in place: equal starts stay equal, since equal gradients move them."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def add_up(gradients: Sequence[Tensor]) -> None:
    """Sum each gradient over the processes, in place. Every process gives the same shapes in the same order."""
    if size() == 1:
        return
    bucket: list[Tensor] = []
    for index, gradient in enumerate(gradients):
        bucket.append(gradient)
        last = index + 1 == len(gradients)
        if last or sum(one.nbytes for one in bucket) + gradients[index + 1].nbytes > BUCKET_BYTES:
            flat = torch.cat([one.flatten() for one in bucket])
            dist.all_reduce(flat)
            for one, sums in zip(bucket, torch.split(flat, [one.numel() for one in bucket]), strict=True):
                one.copy_(sums.view_as(one))
            bucket = []
