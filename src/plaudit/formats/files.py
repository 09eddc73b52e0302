"""Other people's files as they come: plain, gzip or zstd; one JSON object a line, one big JSON array, or an object that holds one.

Everything streams: a file larger than memory is read item by item, and what is written appears under its name only when it is whole.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from plaudit.errors import BadInput, NotFound

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
CHUNK = 1 << 16  # characters read at a time
BLANK = " \t\n\r"
# The start of an object whose array of items follows after plain fields: {"total": 2, "items": [
_ENVELOPE = r'\s*\{{\s*(?:"[^"]+"\s*:\s*(?:-?[\d.]+|null|true|false|"[^"]*")\s*,\s*)*"{key}"\s*:\s*(?=\[)'


@dataclass(frozen=True)
class Rejected:
    """A row that was left out, and why. `line` counts from 1; in Parquet it is the row's number."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


def read_bytes(path: Path) -> bytes:
    """All of a file, unpacked. Raises NotFound, BadInput for a damaged archive."""
    with _opened(path) as file:
        return file.read()


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes) of every line that is not blank. Raises NotFound, BadInput for a damaged archive."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def read_items(path: Path, key: str = "items") -> Iterator[tuple[int, Any]]:
    """(line it starts on, value) of each JSON item: of the lines of a JSONL file, of one array, or of the array at `key` of an object.

    A value is a ValueError where a line is no JSON: the reader says so and goes on. Inside an array nobody knows where the next item
    begins after a broken one, so that is BadInput with the line. Memory: one item and a chunk.
    """
    with _opened(path) as file:
        text = _Text(file)
        start = text.skip_blank()
        envelope = re.compile(_ENVELOPE.format(key=re.escape(key))).match(text.buffer) if start == "{" else None
        if envelope is not None:
            text.drop(envelope.end())
        if start == "[" or envelope is not None:
            yield from _array(text, path)
            return
    for number, line in read_lines(path):
        try:
            yield number, json.loads(line.decode())
        except ValueError as error:
            yield number, ValueError(reason_of(error))


@contextmanager
def written(path: Path) -> Iterator[IO[str]]:
    """A text file to write, packed as its name says (.gz, .zst). It takes its name when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as plain:
            packed: Any = plain
            if path.suffix == ".gz":  # no name and no time inside: the same rows are the same bytes
                packed = gzip.GzipFile(filename="", fileobj=plain, mode="wb", mtime=0)
            elif path.suffix == ".zst":
                import pyarrow as pa  # where it is needed: the service starts without it

                packed = pa.CompressedOutputStream(_KeptOpen(plain), "zstd")
            yield _Encoded(packed)  # type: ignore[misc]
            if packed is not plain:
                packed.close()
            plain.flush()
            os.fsync(plain.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def reason_of(error: ValueError) -> str:
    """Why a line could not be read, in words."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error})"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def reasons(rejected: Sequence[Rejected]) -> dict[str, int]:
    """How many rows were left out for each reason, what a reason quotes aside."""
    return dict(Counter(re.sub(r" \(.*\)", "", one.reason) for one in rejected))


class _KeptOpen(io.RawIOBase):
    """A file that is not closed with what packs into it, so that it can be flushed to the disk afterwards."""

    def __init__(self, plain: IO[bytes]) -> None:
        self._plain = plain

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._plain.write(data)


class _Encoded:
    """`write` of text into a byte stream: pyarrow's is none that io.TextIOWrapper takes."""

    def __init__(self, packed: Any) -> None:
        self._packed = packed

    def write(self, text: str) -> int:
        self._packed.write(text.encode())
        return len(text)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if not path.is_file():
        raise NotFound(f"{path} does not exist; name a file.")
    with path.open("rb") as plain:
        magic = plain.read(4)
        plain.seek(0)
        try:
            if magic.startswith(GZIP_MAGIC):
                with gzip.open(plain) as packed:
                    yield packed  # type: ignore[misc]
            elif magic == ZSTD_MAGIC:
                import pyarrow as pa

                with pa.CompressedInputStream(pa.PythonFile(plain, "r"), "zstd") as stream:
                    yield io.BufferedReader(_Raw(stream), CHUNK)
            else:
                yield plain
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise BadInput(f"{path} is damaged ({error}); copy it again.") from error


class _Raw(io.RawIOBase):
    """An Arrow input stream as Python's raw file: its own has no lines."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except ValueError as error:  # what Arrow's exceptions are besides
            raise OSError(str(error)) from error
        buffer[: len(data)] = data
        return len(data)


class _Text:
    """Characters of a file, read as they are asked for; `line` is that of the buffer's first character."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.buffer = ""
        self.line = 1
        self.ended = False

    def more(self, size: int = CHUNK) -> None:
        data = self._file.read(size)
        self.ended = not data
        try:
            self.buffer += self._decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            raise BadInput(f"The file is not UTF-8 from line {self.line} on; save it as UTF-8.") from error

    def drop(self, count: int) -> None:
        self.line += self.buffer.count("\n", 0, count)
        self.buffer = self.buffer[count:]

    def skip_blank(self) -> str:
        """The next character that is not blank, which stays; empty at the end."""
        while True:
            stripped = self.buffer.lstrip(BLANK)
            self.drop(len(self.buffer) - len(stripped))
            if self.buffer or self.ended:
                return self.buffer[:1]
            self.more()


def _array(text: _Text, path: Path) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    text.drop(1)  # [
    first = True
    while (mark := text.skip_blank()) != "]":
        if not first:
            if mark != ",":
                raise BadInput(f"{path} line {text.line}: the array is cut off or has no comma here; save it again.")
            text.drop(1)
            text.skip_blank()
        first = False
        size = CHUNK
        while True:
            try:
                value, end = decoder.raw_decode(text.buffer)
            except ValueError as error:
                if text.ended:
                    raise BadInput(f"{path} line {text.line}: the item is not JSON ({error}).") from error
            else:
                if end < len(text.buffer) or text.ended:  # a number at the buffer's end may go on
                    break
            text.more(size)
            size *= 2  # a long item is not decoded again for every chunk
        line = text.line
        text.drop(end)
        yield line, value
