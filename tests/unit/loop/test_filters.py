from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.errors import ConfigError
from plaudit.loop.filters import DETECTORS, Screen, find, parse, screen_messages


def response(*tables):
    return parse([{"name": f"f{place}", **table} for place, table in enumerate(tables)]).response


def through(filters, *pieces: str) -> tuple[str, Screen]:
    screen = Screen(filters)
    shown = "".join(screen.feed(piece) for piece in pieces)
    return shown + screen.close(), screen


def one(filter, text: str) -> str:
    return through(filter, text)[0]


# --- what a filter does ------------------------------------------------------------------------------------------------


def test_redact_and_replace_put_something_in_place_of_each_match_and_flag_nothing() -> None:
    redact = response({"action": "redact", "pattern": r"\d+"})
    assert one(redact, "call 12 or 345.") == "call [f0] or [f0]."
    replace = response({"action": "replace", "pattern": "Acme|ACME", "replacement": r"a\0rival"})
    assert one(replace, "ACME sells") == r"a\0rival sells"  # the replacement is text, not a template
    flag = response({"action": "flag", "pattern": r"\d+"})
    shown, screen = through(flag, "1 an", "d 2", "3")
    assert shown == "1 and 23"
    assert screen.verdicts == ({"filter": "f0", "action": "flag", "n": 2},)
    assert not screen.changed


def test_block_ends_the_text_before_the_match_and_nothing_comes_after_it() -> None:
    screen = Screen(response({"action": "block", "words": ["secret sauce"]}))
    shown = [screen.feed(piece) for piece in ("the se", "cret sau", "ce is", " mustard, mustard, mustard")]
    assert "".join(shown) + screen.close() == "the "
    assert (screen.blocked, screen.changed) == (True, True)
    assert screen.verdicts == ({"filter": "f0", "action": "block", "n": 1},)


def test_filters_act_in_their_order_and_a_block_ends_the_text_for_all() -> None:
    filters = response(
        {"action": "flag", "words": ["apple"]},
        {"action": "replace", "words": ["apple"], "replacement": "pear"},
        {"action": "block", "words": ["pear tree"]},
        {"action": "flag", "words": ["an"]},
    )
    shown, screen = through(filters, "an apple, an app", "le tree, an apple")
    assert shown == "an pear, an "
    assert [(verdict["filter"], verdict["n"]) for verdict in screen.verdicts][2:] == [("f2", 1), ("f3", 2)]


def test_a_text_without_a_match_has_no_verdict() -> None:
    shown, screen = through(response({"action": "redact", "detector": "email"}), "nothing ", "here")
    assert (shown, screen.verdicts, screen.changed) == ("nothing here", (), False)


# --- streams -----------------------------------------------------------------------------------------------------------

PATTERNS = [
    {"pattern": r"\bab+\b", "max_match_chars": 4},
    {"pattern": "aa", "max_match_chars": 2},
    {"pattern": r"a.c|ab?", "max_match_chars": 3},
    {"pattern": r"(?i)\Bb c", "max_match_chars": 3},
    {"pattern": "b+"},  # of any length: a stream waits for its end
    {"words": ["ab c", "b", "é b"]},
    {"detector": "ip"},
]


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.text("aabb cé1.", max_size=6), max_size=8),
    st.sampled_from(PATTERNS),
    st.sampled_from(["redact", "block", "flag"]),
)
def test_a_text_in_pieces_comes_out_as_the_whole(pieces, what, action) -> None:
    """For matches within the length that the filter declares; `b+` declares none and may be longer."""
    filters = response({"action": action, **what}, {"action": "redact", "pattern": "c +", "max_match_chars": 30})
    whole, expected = through(filters, "".join(pieces))
    shown, screen = through(filters, *pieces)
    longest = what.get("max_match_chars")
    if longest is not None and any(end - start > longest for start, end in find(what["pattern"], "".join(pieces))):
        return
    assert shown == whole
    assert screen.verdicts == expected.verdicts


@pytest.mark.parametrize(
    ("pattern", "longest"), [(r"\bb", 1), (r"b\b", 1), (r"\bab\b", 2), (r"\Bb", 1), ("aa", 2), ("ab?", 2), ("^a|b$", 1)]
)
def test_a_border_is_seen_however_the_text_is_cut(pattern, longest) -> None:
    """All texts of up to five of these characters, one at a time: what stands before and behind a match has long been shown, or is to come."""
    filters = response({"action": "redact", "pattern": pattern, "max_match_chars": longest})
    for length in range(6):
        for signs in itertools.product("ab ", repeat=length):
            assert through(filters, *signs)[0] == one(filters, "".join(signs)), signs


def test_a_stream_is_held_back_by_the_longest_match_and_no_more() -> None:
    screen = Screen(response({"action": "redact", "pattern": "x{1,5}y", "max_match_chars": 6}))
    assert screen.feed("0123456789") == "012"  # 6 of the match and one to see its border
    assert screen.feed("ab") == "34"
    unbounded = Screen(response({"action": "redact", "pattern": "x+y"}))
    assert unbounded.feed("0123456789" * 100) == ""
    assert unbounded.close() == "0123456789" * 100


def test_a_pattern_that_would_hang_a_backtracking_engine_is_linear() -> None:
    """(a+)+$ on 30 letters takes Python's `re` minutes."""
    assert one(response({"action": "redact", "pattern": "(a+)+[$]"}), "a" * 200_000 + "!") == "a" * 200_000 + "!"


