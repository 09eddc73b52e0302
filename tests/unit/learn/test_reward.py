"""The parts of the reward program whose result can be told by hand; training itself is in tests/learning/test_reward_learning.py."""

import pytest
import torch

from plaudit.artifacts import ThumbRow
from plaudit.errors import TrainingStopped
from plaudit.learn import base_models, bodies, questions, reward
from plaudit.learn.configs import RewardConfig, from_dict
from plaudit.learn.nets import ScalarHead
from plaudit.learn.pairs_file import Pair
from plaudit.learn.tokens import ChatTokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


def config(base="b", **values):
    return from_dict(
        RewardConfig,
        {"base": str(base), "preferences": "p", "compute": {"dtype": "float32"}, "lora": {"rank": 4}} | values,
    )


def rows(n=6, criterion="overall", **extra):
    return [
        Pair(
            f"p{i}", "", criterion, f"f{i % 3}", "train", ({"role": "user", "content": f"q{i}"},), f"good {i}", "bad", 0.9,
            float(1 + i % 2), "import", **extra,
        )
        for i in range(n)
    ]  # fmt: skip


def begin(base, some, who=(0,), **values):
    settings = config(base, **values)
    decoder = bodies.load_decoder(settings)
    body = bodies.start(settings, decoder, list(who))
    data = questions.encode(ChatTokenizer.load(base), some, settings, decoder)
    return settings, body, data, reward.Targets.of(settings, some, [], list(who))


def thumb(i, response, up=True, finished=True):
    return ThumbRow(
        f"t{i}", f"f{i % 3}", "train", ({"role": "user", "content": f"q{i}"},), response, up, response_finished=finished
    )


def test_a_thumb_joins_the_answer_of_its_prompt_and_else_makes_its_own(base):
    some = rows(3)
    settings = config(base)
    decoder = bodies.load_decoder(settings)
    given = [
        thumb(1, "good 1"),
        thumb(2, "else", up=False),
        thumb(7, "alone"),
        thumb(1, "bad"),
        thumb(1, "good 1", finished=False),
    ]
    tokenizer = ChatTokenizer.load(base)
    alone = questions.encode(tokenizer, some, settings, decoder)
    data = questions.encode(tokenizer, some, settings, decoder, None, given)
    assert len(alone.data.response_ids) == 6
    assert len(data.data.response_ids) == 6 + 3  # "else", "alone", and "good 1" cut off
    assert len(data.pairs) == len(data.thumbs) == 4
    assert data.pairs[3] == []
    assert data.liked[0] == data.chosen[1]
    assert data.liked[3] == data.rejected[1]
    assert data.liked[4] not in (data.chosen[1], data.rejected[1])
    for pairs in (alone, data):
        texts = [tokenizer.decode(pairs.data.response_ids[int(r)]) for r in pairs.chosen]
        assert [text.startswith(f"good {i}") for i, text in enumerate(texts)] == [True] * 3


