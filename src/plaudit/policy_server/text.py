"""Sampled ids to text, a piece at a time: never half a character, never a beginning of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"  # what a decoder writes for bytes that are not a whole character (yet)


class Detokenizer:
    """The text of one response as it grows. `sent` is what has been given out; `stopped` turns True at a stop string."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._read = 0  # ids whose text is in `_text`
        self._from = 0  # where the window starts that is decoded again, so that joins between tokens come out right
        self._text = ""
        self.sent = ""
        self.stopped = False

    def push(self, ids: Sequence[int], last: bool) -> str:
        """All ids so far (special ones decode to nothing) -> the text that is new and decided. `last` gives out what was held back."""
        if self.stopped:
            return ""
        window = self._decode(ids[self._from :])
        if last or not window.endswith(HALF):
            self._text += window[len(self._decode(ids[self._from : self._read])) :]
            self._from, self._read = self._read, len(ids)
        end = len(self._text)
        found = min((at for at in map(self._text.find, self._stop) if at >= 0), default=-1)
        if found >= 0:
            end, self.stopped = found, True
        elif not last:
            end -= max((_overlap(self._text, stop) for stop in self._stop), default=0)
        new = self._text[len(self.sent) : end]
        self.sent += new
        return new


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
