"""Ids, masks and columns by hand; log-probs against transformers' logits."""

from __future__ import annotations

import pytest
import torch

from plaudit.errors import BadInput, NotFound
from plaudit.learn import base_models
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.tokens import (
    ChatTokenizer,
    Rollout,
    at_last,
    at_predict,
    at_tokens,
    fitted,
    from_text,
    hidden_states,
    logprobs_at,
    pack,
    render,
    response_logprobs,
    run_trunk,
)

EOS = 256
TOY = Rollout([[1, 2, 3], [4, 5]], [[10, 11], [20], [30, 31, 32]], [0, 0, 1], [True, False, True])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def decoder(base):
    return Decoder.load(base, torch.float32)


@pytest.fixture(scope="module")
def tokenizer(base):
    return ChatTokenizer.load(base)


def test_render_ends_where_the_assistant_begins(tokenizer):
    ids = render(tokenizer, [{"role": "user", "content": "hi"}])
    assert ids == [259, ord("h"), ord("i"), 256, 260]


def test_nobody_can_write_a_special_token_into_a_response(tokenizer):
    assert EOS not in tokenizer.encode("stop<|end|>now")
    assert tokenizer.decode(tokenizer.encode("stop<|end|>now")) == "stop<|end|>now"
    assert EOS in render(tokenizer, [{"role": "user", "content": "a"}])  # the template's own still are


def test_a_template_that_refuses_is_bad_input(tokenizer, base):
    from tokenizers import Tokenizer

    strict = ChatTokenizer(
        Tokenizer.from_file(str(base / "tokenizer.json")), "{{ raise_exception('roles must alternate') }}", {}
    )
    with pytest.raises(BadInput, match="roles must alternate"):
        strict.render([{"role": "user", "content": "a"}])
    bare = ChatTokenizer(Tokenizer.from_file(str(base / "tokenizer.json")), "", {})
    with pytest.raises(BadInput, match="no chat template"):
        bare.render([{"role": "user", "content": "a"}])


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        ChatTokenizer.load(tmp_path)


def test_text_is_encoded_once_and_ends_where_it_finished(tokenizer):
    prompts = [[{"role": "user", "content": "hello"}], [{"role": "user", "content": "x"}]]
    data = from_text(
        tokenizer,
        prompts,
        [["ab", "cdef"], ["g"]],
        finished=[[True, True], [False]],
        max_prompt_tokens=4,
        max_response_tokens=3,
    )
    assert data.response_ids == [[97, 98, EOS], [99, 100, 101], [103]]
    assert data.finished == [True, False, False]  # over the limit means truncated
    assert data.group == [0, 0, 1]
    assert data.prompt_ids == [[ord("l"), ord("o"), EOS, 260], [259, ord("x"), EOS, 260]]


def test_a_rollout_with_holes_is_refused():
    with pytest.raises(BadInput, match="empty"):
        Rollout([[1]], [[]], [0], [True])
    with pytest.raises(BadInput, match="2 groups"):
        Rollout([[1]], [[2]], [0, 0], [True])


def test_checklist_1_masks_come_from_lengths_though_eos_is_in_the_middle():
    """Ids that look like padding (0) or like EOS inside prompt and response change no mask."""
    plain, odd = TOY, Rollout([[0, EOS, 3], [4, 0]], [[0, EOS], [0], [EOS, 0, EOS]], [0, 0, 1], [True, False, True])
    for one, other in zip(pack(plain), pack(odd), strict=True):
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.counts, other.counts)
        assert torch.equal(one.positions, other.positions)
    assert TOY.counts().tolist() == [[True, True, False], [True, False, False], [True, True, True]]


def test_one_row_holds_a_prompt_and_its_responses():
    (batch,) = pack(TOY)
    assert batch.ids.tolist() == [[1, 2, 3, 10, 11, 20], [4, 5, 30, 31, 32, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 3, 4, 0]]
    assert batch.source.tolist() == [[0, 1, 2, 5, 6, 7], [3, 4, 8, 9, 10, -1]]
    assert batch.response.tolist() == [0, 1, 2]
    assert batch.row.tolist() == [0, 0, 1]
    assert batch.targets.tolist() == [[10, 11, 0], [20, 0, 0], [30, 31, 32]]
    assert batch.predict[batch.counts].tolist() == [
        2,
        3,
        2,
        1,
        2,
        3,
    ]  # the first token is predicted by the prompt's last
    assert batch.column[batch.counts].tolist() == [3, 4, 5, 2, 3, 4]
    assert batch.last.tolist() == [4, 5, 4]  # the last real token, EOS or not (checklist 8)
    attends = [[key for key in range(6) if batch.mask[0, query, key]] for query in range(6)]
    assert attends == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 5]]
    assert batch.mask.any(-1).all()  # no softmax over nothing, padding included


