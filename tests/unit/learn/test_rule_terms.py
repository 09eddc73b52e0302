"""Each rule alone, on texts whose value can be counted by hand."""

import re

import pytest

from plaudit.errors import ConfigError
from plaudit.learn import rule_terms
from plaudit.learn.answers import Answers
from plaudit.learn.configs import BlockListTerm, JsonTerm, LengthTerm, RegexTerm, RepetitionTerm, RequireTerm


def values(term, *texts, ids=None):
    read = Answers([[]] * len(texts), list(texts), ids or [[0] for _ in texts], [{}] * len(texts))
    return rule_terms.score_rule(term, read).tolist()


def test_regex_searches_or_matches_the_whole():
    assert values(RegexTerm(name="x", pattern=r"\d+"), "room 12", "none", "") == [1, 0, 0]
    assert values(RegexTerm(name="x", pattern=r"\d+", whole=True), "room 12", "12", "12\n") == [0, 1, 0]
    assert values(RegexTerm(name="x", pattern="(?i)please"), "PLEASE wait") == [1]
    assert values(RegexTerm(name="x", pattern="a|bc", whole=True), "abc", "bc") == [0, 1]
    assert values(RegexTerm(name="x", pattern=r"^\p{L}+$"), "Größe", "5") == [1, 0]


def test_a_pattern_that_backtracks_elsewhere_ends():
    """Python's re would need some 2^5000 steps for this one."""
    text = "a" * 5000 + "b"
    assert values(RegexTerm(name="x", pattern="(a+)+$"), text, text[:-1]) == [0, 1]
    assert values(RegexTerm(name="x", pattern="(a|aa)+", whole=True), text) == [0]


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)b", "(?<!a)b"])
def test_a_pattern_that_cannot_be_matched_in_linear_time_is_refused(pattern):
    with pytest.raises(ConfigError, match=f"'shape' is {re.escape(repr(pattern))}, which RE2 does not read"):
        rule_terms.check_rule(RegexTerm(name="shape", pattern=pattern))
    rule_terms.check_rule(RegexTerm(name="shape", pattern="(a+)+$"))


def test_json_is_the_standard_and_not_what_python_reads_beside_it():
    term = JsonTerm(name="x")
    assert values(term, ' {"a": [1, 2.5e3, null]}\n', '"text"', "3") == [1, 1, 1]
    assert values(term, "", "{'a': 1}", '{"a": 1} or so', "NaN", '{"a": -Infinity}', "[" * 100_000) == [0] * 6


def test_json_with_keys_is_an_object_that_has_them():
    term = JsonTerm(name="x", keys=("a", "b"))
    assert values(term, '{"a": 1, "b": 2, "c": 3}', '{"a": 1}', '["a", "b"]', '"ab"') == [1, 0, 0, 0]


@pytest.mark.parametrize(("words", "value"), [(0, -0.8), (3, -0.2), (4, 0), (6, 0), (7, -0.2), (16, -2.0)])
def test_length_costs_what_lies_outside_the_band(words, value):
    term = LengthTerm(name="x", low=4, high=6, unit="words", scale=5)
    assert values(term, " ".join(["word"] * words)) == [pytest.approx(value)]


def test_length_counts_what_it_is_told_to():
    ids = [[5, 6, 7, 256]]
    made = {unit: values(LengthTerm(name="x", high=1, unit=unit, scale=1), "ab cd e", ids=ids) for unit in (
        "tokens", "words", "characters")}  # fmt: skip
    assert made == {"tokens": [-3], "words": [-2], "characters": [-6]}
    assert values(LengthTerm(name="x", low=3), "word", ids=ids) == [0]


def test_repetition_is_the_share_of_n_grams_seen_before():
    # 8 tokens have five 4-grams: 1212 2121 1212 2121 1212, two different ones.
    assert values(RepetitionTerm(name="x"), "", ids=[[1, 2, 1, 2, 1, 2, 1, 2]]) == [pytest.approx(-3 / 5)]
    assert values(RepetitionTerm(name="x"), "", "", ids=[[1, 2, 3, 4, 5], [1, 1, 1]]) == [0, 0]
    assert values(RepetitionTerm(name="x", n=1), "", ids=[[1, 1, 1, 2]]) == [-0.5]


def test_block_list_counts_phrases_that_occur():
    term = BlockListTerm(name="x", phrases=("as an AI", "sorry", "C++"))
    assert values(term, "As an ai, I am SORRY. Sorry!", "fine", "Write C++, not C.", "sorrynot") == [-2, 0, -1, 0]


def test_require_is_the_share_of_phrases_that_occur():
    term = RequireTerm(name="x", phrases=("thank you", "Straße"))
    assert values(term, "Thank you.", "thank you, STRASSE 1", "thanks") == [0.5, 1, 0]


def test_a_phrase_inside_a_word_counts_only_where_asked():
    assert values(RequireTerm(name="x", phrases=("ass",)), "a class") == [0]
    assert values(RequireTerm(name="x", phrases=("ass",), whole_words=False), "a class") == [1]
    assert values(BlockListTerm(name="x", phrases=("禁止",), whole_words=False), "这是禁止的") == [-1]
    assert values(BlockListTerm(name="x", phrases=("a.b",)), "a b", "a.b") == [0, -1]  # a phrase is no pattern
