"""Text comes out in whole characters and stops before its stop strings, however the tokens are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.policy_server.text import Detokenizer


def decode(ids):
    """A byte tokenizer: 256 is special and has no text."""
    return bytes(i for i in ids if i < 256).decode(errors="replace")


def pieces(data, stop=(), step=1):
    text = Detokenizer(decode, stop)
    out = []
    for end in range(step, len(data) + step, step):
        out.append(text.push(data[:end], last=end >= len(data)))
        if text.stop is not None:
            break
    return out, text


@given(st.text(min_size=1, max_size=30), st.integers(1, 4))
def test_the_pieces_are_the_text(text, step):
    out, detokenizer = pieces(list(text.encode()), step=step)
    assert "".join(out) == detokenizer.sent == text


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(1, 3),
)
def test_a_stop_string_cuts_the_text_before_it(text, stops, step):
    """The oracle searches the whole text; with single steps the cut is at the first stop that is completed."""
    out, detokenizer = pieces(list(text.encode()), stops, step)
    done = [text[: n + step] for n in range(0, len(text), step) if any(stop in text[: n + step] for stop in stops)]
    expected = text if not done else done[0][: min(at for at in (done[0].find(stop) for stop in stops) if at >= 0)]
    assert "".join(out) == expected
    assert (detokenizer.stop is not None) == bool(done)
    assert detokenizer.stop is None or detokenizer.stop in done[0]


def test_half_a_character_waits_for_the_other_half():
    out, _ = pieces(list("a€b".encode()))
    assert out == ["a", "", "", "€", "b"]


def test_half_a_character_at_the_end_is_shown_as_what_it_is():
    out, _ = pieces(list("a€".encode())[:-1])
    assert "".join(out) == "a\ufffd"


@pytest.mark.parametrize(("data", "expected"), [("abST", ["a", "b", "", "ST"]), ("abSxy", ["a", "b", "", "Sx", "y"])])
def test_the_beginning_of_a_stop_string_is_held_back(data, expected):
    out, _ = pieces(list(data.encode()), ["STOP"])
    assert out == expected


def test_special_tokens_have_no_text():
    assert pieces([97, 256, 98])[0] == ["a", "", "b"]
