"""Each trap that breaks naive readers of other people's files, by format. The files' shapes are those that the tools document."""

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit.errors import BadInput
from plaudit.formats import argilla, ground_truth, hh, label_studio, labelbox, summarize, trl
from plaudit.formats.catalogue import reader, writer
from plaudit.formats.files import Rejected
from plaudit.formats.records import LossReport, Record, pairs, pseudonym
from plaudit.formats.trl import NO_MARGIN


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def split(found: Any) -> tuple[list[Record], list[Rejected]]:
    rows = list(found)
    return [one for one in rows if isinstance(one, Record)], [one for one in rows if isinstance(one, Rejected)]


USER = {"role": "user", "content": "q?"}


# --- HH ------------------------------------------------------------------------------------------------------------------------


def test_hh_cuts_at_the_last_turn_and_rejects_differing_prompts_and_empty_answers_by_line(tmp_path: Path) -> None:
    prompt = "\n\nHuman: q?\n\nAssistant: a?\n\nHuman: why?\n\nAssistant:"
    path = lines(
        tmp_path / "hh.jsonl",
        {"chosen": f"{prompt} yes", "rejected": f"{prompt} no"},
        {"chosen": f"{prompt} yes", "rejected": "\n\nHuman: other?\n\nAssistant: no"},
        {"chosen": f"{prompt} ", "rejected": f"{prompt} no"},
        "{broken",
    )
    records, rejected = split(hh.read(path))
    assert [one.responses for one in records] == [("yes", "no")]
    assert [message["role"] for message in records[0].messages] == ["user", "assistant", "user"]
    assert records[0].ranks == (1, 2)
    assert [(one.line, one.reason.split(" (")[0]) for one in rejected] == [
        (2, "the prompts of chosen and rejected differ"),
        (3, "the chosen answer is empty"),
        (4, "it is not JSON"),
    ]


def test_hh_drops_what_a_transcript_cannot_say(tmp_path: Path) -> None:
    def record(messages: Any, answer: str = "yes") -> Record:
        return Record(id="1", messages=tuple(messages), responses=(answer, "no"), ranks=(1, 2))

    report = hh.write(
        [
            record([USER]),
            record([{"role": "system", "content": "s"}, USER]),
            record([USER, USER]),
            record([USER], "yes\n\nHuman: and?"),
            record([USER], " yes "),
        ],
        tmp_path / "hh.jsonl",
    )
    assert (report.n_records, report.n_written) == (5, 2)
    assert sorted(report.dropped) == [
        "a message is neither the user's nor the assistant's",
        "a text holds a turn's marker",
        "two messages of one role follow each other",
    ]
    assert report.lost == {"blanks around a turn": 1}


# --- TRL -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"prompt": "q?", "chosen": "a", "rejected": "b"}, ("a", "b")),
        (
            {
                "prompt": [USER],
                "chosen": [{"role": "assistant", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}],
            },
            ("a", "b"),
        ),
        (
            {
                "chosen": [USER, {"role": "assistant", "content": "a"}],
                "rejected": [USER, {"role": "assistant", "content": "b"}],
            },
            ("a", "b"),
        ),
        (
            {"chosen": "q? blue", "rejected": "q? green"},
            (" blue", " green"),
        ),  # TRL leaves the shared blank with the answers
        ({"chosen": "\n\nHuman: q?\n\nAssistant: a", "rejected": "\n\nHuman: q?\n\nAssistant: ab"}, ("a", "ab")),
        ({"prompt": "\n\nHuman: q?\n\nAssistant:", "chosen": " a", "rejected": " b"}, (" a", " b")),
    ],
)
def test_trl_reads_every_form_of_a_preference(tmp_path: Path, row: Any, answers: tuple[str, str]) -> None:
    (record,), rejected = split(trl.read(lines(tmp_path / "t.jsonl", row)))
    assert (record.messages, record.responses, record.ranks, rejected) == ((USER,), answers, (1, 2), [])


def test_trl_reads_thumbs_and_approved_answers_and_margins(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "t.jsonl",
        {"prompt": "q?", "completion": "a", "label": False},
        {"prompt": "q?", "completion": "a"},
        {"prompt": "q?", "chosen": "a", "rejected": "b", "margin": 0.0},
        {"prompt": "q?", "completion": "a", "label": 1},
        {"prompt": "q?"},
    )
    records, rejected = split(trl.read(path))
    assert [(one.label, one.margin) for one in records] == [(False, None), (None, None), (None, 0.0)]
    assert [one.line for one in rejected] == [4, 5]


