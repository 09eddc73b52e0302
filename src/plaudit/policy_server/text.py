"""Sampled ids to text, a piece at a time: never half a character, never a beginning of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"  # what a decoder writes for bytes that are not a whole character (yet)


class Detokenizer:
    """The text of one response as it grows. `sent` is what has been given out, `stop` the stop string that ended it."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._read = 0  # ids whose text is in `_text`
        self._from = 0  # where the window starts that is decoded again, so that joins between tokens come out right
        self._text = ""
        self.sent = ""
        self.stop: str | None = None

    def push(self, ids: Sequence[int], last: bool) -> str:
        """All ids so far (special ones decode to nothing) -> the text that is new and decided. `last` gives out what was held back."""
        if self.stop is not None:
            return ""
        window = self._decode(ids[self._from :])
        if last or not window.endswith(HALF):
            self._text += window[len(self._decode(ids[self._from : self._read])) :]
            self._from, self._read = self._read, len(ids)
        end = len(self._text)
        found = min(((at, stop) for stop in self._stops if (at := self._text.find(stop)) >= 0), default=None)
        if found is not None:
            end, self.stop = found
        elif not last:
            end -= max((_overlap(self._text, stop) for stop in self._stops), default=0)
        new = self._text[len(self.sent) : end]
        self.sent += new
        return new


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
