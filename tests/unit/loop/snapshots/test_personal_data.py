from __future__ import annotations

from collections import Counter

import pytest

from plaudit.errors import BadInput
from plaudit.loop.filters import DETECTORS
from plaudit.loop.snapshots.personal_data import HINTS, rules, screen, screen_rows

# One of each kind, and what looks like one and is none (a wrong check digit, a version, a year).
SAMPLES = {
    "email": ("write to ada.l@example.org today", "an @ sign"),
    "iban": ("pay DE89 3704 0044 0532 0130 00 now", "pay DE88 3704 0044 0532 0130 00 now"),
    "card": ("card 4111 1111 1111 1111 end", "card 4111 1111 1111 1112 end"),
    "phone": ("call +49 30 1234567 now", "in 2026 and 1999"),
    "ip": ("from 192.168.10.5 there", "version 3.11"),
    "secret": ("key AKIAABCDEFGHIJKLMNOP here", "key sk-short"),
}


@pytest.mark.parametrize("kind", DETECTORS)
def test_each_kind_is_redacted_and_what_only_looks_like_it_stays(kind: str) -> None:
    real, none = SAMPLES[kind]
    first, second = screen(rules({kind: "redact"}), [real, none])
    assert f"[{kind}]" in first.text
    assert first.text.split(f"[{kind}]")[0] == real[: len(first.text.split(f"[{kind}]")[0])]
    assert (dict(first.found), first.drop) == ({kind: 1}, False)
    assert (second.text, dict(second.found)) == (none, {})


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_hint_never_hides_what_the_detector_finds(kind: str) -> None:
    (detector,) = rules({kind: "detect"})
    own = {"mine": lambda text: detector.find([text])[0]}  # without a hint every text is looked at
    texts = [text for pair in SAMPLES.values() for text in pair] + ["0049 30 1234567", "GB82WEST12345698765432"]
    hinted = [one.found.get(kind, 0) for one in screen(rules({kind: "detect"}), texts)]
    assert hinted == [one.found.get("mine", 0) for one in screen(rules({"mine": "detect"}, own), texts)]
    assert set(HINTS) == set(DETECTORS)


def test_a_row_is_redacted_in_all_its_texts_dropped_or_only_counted() -> None:
    mail = "ada@example.org"
    row = {
        "messages": (
            {"role": "user", "content": f"I am {mail}"},
            {"role": "user", "content": [{"type": "text", "text": mail}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "content": None},
        ),
        "chosen": f"Hello {mail}, {mail}",
        "rejected": "Hello",
        "probability": 0.9,
    }
    ((shown, found, drop),) = screen_rows(rules({"email": "redact"}), [row])
    assert "ada@" not in str(shown)
    assert (shown["chosen"], shown["rejected"], shown["probability"]) == ("Hello [email], [email]", "Hello", 0.9)
    assert shown["messages"][1]["content"][1] == {"type": "image_url", "image_url": {}}
    assert (dict(found), drop) == ({"email": 4}, False)
    ((kept, found, drop),) = screen_rows(rules({"email": "detect"}), [row])
    assert (kept, dict(found), drop) == (row, {"email": 4}, False)
    ((_, _, drop),) = screen_rows(rules({"email": "drop"}), [row])
    assert drop
    mixed = {"messages": (), "chosen": "from 192.168.10.5", "rejected": mail}  # one text may stay, the other may not
    ((_, found_in_both, drop),) = screen_rows(rules({"ip": "detect", "email": "drop"}), [mixed])
    assert (dict(found_in_both), drop) == ({"ip": 1, "email": 1}, True)
    plain, other = {"messages": ({"role": "user", "content": "I am Ada"},)}, {"messages": (), "rejected": mail}
    several = screen_rows(rules({"email": "redact"}), [plain, other, {"messages": ()}, row, other])
    hidden = ({"messages": (), "rejected": "[email]"}, Counter(email=1), False)
    assert several == [
        (plain, Counter(), False),
        hidden,
        ({"messages": ()}, Counter(), False),
        (shown, found, False),
        hidden,
    ]


def test_a_finder_of_ones_own_takes_part() -> None:
    own = {"name": lambda text: [(text.index("Ada"), text.index("Ada") + 3)] if "Ada" in text else []}
    (one,) = screen(rules({"name": "redact", "email": "redact"}, own), ["Ada is ada@example.org"])
    assert one.text == "[name] is [email]"
    (one,) = screen(rules({"email": "redact"}, {"email": lambda text: [(0, 3)]}), ["Ada at home"])
    assert one.text == "[email] at home"  # instead of ours of that name, and of its hint
    over = {"name": lambda text: [(5, 8), (0, 10), (2, 4), (12, 13)]}  # spans within one another, in any order
    (one,) = screen(rules({"name": "redact"}, over), ["Ada Lovelace!?"])
    assert one.text == "[name]ce[name]?"


@pytest.mark.parametrize("asked", [{"mail": "redact"}, {"email": "hide"}])
def test_unknown_kinds_and_treatments_are_refused(asked: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=r"mail|hide"):
        rules(asked)


def test_one_text_that_must_go_takes_its_row_with_it() -> None:
    made = rules({"iban": "drop", "email": "redact"})
    texts = ("DE89 3704 0044 0532 0130 00", "ada@b.example")
    row = {"messages": tuple({"role": "user", "content": text} for text in texts)}
    ((_, found, drop),) = screen_rows(made, [row])
    assert (dict(found), drop) == ({"iban": 1, "email": 1}, True)
