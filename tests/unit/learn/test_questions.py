"""Which rows are read, and pairs of one prompt that share its row and their answers."""

import json
import shutil

import pytest
import torch

from plaudit.artifacts import GroupRow, MarginRow, PreferenceRow, write_snapshot
from plaudit.errors import BadInput, ConfigError
from plaudit.learn import base_models, questions, reward
from plaudit.learn.configs import RewardConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.tokens import ChatTokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def world(base):
    return ChatTokenizer.load(base), Decoder.load(base, torch.float32)


def row(i, prompt="q", chosen="good", rejected="bad", **extra):
    fixed = {
        "preference_id": f"p{i}", "comparison_id": "", "criterion": "overall", "family": prompt, "split": "train",
        "messages": ({"role": "user", "content": prompt},), "chosen": chosen, "rejected": rejected, "probability": 1.0, "weight": 1.0,
        "source": "annotation",
    }  # fmt: skip
    return PreferenceRow(**(fixed | extra))


def config(base="b", **values):
    return from_dict(RewardConfig, {"base": str(base), "snapshot": "s"} | values)


def test_a_ranking_of_three_costs_one_prompt_and_three_answers(world, base):
    ranked = [
        row(0, chosen="a", rejected="bb"),
        row(1, chosen="a", rejected="ccc"),
        row(2, chosen="bb", rejected="ccc"),
    ]
    found = questions.encode(world[0], [ranked[0], row(3, "other"), *ranked[1:]], config(base), world[1])
    assert found.pairs == [[0, 2, 3], [1]]
    texts = [world[0].decode(ids) for ids in found.data.response_ids]
    assert texts == ["a", "bb", "ccc", "good", "bad"]
    assert found.chosen.tolist() == [0, 3, 0, 1]
    assert found.rejected.tolist() == [1, 4, 2, 2]
    assert len(found.data.prompt_ids) == 2


def test_an_unfinished_answer_is_another_than_the_finished_one(world, base):
    some = [row(0, chosen="a", rejected="b"), row(1, chosen="b", rejected="a", rejected_finished=False)]
    found = questions.encode(world[0], some, config(base), world[1])
    assert found.data.finished == [True, True, False]


def test_a_prompt_of_many_pairs_is_split_into_batches(world, base):
    some = [row(i, chosen=f"a{i}", rejected="b") for i in range(5)]
    found = questions.encode(world[0], some, config(base, batch_pairs=2), world[1])
    assert found.pairs == [[0, 1], [2, 3], [4]]


def test_cut_prompts_keep_their_end_and_are_counted(world, base):
    some = [row(0, prompt="x" * 50 + "END"), row(1, prompt="y", chosen="z" * 30)]
    found = questions.encode(world[0], some, config(base, max_prompt_tokens=20, max_response_tokens=10), world[1])
    whole = world[0].render(some[0].messages)
    assert found.data.prompt_ids[0] == whole[-20:]
    assert found.cut == {"prompts": 1, "answers": 1}
    assert found.data.finished == [True, True, False, True]
    exact = questions.encode(world[0], some[:1], config(base, max_prompt_tokens=len(whole)), world[1])
    assert exact.cut == {"prompts": 0, "answers": 0}


def test_a_row_that_cannot_be_read_is_named(world, base):
    with pytest.raises(BadInput, match="p1 cannot be read"):
        questions.encode(world[0], [row(0), row(1, chosen="", chosen_finished=False)], config(base), world[1])


def test_a_row_that_the_chat_template_refuses_is_named(world, base, tmp_path):
    folder = tmp_path / "strict"
    shutil.copytree(base, folder)
    strict = "{% if messages[0].content == 'odd' %}{{ raise_exception('nothing odd') }}{% endif %}x"
    (folder / "chat_template.jinja").write_text(strict)
    with pytest.raises(BadInput, match=r"p1 cannot be read: .*nothing odd"):
        questions.encode(ChatTokenizer.load(folder), [row(0), row(1, "odd")], config(base), world[1])


def test_a_prompt_longer_than_the_models_positions_is_refused(world, base):
    limit = world[1].config.max_positions
    with pytest.raises(BadInput, match=f"{limit} positions.*max_prompt_tokens"):
        questions.encode(
            world[0], [row(0, prompt="x" * (limit + 9))], config(base, max_prompt_tokens=10 * limit), world[1]
        )


def freeze(tmp_path, *rows):
    return str(write_snapshot(tmp_path, rows, [], [], {}, {}).folder)


