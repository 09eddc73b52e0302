"""Sharing out and adding up: with one process nothing changes; two real processes agree on each function's result."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from plaudit.learn import distributed

TWO = """
import json, sys
import torch
from plaudit.errors import BadInput
from plaudit.learn import distributed as d

said = {}
with d.joined():
    me = d.rank()
    said["rank"], said["size"], said["share"], said["none"] = me, d.size(), d.share(range(5)), d.share([7])
    said["total"] = d.total(1.5 + me, 1e-9)
    said["totals"] = d.totals({"a": me, "b": 2.0})
    part = torch.zeros(3 - me, 2)
    part[me] = 1.0 + me
    said["assembled"] = d.assembled(part, (3, 4)).tolist()
    said["mask"] = d.assembled(part > 1, (3, 2)).tolist()
    said["gathered"] = d.gathered(["ab"[me]] * (me + 1))
    said["from_first"] = d.from_first(lambda: f"by {me}")
    def refuse():
        raise BadInput(f"no, says {me}")
    try:
        d.from_first(refuse)
    except BadInput as error:
        said["raised"] = error.message
    weights = [torch.full((2,), float(me)), torch.full((1,), 5.0 - me)]
    d.level(weights)
    said["level"] = [w.tolist() for w in weights]
    d.BUCKET_BYTES = 12  # two buckets: 8 bytes and 4, then 16
    gradients = [torch.full((2,), 1.0 + me), torch.full((1,), 10.0), torch.full((2, 2), float(me))]
    d.add_up(gradients)
    said["add_up"] = [g.tolist() for g in gradients]
    try:
        d.check_alone("score")
    except BadInput as error:
        said["alone"] = error.message
print(json.dumps(said))
"""


def test_one_process_gets_back_what_it_gave():
    table, gradient = torch.ones(2, 2), torch.ones(3)
    with distributed.joined():
        assert (distributed.rank(), distributed.size(), distributed.is_first()) == (0, 1, True)
        assert distributed.share("abc") == ["a", "b", "c"]
        assert distributed.total(0.1, 2.0) == (0.1, 2.0)
        assert distributed.assembled(table, (5, 5)) is table
        assert distributed.gathered([1]) == [1]
        distributed.add_up([gradient])
        distributed.check_alone("score")
    assert gradient.tolist() == [1.0] * 3
    assert not torch.distributed.is_initialized()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes says, which meet by a file, as torchrun makes them meet by a socket."""
    place = tmp_path_factory.mktemp("two")
    script = TWO.replace(
        "with d.joined():",
        f"import torch.distributed as dist\ndist.init_process_group('gloo', init_method='file://{place}/meet', "
        "rank=int(sys.argv[1]), world_size=2)\nwith d.joined():",
    )
    script += "\ndist.destroy_process_group()\n"  # what is joined by torchrun leaves by itself
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=240) for process in pair]
    assert all(process.returncode == 0 for process in pair), said
    return [json.loads(out) for out, _ in said]


def test_items_are_dealt_out_in_turn(two):
    assert [(one["rank"], one["size"]) for one in two] == [(0, 2), (1, 2)]
    assert [one["share"] for one in two] == [[0, 2, 4], [1, 3]]
    assert [one["none"] for one in two] == [[7], []]


def test_what_is_added_up_is_the_same_everywhere(two):
    for one in two:
        assert one["total"] == pytest.approx([4.0, 2e-9], rel=1e-12)  # 1.5 + 2.5; fp64
        assert one["totals"] == {"a": 1.0, "b": 4.0}
        assert one["assembled"] == [[1.0, 1.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0], [0.0] * 4]
        assert one["mask"] == [[False, False], [True, True], [False, False]]
        assert one["add_up"] == [[3.0, 3.0], [20.0], [[1.0, 1.0], [1.0, 1.0]]]


def test_what_one_knows_all_get(two):
    for one in two:
        assert one["gathered"] == ["a", "b", "b"]
        assert one["from_first"] == "by 0"
        assert one["raised"] == "no, says 0"
        assert one["level"] == [[0.0, 0.0], [5.0]]
        assert one["alone"] == "score runs in one process, not in 2; start it without torchrun or --on."
