"""Rollouts from a server that speaks vLLM's protocol, as token ids: no response is decoded and encoded again on its way [2].

Each step the server gets the policy of now. Either its adapter is written to `rollout.adapters`, which the server sees under the same path, and
loaded by POST /v1/load_lora_adapter {"lora_name", "lora_path"} under a name of its own (a server may keep what it cached of an older one by
name). Or whole weights, full ones or an adapter merged into its base, are put into `rollout.weights`, the folder that the server was started
on, and read again by POST /collective_rpc {"method": "reload_weights"}; POST /reset_prefix_cache then drops what was cached of the old ones.

Then POST /v1/completions {"model", "prompt": [ids], "n", "logprobs", "return_token_ids": true, ...} for each prompt, several at a time.
`choices[i]` must carry `token_ids` (stop token included), `prompt_token_ids` and `logprobs.token_logprobs`; a server that gives no ids
is refused. Protocol: https://docs.vllm.ai, "OpenAI-Compatible Server", "LoRA Adapters" and "Sleep Mode" (reload_weights, which vLLM
has under VLLM_SERVER_DEV_MODE=1 only); our policy server speaks it too.

The server's weights, kernels or dtype are not the trainer's, so its log-probs are not those that are trained on: `losses.truncated_importance`
corrects for it. Left out: weights that are sent over NCCL or CUDA IPC (vLLM's /update_weights), which wants a GPU on both sides.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor

from plaudit.artifacts import MANIFEST, seed_of
from plaudit.errors import ConfigError, TrainingStopped
from plaudit.learn import checkpoint, distributed
from plaudit.learn.configs import RolloutConfig
from plaudit.learn.http_scorer import public
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.rollout import Sampling
from plaudit.learn.tokens import Rollout

ATTEMPTS = 4  # of one request, with pauses of 1, 2 and 4 s; then the run stops and the same command goes on from its last state
SHOWN = 200  # characters of an answer in an error
Sample = tuple[list[int], list[float], bool]  # ids, their log-probs, finished


@dataclass(frozen=True)
class Server:
    """A server and the headers it wants. The token is in no text that anything writes."""

    config: RolloutConfig
    stop_ids: tuple[int, ...]
    vocab_size: int
    headers: dict[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        return f"The rollout server at {public(self.config.url)}"


def load(
    config: RolloutConfig, stop_ids: Sequence[int], vocab_size: int, environ: Mapping[str, str] = os.environ
) -> Server:
    """Read the token. Raises ConfigError where its variable is not set, or the folder for weights holds no model."""
    place = Path(config.weights)
    if config.weights and (not (place / "config.json").is_file() or (place / MANIFEST).is_file()):
        raise ConfigError(
            f"rollout.weights is {config.weights!r}, which is no model folder or a Checkpoint, whose files must not change; copy the base "
            "to a folder of its own and start the server on that."
        )
    headers = {}
    if config.token_variable:
        token = environ.get(config.token_variable, "")
        if not token:
            raise ConfigError(
                f"The environment variable {config.token_variable} is not set; it must hold the bearer token of {public(config.url)}."
            )
        headers["authorization"] = f"Bearer {token}"
    return Server(config, tuple(stop_ids), vocab_size, headers)


def sample(
    server: Server,
    weights: tuple[Decoder, Adapter | None],
    prompts: Sequence[Sequence[int]],
    n: int,
    sampling: Sampling,
    step: int,
) -> tuple[Rollout, Tensor]:
    """n responses of the policy with these weights to each prompt, and the log-probs (N, R) that the server sampled them with, 0 where there
    is no token.

    Each process asks for its share of the prompts. Raises TrainingStopped where the server fails, or answers with anything but tokens.
    """
    mine = distributed.share(range(len(prompts)))
    with httpx.Client(headers=server.headers, timeout=server.config.timeout_s) as client:
        name = distributed.from_first(lambda: _load(server, client, *weights, step))

        def ask(place: int) -> list[Sample]:
            body = _request(server, name, prompts[place], n, sampling, seed_of(sampling.seed, place))
            answer = _post(server, client, "/completions", body)
            return _read(server, answer, prompts[place], n, sampling)

        with ThreadPoolExecutor(server.config.parallel) as pool:
            answers = list(pool.map(ask, mine))
    own = [(place, i, *one) for place, found in zip(mine, answers, strict=True) for i, one in enumerate(found)]
    rows = sorted(distributed.gathered(own))
    rollout = Rollout(
        [list(ids) for ids in prompts], [row[2] for row in rows], [row[0] for row in rows], [row[4] for row in rows]
    )
    logprobs = torch.zeros(rollout.counts().shape)
    logprobs[rollout.counts()] = torch.tensor([value for row in rows for value in row[3]])
    return rollout, logprobs


def _load(server: Server, client: httpx.Client, decoder: Decoder, adapter: Adapter | None, step: int) -> str:
    """Give the server the policy of now; its name there."""
    if server.config.weights:
        return _load_weights(server, client, decoder, adapter)
    assert adapter is not None  # the config refuses
    return _load_adapter(server, client, adapter, step)


def _load_weights(server: Server, client: httpx.Client, decoder: Decoder, adapter: Adapter | None) -> str:
    """Put whole weights into the folder that the server was started on, and have them read; the model's name."""
    checkpoint.write_weights(Path(server.config.weights), decoder, adapter)
    root = server.config.url.rstrip("/").removesuffix("/v1")
    _ask(server, client, "POST", f"{root}/collective_rpc", {"method": "reload_weights"})
    _ask(server, client, "POST", f"{root}/reset_prefix_cache")
    models = _ask(server, client, "GET", f"{server.config.url.rstrip('/')}/models")
    try:
        return str(models["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        said = str(models)[:SHOWN]
        raise TrainingStopped(
            f"{server.name} answered {said!r} at /models; it must list the model that it serves."
        ) from error


def _load_adapter(server: Server, client: httpx.Client, adapter: Adapter, step: int) -> str:
    """Put this step's adapter in the place of the last one's; its name on the server."""
    parent = Path(server.config.adapters).absolute()
    prefix = f"plaudit-{hashlib.sha256(str(parent).encode()).hexdigest()[:8]}"
    name, folder = f"{prefix}-{step}", parent / f"step-{step}"
    for old in (f"{prefix}-{step - 1}", name):  # its own: of a run that was killed and goes on
        _post(server, client, "/unload_lora_adapter", {"lora_name": old}, (400, 404))
    for path in parent.glob("step-*"):
        shutil.rmtree(path)
    checkpoint.write_adapter(folder, adapter, "")
    _post(server, client, "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
    return name


def _request(
    server: Server, model: str, prompt: Sequence[int], n: int, sampling: Sampling, seed: int
) -> dict[str, Any]:
    """All of the distribution, whatever the model's generation_config.json says: it must be the one that is trained."""
    return {
        "model": model,
        "prompt": list(prompt),
        "n": n,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed % 2**31,
        "stop_token_ids": list(server.stop_ids),
        "logprobs": 1,
        "return_token_ids": True,
    }


def _read(server: Server, answer: Any, prompt: Sequence[int], n: int, sampling: Sampling) -> list[Sample]:
    """The choices of one prompt, checked."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if any(choice.get("token_ids") is None for choice in choices):
            raise TrainingStopped(
                f"{server.name} returns no token ids; responses must not be encoded again from text, so use a server that knows "
                "`return_token_ids` (vLLM from 0.10.2 on, or plaudit's policy server)."
            )
        found = [(list(one["token_ids"]), one["logprobs"]["token_logprobs"], one) for one in choices]
    except (KeyError, TypeError) as error:
        said = str(answer)[:SHOWN]
        raise TrainingStopped(
            f"{server.name} answered {said!r}; it must answer a completion with `token_ids` and `logprobs`."
        ) from error
    if len(found) != n:
        raise TrainingStopped(f"{server.name} gave {len(found)} responses to a prompt, {n} were asked for.")
    samples = []
    for ids, logprobs, choice in found:
        asked = choice.get("prompt_token_ids")
        if asked is not None and list(asked) != list(prompt):
            raise TrainingStopped(
                f"{server.name} sampled after a prompt of {len(asked)} tokens, it was sent {len(prompt)} others; it must not cut or "
                "encode prompts anew."
            )
        fits = 0 < len(ids) <= sampling.max_new_tokens and all(0 <= token < server.vocab_size for token in ids)
        if not fits or len(logprobs) != len(ids) or any(value is None for value in logprobs):
            raise TrainingStopped(
                f"{server.name} gave {len(ids)} tokens with {len(logprobs)} log-probs, at most {sampling.max_new_tokens} tokens below "
                f"{server.vocab_size} were asked for; does it serve this base model?"
            )
        finished = ids[-1] in server.stop_ids
        if choice.get("finish_reason") == "stop" and not finished:
            raise TrainingStopped(
                f"{server.name} took the stop token off a response; it is trained too, so `token_ids` must hold it."
            )
        samples.append((ids, [float(value) for value in logprobs], finished))
    return samples


def _post(server: Server, client: httpx.Client, path: str, body: dict[str, Any], allowed: tuple[int, ...] = ()) -> Any:
    """What one of the routes under /v1 answers; see `_ask`."""
    return _ask(server, client, "POST", server.config.url.rstrip("/") + path, body, allowed)


def _ask(
    server: Server,
    client: httpx.Client,
    method: str,
    url: str,
    body: dict[str, Any] | None = None,
    allowed: tuple[int, ...] = (),
) -> Any:
    """The JSON of an answer, None where it is no JSON. A broken connection, 429 and 5xx are tried again; raises TrainingStopped."""
    said, path = "", httpx.URL(url).path
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        try:
            response = client.request(method, url, json=body)
        except httpx.RequestError as error:
            said = f"{type(error).__name__}: {error}"
            continue
        if response.status_code == 200 or response.status_code in allowed:
            try:
                return response.json()
            except ValueError:
                return None
        said = f"{response.status_code}: {response.text[:SHOWN]!r}"
        if response.status_code != 429 and response.status_code < 500:
            break
    raise TrainingStopped(
        f"{server.name} failed at {path} ({said}); look at its log, then run this again, which goes on from the last saved state."
    )
