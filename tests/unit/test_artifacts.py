from __future__ import annotations

import hashlib
import json
import random
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit import artifacts
from plaudit.artifacts import DemonstrationRow, PreferenceRow, PromptRow, VoteRow, open_snapshot, write_snapshot
from plaudit.errors import BadInput, Conflict, Corrupt, NotFound


def preference(number: int, split: str = "train", text: str = "yes") -> PreferenceRow:
    return PreferenceRow(
        preference_id=f"prf_{number}",
        comparison_id=f"cmp_{number}",
        criterion="overall",
        family=f"family {number}",
        split=split,
        messages=({"role": "user", "content": f"question {number}"},),
        chosen=text,
        rejected="no",
        probability=0.5 + number / 1000,
        weight=2.5,
        source="annotation",
    )


PREFERENCES = [preference(i, "test" if i % 5 == 0 else "train") for i in range(20)]
DEMONSTRATION = DemonstrationRow("dem_1", "f", "train", ({"role": "user", "content": "q"},), "ü 漢 🎉", "edit")
PROMPTS = [PromptRow(f"pmt_{i}", "f", "train", ({"role": "user", "content": str(i)},)) for i in range(3)]


def frozen(parent: Path, rows: list[PreferenceRow] | None = None, **config: object) -> artifacts.Snapshot:
    return write_snapshot(parent, rows or PREFERENCES, [DEMONSTRATION], PROMPTS, config, {"note": "n"})


# --- canonical form ----------------------------------------------------------------------------------------------------


def test_canonical_bytes_are_those_of_json_with_sorted_keys() -> None:
    assert artifacts.canonical({"b": [1, 0.1, None], "a": "ü"}) == '{"a":"ü","b":[1,0.1,null]}'.encode()
    # printf '{"a":1}' | sha256sum
    assert artifacts.sha256_of({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    with pytest.raises(ValueError, match="Out of range"):
        artifacts.canonical(float("nan"))


@pytest.mark.parametrize(
    "messages",
    [
        ({"role": "user", "content": 'a "b" \\ \n\t\x00 \u2028 ü 漢 😀'}, {"content": "", "role": "assistant"}),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]},),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},),
        ({"role": "user", "content": "a", "name": "b"},),
        (),
    ],
)
@pytest.mark.parametrize("weight", [3, 2.0, 1e-7, 1 / 3, 1e22])
def test_the_short_way_to_canonical_bytes_leads_to_the_same(
    messages: tuple[dict[str, object], ...], weight: float
) -> None:
    row = replace(PREFERENCES[0], messages=messages, weight=weight, chosen='q"\\ü%s', chosen_finished=False)
    columns = artifacts.Columns.of(artifacts.PreferenceRow)
    assert artifacts.conversation(messages).encode() == artifacts.canonical(list(messages))
    assert columns.line(columns.cells(row)) == artifacts.canonical(artifacts.asdict(row))
    texts = [str(one.get("content")) for one in messages]
    assert artifacts.sha256_of_texts(texts) == artifacts.sha256_of(texts)
    with pytest.raises(ValueError, match="Out of range"):
        columns.line(columns.cells(replace(row, weight=float("inf"))))


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 19))
def test_row_hashes_ignore_order_and_nothing_else(draw: random.Random, index: int) -> None:
    shuffled = list(PREFERENCES)
    draw.shuffle(shuffled)
    assert artifacts.hash_rows(shuffled) == artifacts.hash_rows(PREFERENCES)
    shuffled[index] = preference(99)
    assert artifacts.hash_rows(shuffled) != artifacts.hash_rows(PREFERENCES)
    assert artifacts.hash_rows([*PREFERENCES, PREFERENCES[0]]) != artifacts.hash_rows(PREFERENCES)


# --- folders -----------------------------------------------------------------------------------------------------------


def folder(parent: Path) -> Path:
    made = artifacts.new_folder(parent, "made")
    (made / "sub").mkdir()
    (made / "sub" / "a.bin").write_bytes(b"abc")
    (made / "b.txt").write_text("b")
    (made / ".hidden").write_text("left out")
    return made


