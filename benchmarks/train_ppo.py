"""One PPO step, Plaudit and TRL 1.12.0, the last that had PPO, in turns: 32 x (96 + 64) tokens, 4 epochs of one minibatch.

    python benchmarks/train_ppo.py [--data DIR] [--weights full|lora] [--frozen 20] [--stock]

What is equal on both sides stands in peers/rl_step.py. TRL's PPO runs in fp32 whatever its config says; helped, it is given bf16 where
that is the faster one, and in fp32 helped and stock are the same. Prints one line a step and one JSON object last.
"""

from peers import rl_step

if __name__ == "__main__":
    rl_step.run(__doc__ or "", "ppo")
