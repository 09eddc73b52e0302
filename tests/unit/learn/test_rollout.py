"""Sampling against closed forms and torch's own sums; ends, limits and batches of the decode loop."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from plaudit.errors import BadInput
from plaudit.learn import base_models
from plaudit.learn.nets import Decoder
from plaudit.learn.rollout import DecodeLoop, Row, Sampling, common_prefix, generate, sample, uniform

PROMPT = [259, 72, 105, 256, 260]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return Decoder.load(base_models.prepare("tiny", tmp_path_factory.mktemp("rollout")), torch.float32)


def draw(logits, n, **options):
    sampling = Sampling(1, **options)
    u = uniform([0] * n, range(n), [0] * n)
    return sample(logits.repeat(n, 1), u, [sampling] * n)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature):
    """Chi-square against softmax(logits / T) over a vocabulary of three blocks; a wrong temperature is caught."""
    logits = torch.randn(600, generator=torch.Generator().manual_seed(1)) * 1.5
    ids, _ = draw(logits, 40_000, temperature=temperature)
    seen = torch.bincount(ids, minlength=600).double()

    def p_value(t):
        expected = (logits.double() / t).softmax(-1) * 40_000
        rare = expected < 5  # chi-square wants five in a cell: these share one
        cells = [torch.cat([x[~rare], x[rare].sum()[None]]) if rare.any() else x for x in (seen, expected)]
        return stats.chisquare(*cells).pvalue

    assert p_value(temperature) > 1e-3
    assert p_value(temperature * 1.25) < 1e-3


@pytest.mark.parametrize("size", [3, 255, 256, 257, 1000])
def test_the_token_is_where_the_cumulative_sum_passes_the_number(size):
    logits = torch.randn(200, size, generator=torch.Generator().manual_seed(size)) * 3
    u = uniform([7] * 200, range(200), [3] * 200)
    expected = torch.searchsorted(logits.double().softmax(-1).cumsum(-1), u[:, None], right=True).squeeze(1)
    ids, logprobs = sample(logits.clone(), u, [Sampling(1)] * 200)
    assert torch.equal(ids, expected.clamp(max=size - 1))
    torch.testing.assert_close(
        logprobs, logits.double().log_softmax(-1).gather(1, ids[:, None]).squeeze(1), atol=1e-5, rtol=0
    )


def test_the_ends_of_the_interval_give_tokens_that_can_happen():
    logits = torch.full((2, 300), -torch.inf)
    logits[:, [5, 290]] = 0.0
    ids, _ = sample(logits, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64), [Sampling(1)] * 2)
    assert ids.tolist() == [5, 290]


def test_temperature_0_takes_the_likeliest_whatever_the_number():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    best = logits.argmax(-1)
    u = uniform([1] * 50, range(50), [0] * 50)
    assert torch.equal(sample(logits, u, [Sampling(1, temperature=0)] * 50)[0], best)


def test_top_k_and_top_p_keep_the_set_of_their_definition():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04]).log()[
        torch.tensor([3, 0, 4, 1, 2])
    ]  # likelihood order 1, 3, 4, 0, 2
    assert set(draw(logits, 500, top_k=2)[0].tolist()) == {1, 3}
    assert set(draw(logits, 500, top_p=0.69)[0].tolist()) == {1, 3}  # .4 + .3 passes .69
    assert set(draw(logits, 500, top_p=0.71)[0].tolist()) == {1, 3, 4}
    assert set(draw(logits, 2000)[0].tolist()) == {0, 1, 2, 3, 4}
    ids, logprobs = draw(logits, 500, top_k=2)
    assert logprobs[ids == 1][0].item() == pytest.approx(math.log(4 / 7), abs=1e-6)


def test_rows_have_their_own_settings():
    logits = torch.tensor([[0.0, 5.0, 1.0, 2.0]]).repeat(3, 1)
    ids, _ = sample(
        logits,
        torch.full((3,), 0.001, dtype=torch.float64),
        [Sampling(1), Sampling(1, temperature=0), Sampling(1, top_k=1)],
    )
    assert ids.tolist() == [0, 1, 1]


def test_random_numbers_are_uniform_and_of_seed_row_and_step():
    n = 20_000
    by_row, by_step, by_seed = (
        uniform([1] * n, range(n), [0] * n),
        uniform([1] * n, [0] * n, range(n)),
        uniform(range(n), [0] * n, [0] * n),
    )
    for values in (by_row, by_step, by_seed):
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
        assert abs(stats.pearsonr(values[:-1], values[1:]).statistic) < 4 / math.sqrt(n)
    assert abs(stats.pearsonr(by_row, by_step).statistic) < 4 / math.sqrt(n)
    assert torch.equal(uniform([5, -1], [6, 7], [8, 9])[1:], uniform([-1], [7], [9]))
    assert uniform([1], [2], [3]) != uniform([1], [3], [2])


def test_a_seed_repeats_and_another_does_not(decoder):
    one, same, other = (generate(decoder, [PROMPT], 4, Sampling(12, seed=s)).rollout for s in (1, 1, 2))
    assert one == same
    assert one != other


def test_ends_are_told(decoder):
    rollout = generate(decoder, [PROMPT] * 3, 10, Sampling(15, seed=3)).rollout
    assert rollout.group == [g for g in range(3) for _ in range(10)]
    assert set(rollout.finished) == {True, False}
    for ids, finished in zip(rollout.response_ids, rollout.finished, strict=True):
        assert (256 in ids) == finished
        assert 256 not in ids[:-1]
        assert len(ids) == 15 if not finished else len(ids) <= 15


def test_other_stop_tokens_and_none(decoder):
    never = generate(decoder, [PROMPT], 6, Sampling(30, seed=1), stop_ids=[]).rollout
    assert [len(ids) for ids in never.response_ids] == [30] * 6
    space = generate(decoder, [PROMPT], 6, Sampling(30, seed=1), stop_ids=[32]).rollout
    for ids, whole in zip(space.response_ids, never.response_ids, strict=True):
        assert ids == whole[: whole.index(32) + 1] if 32 in whole else ids == whole


def test_tokens_are_shown_as_they_come(decoder):
    seen: dict[int, list[int]] = {}
    rollout = generate(
        decoder,
        [PROMPT],
        3,
        Sampling(8, seed=1),
        on_token=lambda row: seen.setdefault(row.key, []).append(len(row.ids)),
    ).rollout
    assert [seen[i][-1] for i in range(3)] == [len(ids) for ids in rollout.response_ids]
    assert all(lengths == sorted(lengths) for lengths in seen.values())


def test_model_log_probs_and_alternatives(decoder):
    """Asked for by a server: temperature 1, whatever the row samples at."""
    loop = DecodeLoop(decoder)
    row = Row(PROMPT, Sampling(5, temperature=0.3, seed=2, logprobs=3), key=0)
    loop.admit([row])
    while loop.rows:
        loop.step()
    ids = torch.tensor([[*PROMPT, *row.ids]])
    length = ids.shape[1]
    with torch.no_grad():
        hidden = decoder.run_layers(
            decoder.embed(ids), torch.arange(length)[None], torch.ones(1, length, length, dtype=torch.bool).tril(),
            0, decoder.config.n_layers, None,
        )  # fmt: skip
        log_p = decoder.logits(decoder.final(hidden))[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(torch.tensor(row.logprobs), log_p[range(len(row.ids)), row.ids], atol=1e-5, rtol=0)
    best = log_p.topk(3)
    assert [[token for token, _ in top] for top in row.top] == best.indices.tolist()


def run_one(decoder, **options):
    row = Row(PROMPT, Sampling(**{"max_new_tokens": 12, "seed": 2} | options), key=0)
    loop = DecodeLoop(decoder)
    loop.admit([row])
    while loop.rows:
        loop.step()
    return row


def test_log_probs_of_the_distribution_that_was_sampled_from(decoder):
    """`processed`: temperature and top_k taken into account; against torch's softmax over the model's own log-probs."""
    options = {"temperature": 0.5, "top_k": 4}
    own, asked = run_one(decoder, **options, logprobs=6), run_one(decoder, **options, logprobs=6, processed=True)
    assert own.ids == asked.ids
    for own_top, top, token, logprob in zip(own.top, asked.top, asked.ids, asked.logprobs, strict=True):
        log_p = (torch.tensor([value for _, value in own_top[:4]]) / 0.5).log_softmax(0)
        assert [place for place, _ in top[:4]] == [place for place, _ in own_top[:4]]
        torch.testing.assert_close(torch.tensor([value for _, value in top[:4]]), log_p, atol=1e-5, rtol=0)
        assert [value for _, value in top[4:]] == [-math.inf] * 2
        assert logprob == pytest.approx(dict(top)[token])


def test_penalties_and_biases_shift_logits(decoder):
    """At temperature 0 and by hand: a bias names the token, a presence penalty lets no token come twice, a frequency penalty none often."""
    assert run_one(decoder, temperature=0, logit_bias=((65, 100.0),), stop_ids=()).ids == [65] * 12
    once = run_one(decoder, temperature=0, presence_penalty=100.0, ignore_stop=True).ids
    assert len(set(once)) == 12
    two = run_one(decoder, temperature=0, frequency_penalty=60.0, logit_bias=((65, 100.0), (66, 100.0))).ids
    assert sorted(two[:4]) == [65, 65, 66, 66]  # 100 and 40 are above all others, -20 is not
    assert not {65, 66} & set(two[4:])
    free = run_one(decoder, temperature=0).ids
    assert free == run_one(decoder, temperature=0, logit_bias=()).ids
    assert free != once


def test_stop_tokens_of_a_request(decoder):
    whole = run_one(decoder, ignore_stop=True, max_new_tokens=40)
    assert whole.end == "length"
    token = whole.ids[7]
    cut = run_one(decoder, ignore_stop=True, max_new_tokens=40, stop_ids=(token,))
    assert (cut.ids, cut.end) == (whole.ids[: whole.ids.index(token) + 1], "stop")
    biased = {"logit_bias": ((256, 100.0),), "max_new_tokens": 3}
    assert run_one(decoder, **biased).ids == [256]
    assert run_one(decoder, **biased, ignore_stop=True).ids == [256] * 3


def test_dropped_rows_leave_and_the_others_go_on(decoder):
    rows = [Row(PROMPT, Sampling(10, seed=4), key) for key in range(6)]
    alone = generate(decoder, [PROMPT], 6, Sampling(10, seed=4)).rollout.response_ids
    loop = DecodeLoop(decoder)
    loop.admit(rows)
    loop.step()
    loop.drop(lambda row: row.key in (0, 3))
    assert {row.key for row in loop.rows} <= {1, 2, 4, 5}
    while loop.rows:
        loop.step()
    for row in rows:
        assert row.key in (0, 3) or row.ids == alone[row.key]


def test_no_room_is_said_before_anything_runs(decoder):
    with pytest.raises(BadInput, match="2048 positions"):
        generate(decoder, [[1] * 2040], 1, Sampling(9))
    with pytest.raises(BadInput, match="0 tokens"):
        DecodeLoop(decoder).admit([Row([], Sampling(1), 0)])


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}]
)
def test_impossible_sampling_is_refused(options):
    with pytest.raises(BadInput, match="cannot be sampled"):
        Sampling(**{"max_new_tokens": 1} | options)


def test_memory_is_given_back_after_a_long_prompt(decoder):
    loop = DecodeLoop(decoder)
    loop.admit([Row([65] * 1500, Sampling(1, seed=1), 0)])
    long = loop._cache._cache.numel()
    loop.admit([Row(PROMPT, Sampling(1, seed=1), 0)])
    assert loop._cache._cache.numel() < long / 4


def test_common_prefix():
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([1], [1, 2]) == 1
    assert common_prefix([], [1]) == 0