def test_a_folder_is_finished_by_its_manifest_and_verifies(tmp_path: Path) -> None:
    made = folder(tmp_path)
    with pytest.raises(NotFound, match="not a finished"):
        artifacts.read_manifest(made)
    manifest = artifacts.finish(made, "checkpoint", {"kind": "policy"})
    assert sorted(manifest.files) == ["b.txt", "sub/a.bin"]
    assert manifest.files["sub/a.bin"].size_bytes == 3
    assert artifacts.verify(made, "checkpoint") == manifest
    with pytest.raises(Conflict, match="already finished"):
        artifacts.finish(made, "checkpoint", {})
    with pytest.raises(Conflict, match="already finished"):
        artifacts.new_folder(tmp_path, "made")
    with pytest.raises(BadInput, match="holds a checkpoint, not a snapshot"):
        artifacts.verify(made, "snapshot")


def test_the_identity_is_content_and_body(tmp_path: Path) -> None:
    ids = {
        artifacts.finish(folder(tmp_path / name), "checkpoint", {"x": body}).id
        for name, body in (("one", 1), ("two", 1), ("three", 2))
    }
    assert len(ids) == 2


@pytest.mark.parametrize("name", ["b.txt", "sub/a.bin"])
def test_a_changed_or_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    made = folder(tmp_path)
    artifacts.finish(made, "checkpoint", {})
    right = (made / name).read_bytes()
    (made / name).write_bytes(bytes([right[0] ^ 1]) + right[1:])  # same size: only the hash can tell
    with pytest.raises(Corrupt, match=name):
        artifacts.verify(made)
    (made / name).unlink()
    with pytest.raises(Corrupt, match=f"{name} is missing"):
        artifacts.verify(made)


def test_a_manifest_that_is_broken_or_newer_is_refused(tmp_path: Path) -> None:
    made = folder(tmp_path)
    artifacts.finish(made, "checkpoint", {})
    path = made / artifacts.MANIFEST
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "version": 999}))
    with pytest.raises(BadInput, match="newer Plaudit"):
        artifacts.verify(made)
    for broken in ("{", "[]", json.dumps({"kind": "checkpoint"})):
        path.write_text(broken)
        with pytest.raises(Corrupt, match=artifacts.MANIFEST):
            artifacts.verify(made)


def test_an_interrupted_attempt_is_swept_away(tmp_path: Path) -> None:
    made = folder(tmp_path)
    assert list(artifacts.new_folder(tmp_path, "made").iterdir()) == []
    assert made.exists()


def test_an_atomic_write_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    artifacts.write_atomic(path, "one")
    artifacts.write_atomic(path, b"two")
    assert [one.name for one in path.parent.iterdir()] == ["x.json"]
    assert path.read_bytes() == b"two"
    with pytest.raises(UnicodeEncodeError):
        artifacts.write_atomic(path, "half \ud800")
    assert path.read_bytes() == b"two"


# --- Snapshots ---------------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    opened = open_snapshot(frozen(tmp_path).folder)
    assert sorted(opened.preferences(), key=lambda row: row.preference_id) == sorted(
        PREFERENCES, key=lambda row: row.preference_id
    )
    assert opened.demonstrations() == [DEMONSTRATION]
    assert {row.prompt_id for row in opened.prompts()} == {"pmt_0", "pmt_1", "pmt_2"}
    assert {row.preference_id for row in opened.preferences("test")} == {"prf_0", "prf_5", "prf_10", "prf_15"}
    assert opened.preferences("valid") == []
    assert opened.manifest.body["counts"] == {"preferences": 20, "demonstrations": 1, "prompts": 3}


def test_same_rows_and_config_same_snapshot_whatever_their_order(tmp_path: Path) -> None:
    first = frozen(tmp_path / "a", seed=1)
    assert frozen(tmp_path / "a", seed=1).folder == first.folder
    second = frozen(tmp_path / "b", list(reversed(PREFERENCES)), seed=1)
    assert (second.manifest.id, second.manifest.files) == (first.manifest.id, first.manifest.files)
    assert frozen(tmp_path / "a", seed=2).manifest.id != first.manifest.id
    assert (
        frozen(tmp_path / "a", [*PREFERENCES[:-1], preference(19, text="Yes")], seed=1).manifest.id != first.manifest.id
    )


