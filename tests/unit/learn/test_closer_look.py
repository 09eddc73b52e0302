"""Traps, ablations and thumbs of a finished reward model, on the tiny base."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from plaudit.artifacts import GroupRow, PreferenceRow, ThumbRow, write_snapshot
from plaudit.learn import base_models, bodies, closer_look, questions, reward, validation
from plaudit.learn.configs import RewardConfig, from_dict
from plaudit.learn.pairs_file import Pair
from plaudit.learn.rewards import score_responses
from plaudit.learn.tokens import ChatTokenizer, from_text, pack


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


def config(base="b", **values):
    fixed = {"base": str(base), "preferences": "p", "compute": {"dtype": "float32"}, "lora": {"rank": 4}}
    return from_dict(RewardConfig, fixed | values)


def rows(n):
    return [
        Pair(f"p{i}", "", "overall", f"f{i % 3}", "train", ({"role": "user", "content": f"q{i}"},), f"good {i}", "bad", 0.9, 1.0, "import")
        for i in range(n)
    ]  # fmt: skip


def begin(base, some, **values):
    settings = config(base, **values)
    decoder = bodies.load_decoder(settings)
    body = bodies.start(settings, decoder, [0])
    return settings, body, questions.encode(ChatTokenizer.load(base), some, settings, decoder)


def test_traps_and_ablations_are_set_as_asked(base):
    some = [Pair(**(vars(row) | {"chosen": "One. Two.", "family": f"f{i}"})) for i, row in enumerate(rows(4))]
    settings, body, data = begin(base, some)
    model, _ = reward.finished_model(settings, [body], [data])
    tokenizer = ChatTokenizer.load(base)

    def look(**validation):
        asked = config(base, validation=validation)
        return closer_look.look_closer(asked, tokenizer, model, questions.Rows(some, [], [], 0))

    found = look(trap_prompts=2, ablations=3)
    assert found["traps"]["n"] == 2
    assert set(found["traps"]["by"]) == set(validation.TRAPS)
    assert [len(one["sentences"]) for one in found["ablations"]] == [2, 2, 2]
    assert look(trap_prompts=0, ablations=0) == {}
    held_out = questions.Rows(some, some[3:], [], 0)
    assert (
        closer_look.look_closer(settings, tokenizer, model, held_out)["traps"]["n"] == 1
    )  # not of what it was trained on


def test_scores_for_traps_are_those_of_the_checkpoint(base):
    """By another road: the groups that training encodes."""
    some = rows(3)
    settings, body, data = begin(base, some, first_layer=1)
    model, _ = reward.finished_model(settings, [body], [data])
    found = closer_look.scorer(settings, ChatTokenizer.load(base), model)(
        [row.messages for row in some], [(row.chosen, row.rejected) for row in some]
    )
    raw = reward.all_scores(body, data)[:, 0, 0]
    expected = torch.stack([raw[data.chosen], raw[data.rejected]], dim=1) / model.sd
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-4)


def test_a_padded_text_is_cut_to_the_positions_of_a_base_with_few(base, tmp_path):
    """The trap of ten times the answer is longer than any answer that was trained on, and may be longer than the base can read."""
    small = shutil.copytree(base, tmp_path / "small")
    shape = json.loads((small / "config.json").read_text()) | {"max_position_embeddings": 64}
    (small / "config.json").write_text(json.dumps(shape))
    some = rows(4)
    settings, body, data = begin(small, some, first_layer=1)
    model, _ = reward.finished_model(settings, [body], [data])
    read = closer_look.scorer(settings, ChatTokenizer.load(small), model)
    assert validation.traps(read, some)["n"] == 4
    padded = " ".join([some[0].chosen] * validation.PADDING)
    room = 64 - len(ChatTokenizer.load(small).render(some[0].messages))
    assert len(padded) > 64 > room > 0
    whole, cut = read([some[0].messages], [(padded, padded[:room])])[0]
    assert whole == pytest.approx(cut, abs=1e-5)


def given(i, response, up, finished=True, source="thumb"):
    messages = ({"role": "user", "content": f"q{i % 4}"},)
    return ThumbRow(f"t{i}", f"f{i % 4}", "valid", messages, response, up, source, finished)


def test_thumbs_are_compared_with_scores_pair_by_pair(base):
    """Every up against every down, from scores of each answer alone; a cut answer is read without an end."""
    settings, body, data = begin(base, rows(3), validation={"thumbs": 14})
    model, _ = reward.finished_model(settings, [body], [data])
    tokenizer = ChatTokenizer.load(base)
    texts = [letter * n for letter, n in zip("abcdefghijklmn", (3, 9, 20, 9) * 5, strict=False)]
    some = [given(i, text, i % 3 == 0, i % 5 > 0, "rating" if i > 9 else "thumb") for i, text in enumerate(texts)]
    scores = []
    for one in some:
        alone = from_text(tokenizer, [one.messages], [[one.response]], [[one.response_finished]])
        scores.append(float(score_responses(model, pack(alone), None)))

    def share(inside):
        ups, downs = ([scores[i] for i in inside if some[i].up == up] for up in (True, False))
        return np.mean([(a > b) + 0.5 * (a == b) for a in ups for b in downs])

    found = closer_look.look_closer(settings, tokenizer, model, questions.Rows(rows(3), [], [], 0, [], [], some))[
        "thumbs"
    ]
    assert (found["n_up"], found["n_down"], found["n_left_out"]) == (5, 9, 0)
    assert found["auc"]["mean"] == pytest.approx(share(range(14)))
    assert found["auc"]["n"] == 4  # families
    assert found["auc"]["low"] < found["auc"]["mean"] < found["auc"]["high"]
    assert found["by"]["source"]["thumb"]["auc"]["mean"] == pytest.approx(share(range(10)))
    assert "rating" not in found["by"]["source"]  # one up alone
    short = [i for i, text in enumerate(texts) if len(text) < 20]
    assert found["by"]["length"]["short"]["auc"]["mean"] == pytest.approx(share(short))
    assert "source" not in closer_look.thumbs(settings, tokenizer, model, some[:10])["by"]  # one source is no slicing
    few = closer_look.thumbs(config(base, validation={"thumbs": 11}), tokenizer, model, some)
    assert few["n_up"] + few["n_down"] == 11
    assert few["n_left_out"] == 3
    assert closer_look.thumbs(settings, tokenizer, model, [one for one in some if one.up]) is None
    groups = {one.thumb_id: {"group:plan": "free"} for one in some[7:]} | {some[0].thumb_id: {"group:plan": "pro"}}
    by = closer_look.look_closer(settings, tokenizer, model, questions.Rows(rows(3), [], [], 0, [], [], some, groups))[
        "thumbs"
    ]["by"]
    assert list(by["group:plan"]) == ["free"]  # one thumb of another plan alone, and six that say none
    assert by["group:plan"]["free"]["auc"]["mean"] == pytest.approx(share(range(7, 14)))
    nothing = closer_look.look_closer(settings, tokenizer, model, questions.Rows(rows(3), [], [], 0))
    assert "thumbs" not in nothing


def test_held_out_thumbs_are_read_without_a_weight(base, tmp_path):
    trained, shown = replace(given(0, "yes", True), split="train"), given(1, "no", False)
    pairs = [as_row(row) for row in rows(2)]
    snapshot = write_snapshot(tmp_path, pairs, [], [], {}, {}, thumbs=[trained, shown]).folder
    read = questions.read_rows(config(base, preferences="", snapshot=str(snapshot)))
    assert (read.thumbs, read.held_out_thumbs) == ([], [shown])
    said = [GroupRow("p1", '{"plan":"free"}'), GroupRow(shown.thumb_id, '{"plan":"pro"}')]
    grouped = write_snapshot(tmp_path, pairs, [], [], {}, {}, thumbs=[trained, shown], groups=said).folder
    found = questions.read_rows(config(base, preferences="", snapshot=str(grouped)))
    assert found.groups[shown.thumb_id] == {"group:plan": "pro"}
    assert validation.slices_of(found.train)["group:plan"] == ["", "free"]
    assert [as_row(row) for row in found.train] == read.train == pairs
    weighed = config(base, preferences="", snapshot=str(snapshot), source_weights=[{"source": "thumb", "weight": 1.0}])
    assert questions.read_rows(weighed).thumbs == [trained]


def as_row(pair):
    return PreferenceRow(**{field.name: getattr(pair, field.name) for field in fields(PreferenceRow)})
