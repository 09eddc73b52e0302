"""What is written and read again differs by exactly what the loss report says."""

import string
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.formats import ground_truth, hh, label_studio, labelbox, trl
from plaudit.formats.records import LossReport, Record, forget, pairs, pseudonym

TEXT = st.text(alphabet=string.ascii_letters + " \n:\"',[]{}é漢", min_size=1, max_size=30).filter(str.strip)
ANY = {
    "probability": st.none() | st.floats(0.5, 1),
    "weight": st.none() | st.floats(0.1, 9),
    "margin": st.none() | st.floats(-3, 3),
    "confidence": st.none() | st.floats(0, 1),
    "criterion": st.sampled_from(["", "helpful"]),
    "annotator": st.sampled_from(["", pseudonym("a", "s"), pseudonym("b", "s")]),
    "seconds": st.none() | st.floats(0.5, 900),
    "comment": st.sampled_from(["", "too long\nby far"]),
    "created_at": st.sampled_from(["", "2026-11-22T12:00:00Z"]),
    "meta": st.sampled_from([{}, {"topic": "x"}]),
}


@st.composite
def records(draw: st.DrawFn) -> Record:
    n = draw(st.integers(2, 4))
    answers = draw(st.lists(TEXT, min_size=n, max_size=n, unique=True))
    roles = draw(st.sampled_from([("user",), ("user", "assistant", "user"), ("system", "user"), ("user", "user")]))
    return Record(
        id=draw(st.sampled_from(["1", "item-2"])),
        messages=tuple({"role": role, "content": draw(TEXT)} for role in roles),
        responses=tuple(answers),
        ranks=tuple(draw(st.lists(st.integers(1, n), min_size=n, max_size=n))),
        both_bad=draw(st.sampled_from([False, False, False, True])),
        order=draw(st.none() | st.permutations(list(range(n))).map(tuple)),
        models=draw(st.sampled_from([(), tuple("abcd"[:n])])),
        **{name: draw(one) for name, one in ANY.items()},  # type: ignore[arg-type]
    )


def back(module: object, path: Path) -> list[Record]:
    found = list(module.read(path, salt="s"))  # type: ignore[attr-defined]
    assert all(isinstance(one, Record) for one in found), found
    return found


def better_first(record: Record) -> Record:
    """chosen/rejected rows do not say which answer stood first."""
    one, two = record.chosen_first
    return replace(
        record,
        responses=(record.responses[one], record.responses[two]),
        ranks=(1, 2),
        models=(record.models[one], record.models[two]) if record.models else (),
        order=None if record.order is None else tuple((one, two).index(i) for i in record.order),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), max_size=4))
@pytest.mark.parametrize("name", ["trl", "label-studio"])
def test_pairs_come_back_but_for_what_was_counted_as_lost(name: str, given_records: list[Record]) -> None:
    module, held = {"trl": (trl, trl.HELD), "label-studio": (label_studio, label_studio.HELD)}[name]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "out.json"
        report = module.write(given_records, path)
        found = back(module, path)
    expected, again = [], LossReport(n_records=len(given_records))
    for record in given_records:
        for pair in pairs(record, again):
            kept = forget(pair, held, again)
            expected.append(
                better_first(kept)
                if name == "trl"
                else replace(kept, ranks=(1, 2) if kept.is_pair and kept.chosen_first[0] == 0 else (2, 1))
            )
            again.n_written += 1
    assert found == expected
    assert report == again


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), max_size=4))
@pytest.mark.parametrize("module", [labelbox, ground_truth])
def test_rankings_come_back_but_for_what_was_counted_as_lost(module: object, given_records: list[Record]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "out.json"
        report = module.write(given_records, path)  # type: ignore[attr-defined]
        found = back(module, path)
    written = [one for one in given_records if not one.both_bad]
    if module is labelbox:
        written = [one for one in written if len(set(one.ranks or ())) in (1, len(one.ranks or ()))]
    again = LossReport()
    expected = [forget(one, module.HELD, again) for one in written]  # type: ignore[attr-defined]

    def places(record: Record) -> Record:
        if module is ground_truth:
            return record
        # Labelbox numbers a ranking from 1 without gaps
        order = sorted(set(record.ranks or ()))
        return replace(record, ranks=tuple(order.index(rank) + 1 for rank in record.ranks or ()))

    assert [places(one) for one in found] == [places(one) for one in expected]
    assert report.lost == again.lost
    assert sum(report.dropped.values()) == len(given_records) - len(written)


@settings(max_examples=100, deadline=None)
@given(st.lists(records(), max_size=4))
def test_transcripts_come_back_trimmed(given_records: list[Record]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "out.jsonl"
        report = hh.write(given_records, path)
        found = back(hh, path)
    assert len(found) == report.n_written
    every = [pair for record in given_records for pair in pairs(record, LossReport())]
    assert len(every) - report.n_written == sum(report.dropped.values()) - _dropped_as_pairs(given_records)
    trimmed = {
        (tuple(m["content"].strip() for m in one.messages), *(text.strip() for text in better_first(one).responses))
        for one in every
    }
    for one in found:
        assert (tuple(m["content"] for m in one.messages), *one.responses) in trimmed
    n_trimmed = sum(
        any(t != t.strip() for t in (*(m["content"] for m in one.messages), *one.responses)) for one in every
    )
    assert report.lost["blanks around a turn"] <= n_trimmed


def _dropped_as_pairs(given_records: list[Record]) -> int:
    report = LossReport()
    for record in given_records:
        list(pairs(record, report))
    return sum(Counter(report.dropped).values())