def test_the_golden_identity(tmp_path: Path) -> None:
    """Frozen: people's manifests hold such ids, so neither the rows' canonical form nor the formula may change."""
    rows = [preference(1)]
    row_bytes = (
        b'{"chosen":"yes","chosen_finished":true,"comparison_id":"cmp_1","criterion":"overall","family":"family 1",'
        b'"messages":[{"content":"question 1","role":"user"}],"preference_id":"prf_1","probability":0.501,"rejected":"no","rejected_finished":true,'
        b'"source":"annotation","split":"train","weight":2.5}'
    )
    table = hashlib.sha256(hashlib.sha256(row_bytes).digest()).hexdigest()
    empty = hashlib.sha256(b"").hexdigest()
    text = (
        f'{{"config":{{"seed":0}},"tables":{{"demonstrations":"{empty}","preferences":"{table}","prompts":"{empty}"}}}}'
    )
    made = write_snapshot(tmp_path, rows, [], [], {"seed": 0}, {})
    assert made.manifest.id == hashlib.sha256(text.encode()).hexdigest()
    assert made.folder.name == made.manifest.id[:16]


def test_an_interrupted_freeze_is_begun_again(tmp_path: Path) -> None:
    first = frozen(tmp_path)
    (first.folder / artifacts.MANIFEST).unlink()  # as if killed before the manifest
    again = frozen(tmp_path)
    assert again.manifest == first.manifest
    assert [path.name for path in tmp_path.iterdir()] == [first.folder.name]


def test_a_flipped_byte_in_any_table_is_refused(tmp_path: Path) -> None:
    made = frozen(tmp_path)
    for name in made.manifest.files:
        path = made.folder / name
        right = path.read_bytes()
        path.write_bytes(right[:-9] + bytes([right[-9] ^ 1]) + right[-8:])
        with pytest.raises(Corrupt, match=name):
            open_snapshot(made.folder)
        path.write_bytes(right)


def test_votes_are_a_table_where_there_are_any(tmp_path: Path) -> None:
    row = PreferenceRow(
        "p", "c", "o", "f", "train", ({"role": "user", "content": "q"},), "a", "b", 0.9, 1.0, "annotation"
    )
    vote = VoteRow("p", "c", "annotator-1", "chosen", 2.5)
    without = write_snapshot(tmp_path, [row], [], [], {}, {})
    beside = write_snapshot(tmp_path, [row], [], [], {}, {}, votes=[vote])
    assert without.votes() == []
    assert "votes" not in without.manifest.body["counts"]
    assert beside.votes() == [vote]
    assert beside.preferences() == without.preferences() == [row]
    assert beside.manifest.id != without.manifest.id
    (beside.folder / "votes.parquet").write_bytes(b"other")
    with pytest.raises(Corrupt, match=r"votes\.parquet"):
        open_snapshot(beside.folder)


def test_a_snapshot_of_the_first_format_still_opens() -> None:
    """Written by Plaudit 0.1 before votes, thumbs and cards: kept, never written anew."""
    opened = open_snapshot(Path(__file__).parent / "snapshot_of_format_1")
    (row,) = opened.preferences("train")
    assert (row.chosen, row.rejected, row.rejected_finished) == ("better", "worse", False)
    assert opened.demonstrations()[0].response == "approved"
    assert opened.prompts()[0].messages == ({"role": "user", "content": "question"},)
    assert (opened.votes(), opened.thumbs()) == ([], [])


def test_rows_lie_in_the_order_of_their_canonical_bytes_also_where_these_begin_alike(tmp_path: Path) -> None:
    rows = [preference(i, text="the same long beginning of an answer " * 2 + str(i % 3)) for i in range(30)]
    made = frozen(tmp_path, rows)
    read = made.preferences()
    assert read == sorted(rows, key=lambda row: artifacts.canonical(artifacts.asdict(row)))


