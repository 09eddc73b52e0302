"""TRL's side of trl_accepts.py: runs in an environment of its own.

python peers/accept_trl.py FOLDER BASE       FOLDER: trl.jsonl, trl-text.jsonl, trl-unpaired.jsonl, trl-completion.jsonl
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.trainer_callback import PrinterCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

Make = Callable[..., Any]
# (trainer, its config, the file it reads)
TRAINERS: tuple[tuple[Make, Make, str], ...] = (
    (DPOTrainer, DPOConfig, "trl"),
    (DPOTrainer, DPOConfig, "trl-text"),
    (RewardTrainer, RewardConfig, "trl"),
    (KTOTrainer, KTOConfig, "trl-unpaired"),
    (SFTTrainer, SFTConfig, "trl-completion"),
)


def main() -> None:
    folder, base = Path(sys.argv[1]), sys.argv[2]
    print(json.dumps({name: version(name) for name in ("trl", "datasets", "transformers", "torch")}), flush=True)
    for trainer, config, name in TRAINERS:
        print(json.dumps(step(trainer, config, folder, name, base)), flush=True)


def step(trainer: Make, config: Make, folder: Path, name: str, base: str) -> Mapping[str, Any]:
    data = load_dataset("json", data_files=str(folder / f"{name}.jsonl"), split="train")
    columns, n_rows = data.column_names, len(data)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if trainer is RewardTrainer:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
    options = config(
        output_dir=str(folder / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    run = trainer(model=model, args=options, train_dataset=data, processing_class=tokenizer)
    run.remove_callback(PrinterCallback)  # its figures stand in the line below
    run.train()
    said = next(line for line in run.state.log_history if "loss" in line)
    loss, gradient = float(said["loss"]), float(said["grad_norm"])
    if run.state.global_step != 1 or not math.isfinite(loss) or not math.isfinite(gradient) or gradient == 0:
        sys.exit(f"{trainer.__name__} on {name}: {run.state.global_step} steps, loss {loss}, gradient {gradient}.")
    return {
        "trainer": trainer.__name__,
        "format": name,
        "rows": n_rows,
        "columns": columns,
        "loss": round(loss, 4),
        "grad_norm": round(gradient, 4),
    }


if __name__ == "__main__":
    main()
