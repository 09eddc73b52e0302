"""Reward models on another base than the program's: trained, saved, found again, read by text, composed, scored and exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from plaudit.artifacts import PromptRow, read_manifest, write_snapshot
from plaudit.errors import BadInput, ConfigError
from plaudit.learn import (
    base_models,
    bodies,
    checkpoint,
    closer_look,
    experience,
    pairs_file,
    ppo,
    reward,
    score,
    validation,
)
from plaudit.learn.composed import ComposedReward
from plaudit.learn.configs import ModelTerm, PPOConfig, RewardConfig, ScoreConfig, from_dict
from plaudit.learn.export import export
from plaudit.learn.nets import Decoder
from plaudit.learn.readers import Reader, Readers, Texts, belongs, texts_of
from plaudit.learn.rewards import member_scores, score_responses
from plaudit.learn.run_folder import Clock, RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer, Rollout, from_text, pack, run_trunk

TALK = [[{"role": "user", "content": "Who is there"}], [{"role": "user", "content": "Too soon?"}]]
SAID = [["The cook took the moon", "no"], ["soon", "this and that"]]
ENDED = [[True, False], [True, True]]


def config(two_bases, **values):
    tiny, other = two_bases
    fixed = {
        "base": str(tiny), "other_bases": [str(other)], "members": 3, "bootstrap": False, "first_layer": 1, "batch_pairs": 4,
        "lora": {"rank": 4}, "compute": {"dtype": "float32"}, "baselines": False,
        "optimizer": {"learning_rate": 2e-3, "head_learning_rate": 1e-2},
    }  # fmt: skip
    return from_dict(RewardConfig, fixed | values)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [{"prompt": f"q{i}?", "chosen": f"the soon {i}", "rejected": f"qq zz {i}"} for i in range(24)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def trained(two_bases, pairs, tmp_path_factory):
    """(run folder, result) of three members, the second of them on the other base."""
    folder = tmp_path_factory.mktemp("trained") / "rm"
    folder.mkdir()
    asked = config(two_bases, preferences=str(pairs), valid_fraction=0.3, epochs=2, validation=None)
    return folder, reward.train(asked, RunFolder(folder))


def find(two_bases, named=()):
    return Readers(named, two_bases[0], torch.float32, 512)


@pytest.fixture
def model(trained, two_bases):
    decoder = Decoder.load(two_bases[0], torch.float32)
    return checkpoint.load_reward(trained[0] / "checkpoint", two_bases[0], decoder, find(two_bases))


def rollout(two_bases) -> Rollout:
    return from_text(ChatTokenizer.load(two_bases[0]), TALK, SAID, ENDED)


def by_hand(member, folder: Path, spread: float):
    """Each response alone, in the base's own tokens, without packs of several, trunk or reader."""
    tokenizer, found = ChatTokenizer.load(folder), []
    for messages, texts, ends in zip(TALK, SAID, ENDED, strict=True):
        for text, end in zip(texts, ends, strict=True):
            alone = from_text(tokenizer, [messages], [[text]], [[end]])
            plain = type(member)(
                member.decoder, member.adapter, member.head, member.pooling, member.first_layer, read_layer=member.read_layer
            )  # fmt: skip
            found.append(float(score_responses(plain, pack(alone), None)) / spread)
    return torch.tensor(found)


def test_members_learn_on_their_own_bases_and_come_back(trained, model, two_bases):
    folder, result = trained
    tiny, other = two_bases
    assert min(result["ensemble"]["accuracy"]) > 0.9  # each base's member, from its own tokens
    assert [base["spec"] for base in result["bases"]] == ["tiny", "other"]
    assert [member.reader and member.reader.folder for member in model.members] == [None, other, None]
    assert [member.read_layer for member in model.members] == [4, 3, 4]
    said = read_manifest(folder / "checkpoint", "checkpoint").body["reward"]["members"]
    assert [member.get("stands_on", {}).get("base", {}).get("spec") for member in said] == [None, "other", None]
    lengths = [len(ChatTokenizer.load(base).encode("The cook took the moon")) for base in two_bases]
    assert lengths[1] < lengths[0]  # so places of tokens agree nowhere
    data = rollout(two_bases)
    texts = texts_of(data, TALK, ChatTokenizer.load(tiny))
    trunk = run_trunk(model.decoder, data, 1)
    found = member_scores(model, pack(data), trunk, texts)
    for row, member, base in zip(found, model.members, (tiny, other, tiny), strict=True):
        torch.testing.assert_close(row, by_hand(member, base, member.sd), atol=1e-4, rtol=0)
    raw = torch.stack([row * member.sd for row, member in zip(found, model.members, strict=True)])
    torch.testing.assert_close(score_responses(model, pack(data), trunk, texts), raw.mean(dim=0), atol=1e-4, rtol=0)
    part = [1, 2]  # of several processes each has some
    few = score_responses(model, pack(data, part), trunk, texts)
    torch.testing.assert_close(few[part], raw.mean(dim=0)[part], atol=1e-4, rtol=0)
    looked = closer_look.scorer(config(two_bases, preferences="p"), ChatTokenizer.load(tiny), model)(
        [TALK[1]], [SAID[1]]
    )
    np.testing.assert_allclose(looked[0], (raw.mean(dim=0) / model.sd)[2:], atol=1e-4)


