"""Which decoder runs a base: the fast one (nets.py) where it reads the model and gives what transformers gives, else the plain one.

The self-check runs both on a few short random rows, packed as training packs them, and compares logits. It runs once for each base and
dtype: its verdict lies in the base's folder and is bound to the base's sha256. `tiny` is not checked: our tests compare it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import torch

from plaudit.artifacts import MANIFEST, write_atomic
from plaudit.errors import BadInput, NotFound
from plaudit.learn import plain
from plaudit.learn.base_models import BaseIdentity, identity
from plaudit.learn.nets import Decoder, DecoderConfig, Shape, pick_dtype
from plaudit.learn.plain import PlainDecoder
from plaudit.learn.tokens import Rollout, at_predict, hidden_states, pack

log = logging.getLogger("plaudit.learn")

VERDICTS = ".plaudit-self-check"  # no suffix: what copies a model's files leaves it behind
RECIPE = 1  # raised when either path changes what it computes, so that an old verdict is not taken for a new one
# Largest difference of a logit, in units of the logits' root mean square. bf16 rounds after every product, in another
# order on each path: .07 for SmolLM2-135M, where fp32 gives 4e-6 and rotary angles rounded to a tenth give .2 in both.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}

Verdict = Literal["fast", "plain", "unchecked"]


def load(folder: Path, dtype: torch.dtype) -> Decoder:
    """The decoder of a base, fast where that is proven. Raises NotFound, BadInput (files missing, incomplete, no causal LM)."""
    try:
        DecoderConfig.read(folder)
    except BadInput as reason:
        return _by_transformers(reason, lambda: PlainDecoder.load(folder, dtype))
    decoder = Decoder.load(folder, dtype)
    return PlainDecoder.load(folder, dtype) if check(folder, decoder) == "plain" else decoder


def read_config(folder: Path) -> Shape:
    """The shape of what `load` gives, without the weights. Raises as it does."""
    try:
        config = DecoderConfig.read(folder)
    except BadInput as reason:
        return _by_transformers(reason, lambda: plain.read_config(folder))
    fell_back = (folder / VERDICTS).is_file() and "plain" in _verdicts(folder, identity(folder).sha256).values()
    return plain.read_config(folder) if fell_back else config


def prove(folder: Path) -> None:
    """Check a base now, in the dtype that this machine prefers, so that no server does it at its start. Raises as `load` does."""
    shape = read_config(folder)
    if isinstance(shape, DecoderConfig) and _remembered(folder, identity(folder), pick_dtype()) is None:
        load(folder, pick_dtype())


def check(folder: Path, decoder: Decoder) -> Verdict:
    """The self-check of a base that the fast path has read, or its remembered verdict. Warns where it fails and where it cannot run."""
    base = identity(folder)
    said = _remembered(folder, base, decoder.dtype)
    if said is not None:
        return said
    said = _compare(folder, decoder)
    verdicts = _verdicts(folder, base.sha256) | {_name(decoder.dtype): said}
    note = {"base": base.sha256, "recipe": RECIPE, "verdicts": verdicts}
    if not (folder / MANIFEST).is_file():  # a Checkpoint holds what its manifest names and nothing else
        try:
            write_atomic(folder / VERDICTS, json.dumps(note) + "\n")
        except OSError as error:
            log.info("The verdict on %s cannot be kept (%s); it is checked again next time.", folder, error)
    return said


def _remembered(folder: Path, base: BaseIdentity, dtype: torch.dtype) -> Verdict | None:
    """None where the check has to run: never before, or only now that transformers is installed."""
    if base.spec == "tiny":
        return "fast"
    verdicts = _verdicts(folder, base.sha256)
    if "plain" in verdicts.values():  # one path for a base, whatever the dtype: adapters are read for it
        return "plain"
    said = verdicts.get(_name(dtype))
    return None if said == "unchecked" and plain.installed() else said


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compare(folder: Path, decoder: Decoder) -> Verdict:
    if not plain.installed():
        log.warning(
            "%s: the fast path is used unchecked; with transformers installed (extra hf) it would be compared.", folder
        )
        return "unchecked"
    try:
        other = PlainDecoder.load(folder, decoder.dtype)
    except BadInput as error:
        log.warning(
            "%s: the fast path is used unchecked, because there is nothing to compare it with. %s", folder, error
        )
        return "unchecked"
    difference, tolerance = largest_difference(decoder, other), TOLERANCE[decoder.dtype]
    if difference <= tolerance:
        log.info("%s: fast and plain path agree in %s (largest difference %.2g).", folder, decoder.dtype, difference)
        return "fast"
    log.warning(
        "%s: the fast path differs from transformers by %.3g in %s (at most %.3g may be, in units of the logits' root mean square); "
        "the plain path is used, which is right and slower.",
        folder, difference, decoder.dtype, tolerance,
    )  # fmt: skip
    return "plain"


@torch.no_grad()
def largest_difference(one: Decoder, other: Decoder, seed: int = 0) -> float:
    """Between the logits of two decoders at the tokens of random responses, over the root mean square of the second's.

    Two prompts with three and two responses each, of 1 to 24 tokens, packed behind their prompt.
    """
    generator = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> list[int]:
        ids: list[int] = torch.randint(0, one.config.vocab_size, (n,), generator=generator).tolist()
        return ids

    data = Rollout([tokens(9), tokens(17)], [tokens(n) for n in (24, 5, 1, 12, 3)], [0, 0, 0, 1, 1], [True] * 5)
    worst, squares, n = 0.0, 0.0, 0
    for batch in pack(data, token_budget=64):
        left, right = (
            decoder.logits(at_predict(hidden_states(decoder, None, batch), batch)[batch.counts])
            for decoder in (one, other)
        )
        difference = float((left - right).abs().max())
        worst = max(worst, math.inf if math.isnan(difference) else difference)
        squares, n = squares + float(right.square().sum()), n + right.numel()
    return worst / math.sqrt(squares / n)


def _verdicts(folder: Path, sha256: str) -> dict[str, Verdict]:
    """By dtype; empty where nothing is remembered of this very base."""
    if not (folder / VERDICTS).is_file():
        return {}
    note = json.loads((folder / VERDICTS).read_text())
    known: dict[str, Verdict] = note["verdicts"] if (note["base"], note["recipe"]) == (sha256, RECIPE) else {}
    return known


T = TypeVar("T")


def _by_transformers(reason: BadInput, read: Callable[[], T]) -> T:
    """Read what the fast path does not; where transformers is missing, say what the fast path said as well."""
    try:
        return read()
    except NotFound as missing:
        raise NotFound(f"{reason} {missing}") from missing