def test_a_text_with_a_nul_is_read_like_any_other() -> None:
    assert find("b", "a\x00b") == [(2, 3)]


# --- detectors ---------------------------------------------------------------------------------------------------------

# Published examples: the IBAN registry's for DE, GB, NO and MT, the test numbers of card networks, RFC 2606 and 5737 names and addresses.
FOUND = {
    "email": ["jane.doe+x@mail.example.com", "a@b.de"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "no9386011117947", "MT84 MALT 0110 0001 2345 MTLC AST0 01S"],
    "card": ["4111 1111 1111 1111", "378282246310005", "6011-1111-1111-1117"],
    "phone": ["+49 30 1234567", "+1 (212) 555-0100", "0049 171 1234567"],
    "ip": ["192.0.2.17"],
    "secret": ["sk-" + "a1" * 12, "AKIAIOSFODNN7EXAMPLE", "-----BEGIN RSA PRIVATE KEY-----"],
}  # fmt: skip
NOT_FOUND = {
    "email": ["a@b", "@example.com"],
    "iban": ["DE89 3704 0044 0532 0130 01", "AB12"],
    "card": ["4111 1111 1111 1112", "12345"],
    "phone": ["2024", "12+345"],
    "ip": ["1.2.3"],
    "secret": ["sk-short", "task-" + "a1" * 12],
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_find_what_they_are_for_and_nothing_near_it(name: str) -> None:
    filters = response({"action": "redact", "detector": name})
    for text in FOUND[name]:
        assert one(filters, f"it is {text}, so") == "it is [f0], so", text
        assert len(text) <= DETECTORS[name].max_match_chars
    for text in NOT_FOUND[name]:
        assert one(filters, f"it is {text}, so") == f"it is {text}, so"


def test_an_iban_ends_where_its_check_digits_are_right() -> None:
    assert one(response({"action": "redact", "detector": "iban"}), "DE89370400440532013000 OR TWO") == "[f0] OR TWO"


def test_words_are_whole_words_in_any_case_and_any_script() -> None:
    filters = response({"action": "redact", "words": ["cat", "c++", "über"]})
    assert one(filters, "Cat cats, C++ and ÜBER concat") == "[f0] cats, [f0] and [f0] concat"


# --- prompts -----------------------------------------------------------------------------------------------------------


def test_a_prompt_is_screened_in_all_its_texts_and_counted_together() -> None:
    filters = parse([{"name": "ip", "action": "redact", "detector": "ip", "on": "prompt"}])
    assert filters.response == ()
    image = {"type": "image_url", "image_url": {"url": "http://192.0.2.1/"}}
    messages = [
        {"role": "system", "content": "at 192.0.2.1 and 192.0.2.2"},
        {"role": "user", "content": [{"type": "text", "text": "192.0.2.3?"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "192.0.2.4"}]},
    ]
    screened = screen_messages(filters.prompt, messages)
    assert screened.messages[0]["content"] == "at [ip] and [ip]"
    assert screened.messages[1]["content"] == [{"type": "text", "text": "[ip]?"}, image]
    assert screened.messages[2] == messages[2]
    assert screened.verdicts == ({"filter": "ip", "action": "redact", "n": 3},)
    assert not screened.blocked


def test_a_blocked_prompt_stays_as_it_was() -> None:
    filters = parse(
        [{"name": "no", "action": "block", "words": ["bomb"]}, {"name": "ip", "action": "redact", "detector": "ip"}]
    )
    messages = [{"role": "user", "content": "from 192.0.2.1"}, {"role": "user", "content": "a bomb"}]
    screened = screen_messages(filters.prompt, messages)
    assert (screened.blocked, screened.messages) == (True, tuple(messages))


# --- the settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("x", "filters\\[0\\]"),
        ({"action": "redact", "pattern": "a"}, "name"),
        ({"name": "a", "action": "delete", "pattern": "a"}, "'delete'"),
        ({"name": "a", "action": "flag"}, "nothing to look for"),
        ({"name": "a", "action": "flag", "pattern": "a", "words": ["b"]}, "pattern and words"),
        ({"name": "a", "action": "flag", "pattern": "("}, "RE2 does not read"),
        ({"name": "a", "action": "flag", "pattern": "(?=a)b"}, "RE2 does not read"),
        ({"name": "a", "action": "flag", "pattern": "x*"}, "empty text"),
        ({"name": "a", "action": "flag", "pattern": 3}, "pattern 3"),
        ({"name": "a", "action": "flag", "words": []}, "words"),
        ({"name": "a", "action": "flag", "words": [" "]}, "words"),
        ({"name": "a", "action": "flag", "words": ["x"], "max_match_chars": 3}, "max_match_chars"),
        ({"name": "a", "action": "flag", "pattern": "x", "max_match_chars": -1}, "-1"),
        ({"name": "a", "action": "flag", "detector": "ibn"}, "ibn"),
        ({"name": "a", "action": "flag", "pattern": "x", "on": "answers"}, "'answers'"),
        ({"name": "a", "action": "replace", "pattern": "x"}, "replacement"),
        ({"name": "a", "action": "redact", "pattern": "x", "replacement": "y"}, "replacement"),
        ({"name": "a", "action": "flag", "patern": "x"}, "did you mean 'pattern'"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_with_its_name(table, says) -> None:
    with pytest.raises(ConfigError, match=says):
        parse([table])


def test_two_filters_of_one_name_are_refused() -> None:
    table = {"name": "a", "action": "flag", "pattern": "x"}
    with pytest.raises(ConfigError, match="'a'"):
        parse([table, table])
