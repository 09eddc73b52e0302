"""TRL's side of the training benchmarks: runs in an environment of its own, one step for each turn. See turns.py.

    python peers/worker_trl.py JOB       JOB: JSON with `program` rloo | ppo | reward | generate

TRL runs as it is installed. What is added: clocks around its own methods; in RL, after TRL's own (timed) generation, its tokens are
replaced by those that Plaudit sampled, so that both train on the same tensors; and a pad token that no text holds, because TRL's PPO
masks every token that equals it. "helped" is without gradient checkpointing and in the dtype that is the faster one here; "stock" has
TRL's defaults for both.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peers.turns import Json, Phases, Turn, distinct_fraction, versions

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    job: Json = json.loads(sys.argv[1])
    turn = Turn()  # before anything prints
    if job["dtype"] == "bfloat16" and not job["stock"] and job["program"] == "ppo":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"  # its PPO ignores args.bf16
    import torch

    torch.set_num_threads(job["threads"])
    {"rloo": rloo, "ppo": ppo, "reward": reward, "generate": generate}[job["program"]](job, turn)


# --- what the programs share ------------------------------------------------------------------------------------------------


class Clock:
    """One step: seconds by phase, what the benchmark sent for it, and the turn's end."""

    def __init__(self, job: Json, turn: Turn) -> None:
        self.job, self.turn, self.phases = job, turn, Phases()
        self.message: Json = {}
        self.extra: Json = {}
        self._start = self._paused = 0.0

    def ready(self, **about: Any) -> None:
        found = versions("trl", "transformers", "torch", "accelerate", "datasets")
        self._begin(self.turn.ready(versions=found, stock=self.job["stock"], **about))

    def done(self, rest: str) -> None:
        """End the step; what no phase covers is the phase `rest`. Returns at the next turn."""
        seconds = time.perf_counter() - self._start - self._paused
        known = sum(self.phases.seconds.values())
        phases = self.phases.seconds | {rest: self.phases.seconds.get(rest, 0.0) + seconds - known}
        self._begin(self.turn.done(seconds=seconds, phases=phases, **self.extra))

    def paused(self, function: Callable[[], Any]) -> Any:
        """Work that TRL would not do. Only outside of phases."""
        start = time.perf_counter()
        made = function()
        self._paused += time.perf_counter() - start
        return made

    def _begin(self, message: Json) -> None:
        self.message, self.extra = message, {}
        self.phases.clear()
        self._start, self._paused = time.perf_counter(), 0.0