def test_trl_margins_are_a_column_of_every_row_or_of_none(tmp_path: Path) -> None:
    rows = [
        Record(id=str(n), messages=(USER,), responses=("a", "b"), ranks=(1, 2), margin=m)
        for n, m in enumerate((1.0, None))
    ]
    report = writer("trl-margin")(rows, tmp_path / "m.jsonl")
    assert [json.loads(line)["margin"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1.0]
    assert report.dropped == {NO_MARGIN: 1}
    report = writer("trl")(rows, tmp_path / "p.jsonl")
    assert not any("margin" in json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines())
    assert report.lost == {"margin": 1}


def test_trl_text_form_drops_conversations(tmp_path: Path) -> None:
    long = (USER, {"role": "assistant", "content": "a"}, USER)
    rows = [Record(id="1", messages=m, responses=("a", "b"), ranks=(2, 1)) for m in ((USER,), long)]
    report = writer("trl-text")(rows, tmp_path / "t.jsonl")
    assert json.loads((tmp_path / "t.jsonl").read_text()) == {"prompt": "q?", "chosen": "b", "rejected": "a", "id": "1"}
    assert report.n_written == 1
    assert sum(report.dropped.values()) == 1


# --- OpenAI summaries ------------------------------------------------------------------------------------------------------------


def test_summaries_of_posts_and_articles_with_worker_choice_and_confidence(tmp_path: Path) -> None:
    def row(choice: Any, second: str = "two", **info: str) -> Any:
        return {
            "info": {"id": "i", "title": "T", **info},
            "summaries": [{"text": " one", "policy": "ref"}, {"text": second, "policy": "sup"}],
            "choice": choice,
            "worker": "alice",
            "batch": "b",
            "extra": {"confidence": 7},
        }

    path = lines(
        tmp_path / "s.jsonl", row(1, post="P"), row(0, article="A"), row(2, post="P"), row(0, second=" ", post="P")
    )
    records, rejected = split(summarize.read(path, salt="x"))
    assert [one.ranks for one in records] == [(2, 1), (1, 2)]
    assert records[0].responses == ("one", "two")
    assert records[0].models == ("ref", "sup")
    assert records[0].confidence == 7
    assert "post" in records[0].messages[0]["content"]
    assert "article" in records[1].messages[0]["content"]
    assert records[0].annotator == pseudonym("alice", "x") != pseudonym("alice", "y")
    assert "alice" not in repr(records)
    assert [one.line for one in rejected] == [3, 4]


# --- Label Studio ----------------------------------------------------------------------------------------------------------------


def task(annotations: Any, **data: Any) -> Any:
    return {"id": 7, "data": {"prompt": "q?", "text1": "a", "text2": "b", **data}, "annotations": annotations}


def chose(side: str, to_name: str = "text1,text2", **more: Any) -> Any:
    result = [{"type": "pairwise", "from_name": "pw", "to_name": to_name, "value": {"selected": side}}]
    return {"completed_by": 3, "was_cancelled": False, "lead_time": 4.5, "result": result, **more}


def test_label_studio_left_is_the_first_name_of_to_name(tmp_path: Path) -> None:
    path = tmp_path / "ls.json"
    path.write_text(json.dumps([task([chose("left"), chose("left", "text2,text1"), chose("right", "txt-1, txt-2")])]))
    records, rejected = split(label_studio.read(path))
    better = [one.responses[one.chosen_first[0]] for one in records]
    assert (better, rejected) == (["a", "b", "b"], [])
    assert {one.id for one in records} == {"7"}


def test_label_studio_skips_are_no_votes_and_a_person_is_an_int_or_an_object(tmp_path: Path) -> None:
    path = tmp_path / "ls.json"
    annotations = [
        chose("left"),
        chose("left", completed_by={"id": 3, "email": "x@y"}),
        chose("left", was_cancelled=True),
    ]
    path.write_text(json.dumps([task(annotations), task([])]))
    records, rejected = split(label_studio.read(path))
    assert len(records) == 2
    assert records[0].annotator == records[1].annotator == pseudonym(3, "")
    assert [one.reason for one in rejected] == ["annotation 3: it was skipped", "nobody has annotated it"]


def test_label_studio_rankings_name_items_by_id(tmp_path: Path) -> None:
    items = [{"id": "x", "title": "a"}, {"id": "y", "title": "b"}, {"id": "z", "title": "c"}]

    def ranked(value: Any) -> Any:
        return {"completed_by": 1, "result": [{"type": "ranker", "to_name": "items", "value": {"ranker": value}}]}

    data = {"id": 1, "data": {"prompt": "q?", "items": items}}
    order, buckets, wrong = ({"rank": ["z", "x", "y"]}, {"good": ["z", "x"], "bad": ["y"]}, {"rank": ["z"]})
    path = tmp_path / "ls.json"
    path.write_text(json.dumps([data | {"annotations": [ranked(order), ranked(buckets), ranked(wrong)]}]))
    records, rejected = split(label_studio.read(path))
    assert [one.ranks for one in records] == [(2, 3, 1), (1, 2, 1)]
    assert len(rejected) == 1


# --- Argilla ---------------------------------------------------------------------------------------------------------------------


def test_argilla_keeps_equal_ranks_and_takes_no_drafts(tmp_path: Path) -> None:
    def response(values: Any, status: str = "submitted") -> Any:
        return {"user_id": "u1", "status": status, "values": values}

    tie = {"ranking": {"value": [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}]}}
    record = {
        "id": "r",
        "fields": {"prompt": "q?", "response1": "a", "response2": "b"},
        "metadata": {"topic": "x"},
        "responses": [
            response(tie),
            response({"preference": {"value": "response2"}, "comment": {"value": "clear"}}),
            response({"preference": {"value": "Tie"}}),
            response(tie, "draft"),
            response({"rating": {"value": 4}}),
        ],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"items": [record], "total": 1}, indent=1))
    records, rejected = split(argilla.read(path))
    assert [one.ranks for one in records] == [(1, 1), (2, 1), (1, 1)]
    assert records[1].comment == "clear"
    assert records[0].meta == {"topic": "x"}
    assert len(rejected) == 2