def test_a_thumb_counts_as_so_many_pairs_and_moves_the_bias(base):
    """The gradient of one pair and two thumbs is that of their weighted mean loss, written out by hand."""
    said = [{"source": "thumb", "weight": 0.5}]
    settings = config(base, preferences="", snapshot="s", source_weights=said, centring=0.0)
    decoder = bodies.load_decoder(settings)
    body = bodies.start(settings, decoder, [0])
    some, given = rows(1), [thumb(0, "good 0"), thumb(0, "bad", up=False)]
    data = questions.encode(ChatTokenizer.load(base), some, settings, decoder, None, given)
    target = reward.Targets.of(settings, some, given, [0])
    scores = reward.all_scores(body, data)[:, 0, 0]
    good, bad = scores[data.chosen[0]], scores[data.rejected[0]]
    logistic = torch.nn.functional.logsigmoid
    pair = -(0.9 * logistic(good - bad) + 0.1 * logistic(bad - good))
    expected = (pair - 0.5 * logistic(good) - 0.5 * logistic(-bad)) / (1 + 2 * 0.5)
    _, figures = reward.update(body, settings, data, [0], target, some, 1)
    assert figures["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert float(body.heads[0].bias.detach()) != 0.0


def test_weights_have_mean_one_and_count_votes_only_where_asked():
    assert reward.pair_weights(config(), rows(), [0])[:, 0].tolist() == pytest.approx([2 / 3, 4 / 3] * 3)
    assert reward.pair_weights(config(use_weights=False), rows(), [0])[:, 0].tolist() == [1.0] * 6


def test_the_bootstrap_draws_whole_families_anew_for_each_member():
    many = rows(300)
    many = [Pair(**(vars(row) | {"family": f"f{i // 3}", "weight": 1.0})) for i, row in enumerate(many)]
    drawn = reward.pair_weights(config(members=2), many, [0, 1])
    counts = drawn.reshape(100, 3, 2)
    assert (counts == counts[:, :1]).all()  # the rows of a family go together
    assert counts[:, 0].sum(dim=0).tolist() == [100, 100]
    assert 0.5 < float((counts[:, 0] > 0).float().mean()) < 0.76  # 1 - 1/e in the mean
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    assert torch.equal(drawn, reward.pair_weights(config(members=2), many, [0, 1]))
    off = reward.pair_weights(config(members=2, bootstrap=False), many, [0, 1])
    assert bool((off == 1).all())


@pytest.mark.parametrize(("criterion", "moves"), [("kind", [True, False]), ("brief", [False, True])])
def test_a_row_trains_the_head_of_its_criterion_only(base, criterion, moves):
    some = rows(4, criterion)
    settings, body, data, target = begin(base, some, heads=[{"criterion": "kind"}, {"criterion": "brief"}])
    before = [head.weight.detach().clone() for head in body.heads]
    reward.update(body, settings, data, [0, 1], target, some, 1)
    assert [not torch.equal(head.weight, old) for head, old in zip(body.heads, before, strict=True)] == moves


def test_a_member_learns_nothing_from_rows_it_did_not_draw(base):
    some = rows(2)
    settings, body, data, target = begin(base, some, (0, 1), members=2, members_share="body")
    target.weights[:, 1] = 0
    before = [head.weight.detach().clone() for head in body.heads]
    reward.update(body, settings, data, [0, 1], target, some, 1)
    moved = [not torch.equal(head.weight, old) for head, old in zip(body.heads, before, strict=True)]
    assert moved == [True, False]


def test_a_margin_moves_the_loss_as_its_formula_says(base):
    losses = []
    for margin in (0.0, 1.5):
        some = rows(2, margin=margin)
        settings, body, data, target = begin(base, some, use_weights=False)
        gap = reward.gaps(body, data)[:, 0, 0]
        _, found = reward.update(body, settings, data, [0, 1], target, some, 1)
        z = gap - margin
        expected = -(0.9 * torch.nn.functional.logsigmoid(z) + 0.1 * torch.nn.functional.logsigmoid(-z)).mean()
        assert found["loss"] == pytest.approx(float(expected), abs=1e-6)
        losses.append(found["loss"])
    assert abs(losses[1] - losses[0]) > 0.1
    off = reward.Targets.of(config(use_margins=False), rows(2, margin=1.5), [], [0])
    assert off.margin.tolist() == [[0.0], [0.0]]


def test_a_loss_that_is_not_finite_names_its_rows_and_moves_nothing(base):
    some = rows(4)
    settings, body, data, target = begin(base, some)
    before = {name: tensor.clone() for name, tensor in body.trained().items()}
    target.margin[2] = float("nan")
    with pytest.raises(TrainingStopped, match=r"loss of update 1 is nan; its rows are p2; .*last saved state stays"):
        reward.update(body, settings, data, [0, 1, 2, 3], target, some, 1)
    body.heads[0].weight.data[0] = float("inf")
    target.margin[2] = 0
    with pytest.raises(TrainingStopped, match="its rows are p0, p1, p2, p3"):
        reward.update(body, settings, data, [0, 1, 2, 3], target, some, 1)
    body.heads[0].weight.data[0] = before["heads.0.weight"][0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.trained().items())


def test_a_gradient_that_is_not_finite_names_its_rows(base, monkeypatch):
    some = rows(2)
    settings, body, data, target = begin(base, some)
    monkeypatch.setattr(reward.losses, "centring", lambda chosen, rejected: (chosen - chosen).sqrt() + 0 * rejected)
    with pytest.raises(TrainingStopped, match=r"gradient of update 0 is not finite.*its rows are p0, p1"):
        reward.update(body, settings, data, [0, 1], target, some, 1)


def test_a_message_names_the_first_rows_and_counts_the_others():
    assert reward._named(rows(8), range(5)) == "its rows are p0, p1, p2, p3, p4"
    assert reward._named(rows(8), range(7)) == "its rows are p0, p1, p2, p3, p4 and 2 more"


def test_a_point_of_the_curve_is_of_the_pairs_since_the_last_one(base):
    some = rows(2)
    settings, body, data, _ = begin(base, some)
    body.seen = [4.0, 3.0, 2.0]
    point = reward.curve_point(settings, body, data, some)
    assert (point["train_accuracy"], point["train_loss"]) == (0.75, 0.5)
    assert body.seen == [0.0, 0.0, 0.0]


def test_the_loss_of_several_members_is_their_mean(base):
    some = rows(2)
    settings, body, data, target = begin(base, some, (0, 1), members=2, members_share="body")
    gap, said = reward.gaps(body, data)[..., 0], target.probability
    wrong = -said * torch.nn.functional.logsigmoid(gap) - (1 - said) * torch.nn.functional.logsigmoid(-gap)  # (n, M)
    expected = float((target.weights * wrong).sum(dim=0).div(target.weights.sum(dim=0)).mean())
    _, found = reward.update(body, settings, data, [0, 1], target, some, 1)
    assert found["loss"] == pytest.approx(expected, abs=1e-5)


def test_points_of_the_curve_lie_evenly_and_end_each_epoch():
    batches = [[[0]] * 10, [[0]] * 10]
    assert reward.curve_points(config(), batches) == {10, 20}
    four = config(validation={"points_per_epoch": 4})
    assert reward.curve_points(four, batches) == {3, 5, 8, 10, 13, 15, 18, 20}
    assert reward.curve_points(config(validation={"points_per_epoch": 99}), [[[0]] * 2]) == {1, 2}
    assert reward.curve_points(config(validation=None), batches) == {10, 20}


def test_batches_hold_every_pair_once_an_epoch_and_skip_what_nobody_drew(base):
    some = rows(6)
    settings, body, data, target = begin(base, some, epochs=2, batch_pairs=4)
    epochs = reward.plan(settings, body, data, target.weights)
    assert [sorted(g for batch in epoch for g in batch) for epoch in epochs] == [list(range(6))] * 2
    target.weights[1] = 0
    assert sorted(g for batch in reward.plan(settings, body, data, target.weights)[0] for g in batch) == [0, 2, 3, 4, 5]


def test_a_weighted_sum_of_heads_is_a_head():
    heads = [ScalarHead(8, seed=i) for i in range(2)]
    heads[1].bias.data.fill_(0.5)
    states = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    whole = reward.weighted_sum(heads, torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(whole(states), 2 * heads[0](states) - heads[1](states))


def test_the_finished_model_is_centred_head_by_head(base):
    heads = [{"criterion": "kind"}, {"criterion": "brief", "weight": 0.5}]
    some = [*rows(3, "kind"), *rows(3, "brief")]
    settings, body, data, _ = begin(base, some, (0, 1), heads=heads, members=2, members_share="body")
    for i, head in enumerate(body.heads):
        head.bias.data.fill_(float(i + 1))
    model, figures = reward.finished_model(settings, [body], [data])
    scores = reward.all_scores(body, data)  # (N, M, C)
    reference = torch.cat([scores[data.chosen], scores[data.rejected]])
    torch.testing.assert_close(reference.mean(dim=0), torch.zeros(2, 2), atol=1e-5, rtol=0)
    total = (reference @ torch.tensor([1.0, 0.5])).mean(dim=1)
    assert model.sd == pytest.approx(float(total.std()), rel=1e-5)
    assert [member.sd for member in model.members] == pytest.approx(
        [float((reference @ torch.tensor([1.0, 0.5]))[:, m].std()) for m in (0, 1)], rel=1e-5
    )
    assert list(model.members[0].heads) == ["kind", "brief"]
    assert abs(figures["mean_before"]) > 1


def test_held_out_figures_say_so_where_nothing_is_held_out():
    nothing = questions.Rows(rows(1), [], [], 0)
    assert reward.validate(config(), [], [], nothing) == {"valid": None, "baselines": {}, "difference": {}}
