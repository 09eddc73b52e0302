"""From somebody's file to a Snapshot and out again, by the commands."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from plaudit.artifacts import PreferenceRow, ThumbRow, write_snapshot
from plaudit.cli.main import plaudit
from plaudit.domain import DEFAULT_PROJECT, Annotation, Comparison, Feedback, Interaction, Person, TrainingUse, utc_now
from plaudit.formats import catalogue
from plaudit.formats.records import Record, pseudonym
from plaudit.loop import annotate, govern, imports, snapshot
from plaudit.loop.exports import snapshot_records
from plaudit.store.database import Store, open_store

ROWS = [
    {"prompt": f"How do I do {word}?", "chosen": f"Do {word} this way.", "rejected": "No.", "annotator": who}
    for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")
    for who in ("ann", "bob", "cid")
]


@pytest.fixture
def trl_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*ROWS, {"prompt": "q"}]) + "\n")
    return path


def run(home: Path, *arguments: str) -> dict:
    done = CliRunner().invoke(plaudit, [*arguments, "--home", str(home), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def test_a_file_goes_in_once_and_comes_out_as_another_format(tmp_path: Path, trl_file: Path) -> None:
    home = tmp_path / "home"
    checked = run(home, "import", "trl", str(trl_file), "--check")
    assert (checked["n_records"], checked["n_rejected"], checked["added"]) == (24, 1, {})
    taken = run(home, "import", "trl", str(trl_file), "--training-use", "allowed")
    assert taken["added"] == {
        "Person": 3,
        "Interaction": 8,
        "Response": 16,
        "Comparison": 8,
        "Annotation": 24,
        "Feedback": 0,
    }
    assert taken["rejected"] == [
        {"file": str(trl_file), "line": 25, "reason": 'it needs "chosen" and "rejected", or "prompt" and "completion"'}
    ]
    assert set(run(home, "import", "trl", str(trl_file))["added"].values()) == {0}
    assert run(home, "annotate", "aggregate")["n_preferences"] == 8
    frozen = run(home, "snapshot", "freeze")
    out = tmp_path / "out.jsonl.gz"
    for spec in (frozen["folder"], frozen["id"]):
        assert run(home, "export", "hh", spec, str(out))["n_written"] == 8
    split = run(home, "export", "trl-unpaired", frozen["folder"], str(tmp_path / "kto.jsonl"), "--split", "train")
    assert split["n_written"] == 2 * frozen["counts"]["preferences"]["train"]
    again = run(tmp_path / "other", "import", "hh", str(out), "--check")
    assert (again["n_records"], again["n_rejected"]) == (8, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["export", "trl"], "plaudit export FORMAT SNAPSHOT OUT"),
        (["export", "csv", "x", "y"], "Format 'csv' is not written"),
        (["export", "trl", "nowhere", "y"], "neither a Snapshot's folder nor the id"),
    ],
)
def test_what_cannot_be_exported_says_what_can(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(plaudit, [*arguments, "--home", str(tmp_path)])
    assert sentence in str(done.exception)


# --- loop/imports --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(f"sqlite:///{tmp_path}/import.sqlite")
    govern.ensure_project(opened, utc_now(), TrainingUse.UNKNOWN)
    yield opened
    opened.close()


def record(**given: object) -> Record:
    fields = {"id": "1", "messages": ({"role": "user", "content": "q?"},), "responses": ("a", "b"), "ranks": (1, 2)}
    return Record(**(fields | given))


def take(
    store: Store, *records: Record, name: str = "file", use: TrainingUse = TrainingUse.ALLOWED
) -> imports.ImportReport:
    return imports.take_in(store, DEFAULT_PROJECT, records, name=name, training_use=use, now=utc_now())


def test_votes_of_several_people_and_files_meet_in_one_comparison_and_strangers_do_not(store: Store) -> None:
    people = [pseudonym(name, "s") for name in ("a", "b")]
    take(store, record(annotator=people[0]), name="one")
    take(store, record(annotator=people[1], responses=("b", "a"), ranks=(2, 1)), name="two")
    take(store, record(id="x"), record(id="y"))
    votes = {}
    for row in store.find(Annotation):
        votes.setdefault(row.comparison_id, []).append(row.choice)
    assert sorted(len(chosen) for chosen in votes.values()) == [1, 1, 2]
    assert len({choice for chosen in votes.values() for choice in chosen}) == 1  # the same answer, wherever it stood
    assert store.count(Interaction) == 1


def test_one_who_contradicts_himself_is_refused_and_the_first_word_stands(store: Store) -> None:
    who = pseudonym("a", "s")
    report = take(store, record(annotator=who), record(annotator=who, ranks=(2, 1)))
    assert (report.n_records, report.n_rejected, report.added["Annotation"]) == (1, 1, 1)
    later = take(store, record(annotator=who, ranks=(2, 1)))
    assert (later.n_records, later.reasons) == (0, {imports.OTHERWISE: 1})
    (row,) = store.find(Annotation)
    assert row.verdict == "prefer"


def test_rankings_ties_thumbs_and_approved_answers(store: Store) -> None:
    report = take(
        store,
        record(id="r", responses=("a", "b", "c"), ranks=(1, 1, 2)),
        record(id="t", responses=("d", "e"), ranks=(1, 1)),
        record(id="u", responses=("f",), ranks=None, label=False, annotator=pseudonym("a", "s")),
        record(id="d", responses=("g",), ranks=None),
    )
    assert sorted(row.verdict for row in store.find(Annotation)) == ["prefer", "prefer", "tie", "tie"]
    (thumb,) = store.find(Feedback)
    assert thumb.value == {"up": False}
    assert report.n_rejected == 1


def test_without_consent_nothing_of_an_import_is_trained_on(store: Store, tmp_path: Path) -> None:
    take(
        store,
        *(record(id=str(n), messages=({"role": "user", "content": f"q {n}?"},)) for n in range(5)),
        use=TrainingUse.DENIED,
    )
    annotate.aggregate(store, DEFAULT_PROJECT, now=utc_now())
    with pytest.raises(Exception, match="may be trained on"):
        snapshot.freeze(store, DEFAULT_PROJECT, tmp_path, now=utc_now())
    assert store.count(Comparison) == 5
    assert store.count(Person) == 1


def test_a_snapshot_gives_its_thumbs_and_says_what_was_cut_off(tmp_path: Path) -> None:
    messages = ({"role": "user", "content": "q?"},)
    pair = PreferenceRow(
        "p1", "", "overall", "f", "train", messages, "a", "b", 0.9, 2.0, "choice", rejected_finished=False
    )
    thumbs = [
        ThumbRow(f"t{n}", "f", "train", messages, text, up) for n, (text, up) in enumerate([("c", True), ("d", False)])
    ]
    folder = write_snapshot(tmp_path, [pair], [], [], config={}, body={}, thumbs=thumbs).folder
    rows = list(snapshot_records(folder))
    assert [row.label for row in rows] == [None, True, False]
    assert rows[0].meta["rejected_cut_off"] == "true"
    assert "chosen_cut_off" not in rows[0].meta
    report = catalogue.writer("trl-unpaired")(rows, tmp_path / "kto.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "kto.jsonl").read_text().splitlines()]
    assert [(line["completion"][0]["content"], line["label"]) for line in lines] == [
        ("a", True), ("b", False), ("c", True), ("d", False),
    ]  # fmt: skip
    # a pair's probability means nothing of one of its answers; its weight does
    assert report.lost == {"which answer it was compared with": 1, "probability": 1, "meta": 3}
    assert [line.get("weight") for line in lines] == [2.0, 2.0, None, None]
    assert list(snapshot_records(folder, "test")) == []
