"""Where a policy program starts."""

import pytest
import torch

from plaudit.errors import ConfigError
from plaudit.learn import base_models, checkpoint, policies
from plaudit.learn.configs import ComputeConfig, LoraConfig
from plaudit.learn.nets import pick_dtype


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


def test_dtype_is_the_config_s_or_the_faster_one():
    assert policies.choose_dtype(ComputeConfig(dtype="float32")) == torch.float32
    assert policies.choose_dtype(ComputeConfig(dtype="bfloat16")) == torch.bfloat16
    assert policies.choose_dtype(ComputeConfig()) == pick_dtype()


def test_a_start_is_continued_with_its_own_shape(tiny, tmp_path):
    compute = ComputeConfig(dtype="float32")
    lora = LoraConfig(rank=4, alpha=8)
    _, adapter = policies.load_start(str(tiny), "", lora, 2, 0, compute)
    adapter.b["3:o_proj"].data.fill_(0.25)
    checkpoint.save_policy(tmp_path / "c", adapter, tiny, {}, {})
    _, again = policies.load_start(str(tiny), str(tmp_path / "c"), lora, 2, 0, compute)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in adapter.state_dict().items())
    assert all(p.requires_grad for p in again.parameters())
    for wrong, first_layer, word in (
        (LoraConfig(rank=8, alpha=8), 2, "rank 8 where it has 4"),
        (lora, 1, "first_layer 1"),
    ):
        with pytest.raises(ConfigError, match=word):
            policies.load_start(str(tiny), str(tmp_path / "c"), wrong, first_layer, 0, compute)


def test_first_layer_must_leave_something(tiny):
    with pytest.raises(ConfigError, match="4 layers"):
        policies.load_base(str(tiny), 4, torch.float32)
