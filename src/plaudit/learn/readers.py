"""Bases other than the one that a program runs on, for reward models that stand on them.

A reward model reads the very ids that were sampled (checklist 2) where it stands on the policy's own base. One that stands on another has
another tokenizer: it reads the responses' text, encoded anew by that tokenizer, with EOS where a response ended by itself. This is the only
place where sampled ids become text and ids again, and nothing that is encoded here is ever trained on by a policy.

Other bases are found by the hashes that a Checkpoint records: among the folders that the config names in `bases`, then among the bases
of the cache in which the program's own lies. Each is loaded once, when the first reward model asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from plaudit.learn import decoders
from plaudit.learn.answers import Messages
from plaudit.learn.base_models import PREPARED, BaseIdentity, identity
from plaudit.learn.nets import Decoder
from plaudit.learn.tokens import ChatTokenizer, Pack, Rollout, from_text, pack


@dataclass(frozen=True)
class Texts:
    """A rollout as text: G conversations and the responses to each, in the rollout's order, N in all."""

    prompts: Sequence[Messages]  # G
    responses: Sequence[Sequence[str]]  # G, without stop tokens
    finished: Sequence[Sequence[bool]]  # G


def texts_of(rollout: Rollout, prompts: Sequence[Messages], tokenizer: ChatTokenizer) -> Texts:
    """Decode a rollout whose responses come group by group; prompts[g] is the conversation that prompt g was rendered from."""
    assert rollout.group == sorted(rollout.group)
    responses: list[list[str]] = [[] for _ in prompts]
    finished: list[list[bool]] = [[] for _ in prompts]
    for group, ids, end in zip(rollout.group, rollout.response_ids, rollout.finished, strict=True):
        responses[group].append(tokenizer.decode(ids))
        finished[group].append(end)
    return Texts(prompts, responses, finished)


@dataclass(frozen=True)
class Reader:
    """One such base, ready to read."""

    folder: Path
    tokenizer: ChatTokenizer
    decoder: Decoder
    micro_tokens: int  # of one forward pass

    def packs(self, texts: Texts, responses: Sequence[int]) -> list[Pack]:
        """These of the N responses in this base's tokens, under the numbers that they have in the rollout.

        A conversation that leaves no room for its responses in the base's positions loses its oldest tokens; a response with no token at
        all (cut off before its first letter) is read as a space.
        """
        ends_itself = self.tokenizer.eos_id is not None
        said = [
            [text or ("" if end and ends_itself else " ") for text, end in zip(group, ends, strict=True)]
            for group, ends in zip(texts.responses, texts.finished, strict=True)
        ]
        positions = self.decoder.config.max_positions
        data = from_text(self.tokenizer, texts.prompts, said, texts.finished, max_response_tokens=positions // 2)
        room = positions - max(map(len, data.response_ids))
        data = Rollout([ids[-room:] for ids in data.prompt_ids], data.response_ids, data.group, data.finished)
        return pack(data, sorted(responses), self.micro_tokens)


@dataclass
class Readers:
    """Where to look for other bases, and those that are loaded."""

    named: Sequence[Path]
    own: Path  # the program's base: prepared bases beside it are looked through too
    dtype: torch.dtype
    micro_tokens: int
    loaded: dict[Path, Reader] = field(default_factory=dict)
    known: dict[Path, BaseIdentity] = field(default_factory=dict)  # hashing weights takes seconds

    def find(self, said: Mapping[str, Any]) -> Reader | None:
        """The base that a manifest describes, or None where it is not among them."""
        for folder in (*self.named, *self._beside()):
            if folder not in self.known:
                self.known[folder] = identity(folder)
            if belongs(said, self.known[folder]):
                if folder not in self.loaded:
                    tokenizer, decoder = ChatTokenizer.load(folder), decoders.load(folder, self.dtype)
                    self.loaded[folder] = Reader(folder, tokenizer, decoder, self.micro_tokens)
                return self.loaded[folder]
        return None

    def _beside(self) -> list[Path]:
        """Prepared bases, and downloads in the hub's layout (CACHE/hub/models--NAME/snapshots/REVISION)."""
        cache = self.own.absolute().parent
        if cache.name == "snapshots":
            cache = cache.parents[2]
        downloads = (path.parent for path in cache.glob("hub/models--*/snapshots/*/tokenizer.json"))
        return sorted(note.parent for note in cache.glob(f"*/{PREPARED}")) + sorted(downloads)


def belongs(said: Mapping[str, Any], here: BaseIdentity) -> bool:
    """Whether a manifest's facts (`base`, `tokenizer_sha256`, `template_sha256`) are those of this base."""
    theirs = (said["base"]["sha256"], said["tokenizer_sha256"], said["template_sha256"])
    return theirs == (here.sha256, here.tokenizer_sha256, here.template_sha256)
