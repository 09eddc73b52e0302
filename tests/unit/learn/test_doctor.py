"""Each check of the doctor passes on what is right and stops on the smallest wrong."""

import pytest
import torch
from torch import nn

from plaudit.errors import TrainingStopped
from plaudit.learn import doctor
from plaudit.learn.advantages import token_rewards

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_kl_at_step_zero():
    logprobs = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    other = torch.where(MASK, logprobs, torch.tensor(99.0))  # padding may differ
    doctor.check_start_is_reference(logprobs, other, MASK)
    other[1, 2] = torch.nextafter(logprobs[1, 2], torch.tensor(10.0))
    with pytest.raises(TrainingStopped, match="token 2 of response 1"):
        doctor.check_start_is_reference(logprobs, other, MASK)


def test_first_ratio():
    doctor.check_first_ratio(0.0, step=1)
    with pytest.raises(TrainingStopped, match="step 1"):
        doctor.check_first_ratio(1e-7, step=1)


def test_masks():
    doctor.check_masks(MASK, [2, 3])
    with pytest.raises(TrainingStopped, match="response 0 counts 2"):
        doctor.check_masks(MASK, [3, 3])


@pytest.mark.parametrize("shift", [0, -1])
def test_score_position(shift):
    scores, kl = torch.tensor([1.0, -2.0]), torch.full((2, 3), 0.5)
    rewards = token_rewards(scores, kl, MASK, kl_coef=0.1)
    penalties = token_rewards(torch.zeros(2), kl, MASK, kl_coef=0.1)
    if shift == 0:
        doctor.check_score_position(rewards, penalties, scores, MASK)
        return
    early = penalties.clone()
    early[0, 0] += 1.0  # off by one, as DeepSpeed-Chat
    early[1, 1] -= 2.0
    with pytest.raises(TrainingStopped, match="last real token"):
        doctor.check_score_position(early, penalties, scores, MASK)
    late = rewards.clone()
    late[0, 2] = 1.0  # on the first pad, as TRL
    with pytest.raises(TrainingStopped, match="neither"):
        doctor.check_score_position(late, penalties, scores, MASK)


def test_trainable_and_dtype():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    doctor.check_trainable(module, [module.weight], torch.float32)
    with pytest.raises(TrainingStopped, match="weight asks for gradients"):
        doctor.check_trainable(module, [], torch.float32)
    with pytest.raises(TrainingStopped, match=r"asked for torch\.bfloat16"):
        doctor.check_trainable(module, [module.weight], torch.bfloat16)


def test_dropout_is_off():
    doctor.check_off(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0), nn.Dropout(0.5).eval()))
    with pytest.raises(TrainingStopped, match="drops out"):
        doctor.check_off(nn.Sequential(nn.Dropout(0.1)))


def test_first_preferences():
    doctor.check_first_preferences(0.0, 0.6931472, 0.6931471805599453)
    with pytest.raises(TrainingStopped, match=r"differ by 1e-09 nats"):
        doctor.check_first_preferences(1e-9, 0.6931472, 0.6931472)
    with pytest.raises(TrainingStopped, match=r"first loss is 0\.693247; .* must be 0\.693147"):
        doctor.check_first_preferences(0.0, 0.6932472, 0.6931472)


def test_a_loss_that_is_not_finite_names_its_rows():
    doctor.check_finite(1e30, 1, [])
    with pytest.raises(TrainingStopped, match=r"update 3 is nan \(rows p0, p1, p2, p3, p4, p5, p6, p7 \.\.\.\)"):
        doctor.check_finite(float("nan"), 3, [f"p{i}" for i in range(9)])


def test_a_gradient_that_is_not_finite_names_its_rows():
    with (
        pytest.raises(TrainingStopped, match=r"The gradient is nan\. Its rows are p0, p1\."),
        doctor.naming(["p0", "p1"]),
    ):
        raise TrainingStopped("The gradient is nan.")