def read(snapshot, **values):
    return questions.read_rows(config(snapshot=snapshot, **values))


def test_what_teaches_nothing_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no training Preferences"):
        read(freeze(tmp_path, row(0, split="valid")))
    with pytest.raises(BadInput, match=r"All 2 training pairs .* are ties"):
        read(freeze(tmp_path, row(0, probability=0.5), row(1, probability=0.5)))
    weightless = freeze(tmp_path, row(0, weight=0.0))
    with pytest.raises(BadInput, match="have weight 0"):
        read(weightless)
    assert len(read(weightless, use_weights=False).train) == 1


def test_rows_of_other_criteria_are_left_out_and_counted(tmp_path):
    snapshot = freeze(
        tmp_path,
        row(0, criterion="kind"),
        row(1, criterion="brief"),
        row(2, criterion="brief", split="test"),
        row(3, criterion="odd"),
    )
    heads = [{"criterion": "kind"}, {"criterion": "brief"}]
    found = read(snapshot, heads=heads)
    assert {row.criterion for row in found.train} == {"kind", "brief"}
    assert [row.preference_id for row in found.held_out] == ["p2"]
    assert found.n_other_criteria == 1
    assert read(snapshot, criterion="kind").n_other_criteria == 3
    with pytest.raises(BadInput, match="'polite'"):
        read(snapshot, heads=[*heads, {"criterion": "polite"}])


def test_files_are_read_in_place_of_snapshots(tmp_path):
    lines = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(40)] + [
        {"prompt": "q", "chosen": "", "rejected": "b"}
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = questions.read_rows(config(snapshot="", preferences=str(path), valid_fraction=0.3))
    assert len(found.train) + len(found.held_out) == 40
    assert [one.line for one in found.rejected] == [41]


def test_the_trunk_says_how_far_it_is(world, base):
    heard = []
    some = [row(i, prompt=f"q{i}", chosen="x" * 60) for i in range(6)]
    settings = config(base, first_layer=2, compute={"micro_tokens": 200})
    questions.encode(world[0], some, settings, world[1], lambda step, of: heard.append((step, of)))
    assert len(heard) > 1
    assert heard == [(i + 1, len(heard)) for i in range(len(heard))]


def test_a_source_counts_what_the_config_says(tmp_path):
    some = [
        row(i, prompt=f"q{i}", source=source, weight=2.0) for i, source in enumerate(("annotation", "edit", "choice"))
    ]
    folder = write_snapshot(tmp_path, some, [], [], {}, {}).folder
    said = [{"source": "edit", "weight": 0.25}, {"source": "choice", "weight": 0}]
    read = questions.read_rows(config(snapshot=str(folder), source_weights=said))
    assert {one.source: one.weight for one in read.train} == {"annotation": 2.0, "edit": 0.5, "choice": 0.0}
    nothing = [{"source": name, "weight": 0} for name in ("annotation", "edit", "choice")]
    with pytest.raises(BadInput, match="weight 0"):
        questions.read_rows(config(snapshot=str(folder), source_weights=nothing))
    for wrong, word in (
        ({"source_weights": said * 2}, "names a source twice"),
        ({"source_weights": said, "use_weights": False}, "no weight is read"),
        ({"source_weights": [{"source": "edit", "weight": -1}]}, "0 or above"),
        ({"source_weights": [{"source": "thumb", "weight": 1}], "preferences": "p", "snapshot": ""}, "holds none"),
        ({"source_weights": [{"source": "thumb", "weight": 1}], "heads": [{"criterion": "kind"}]}, "has no criterion"),
    ):
        with pytest.raises(ConfigError, match=word):
            config(**wrong)


def test_a_margin_of_a_snapshot_is_what_chosen_is_asked_to_lead_by(tmp_path):
    some = [row(0), row(1, "r"), row(2, "s")]
    said, groups = [MarginRow("p1", 0.5), MarginRow("p2", 0.25)], [GroupRow("p2", '{"plan":"free"}')]
    frozen = write_snapshot(tmp_path, some, [], [], {}, {}, margins=said, groups=groups)
    rows = questions.read_rows(config(snapshot=str(frozen.folder)))
    by_id = {one.preference_id: one for one in rows.train}
    ordered = [by_id[f"p{i}"] for i in range(3)]
    assert reward.Targets.of(config(), ordered, [], [0]).margin[:, 0].tolist() == [0.0, 0.5, 0.25]
    assert reward.Targets.of(config(use_margins=False), ordered, [], [0]).margin[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert by_id["p2"].slices == {"group:plan": "free"}