# --- Labelbox --------------------------------------------------------------------------------------------------------------------


def labelbox_row(*annotations: Any, skipped: bool = False) -> Any:
    outputs = [
        {"title": f"Response {k}", "content": text, "modelConfigName": model}
        for k, text, model in (("A", "a", "m1"), ("B", "b", "m2"))
    ]
    labels = [
        {
            "label_details": {"created_by": "x@y", "created_at": "2026-01-01"},
            "performance_details": {"seconds_to_create": 9, "skipped": skipped},
            "annotations": one,
        }
        for one in annotations
    ]
    data = {"messages": [{"content": "q?", "user": {"name": "User"}}], "modelOutputs": outputs}
    return {"data_row": {"id": "d", "row_data": data}, "projects": {"p": {"labels": labels}}}


def test_labelbox_reads_rankings_selections_and_radio_ties(tmp_path: Path) -> None:
    ranking = {
        "message_ranking_task": {
            "ranked_messages": [{"message_id": "Response B", "order": 1}, {"message_id": "Response A", "order": 2}]
        }
    }
    selection = {"message_single_selection_task": {"message_id": "?", "model_config_name": "m1"}}
    radio = {"name": "better", "radio_answer": {"name": "Response B", "value": "response_b"}}
    tie = {"name": "better", "radio_answer": {"name": "About the same", "value": "about_the_same"}}
    path = lines(
        tmp_path / "lb.ndjson",
        labelbox_row(
            {"objects": [ranking]}, {"objects": [selection]}, {"classifications": [radio]}, {"classifications": [tie]}
        ),
        labelbox_row({"objects": [ranking]}, skipped=True),
        {"data_row": {"id": "d", "row_data": "https://x/y.json"}, "projects": {}},
        {"nothing": 1},
    )
    records, rejected = split(labelbox.read(path))
    assert [one.ranks for one in records] == [(2, 1), (1, 2), (2, 1), (1, 1)]
    assert records[0].seconds == 9
    assert "x@y" not in repr(records)
    assert [one.line for one in rejected] == [2, 3, 4]


def test_labelbox_has_no_form_for_a_tie_within_a_longer_ranking(tmp_path: Path) -> None:
    record = Record(id="1", messages=(USER,), responses=("a", "b", "c"), ranks=(1, 1, 2))
    assert labelbox.write([record], tmp_path / "l.ndjson").dropped == {"a tie within a longer ranking": 1}


# --- Ground Truth ----------------------------------------------------------------------------------------------------------------

SOURCE = json.dumps({"prompt": "q?", "responses": ["a", "b"]})


