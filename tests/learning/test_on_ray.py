"""The same program on a Ray cluster of this machine, two workers: what one process trains, and the program's own errors.

Skipped where Ray is not installed: with what it brings along it is 330 MB, and nothing else here needs it (`pip install 'plaudit[ray]'`).
"""

from __future__ import annotations

import pytest
import torch

from plaudit.artifacts import read_manifest, verify
from plaudit.errors import BadInput
from plaudit.learn import checkpoint
from plaudit.loop import programs

FUNCTION = """
def letters(messages, responses, token_ids, meta):
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in responses]
"""


@pytest.mark.slow
def test_a_cluster_trains_what_one_process_trains(tiny, make_snapshot, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    (tmp_path / "own_on_ray.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)  # a program looks for own functions in its working directory
    config = {
        "snapshot": str(make_snapshot(n=24)),
        "base": str(tiny),
        "reward": "own_on_ray:letters",
        "compute": {"threads": 1, "dtype": "float32"},
        "lora": {"rank": 4, "alpha": 8},
        "first_layer": 1,
        "steps": 2,
        "sampling": {"prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 6},
    }
    there = (*programs.PROGRAM, "on", "local-ray", "2", str(tmp_path / "storage"))
    lines = []
    programs.alone("grpo", config, tmp_path / "here", None)
    programs.alone("grpo", config, tmp_path / "there", lines.append, program=there)
    assert [line["step"] for line in lines] == [1, 2, 3]
    here, back = (tmp_path / name / "checkpoint" for name in ("here", "there"))
    verify(back, "checkpoint")
    assert read_manifest(here).body["base"] == read_manifest(back).body["base"]
    one, two = (checkpoint.load_policy(folder, tiny) for folder in (here, back))
    for name, weight in one.b.items():
        torch.testing.assert_close(two.b[name], weight, atol=1e-5, rtol=0)
    assert not list((tmp_path / "storage" / "runs").iterdir())
    many = config | {"sampling": {"prompts_per_step": 500}}
    with pytest.raises(BadInput, match="one step takes 500"):
        programs.alone("grpo", many, tmp_path / "many", None, program=there)
