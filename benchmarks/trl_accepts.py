"""Whether `datasets` loads our TRL exports and TRL's own trainers learn from them: one step each of DPO, Reward, KTO and SFT.

    python benchmarks/trl_accepts.py [--base tiny] [--peers DIR]

A small made-up Snapshot (a conversation, a system prompt, an edit, thumbs, an answer that was cut off) is frozen and written by the writers of
`plaudit export`; a process in an environment that has TRL (made where it does not exist, see peers/turns.py) loads each file and trains.
Printed is a JSON line for each trainer: the columns that `datasets` read, and the loss and gradient of the step. Exits with an error where a
trainer refuses, makes no step, or its figures are not finite.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import turns

from plaudit.artifacts import DemonstrationRow, PreferenceRow, ThumbRow, write_snapshot
from plaudit.cli.models import prepare_base
from plaudit.formats import catalogue
from plaudit.loop.exports import snapshot_records

FORMATS = ("trl", "trl-text", "trl-unpaired", "trl-completion")


def freeze(folder: Path) -> Path:
    """The Snapshot's folder: of each kind of row, and of each form of prompt, some."""
    preferences, demonstrations, thumbs = [], [], []
    for number in range(8):
        asked: tuple[dict[str, str], ...] = ({"role": "user", "content": f"Which number comes after {number}?"},)
        if number % 4 == 1:
            asked = ({"role": "system", "content": "Be brief."}, *asked)
        if number % 4 == 3:
            asked = (*asked, {"role": "assistant", "content": "Pardon?"}, {"role": "user", "content": "The next one."})
        at = {"family": f"f{number}", "split": "train", "messages": asked}
        preferences.append(
            PreferenceRow(
                preference_id=f"prf_{number}",
                comparison_id=f"cmp_{number}" if number % 2 else "",
                criterion="overall",
                chosen=f"It is {number + 1}.",
                rejected=f"It is {number}, or perhaps {number + 2} or",
                probability=0.8,
                weight=1.0,
                source="annotation" if number % 2 else "edit",
                rejected_finished=False,
                **at,  # type: ignore[arg-type]
            )
        )
        demonstrations.append(
            DemonstrationRow(demonstration_id=f"dem_{number}", response=f"{number + 1}.", source="edit", **at)  # type: ignore[arg-type]
        )
        thumbs.append(ThumbRow(thumb_id=f"fdb_{number}", response=f"{number + 1}!", up=number % 2 == 0, **at))  # type: ignore[arg-type]
    return write_snapshot(folder, preferences, demonstrations, [], {}, {}, thumbs=thumbs).folder


def main() -> None:
    parser = argparse.ArgumentParser()
    cache = Path.home() / ".cache" / "plaudit"
    parser.add_argument("--base", default="tiny", help="tiny, smollm2 or a prepared folder")
    parser.add_argument("--cache", type=Path, default=cache, help="where prepared bases lie")
    parser.add_argument("--peers", type=Path, default=cache / "peers", help="environments of the peers")
    given = parser.parse_args()
    python = turns.environment(given.peers, turns.TRL)
    base = prepare_base(given.base, given.cache)
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        snapshot = freeze(folder)
        for name in FORMATS:
            catalogue.writer(name)(snapshot_records(snapshot, "train"), folder / f"{name}.jsonl")
        script = Path(__file__).parent / "peers" / "accept_trl.py"
        known = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(python), str(script), str(folder), str(base)], env={**os.environ, **known}, check=False
        )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
