"""What the step loop hands to the guards; whole runs are in tests/learning."""

from types import SimpleNamespace

import pytest
import torch

from plaudit.learn import base_models, online_run
from plaudit.learn.experience import run_trunks
from plaudit.learn.nets import Decoder
from plaudit.learn.rewards import features, normed
from plaudit.learn.tokens import Rollout, pack


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return Decoder.load(base_models.prepare("tiny", tmp_path_factory.mktemp("bases")), torch.float32)


def observed(decoder, depths):
    """Two prompts with two responses each, one of them longer than an opening, in micro-batches of several orders."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 200, (n,), generator=generator).tolist() for n in (4, 24, 7, 1)]
    rollout = Rollout([[5, 6, 7], [8, 9]], ids, [0, 0, 1, 1], [True] * 4)
    trunks = run_trunks(decoder, rollout, depths, 4096)
    return SimpleNamespace(rollout=rollout, trunks=trunks, packs=[*pack(rollout, [1, 2]), *pack(rollout, [0, 3])])


@torch.no_grad()
def test_an_opening_s_state_is_the_mean_over_its_tokens_in_the_deepest_frozen_layer(decoder):
    seen = observed(decoder, (1, 2))
    got = online_run.opening_states(decoder, seen)
    for row, (group, ids) in enumerate(zip(seen.rollout.group, seen.rollout.response_ids, strict=True)):
        prompt = seen.rollout.prompt_ids[group]
        whole = torch.tensor([prompt + ids])
        n = whole.shape[1]
        hidden = decoder.run_layers(
            decoder.embed(whole), torch.arange(n)[None], torch.ones(n, n).tril().bool()[None], 0, 2, None
        )
        states = features(normed(decoder, hidden[0, len(prompt) :][: online_run.OPENING], 2))
        torch.testing.assert_close(got[row], states.mean(dim=0), atol=1e-5, rtol=1e-4)


def test_without_a_frozen_layer_there_is_none(decoder):
    assert online_run.opening_states(decoder, observed(decoder, ())) is None
