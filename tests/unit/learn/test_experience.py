"""Prompts, minibatches, held graphs and the step loop that ppo and grpo share; both programs' own behaviour is in tests/learning."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from plaudit.artifacts import PreferenceRow, PromptRow, write_snapshot
from plaudit.errors import BadInput, TrainingStopped
from plaudit.learn import base_models, experience
from plaudit.learn.configs import PPOConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.tokens import ChatTokenizer, Rollout, pack


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


@pytest.fixture
def snapshot(tmp_path):
    asked = [({"role": "user", "content": text},) for text in ("one", "two", "two", "three", "held out")]
    prompts = [PromptRow(f"q{i}", "f", "test" if i == 4 else "train", messages) for i, messages in enumerate(asked)]
    preferences = [PreferenceRow("p", "c", "o", "f", "train", asked[0], "a", "b", 1.0, 1.0, "annotation")]
    return write_snapshot(tmp_path, preferences, [], prompts, {}, {}).folder


def config(snapshot, **changes):
    return from_dict(PPOConfig, {"snapshot": str(snapshot), "base": "b", "reward": "r"} | changes)


def test_prompts_are_the_training_split_s_each_once(snapshot, base):
    tokenizer = ChatTokenizer.load(base)
    got = experience.read_prompts(config(snapshot, sampling={"prompts_per_step": 3}), tokenizer)
    expected = [tokenizer.render([{"role": "user", "content": text}]) for text in ("one", "two", "three")]
    assert sorted(prompt.ids for prompt in got) == sorted(expected)
    assert all(tokenizer.render(prompt.messages) == prompt.ids for prompt in got)
    only = config(snapshot, sampling={"prompts_per_step": 1, "prompts": "preferences", "max_prompt_tokens": 3})
    (cut,) = experience.read_prompts(only, tokenizer)
    assert cut.ids == expected[0][-3:]  # the oldest tokens go, the question's end stays
    with pytest.raises(BadInput, match="3 different training prompts, one step takes 12"):
        experience.read_prompts(config(snapshot), tokenizer)


def learner(**changes):
    return SimpleNamespace(
        config=config("s", **changes),
        prompts=[[i] for i in range(10)],
        order=[],
        generator=torch.Generator().manual_seed(0),
    )


def test_a_pass_takes_no_prompt_twice_and_passes_differ():
    some = learner(sampling={"prompts_per_step": 4})
    first, second, third, fourth = (experience.next_prompts(some) for _ in range(4))
    for one, other in ((first, second), (third, fourth)):
        assert len({ids[0] for ids in one + other}) == 8
    assert (first, second) != (third, fourth)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_minibatches_hold_whole_groups_once(n):
    rollout = Rollout([[1, 2]] * 5, [[3] * (1 + i % 4) for i in range(15)], [i // 3 for i in range(15)], [True] * 15)
    parts = experience.split(learner(minibatches=n, sampling={"prompts_per_step": 5}), rollout)
    members = [sorted(int(i) for batch in part for i in batch.response) for part in parts]
    assert len(parts) == n
    assert sorted(i for part in members for i in part) == list(range(15))
    for part in members:
        assert all({3 * (i // 3), 3 * (i // 3) + 1, 3 * (i // 3) + 2} <= set(part) for i in part)


@pytest.mark.parametrize(("packs", "hold", "held"), [(1, True, 1), (2, True, 2), (3, True, 0), (1, False, 0)])
def test_graphs_of_the_first_minibatch_are_held_where_it_is_small(packs, hold, held):
    rollout = Rollout([[1, 2]] * 4, [[3, 4], [5], [6], [7]], [0, 1, 2, 3], [True] * 4)
    first = [pack(rollout, [i])[0] for i in range(packs)]
    rest = pack(rollout, list(range(packs, 4)))
    weight = torch.ones((), requires_grad=True)
    seen = []

    def forward(batch):
        made = {"logprobs": weight * batch.targets.float(), "ends": weight * batch.response.float()}
        seen.append(made["logprobs"].requires_grad)
        return made

    old = experience.old_pass([first, rest], rollout.counts(), forward, hold)
    assert seen == [bool(held)] * packs + [False] * len(rest)
    assert len(old.held) == held
    assert old.logprobs.tolist() == [[3.0, 4.0], [5.0, 0.0], [6.0, 0.0], [7.0, 0.0]]
    assert old.columns["ends"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not old.logprobs.requires_grad


def test_trunks_of_several_depths_are_those_run_alone(base):
    decoder = Decoder.load(base, torch.float32)
    rollout = Rollout([[1, 2, 3], [4]], [[5, 6], [7], [8, 9, 10]], [0, 0, 1], [True] * 3)
    trunks = experience.run_trunks(decoder, rollout, (2, 0, 1, 2), micro_tokens=8)
    assert set(trunks) == {0, 1, 2}
    assert trunks[0] is None
    for depth in (1, 2):
        alone = experience.run_trunks(decoder, rollout, (depth,), micro_tokens=1000)[depth]
        torch.testing.assert_close(trunks[depth].hidden, alone.hidden, atol=1e-5, rtol=0)


def test_a_loss_or_gradient_that_is_no_number_names_its_minibatch():
    """The rollout, which minibatch, and whose prompts; the optimizer is not asked where the loss is none."""
    rollout = Rollout([[1, 2]] * 2, [[3, 4], [5], [6]], [0, 1, 1], [True] * 3)
    messages = [({"role": "user", "content": text},) for text in ("Where is it?", "x" * 60)]
    parts = [pack(rollout, [0]), pack(rollout, [1, 2])]
    seen = SimpleNamespace(rollout=rollout, minibatches=parts, messages=messages)
    some = learner(minibatches=2, sampling={"prompts_per_step": 2})

    def step(*_):
        raise TrainingStopped("The gradient of update 0 is not finite (nan); lower the learning rate.")

    some.adam = SimpleNamespace(step=step)
    found = {"approx_kl": 0.0, "ratio": 1.0}

    def run(gradient):
        experience.run_epochs(some, seen, SimpleNamespace(held=[]), 3, gradient)

    with pytest.raises(
        TrainingStopped,
        match=r"^Rollout 3, epoch 1, minibatch 1, 1 prompts \('Where is it\?'\): The gradient of update 0",
    ):
        run(lambda *_: (found, 0.0))
    some.adam.step = lambda *_: (1.0, 1e-3)

    def broken(packs, _):
        return found | {"policy_loss": float("nan") if packs is parts[1] else 0.0}, 0.0

    with pytest.raises(TrainingStopped, match=r"minibatch 2, 1 prompts \('x{40}'\): its loss is not a number"):
        run(broken)
    some.config, some.generator = config("s", minibatches=2, epochs=2), torch.Generator().manual_seed(1)
    assert torch.randperm(2, generator=torch.Generator().manual_seed(1)).tolist() == [1, 0]
    met = []

    def later(packs, _):
        met.append(packs)
        return found | {"policy_loss": float("nan") if len(met) == 3 else 0.0}, 0.0

    with pytest.raises(
        TrainingStopped, match=r"epoch 2, minibatch 2, 1 prompts \('x{40}'\)"
    ):  # the first of the second epoch
        run(later)


def test_updates_have_their_place_in_the_schedule_and_what_went_far_is_skipped_or_ends_the_epochs():
    """Rollout 3 of 2 epochs of 2 minibatches: updates 8 to 11, but for one whose ratio is above 10; a KL above 1.5 targets ends it."""
    rollout = Rollout([[1, 2]] * 2, [[3, 4], [5], [6]], [0, 1, 1], [True] * 3)
    parts = [pack(rollout, [0]), pack(rollout, [1, 2])]
    seen = SimpleNamespace(rollout=rollout, minibatches=parts, messages=[])
    placed, cleared = [], []
    some = learner(minibatches=2, sampling={"prompts_per_step": 2})
    some.config = config("s", minibatches=2, epochs=2, steps=7, target_approx_kl=0.1)
    some.adam = SimpleNamespace(step=lambda *at: placed.append(at) or (1.0, 1e-3), clear=lambda: cleared.append(1))

    def run(**second):
        placed.clear(), cleared.clear()
        some.generator, met = torch.Generator().manual_seed(1), []

        def gradient(packs, _):
            met.append(packs)
            return {"approx_kl": 0.1499, "ratio": 10.0} | (second if len(met) == 2 else {}), 0.0

        return experience.run_epochs(some, seen, SimpleNamespace(held=[]), 3, gradient)

    whole = run()
    assert placed == [(8, 28), (9, 28), (10, 28), (11, 28)]
    assert (whole["updates"], whole["skipped"], whole["early_stop"], cleared) == (4, 0, False, [])
    far = run(ratio=10.001)
    assert placed == [(8, 28), (10, 28), (11, 28)]
    assert (far["updates"], far["skipped"], far["early_stop"], cleared) == (3, 1, False, [1])
    ended = run(approx_kl=0.1501)
    assert (placed, ended["updates"], ended["skipped"], ended["early_stop"], cleared) == ([(8, 28)], 1, 0, True, [1])


def test_kl_is_told_by_response_by_token_and_at_its_tail():
    """Four responses of 1 to 3 tokens, summed by hand."""
    rollout = Rollout([[1]], [[3], [4, 5], [6, 7], [8, 9, 10]], [0] * 4, [True, True, False, True])
    policy = torch.tensor([[0.5, 9, 9], [0.0, 0.2, 9], [-0.1, 0.3, 9], [1.0, 1.0, 2.0]])  # 9: no token there
    scored = SimpleNamespace(total=torch.tensor([1.0, 2.0, 3.0, 4.0]), terms={}, disagreement=None)
    seen = SimpleNamespace(
        rollout=rollout, counts=rollout.counts(), reference=torch.zeros(4, 3), scored=scored, sampler=None
    )
    old = experience.Old({"logprobs": policy}, [])
    rewards = torch.tensor([[0.5, 0.0, 0.0]] * 3 + [[0.5, 1.0, 2.0]])
    row = experience.figures_of(SimpleNamespace(kl_coef=0.05, config=config("s")), seen, old, rewards)
    assert row["kl"] == pytest.approx((0.5 + 0.2 + 0.2 + 4.0) / 4)
    assert row["kl_se"] == pytest.approx(np.std([0.5, 0.2, 0.2, 4.0], ddof=1) / 2)
    logs = np.array([0.5, 0.0, 0.2, -0.1, 0.3, 1.0, 1.0, 2.0])
    assert row["kl_k3"] == pytest.approx((np.exp(-logs) - 1 + logs).sum() / 4)
    assert (row["kl_coef"], row["n"], row["response_tokens"]) == (0.05, 4, 2.0)
    assert row["reward"] == pytest.approx((3 * 0.5 + 3.5) / 4)
    assert (row["score"], row["score_sd"]) == (2.5, pytest.approx(np.std([1, 2, 3, 4], ddof=1)))
    assert row["kl_per_token"] == pytest.approx(4.9 / 8)
    assert row["kl_p95"] == pytest.approx(0.5 + 0.85 * 3.5)  # between the two largest
    assert row["eos_fraction"] == 0.75