def test_held_out_figures_are_of_each_member_in_its_own_tokens(trained, model, pairs, two_bases):
    """Computed once more from the Checkpoint; pairs like these are told apart in wrong tokens too."""
    train, held_out, _ = pairs_file.read_split(str(pairs), valid_fraction=0.3)
    settings, tokenizer = config(two_bases, preferences="p"), ChatTokenizer.load(two_bases[0])

    def scored(member, some):
        texts = [(row.chosen, row.rejected) for row in some]
        ends = [(True, True)] * len(some)
        return np.array(
            closer_look.score_texts(settings, tokenizer, member, [row.messages for row in some], texts, ends)
        )

    gaps = []
    for member in model.members:
        gaps.append((scored(member, held_out) @ [1.0, -1.0]) * member.sd)
        reference = scored(member, train)
        assert reference.mean() == pytest.approx(0.0, abs=1e-3)
        assert reference.std(ddof=1) == pytest.approx(1.0, abs=1e-3)
    result = trained[1]
    assert result["ensemble"]["logit_sd"] == pytest.approx(np.std(gaps, axis=0, ddof=1).mean(), rel=1e-3)
    for m, own in enumerate(gaps):
        last = [point for point in result["curve"] if point["member"] == m][-1]
        assert last["log_loss"] == pytest.approx(validation.figures(own, held_out)["log_loss"], rel=1e-3)


def test_a_composed_reward_reads_all_of_them(trained, model, two_bases):
    """From the policy's ids: decoded, read anew; and from the other base, where the roles are exchanged."""
    tiny, other = two_bases
    term = ModelTerm(name="people", checkpoints=(str(trained[0] / "checkpoint"),), combine="minimum")
    totals = []
    for base in two_bases:
        decoder, tokenizer = Decoder.load(base, torch.float32), ChatTokenizer.load(base)
        readers = Readers((), base, torch.float32, 512)
        composed = ComposedReward.load((term,), base, decoder, tokenizer, readers=readers)
        data = from_text(tokenizer, TALK, SAID, ENDED)
        trunks = {depth: run_trunk(decoder, data, depth) for depth in composed.depths}
        scored = composed.score(data, pack(data), trunks, TALK)
        assert composed.depths == (1,)
        assert not composed.reads_prefixes
        assert scored.disagreement is not None
        totals.append(scored.total)
    each = [by_hand(m, base, m.sd) for m, base in zip(model.members, (tiny, other, tiny), strict=True)]
    for total in totals:
        torch.testing.assert_close(total, torch.stack(each).min(dim=0).values, atol=1e-4, rtol=0)


def test_a_base_that_was_downloaded_beside_the_program_s_is_found(two_bases, trained, tmp_path):
    """In the hub's layout, whose folders of revisions lie three levels below the cache."""
    said = read_manifest(trained[0] / "checkpoint", "checkpoint").body["reward"]["members"][1]["stands_on"]
    places = []
    for name, base in zip(("one", "two"), two_bases, strict=True):
        place = tmp_path / "hub" / f"models--a--{name}" / "snapshots" / "abc"
        place.parent.mkdir(parents=True)
        place.symlink_to(base)
        places.append(place)
    assert Readers((), places[0], torch.float32, 512).find(said).folder == places[1]
    assert Readers((), tmp_path / "elsewhere" / "one", torch.float32, 512).find(said) is None


def test_a_base_is_known_by_all_three_facts(two_bases):
    here = base_models.identity(two_bases[0])
    facts = {
        "base": {"sha256": here.sha256},
        "tokenizer_sha256": here.tokenizer_sha256,
        "template_sha256": here.template_sha256,
    }
    assert belongs(facts, here)
    for name in facts:
        assert not belongs(facts | {name: {"sha256": "0"} if name == "base" else "0"}, here)


def test_score_finds_the_base_beside_its_own(trained, two_bases, tmp_path):
    inputs = tmp_path / "inputs.jsonl"
    rows = [{"messages": m, "responses": s, "finished": e} for m, s, e in zip(TALK, SAID, ENDED, strict=True)]
    inputs.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def measure(name, base, **more):
        (tmp_path / name).mkdir()
        asked = {"inputs": str(inputs), "base": str(base), "reward": str(trained[0] / "checkpoint")} | more
        score.measure(from_dict(ScoreConfig, asked | {"compute": {"dtype": "float32"}}), RunFolder(tmp_path / name))
        return [(line["score"], line["score_sd"]) for line in read_jsonl(tmp_path / name / "scores.jsonl")]

    found = measure("beside", two_bases[0])
    alone = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(two_bases[0], alone)
    with pytest.raises(BadInput, match=r"member-1 was trained with another base model \(other.*`bases`"):
        measure("lost", alone)
    assert measure("named", alone, bases=[str(two_bases[1])]) == found
    shutil.copytree(two_bases[1], tmp_path / "elsewhere" / "hub" / "models--a--b" / "snapshots" / "abc")
    assert measure("downloaded", alone) == found
    assert all(spread > 0 for _, spread in found)


