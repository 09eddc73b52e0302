"""Config files and `key=value`, typed by the dataclasses of learn.configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plaudit.errors import BadInput, ConfigError
from plaudit.learn.configs import PROGRAMS, from_dict
from plaudit.loop import run_config


@pytest.mark.parametrize(
    ("program", "text", "path", "value"),
    [
        ("reward", "optimizer.learning_rate=1e-4", ("optimizer", "learning_rate"), 1e-4),
        ("reward", "optimizer.beta1=.5", ("optimizer", "beta1"), 0.5),
        ("reward", "epochs=3", ("epochs",), 3),
        ("reward", "criterion=1", ("criterion",), "1"),  # a text field stays text
        ("reward", "criterion=true", ("criterion",), "true"),
        ("reward", "criterion=a=b", ("criterion",), "a=b"),
        ("reward", "probe=true", ("probe",), True),
        ("reward", "lora=null", ("lora",), None),
        ("reward", "lora.rank=8", ("lora", "rank"), 8),
        ("reward", "lora.targets=q_proj, v_proj", ("lora", "targets"), ("q_proj", "v_proj")),
        ("reward", 'lora.targets=["q_proj"]', ("lora", "targets"), ("q_proj",)),
        ("reward", "pooling=mean", ("pooling",), "mean"),
        ("ppo", "kl.target=null", ("kl", "target"), None),
        ("ppo", "kl.target=6", ("kl", "target"), 6.0),
    ],
)
def test_a_value_gets_the_type_of_its_field(program: str, text: str, path: tuple[str, ...], value: object) -> None:
    required = {"snapshot": "/s", "base": "/b"} | ({"reward": "/r"} if program == "ppo" else {})
    found = from_dict(PROGRAMS[program], run_config.assign(program, required, [text]))
    for name in path:
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_later_ones_win_and_the_file_stays_as_it_was() -> None:
    given = {"optimizer": {"beta1": 0.5}, "lora": None}
    made = run_config.assign("reward", given, ["epochs=1", "epochs=2", "optimizer.beta2=0.9", "lora.rank=4"])
    assert made == {"epochs": 2, "optimizer": {"beta1": 0.5, "beta2": 0.9}, "lora": {"rank": 4}}
    assert given == {"optimizer": {"beta1": 0.5}, "lora": None}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch=2", "'epoch', did you mean 'epochs'"),
        ("optimizer.learnig_rate=1", "'learnig_rate', did you mean 'learning_rate'"),
        ("optimiser.beta1=1", "'optimiser', did you mean 'optimizer'"),
        ("epochs=two", "epochs is 'two'; it must be a value of type int"),
        ("epochs.sub=1", "epochs is {'sub': 1"),
        ("epochs=0", "epochs is 0; it must be 1 or above"),
    ],
)
def test_a_wrong_name_or_value_is_one_sentence(text: str, says: str) -> None:
    made = run_config.assign("reward", {"snapshot": "/s", "base": "/b"}, [text])
    with pytest.raises(ConfigError) as refused:
        from_dict(PROGRAMS["reward"], made)
    assert says in str(refused.value)


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_an_assignment_needs_a_name_and_a_value(text: str) -> None:
    with pytest.raises(BadInput, match="write it as name=value"):
        run_config.assign("reward", {}, [text])


def test_files_are_json_or_toml(tmp_path: Path) -> None:
    fields = {"epochs": 2, "optimizer": {"beta1": 0.5}}
    (tmp_path / "a.json").write_text(json.dumps(fields))
    (tmp_path / "a.toml").write_text("epochs = 2\n[optimizer]\nbeta1 = 0.5\n")
    assert run_config.read_file(tmp_path / "a.json") == run_config.read_file(tmp_path / "a.toml") == fields
    (tmp_path / "b.toml").write_text("epochs : 2")
    (tmp_path / "b.json").write_text("[1]")
    for name, says in (("b.toml", "is not TOML"), ("b.json", "holds no JSON object"), ("c.json", "There is no file")):
        with pytest.raises(BadInput, match=says):
            run_config.read_file(tmp_path / name)
