"""One RLOO step, Plaudit and TRL 1.16.0 in turns: 4 prompts x 8 samples, 96 + 64 tokens, one optimizer step.

    python benchmarks/train_rloo.py [--data DIR] [--weights full|lora] [--stock]

What is equal on both sides stands in peers/rl_step.py. Prints one line a step and one JSON object last.
"""

from peers import rl_step

if __name__ == "__main__":
    rl_step.run(__doc__ or "", "rloo")