def test_a_judge_of_another_base_reads_what_the_policy_said(trained, model, two_bases, tmp_path):
    """One whole rollout of ppo, rewarded by members of two bases and judged by a model that stands on the other one."""
    tiny, other = two_bases
    judge = replace(model.members[1], reader=None, sd=2.0)
    checkpoint.save_reward(tmp_path / "judge", judge, other, {}, {})
    prompts = [PromptRow(f"p{i}", f"f{i}", "train", ({"role": "user", "content": f"Too {i}?"},)) for i in range(2)]
    snapshot = write_snapshot(tmp_path, [], [], prompts, {}, {}).folder
    asked = {
        "snapshot": str(snapshot), "base": str(tiny), "reward": str(trained[0] / "checkpoint"), "lora": {"rank": 4}, "first_layer": 2,
        "guards": {"judge": str(tmp_path / "judge")}, "compute": {"dtype": "float32"},
        "sampling": {"prompts_per_step": 2, "samples_per_prompt": 3, "max_new_tokens": 8},
    }  # fmt: skip
    learner = ppo.start(from_dict(PPOConfig, asked))
    seen = experience.observe(learner, 1, Clock())
    texts = texts_of(seen.rollout, seen.messages, learner.reward.tokenizer)
    said = from_text(ChatTokenizer.load(other), texts.prompts, texts.responses, texts.finished)
    expected = score_responses(judge, pack(said), None) / 2.0
    torch.testing.assert_close(seen.gold, expected, atol=1e-4, rtol=0)
    assert float(seen.scored.disagreement.min()) > 0
    with pytest.raises(ConfigError, match="stands on another base"):
        ppo.start(from_dict(PPOConfig, asked | {"critic": "reward"}))


def test_an_ensemble_leaves_the_house_as_one_classifier_each(trained, model, two_bases, tmp_path):
    """transformers' own classifiers, fed by hand with each base's tokens; the mean of their logits is the score."""
    tr = pytest.importorskip("transformers")
    summary = export(trained[0] / "checkpoint", two_bases[0], "merged", tmp_path / "out")
    assert "mean of the logits of member-0 to member-2" in summary["how"]
    logits = []
    for k, base in enumerate((two_bases[0], two_bases[1], two_bases[0])):
        place = tmp_path / "out" / f"member-{k}"
        theirs = tr.AutoModelForSequenceClassification.from_pretrained(str(place), dtype=torch.float32).eval()
        data = from_text(ChatTokenizer.load(base), TALK, SAID, ENDED)
        assert ChatTokenizer.load(place).render(TALK[0]) == data.prompt_ids[0]
        rows = [data.prompt_ids[g] + ids for g, ids in zip(data.group, data.response_ids, strict=True)]
        with torch.no_grad():
            logits.append(torch.stack([theirs(torch.tensor([row])).logits[0, 0] for row in rows]))
    data = rollout(two_bases)
    texts = texts_of(data, TALK, ChatTokenizer.load(two_bases[0]))
    ours = score_responses(model, pack(data), run_trunk(model.decoder, data, 1), texts) / model.sd
    torch.testing.assert_close(torch.stack(logits).mean(dim=0), ours, atol=5e-5, rtol=0)


def test_what_cannot_be_read_whole_is_cut_from_its_oldest_end(two_bases):
    """64 positions: a long conversation keeps its last tokens, a long response its first half of the positions, and nothing is a space."""
    tokenizer = ChatTokenizer.load(two_bases[0])
    decoder = Decoder.load(two_bases[0], torch.float32)
    small = Reader(two_bases[0], tokenizer, _with_positions(decoder, 64), 512)
    texts = Texts([[{"role": "user", "content": "x" * 100 + "END"}]], [["b" * 80, ""]], [[True, False]])
    (batch,) = small.packs(texts, [0, 1])
    prompt = tokenizer.render(texts.prompts[0])
    assert batch.targets[0].tolist() == tokenizer.encode("b" * 32)
    assert batch.targets[1, :1].tolist() == tokenizer.encode(" ")
    assert batch.ids[0, :32].tolist() == prompt[-32:]


def _with_positions(decoder, n):
    return SimpleNamespace(config=replace(decoder.config, max_positions=n))


def test_bases_that_make_no_ensemble_are_refused(two_bases, pairs):
    tiny, other = two_bases
    with pytest.raises(ConfigError, match="there is no ensemble"):
        config(two_bases, preferences="p", members=1)
    with pytest.raises(ConfigError, match=r"members is 2, but with 2 other_bases the bases are 3"):
        config(two_bases, preferences="p", members=2, other_bases=[str(other), "c"])
    with pytest.raises(ConfigError, match="cannot share one"):
        config(two_bases, preferences="p", members_share="body")
    with pytest.raises(ConfigError, match="need it named once"):
        bodies.load_bases(config(two_bases, preferences=str(pairs), other_bases=[str(tiny)]))
    assert base_models.identity(tiny) != base_models.identity(other)
