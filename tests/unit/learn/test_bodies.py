"""Bodies are made as the config says, and come back from a state as they were."""

import numpy as np
import pytest
import torch

from plaudit.errors import ConfigError
from plaudit.learn import base_models, bodies, questions, reward
from plaudit.learn.configs import RewardConfig, from_dict
from plaudit.learn.pairs_file import Pair
from plaudit.learn.run_folder import RunFolder
from plaudit.learn.tokens import ChatTokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


def config(base, **values):
    fast = {"base": str(base), "preferences": "p", "compute": {"dtype": "float32"}, "lora": {"rank": 4}}
    return from_dict(RewardConfig, fast | values)


def test_a_state_brings_back_bodies_optimizer_and_curve(base, tmp_path):
    some = [
        Pair(f"p{i}", "", "overall", f"f{i}", "train", ({"role": "user", "content": f"q{i}"},), f"good {i}", "bad", 0.9, 1.0, "x")
        for i in range(4)
    ]  # fmt: skip
    run, settings = RunFolder(tmp_path), config(base, members=2)
    decoder = bodies.load_decoder(settings)
    data = questions.encode(ChatTokenizer.load(base), some, settings, decoder)
    first, second = (bodies.start(settings, decoder, [member]) for member in (0, 1))
    for body, groups, n in ((first, [0, 1, 2, 3], 1), (second, [0, 1], 2)):
        target = reward.Targets.of(settings, some, [], body.members)
        reward.update(body, settings, data, groups, target, some, n)
        body.update = 1
    bodies.save([first, second], 1, [{"update": 1}], run)
    fresh = [bodies.start(settings, decoder, [member]) for member in (0, 1)]
    assert bodies.restore(fresh, run) == (1, [{"update": 1}])
    for ours, theirs in zip(fresh, (first, second), strict=True):
        assert ours.update == theirs.update
        assert all(torch.equal(tensor, theirs.trained()[name]) for name, tensor in ours.trained().items())
    assert fresh[1].seen == second.seen
    np.testing.assert_array_equal(fresh[1].adam.first[0], second.adam.first[0])
    assert bodies.restore(fresh, RunFolder(tmp_path / "empty")) is None


def test_members_differ_by_seed_and_share_one_body_only_where_asked(base):
    trunk = config(base, members=2)
    one, two = bodies.start_all(trunk, bodies.load_bases(trunk))
    assert (one.members, two.members) == ([0], [1])
    assert one.decoder is two.decoder
    assert not torch.equal(one.heads[0].weight, two.heads[0].weight)
    assert any(not torch.equal(a, b) for a, b in zip(one.adapter.parameters(), two.adapter.parameters(), strict=True))
    shared = config(base, members=3, members_share="body", heads=[{"criterion": "kind"}, {"criterion": "brief"}])
    (body,) = bodies.start_all(shared, bodies.load_bases(shared))
    assert body.members == [0, 1, 2]
    assert len(body.heads) == 6
    assert body.scores(torch.zeros(5, len(body.heads[0].weight))).shape == (5, 3, 2)


def test_full_weights_in_bfloat16_and_a_layer_that_is_not_there_are_refused(base):
    with pytest.raises(ConfigError, match="train them in float32, or use LoRA"):
        bodies.load_decoder(config(base, lora=None, compute={"dtype": "bfloat16"}))
    with pytest.raises(ConfigError, match=r"read_layer is 9, but .* has 4 layers"):
        bodies.load_decoder(config(base, read_layer=9))