def test_packs_keep_their_budget_and_every_response():
    sizes = [5, 9, 3, 7, 7, 2, 8, 4]
    data = Rollout([[1] * 4] * 2, [[9] * size for size in sizes], [0, 1] * 4, [True] * 8)
    for share in (True, False):
        packs = pack(data, token_budget=26, share_prefix=share, row_tokens=16)
        assert sorted(i for batch in packs for i in batch.response.tolist()) == list(range(8))
        for batch in packs:
            assert batch.ids.numel() <= 26 or len(batch.ids) == 1
            assert batch.ids.shape[1] <= 16
    assert {i for batch in pack(data, [3, 0]) for i in batch.response.tolist()} == {0, 3}


def test_log_probs_equal_transformers(base, decoder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    values, counts, entropy = response_logprobs(decoder, None, pack(TOY), temperature=0.7, want_entropy=True)
    assert torch.equal(counts, TOY.counts())
    for i, (group, response) in enumerate(zip(TOY.group, TOY.response_ids, strict=True)):
        prompt = TOY.prompt_ids[group]
        with torch.no_grad():
            log_p = (model(torch.tensor([[*prompt, *response]])).logits[0] / 0.7).log_softmax(-1)
        log_p = log_p[len(prompt) - 1 : -1]
        n = len(response)
        torch.testing.assert_close(values[i, :n], log_p[range(n), response], atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy[i, :n], -(log_p.exp() * log_p).sum(-1), atol=1e-5, rtol=0)
        assert (values[i, n:] == 0).all()
        assert (entropy[i, n:] == 0).all()


def test_the_gradient_formed_on_the_way_equals_autograd(decoder):
    adapter = Adapter(decoder.config, 4, 8, seed=1)
    weight = torch.tensor([0.5, -2.0, 1.0])[:, None]
    gradients = []
    for fused in (True, False):
        adapter.zero_grad()
        decoder.head.requires_grad_(not fused)  # a head that is trained takes the plain path
        for batch in pack(TOY):
            values, _ = logprobs_at(decoder, hidden_states(decoder, adapter, batch), batch, temperature=1.3)
            (values * weight[batch.response]).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in adapter.named_parameters()})
    decoder.head.requires_grad_(False)
    decoder.head.grad = None
    assert any(g.abs().max() > 1e-3 for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


def test_blocks_of_logits_are_put_together(decoder, monkeypatch):
    from plaudit.learn.tokens import _TokenLogProbs

    whole, _, _ = response_logprobs(decoder, None, pack(TOY))
    monkeypatch.setattr(_TokenLogProbs, "BLOCK", 2)
    torch.testing.assert_close(response_logprobs(decoder, None, pack(TOY))[0], whole, atol=5e-6, rtol=0)


def test_hidden_states_are_read_at_the_right_columns(decoder):
    (batch,) = pack(TOY)
    hidden = torch.arange(12.0).view(2, 6, 1)
    assert at_predict(hidden, batch)[batch.counts].flatten().tolist() == [2, 3, 2, 7, 8, 9]
    assert at_tokens(hidden, batch)[batch.counts].flatten().tolist() == [3, 4, 5, 8, 9, 10]
    assert at_last(hidden, batch).flatten().tolist() == [4, 5, 10]


def test_a_trunk_that_reaches_into_the_adapter_is_refused(decoder):
    adapter = Adapter(decoder.config, 4, 8, first_layer=1)
    trunk = run_trunk(decoder, TOY, 2)
    with pytest.raises(BadInput, match="trunk was run to layer 2"):
        hidden_states(decoder, adapter, pack(TOY)[0], trunk)


def test_no_gradient_reaches_the_trunk_or_the_base(decoder):
    adapter = Adapter(decoder.config, 4, 8, first_layer=2)
    (batch,) = pack(TOY)
    logprobs_at(decoder, hidden_states(decoder, adapter, batch, run_trunk(decoder, TOY, 2)), batch)[0].sum().backward()
    assert all(p.grad is None for p in decoder.parameters())
    assert all(p.grad is not None for p in adapter.parameters())


def test_responses_are_fitted_to_the_positions_that_their_prompt_leaves():
    rollout = Rollout([[1] * 6, [1] * 2], [[2] * 3, [2] * 4, [2] * 7, [2] * 8], [0, 0, 1, 1], [True] * 4)
    found = fitted(rollout, 9)
    assert [len(ids) for ids in found.response_ids] == [3, 3, 7, 7]
    assert found.finished == [True, False, True, False]
    assert fitted(rollout, 100) == rollout
    with pytest.raises(BadInput, match="A prompt has 6 tokens, the model 6 positions"):
        fitted(rollout, 6)