def callback(clock: Clock, dtype: Callable[[], str]) -> Any:
    """A Trainer callback: ready when training begins, a turn for each optimizer step."""
    from transformers import TrainerCallback

    class EachStep(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.ready()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.extra["dtype"] = dtype()
            clock.done("update")

    return EachStep()


def watched_dtype(model: Any, job: Json) -> Callable[[], str]:
    """What a layer computes in, as seen in training; exits where a helped run computes in another dtype than was asked for."""
    import torch

    seen: set[str] = set()

    def look(module: Any, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            seen.add(str(output.dtype).removeprefix("torch."))

    next(module for name, module in model.named_modules() if name.endswith("mlp.gate_proj")).register_forward_hook(look)

    def check() -> str:
        if not job["stock"] and seen != {job["dtype"]}:
            sys.exit(f"TRL computes in {seen}, not in {job['dtype']}; the comparison would not be fair.")
        return " and ".join(sorted(seen))

    return check


def trainer_options(job: Json) -> Json:
    """What every TRL config gets here; stock leaves dtype and checkpointing as TRL has them."""
    options: Json = {
        "output_dir": job["folder"],
        "use_cpu": True,
        "seed": job["seed"],
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10_000,
        "disable_tqdm": True,
        "learning_rate": job["learning_rate"],
    }
    if not job["stock"]:
        options |= {"bf16": job["dtype"] == "bfloat16", "gradient_checkpointing": False}
    return options


def lora(job: Json, task: str) -> Any:
    """The adapter, or None for full weights."""
    if job["weights"] == "full":
        return None
    from peft import LoraConfig

    heads = {"modules_to_save": ["score"]} if task == "SEQ_CLS" else {}
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type=task, **heads)


def tokenizer_of(job: Json, side: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["base"], padding_side=side)
    if "<|endoftext|>" in tokenizer.get_vocab():
        tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


# --- RLOO -------------------------------------------------------------------------------------------------------------------


def distinct(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The reward, as TRL wants a function to be."""
    return [distinct_fraction(ids) for ids in completion_ids]


def rloo(job: Json, turn: Turn) -> None:
    """One generation of prompts x samples, one optimizer step on all of it."""
    import torch
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    clock = Clock(job, turn)
    n = job["prompts"] * job["samples"]
    micro = job["micro"] or n
    args = RLOOConfig(
        **trainer_options(job),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=n // micro,
        num_generations=job["samples"],
        max_completion_length=job["new_tokens"],
        max_steps=job["steps"],
        generation_kwargs={"eos_token_id": None},  # every response has all its tokens
        model_init_kwargs={"dtype": "float32"},
    )
    dataset = Dataset.from_dict({"prompt": [str(i) for i in range(4 * n)]})  # the ids come with each turn
    trainer = RLOOTrainer(
        job["base"],
        distinct,
        args,
        train_dataset=dataset,
        processing_class=tokenizer_of(job, "left"),
        peft_config=lora(job, "CAUSAL_LM"),
    )
    trainer.add_callback(callback(clock, watched_dtype(trainer.model, job)))
    own_generation = clock.phases.around("sample", trainer._generate_single_turn)
    own_pass = trainer._get_per_token_logps_and_entropies

    own_generate = trainer.model.generate

    def generate_all(*arguments: Any, **named: Any) -> Any:
        for module in trainer.model.modules():  # TRL puts the tokenizer's back before it trains
            if getattr(module, "generation_config", None) is not None:
                module.generation_config.eos_token_id = None
        made = own_generate(*arguments, **named)
        stops = trainer.model.generation_config.eos_token_id, named["generation_config"].eos_token_id
        if stops != (None, None) or made.shape[1] - named["input_ids"].shape[1] != job["new_tokens"]:
            sys.exit(f"TRL generated {tuple(made.shape)} tokens with the stop tokens {stops}; all must be generated.")
        return made

    def prompts(texts: list[str]) -> tuple[list[list[int]], None, Json]:
        return [ids for ids in clock.message["prompts"] for _ in range(job["samples"])], None, {}

    def generation(prompt_ids: Any, *rest: Any) -> list[list[int]]:
        own = own_generation(prompt_ids, *rest)
        return clock.message.get("responses") or own

    def logprobs(*arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            return own_pass(*arguments, **named)
        with clock.phases.phase("reference" if "old" in clock.phases.seconds else "old"):
            return own_pass(*arguments, **named)

    trainer.model.generate = generate_all
    trainer._tokenize_prompts = prompts
    trainer._generate_single_turn = generation
    trainer._get_per_token_logps_and_entropies = logprobs
    trainer._calculate_rewards = clock.phases.around("score", trainer._calculate_rewards)
    trainer.train()


# --- PPO --------------------------------------------------------------------------------------------------------------------


class Queries:
    """A data loader that gives the prompts of the turn, for ever."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __iter__(self) -> Iterator[Json]:
        import torch

        while True:
            yield {"input_ids": torch.tensor(self.clock.message["prompts"])}


def ppo(job: Json, turn: Turn) -> None:
    """One rollout, epochs of one minibatch. The value model is one of its own, as TRL has it."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    clock = Clock(job, turn)
    n = job["prompts"] * job["samples"]
    micro = job["micro"] or n
    tokenizer = tokenizer_of(job, "left")
    args = PPOConfig(
        **trainer_options(job),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=n // micro,
        num_mini_batches=1,
        num_ppo_epochs=job["epochs"],
        total_episodes=n * job["steps"],
        local_rollout_forward_batch_size=job["micro"] or n,
        response_length=job["new_tokens"],
        temperature=1.0,
        num_sample_generations=0,
    )

    def load(kind: Any, **options: Any) -> Any:
        model = kind.from_pretrained(job["base"], dtype=torch.float32, **options)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    policy = load(AutoModelForCausalLM)
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    reward_model, value_model = (load(AutoModelForSequenceClassification, num_labels=1) for _ in range(2))
    dtype = watched_dtype(policy, job)
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_dict({"input_ids": [[1] * job["prompt_tokens"]] * (2 * n)}),
        peft_config=lora(job, "CAUSAL_LM"),
        callbacks=[callback(clock, dtype)],
    )
    trainer.dataloader = Queries(clock)
    # Generation of all n at once, whatever the micro-batch of the other passes: it is the quicker way.
    own_generation = clock.phases.around("sample", ppo_trainer.batch_generation)
    own_forward, own_reward = ppo_trainer.forward, ppo_trainer.get_reward

    @torch.no_grad()
    def generation(model: Any, queries: Any, batch: int, pad: int, config: Any) -> Any:
        if model.generation_config.eos_token_id is not None:
            sys.exit("TRL would stop at an end token; every response must have all its tokens.")
        made = own_generation(model, queries, queries.shape[0], pad, config)
        fed = clock.message.get("responses")
        if fed is None:
            return made
        del made
        return clock.paused(lambda: given(model, queries, torch.tensor(fed), pad))

    def given(model: Any, queries: Any, responses: Any, pad: int) -> Any:
        """Plaudit's tokens, and the logits that TRL would have had, had it sampled them."""
        whole = torch.cat([queries, responses], dim=1)
        first = queries.shape[1] - 1
        parts = [own_forward(model, part, pad).logits[:, first:-1].clone() for part in whole.split(4)]
        return whole, torch.cat(parts)

    def forward(model: Any, *rest: Any) -> Any:
        if torch.is_grad_enabled():
            return own_forward(model, *rest)
        with clock.phases.phase("reference"):
            return own_forward(model, *rest)

    def get_reward(model: Any, *rest: Any) -> Any:
        with clock.phases.phase("score" if model is trainer.reward_model else "old"):  # old: the values
            return own_reward(model, *rest)

    ppo_trainer.batch_generation, ppo_trainer.forward, ppo_trainer.get_reward = generation, forward, get_reward
    trainer.train()


# --- reward model -----------------------------------------------------------------------------------------------------------


def reward(job: Json, turn: Turn) -> None:
    """One epoch over job["train"] (rows chosen_ids, rejected_ids), then the score gap of every pair of job["held_out"]."""
    import torch
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    clock = Clock(job, turn)
    rows = [json.loads(line) for line in Path(job["train"]).read_text().splitlines()]
    held_out = [json.loads(line) for line in Path(job["held_out"]).read_text().splitlines()]
    updates = -(-len(rows) // job["batch_pairs"])
    tokenizer = tokenizer_of(job, "right")
    args = RewardConfig(
        **trainer_options(job),
        per_device_train_batch_size=job["batch_pairs"],
        num_train_epochs=1,
        max_length=None,  # the ids are cut already, as Plaudit cuts them
        center_rewards_coefficient=0.01,
        lr_scheduler_type="linear",
        warmup_steps=round(0.1 * updates),
        adam_beta2=0.95,
        adam_epsilon=1e-5,
        weight_decay=0.0,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = RewardTrainer(
        job["base"],
        args=args,
        train_dataset=Dataset.from_list([{k: row[k] for k in ("chosen_ids", "rejected_ids")} for row in rows]),
        processing_class=tokenizer,
        peft_config=lora(job, "SEQ_CLS"),
    )
    trainer.add_callback(callback(clock, watched_dtype(trainer.model, job)))
    own_loss = trainer.compute_loss

    def loss(model: Any, inputs: Any, **named: Any) -> Any:
        ids = inputs["input_ids"]
        clock.extra |= {"pairs": len(ids) // 2, "padded_tokens": ids.numel()}
        with clock.phases.phase("forward"):
            return own_loss(model, inputs, **named)

    trainer.compute_loss = loss
    trainer.train()

    model, gaps = trainer.model.eval(), []
    start = time.perf_counter()
    for at in range(0, len(held_out), job["batch_pairs"]):
        batch = trainer.data_collator(held_out[at : at + job["batch_pairs"]])
        with torch.no_grad():
            chosen, rejected = model(**batch, use_cache=False).logits.squeeze(-1).float().chunk(2)
        gaps += (chosen - rejected).tolist()
    turn.say(finished=True, gaps=gaps, scoring_s=time.perf_counter() - start)


# --- generation -------------------------------------------------------------------------------------------------------------


def generate(job: Json, turn: Turn) -> None:
    """`model.generate`: samples of every prompt, all new tokens, nothing cut off, temperature 1."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    clock = Clock(job, turn)
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, job["dtype"])).eval()
    config = GenerationConfig(
        max_new_tokens=job["new_tokens"], do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0
    )
    clock.ready(dtype=str(model.dtype).removeprefix("torch."))
    while True:
        torch.manual_seed(clock.message["seed"])
        ids = torch.tensor([ids for ids in clock.message["prompts"] for _ in range(job["samples"])])
        with torch.inference_mode(), clock.phases.phase("sample"):
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        clock.extra["new_tokens"] = made.numel() - ids.numel()
        clock.done("sample")


if __name__ == "__main__":
    main()
