"""What a text term reads is what was sampled, and what a stranger's code gives back is looked at before it trains anything."""

import numpy as np
import pytest
import torch

from plaudit.errors import TrainingStopped
from plaudit.learn import answers, base_models
from plaudit.learn.tokens import ChatTokenizer, Rollout

ASKED = [[{"role": "user", "content": "first?"}], [{"role": "user", "content": "second?"}]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ChatTokenizer.load(base_models.prepare("tiny", tmp_path_factory.mktemp("bases")))


@pytest.fixture
def read(tokenizer):
    rows = [[*tokenizer.encode("yes"), tokenizer.eos_id], tokenizer.encode("no, tha"), [tokenizer.eos_id]]
    rollout = Rollout([[1], [2]], rows, [0, 1, 1], [True, False, True])
    return answers.read(rollout, ASKED, tokenizer)


def test_each_response_comes_with_its_conversation_and_without_its_stop_token(read, tokenizer):
    assert read.texts == ["yes", "no, tha", ""]
    assert [messages[0]["content"] for messages in read.messages] == ["first?", "second?", "second?"]
    assert read.ids[0] == [*tokenizer.encode("yes"), tokenizer.eos_id]
    assert read.meta[1] == {"prompt": 1, "finished": False, "n_tokens": 7}
    assert read.meta[0] == {"prompt": 0, "finished": True, "n_tokens": 4}


def test_a_scorer_may_do_as_it_likes_with_what_it_gets(read):
    read.messages[1][0]["content"] = "changed"
    assert read.messages[2][0]["content"] == "second?"
    assert ASKED[1][0]["content"] == "second?"


def test_a_part_keeps_the_order(read):
    part = read.part(1, 2)
    assert (part.texts, [meta["prompt"] for meta in part.meta]) == (["no, tha", ""], [1, 1])
    assert len(part.ids) == len(part.messages) == 2


@pytest.mark.parametrize(
    "returned",
    [
        [1, 2.5, True],
        (1.0, 2.5, 1.0),
        np.array([1.0, 2.5, 1.0], dtype=np.float32),
        torch.tensor([1.0, 2.5, 1.0]),
        [np.float32(1), torch.tensor(2.5), 1],
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_any_kind_are_scores(read, returned):
    scores = answers.checked(returned, read, "It")
    assert scores.dtype == torch.float32
    assert scores.tolist() == [1.0, 2.5, 1.0]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0, 2.0], ["2 scores for 3 responses"]),
        (None, ["a NoneType", "list of 3 numbers"]),
        ("abc", ["a str"]),
        ({0: 1.0, 1: 1.0, 2: 1.0}, ["a dict"]),
        (3.0, ["a float"]),
        (torch.zeros(3, 1), ["[0.0]", "no number"]),
        ([1.0, "2.0", 3.0], ["'2.0'", "response 1", "'no, tha'", "'second?'"]),
        ([1.0, None, 3.0], ["None", "response 1", "'no, tha'"]),
        ([1.0, 2.0, float("nan")], ["nan", "response 2", "''", "'second?'"]),
        ([float("-inf"), 2.0, 1.0], ["-inf", "response 0", "'yes'", "'first?'"]),
        ([1e39, 2.0, 1.0], ["1e+39", "response 0"]),  # finite, but not in fp32
    ],
    ids=lambda value: str(value)[:20],
)
def test_anything_else_stops_the_run_and_shows_the_sample(read, returned, words):
    with pytest.raises(TrainingStopped) as stopped:
        answers.checked(returned, read, "It")
    for word in words:
        assert word in stopped.value.message
