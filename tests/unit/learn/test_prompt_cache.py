"""What is kept of prompts, for how long, and how its bytes are counted."""

from __future__ import annotations

import torch

from plaudit.learn.prompt_cache import PromptCache

NONE = torch.zeros(2, 2, 1, 0, 4)
REST = torch.ones(2, 2, 1, 3, 4)  # 48 numbers
STATE = torch.ones(4)
ONE = (48 + 4) * 4  # bytes of an entry without a shared beginning


def put(cache, name, prefix=NONE, adapter=None):
    cache.put(adapter, (ord(name),), STATE, prefix, REST)


def kept(cache, names, adapter=None):
    return [name for name in names if cache.get(adapter, (ord(name),)) is not None]


def test_the_prompt_used_longest_ago_leaves_first():
    cache = PromptCache(3 * ONE)
    for name in "abc":
        put(cache, name)
    assert kept(cache, "a") == ["a"]  # used again
    put(cache, "d")
    assert kept(cache, "abcd") == ["a", "c", "d"]
    assert (len(cache), cache.used_bytes) == (3, 3 * ONE)


def test_a_shared_beginning_counts_once_and_until_its_last_prompt_has_left():
    prefix = torch.ones(2, 2, 1, 5, 4)
    cache = PromptCache(10**6)
    put(cache, "a", prefix)
    put(cache, "b", prefix[:, :, :, :4])  # a part of it keeps the whole in memory
    assert cache.used_bytes == 2 * ONE + prefix.nbytes
    cache = PromptCache(2 * ONE + prefix.nbytes)
    for name in "abc":
        put(cache, name, prefix)
    assert (kept(cache, "abc"), cache.used_bytes) == (["b", "c"], 2 * ONE + prefix.nbytes)
    put(cache, "d")
    put(cache, "e")
    assert (kept(cache, "bcde"), cache.used_bytes) == (["d", "e"], 2 * ONE)


def test_what_is_larger_than_all_room_is_not_kept():
    for limit in (0, ONE - 1):
        cache = PromptCache(limit)
        put(cache, "a")
        assert (len(cache), cache.used_bytes) == (0, 0)


def test_forgetting_an_adapter_leaves_the_others():
    cache, adapter = PromptCache(10**6), torch.nn.Identity()
    put(cache, "a")
    put(cache, "a", adapter=adapter)
    cache.forget(adapter)
    assert (kept(cache, "a", adapter), kept(cache, "a"), cache.used_bytes) == ([], ["a"], ONE)


def test_a_copy_is_kept():
    """What was given is a view of a batch's tensors: keeping it would keep them all, and let others write into it."""
    cache, rest = PromptCache(10**6), REST.clone()
    cache.put(None, (1,), STATE, NONE, rest)
    rest.zero_()
    assert cache.get(None, (1,)).rest.min() == 1
