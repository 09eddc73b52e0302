"""Keys and values of the prompts that were asked last, so that asking again costs no pass. What a server keeps; training keeps nothing.

Shapes: L layers, G key-value heads, hd head width, D model width.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from torch import Tensor

from plaudit.learn.nets import Adapter


@dataclass(frozen=True)
class SeenPrompt:
    """What a prompt's pass gave. Prompts that were run behind one kept beginning share its tensor."""

    state: Tensor  # (D,) normed, after the last token
    prefix: Tensor  # (L, 2, G, skip, hd)
    rest: Tensor  # (L, 2, G, length - skip, hd)


class PromptCache:
    """The prompts used last, by (adapter, token ids), in at most `limit_bytes`.

    What comes out is what the first pass gave, so a later answer is sampled from the very same numbers. An adapter's entries must go
    (`forget`) before its weights change.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self.hits, self.misses = 0, 0
        self._entries: OrderedDict[tuple[Adapter | None, tuple[int, ...]], SeenPrompt] = OrderedDict()
        self._sharers: Counter[int] = Counter()  # entries by the address of their prefix, which counts once

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, adapter: Adapter | None, ids: tuple[int, ...]) -> SeenPrompt | None:
        found = self._entries.get((adapter, ids))
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end((adapter, ids))
        return found

    def put(self, adapter: Adapter | None, ids: tuple[int, ...], state: Tensor, prefix: Tensor, rest: Tensor) -> None:
        """Keep copies of `state` and `rest`; the prompts used longest ago leave for them, and a prompt too large for all room at once."""
        if not self.limit_bytes:
            return
        seen = SeenPrompt(state.clone(), prefix, rest.clone())
        self._entries[adapter, ids] = seen
        self.used_bytes += seen.state.nbytes + seen.rest.nbytes
        if not self._sharers[_address(seen)]:
            self.used_bytes += prefix.untyped_storage().nbytes()
        self._sharers[_address(seen)] += 1
        while self.used_bytes > self.limit_bytes:
            self._drop(next(iter(self._entries)))

    def forget(self, adapter: Adapter | None) -> None:
        for key in [key for key in self._entries if key[0] is adapter]:
            self._drop(key)

    def _drop(self, key: tuple[Adapter | None, tuple[int, ...]]) -> None:
        gone = self._entries.pop(key)
        self.used_bytes -= gone.state.nbytes + gone.rest.nbytes
        self._sharers[_address(gone)] -= 1
        if not self._sharers[_address(gone)]:
            del self._sharers[_address(gone)]
            self.used_bytes -= gone.prefix.untyped_storage().nbytes()


def _address(seen: SeenPrompt) -> int:
    return seen.prefix.untyped_storage().data_ptr()