@pytest.mark.parametrize("mark", ["-", "_"])
@pytest.mark.parametrize(
    ("label", "name", "ranks"),
    [(0, "response A", (1, 2)), ("1", None, (2, 1)), (1, "tie", (1, 1)), (0, "response2", (2, 1))],
)
def test_ground_truth_metadata_with_hyphens_or_underscores_and_labels_of_either_type(
    tmp_path: Path, mark: str, label: Any, name: Any, ranks: tuple[int, int]
) -> None:
    details = {f"class{mark}name": name, "confidence": 0.0, f"human{mark}annotated": "yes", "labelCategories": None}
    row = {"source": SOURCE, "job": label, f"job{mark}metadata": details}
    (record,), _ = split(ground_truth.read(lines(tmp_path / "out.manifest", row)))
    assert record.ranks == ranks
    assert record.confidence == 0.0  # one worker, not "no confidence"


def test_ground_truth_text_rankings_are_ranks_by_response_with_ties(tmp_path: Path) -> None:
    three = json.dumps({"prompt": "q?", "responses": ["a", "b", "c"]})
    row = {
        "source": three,
        "job": {"responseRankings": [2, 1, 2]},
        "job-metadata": {"type": "groundtruth/text-ranking"},
    }
    (record,), _ = split(ground_truth.read(lines(tmp_path / "out.manifest", row)))
    assert record.ranks == (2, 1, 2)


def test_ground_truth_workers_answer_in_json_text_each_a_vote(tmp_path: Path) -> None:
    def worker(name: str, content: Any) -> Any:
        return {"workerId": name, "annotationData": {"content": json.dumps(content)}}

    item = {
        "datasetObjectId": "0",
        "dataObject": {"content": SOURCE},
        "annotations": [
            worker("w1", {"crowd-classifier": {"label": "response B"}}),
            worker("w2", {"labels": None}),
            worker("w1", {"choice": {"label": "A"}}),
        ],
    }
    file = {
        "source": SOURCE,
        "answers": [{"workerId": "w1", "answerContent": {"preference": {"label": "B"}}, "timeSpentInSeconds": 3.5}],
    }
    path = tmp_path / "w.json"
    path.write_text(json.dumps([item, file]))
    records, rejected = split(ground_truth.read(path))
    assert [one.ranks for one in records] == [(2, 1), (1, 2), (2, 1)]
    assert len({one.annotator for one in records}) == 1
    assert records[2].seconds == 3.5
    assert len(rejected) == 1


def test_ground_truth_lines_that_nobody_judged_and_lines_too_long(tmp_path: Path) -> None:
    path = lines(tmp_path / "in.manifest", {"source": SOURCE}, {"source": "just a text"})
    assert [
        "not been judged" in one.reason or "plain text" in one.reason for one in split(ground_truth.read(path))[1]
    ] == [True, True]
    long = Record(id="1", messages=(USER,), responses=("a" * ground_truth.MAX_LINE, "b"), ranks=(1, 2))
    assert sum(ground_truth.write([long], tmp_path / "o.manifest").dropped.values()) == 1


# --- all -------------------------------------------------------------------------------------------------------------------------


def test_a_ranking_becomes_pairs_without_its_ties() -> None:
    report = LossReport()
    record = Record(id="1", messages=(USER,), responses=("a", "b", "c"), ranks=(2, 1, 2), models=("x", "y", "z"))
    found = list(pairs(record, report))
    assert [(one.responses, one.ranks, one.models) for one in found] == [
        (("a", "b"), (2, 1), ("x", "y")),
        (("b", "c"), (1, 2), ("y", "z")),
    ]
    assert report.dropped == {"a tie": 1}


def test_unknown_formats_are_named() -> None:
    with pytest.raises(BadInput, match="choose from: trl"):
        reader("csv")
    with pytest.raises(BadInput, match="'argilla' is not written"):
        writer("argilla")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"messages": ({"role": "user", "content": " "},)}, "prompt is empty"),
        ({"responses": ("a", " ")}, "an answer is empty"),
        ({"responses": ("a", "a")}, "same text"),
        ({"ranks": None}, "not judged"),
        ({"ranks": (1,)}, "2 answers and 1 ranks"),
        ({"responses": ("a",), "ranks": (1,)}, "alone"),
    ],
)
def test_a_judgement_that_says_nothing_is_none(given: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Record(**({"id": "1", "messages": (USER,), "responses": ("a", "b"), "ranks": (1, 2)} | given))
