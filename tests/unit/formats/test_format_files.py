import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from plaudit.errors import BadInput, NotFound
from plaudit.formats.files import CHUNK, read_items, read_lines, written

ROWS = [{"a": 1}, {"a": "two\nlines é"}, [3, 4], 5]


def packed(path: Path, text: str) -> Path:
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["x.json", "x.json.gz", "x.json.zst"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_item_by_item_with_the_lines_they_start_on(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    path = packed(tmp_path / name, "\n" + json.dumps(ROWS, indent=indent, ensure_ascii=False))
    found = list(read_items(path))
    assert [value for _, value in found] == ROWS
    assert [line for line, _ in found] == ([2, 2, 2, 2] if indent is None else [3, 6, 9, 13])


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst"])
def test_lines_are_read_and_a_broken_one_is_an_error_in_its_place(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / name, '{"a": 1}\n\nnonsense\n{"a": 2}')
    found = list(read_items(path))
    assert [line for line, _ in found] == [1, 3, 4]
    assert found[0][1] == {"a": 1}
    assert found[2][1] == {"a": 2}
    assert "not JSON" in str(found[1][1])


def test_an_array_within_an_object_is_found_by_its_key(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.json", json.dumps({"total": 2, "next": None, "items": [{"a": 1}, {"a": 2}]}))
    assert [value for _, value in read_items(path, key="items")] == [{"a": 1}, {"a": 2}]
    assert next(value for _, value in read_items(path, key="rows"))["total"] == 2  # one line, one object


@pytest.mark.parametrize(
    ("text", "line"), [('[{"a": 1},\n{"a": }]', 2), ('[{"a": 1}\n {"a": 2}]', 2), ('[{"a": 1},', 1)]
)
def test_an_array_that_breaks_is_refused_with_its_line_after_the_good_items(
    tmp_path: Path, text: str, line: int
) -> None:
    path = packed(tmp_path / "x.json", text)
    found = []
    with pytest.raises(BadInput, match=f"line {line}"):
        found.extend(value for _, value in read_items(path))


def test_an_item_longer_than_a_chunk_and_a_number_at_its_edge_are_whole(tmp_path: Path) -> None:
    long, number = "x" * (3 * CHUNK), 1234567
    head = "[" + json.dumps(long) + ", "
    filler = " " * (-(len(head) + 3) % CHUNK)  # the number straddles the end of a chunk
    path = packed(tmp_path / "x.json", head + filler + f"{number}, 1]")
    assert [value for _, value in read_items(path)] == [long, number, 1]


def test_a_file_that_is_missing_or_cut_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.json"):
        list(read_lines(tmp_path / "nothing.json"))
    for name in ("x.jsonl.gz", "x.jsonl.zst"):
        path = packed(tmp_path / name, json.dumps({"a": "b" * 1000}) + "\n")
        path.write_bytes(path.read_bytes()[:-6])
        with pytest.raises(BadInput, match="damaged"):
            list(read_lines(path))


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.txt.zst"])
def test_what_is_written_is_read_again_and_packs_as_its_name_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / "folder" / name
    with written(path) as file:
        for n in range(1000):
            file.write(f"line {n} é\n")
        assert not path.exists()
    assert [line.decode() for _, line in read_lines(path)] == [f"line {n} é\n" for n in range(1000)]
    assert (path.stat().st_size < 6000) == (not name.endswith(".txt"))
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_while_it_is_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), written(path) as file:
        file.write(f"new {1 / 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("array", [True, False])
def test_memory_stays_flat_however_long_the_file_is(tmp_path: Path, array: bool) -> None:
    row = json.dumps({"text": "y" * 1000})
    path = tmp_path / "x.json"
    with path.open("w") as file:
        file.write("[" if array else "")
        for n in range(20_000):  # 20 MB
            file.write(row if n == 0 else f"{',' if array else ''}\n{row}")
        file.write("]" if array else "\n")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_items(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
