"""The formats by name: what `plaudit import` reads and `plaudit export` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from plaudit.errors import BadInput
from plaudit.formats import argilla, ground_truth, hh, label_studio, labelbox, summarize, trl
from plaudit.formats.files import Rejected
from plaudit.formats.records import LossReport, Record

Reader = Callable[[Path, str], Iterator[Record | Rejected]]
Writer = Callable[[Iterable[Record], Path], LossReport]

READERS: Mapping[str, Reader] = {
    "trl": trl.read,
    "hh": hh.read,
    "summarize": summarize.read,
    "label-studio": label_studio.read,
    "argilla": argilla.read,
    "labelbox": labelbox.read,
    "ground-truth": ground_truth.read,
}
WRITERS: Mapping[str, Writer] = {
    "trl": trl.write,
    "trl-margin": partial(trl.write, margin=True),
    "trl-text": partial(trl.write, conversational=False),
    "trl-unpaired": partial(trl.write, kind="unpaired"),
    "trl-completion": partial(trl.write, kind="completion"),
    "hh": hh.write,
    "label-studio": label_studio.write,
    "labelbox": labelbox.write,
    "ground-truth": ground_truth.write,
    "ground-truth-input": ground_truth.write_input,
}


def reader(name: str) -> Reader:
    if name not in READERS:
        raise BadInput(f"Format {name!r} is not read; choose from: {', '.join(READERS)}.")
    return READERS[name]


def writer(name: str) -> Writer:
    if name not in WRITERS:
        raise BadInput(f"Format {name!r} is not written; choose from: {', '.join(WRITERS)}.")
    return WRITERS[name]