def test_pages_stand_beside_the_tables_and_are_no_part_of_the_identity(tmp_path: Path) -> None:
    plain = write_snapshot(tmp_path / "a", PREFERENCES, [], [], {}, {})
    paged = write_snapshot(tmp_path / "b", PREFERENCES, [], [], {}, {}, pages={"card.md": "# ü"})
    assert paged.manifest.id == plain.manifest.id
    assert (paged.folder / "card.md").read_text(encoding="utf-8") == "# ü"
    (paged.folder / "card.md").write_text("# u")
    with pytest.raises(Corrupt, match=r"card\.md"):
        open_snapshot(paged.folder)


# --- elsewhere ---------------------------------------------------------------------------------------------------------


def elsewhere(folder: Path, address: str, parent: Path) -> None:
    """There and back, twice; what is damaged there is named."""
    import fsspec

    there = artifacts.publish(folder, address)
    assert artifacts.publish(folder, address) == there
    fetched = artifacts.fetch(there, parent)
    assert fetched == parent / folder.name
    assert open_snapshot(fetched).preferences() == open_snapshot(folder).preferences()
    assert artifacts.fetch(there, parent) == fetched
    files, root = fsspec.core.url_to_fs(there)
    data = files.cat_file(f"{root}/prompts.parquet")
    files.pipe_file(f"{root}/prompts.parquet", data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(Corrupt, match=r"prompts\.parquet"):
        artifacts.fetch(there, parent / "damaged")
    files.rm_file(f"{root}/prompts.parquet")
    with pytest.raises(Corrupt, match=r"prompts\.parquet"):
        artifacts.fetch(there, parent / "missing")
    files.rm_file(f"{root}/manifest.json")
    with pytest.raises(NotFound):
        artifacts.fetch(there, parent / "unfinished")
    assert list(parent.glob("*/*/manifest.json")) == []


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_folder_is_published_and_fetched(tmp_path: Path, scheme: str) -> None:
    made = frozen(tmp_path / "made")
    elsewhere(made.folder, f"{scheme}://{tmp_path}/bucket", tmp_path / "fetched")
    other = frozen(tmp_path / "other", seed=7)
    renamed = other.folder.rename(tmp_path / "other" / made.folder.name)
    artifacts.publish(made.folder, f"{scheme}://{tmp_path}/taken")
    with pytest.raises(Conflict, match=made.folder.name):
        artifacts.publish(renamed, f"{scheme}://{tmp_path}/taken")
    with pytest.raises(BadInput, match="nowhere"):
        artifacts.publish(made.folder, "nowhere://bucket")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_folder_is_published_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 as moto serves it, over HTTP."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="bucket")
        elsewhere(frozen(tmp_path / "made").folder, "s3://bucket/snapshots", tmp_path / "fetched")
    finally:
        server.stop()


def test_a_secret_is_the_owner_s_and_of_two_writers_the_first_one_wins(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "some.key"
    artifacts.write_secret(file, "one")
    artifacts.write_secret(file, "two")
    assert file.read_text() == "one"
    artifacts.write_secret(file, b"three", replace=True)
    assert file.read_bytes() == b"three"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
    assert list(file.parent.iterdir()) == [file]


def test_a_secret_that_could_not_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        artifacts.write_secret(tmp_path / "some.key", "one")
    assert list(tmp_path.iterdir()) == []


HOSTILE = ["plain", "ünïcode \u2028 \x7f", 'quote" back\\ slash / \n\t\x01', "😀 emoji", "a" * 60 + "1", "a" * 60 + "2"]


def hostile_rows() -> list[PreferenceRow]:
    return [
        PreferenceRow(
            f"prf_{i}", f"cmp_{i}" if i % 2 else "", "overall", f"fam {i // 2}", "train",
            ({"role": "user", "content": text, "name": None, "n": 1},), text, text + "!", 0.5 + i / 20, 1 if i == 3 else i * 1.1,
            "annotation", True, i != 2,
        )
        for i, text in enumerate(HOSTILE)
    ]  # fmt: skip


def test_rows_keep_the_identity_and_order_that_they_had_when_each_was_encoded_whole(tmp_path: Path) -> None:
    """Golden: written by the code of before `Columns`, which hashed `canonical(asdict(row))`."""
    demonstration = DemonstrationRow(
        "dem_1", "f", "valid", ({"role": "user", "content": [{"type": "text", "text": "é"}]},), "ré", "edit"
    )
    prompt = PromptRow("pmt_1", "f", "test", ({"role": "user", "content": "x"},))
    vote = VoteRow("prf_1", "cmp_1", "annotator-1", "tie", 3.25)
    thumb = artifacts.ThumbRow("fdb_1", "f", "train", ({"role": "user", "content": "x"},), "y", True)
    rows, columns = hostile_rows(), artifacts.Columns.of(PreferenceRow)
    made = write_snapshot(tmp_path, rows, [demonstration], [prompt], {"seed": 0}, {}, [vote], [thumb])
    assert made.manifest.id == "adc25b9c8082b54d07377ceaeb2d5f81cd0fc9c3f9a029dadbb90fa79d281a79"
    assert [row.preference_id for row in made.preferences()] == [f"prf_{i}" for i in (4, 5, 0, 2, 1, 3)]
    assert {row.preference_id: row for row in made.preferences()} == {row.preference_id: row for row in rows}
    again = write_snapshot(tmp_path / "b", map(columns.cells, rows), [], [], {}, {})  # cells are as good as rows
    assert again.manifest.id == write_snapshot(tmp_path / "c", rows, [], [], {}, {}).manifest.id
    assert (again.provenance(), again.thumbs()) == ({}, [])


@pytest.mark.parametrize("row", hostile_rows(), ids=range(len(HOSTILE)))
def test_a_line_of_cells_is_the_canonical_form(row: PreferenceRow) -> None:
    columns = artifacts.Columns.of(PreferenceRow)
    assert columns.line(columns.cells(row)) == artifacts.canonical(vars(row))


def test_provenance_is_of_the_identity(tmp_path: Path) -> None:
    said = [artifacts.ProvenanceRow("prf_1", "allowed", "hh", licence, "", "", "unknown") for licence in ("mit", "bsd")]
    made = [write_snapshot(tmp_path, PREFERENCES, [], [], {}, {}, provenance=[one]) for one in said]
    assert made[0].manifest.id != made[1].manifest.id
    assert made[0].provenance() == {"prf_1": said[0]}


def test_groups_are_a_table_where_they_are_asked_for_and_else_change_nothing(tmp_path: Path) -> None:
    plain = artifacts.write_snapshot(tmp_path, [preference(1)], [], [], {}, {})
    assert plain.groups() == {}
    rows = [
        artifacts.GroupRow("prf_1", '{"plan":"free"}'),
        artifacts.GroupRow("fbk_1", '{"language":"de","plan":"pro"}'),
    ]
    grouped = artifacts.write_snapshot(tmp_path, [preference(1)], [], [], {}, {}, groups=rows)
    assert grouped.groups() == {"prf_1": {"plan": "free"}, "fbk_1": {"language": "de", "plan": "pro"}}
    assert grouped.manifest.id != plain.manifest.id
    assert grouped.preferences() == plain.preferences()


def test_a_published_folder_is_whole_before_its_manifest_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    put, sent = LocalFileSystem.put_file, []

    def noted(self: LocalFileSystem, source: str, target: str, **options: object) -> None:
        sent.append(Path(target).name)
        put(self, source, target, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", noted)
    frozen = artifacts.write_snapshot(tmp_path / "here", PREFERENCES[:1], [], [], {}, {})
    artifacts.publish(frozen.folder, f"file://{tmp_path}/there")
    assert sent[-1] == artifacts.MANIFEST
    assert sorted(sent[:-1]) == sorted(frozen.manifest.files)
