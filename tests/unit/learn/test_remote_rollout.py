"""Rollouts over vLLM's protocol: what is asked, what is refused, and that our policy server's tokens and log-probs are the trainer's own."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from plaudit.errors import ConfigError, TrainingStopped
from plaudit.learn import base_models, checkpoint, remote_rollout
from plaudit.learn.configs import RolloutConfig
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.rollout import Sampling
from plaudit.learn.tokens import pack, response_logprobs

STOP, VOCAB = 256, 260
PROMPT = [104, 105]
GOOD = {
    "index": 0,
    "finish_reason": "stop",
    "token_ids": [97, 98, STOP],
    "prompt_token_ids": PROMPT,
    "logprobs": {"token_logprobs": [-0.5, -1.0, -0.25]},
}
SAMPLING = Sampling(4, seed=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def adapter(base):
    made = Adapter(Decoder.load(base, torch.float32).config, 4, 8, first_layer=1, seed=1)
    for b in made.b.values():
        b.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return made


@pytest.fixture
def stand_in():
    """A server of vLLM's routes: `seen` what was posted, `answers` what /completions says, one after another, the last for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "null")
            server.seen.append((self.path, body, self.headers.get("authorization")))
            status, said = 200, b"Success"
            if self.path.endswith("/unload_lora_adapter"):
                status = 404
            if self.path.endswith("/completions"):
                status, answer = server.answers[0] if len(server.answers) == 1 else server.answers.pop(0)
                said = json.dumps(answer).encode()
            if self.path.endswith("/models"):
                said = json.dumps(server.models).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.answers = [], [(200, {"choices": [GOOD]})]
    server.models = {"data": [{"id": "/shared/policy"}, {"id": "an-adapter"}]}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def load(stand_in, folder, environ=None, **more):
    url = f"http://127.0.0.1:{stand_in.server_port}/v1"
    config = RolloutConfig(url=url, adapters=str(folder), **more)
    return remote_rollout.load(config, [STOP], VOCAB, environ or {})


def test_prompts_go_as_ids_and_responses_come_as_ids(stand_in, adapter, tmp_path):
    shorter = GOOD | {"index": 1, "finish_reason": "length", "token_ids": [99], "logprobs": {"token_logprobs": [-2.0]}}
    stand_in.answers = [(200, {"choices": [shorter, GOOD]})]
    server = load(stand_in, tmp_path, {"SECRET": "s3cret"}, token_variable="SECRET")
    rollout, logprobs = remote_rollout.sample(server, (None, adapter), [PROMPT, PROMPT], 2, SAMPLING, step=7)
    assert rollout.prompt_ids == [PROMPT, PROMPT]
    assert rollout.response_ids == [[97, 98, STOP], [99], [97, 98, STOP], [99]]
    assert (rollout.group, rollout.finished) == ([0, 0, 1, 1], [True, False, True, False])
    assert logprobs.tolist() == [[-0.5, -1.0, -0.25], [-2.0, 0.0, 0.0]] * 2
    asked = [body for path, body, _ in stand_in.seen if path == "/v1/completions"]
    assert all(body["prompt"] == PROMPT and body["n"] == 2 and body["return_token_ids"] is True for body in asked)
    assert all((body["top_p"], body["top_k"], body["stop_token_ids"]) == (1.0, -1, [STOP]) for body in asked)
    remote_rollout.sample(server, (None, adapter), [PROMPT, PROMPT], 2, replace(SAMPLING, seed=4), step=8)
    seeds = [body["seed"] for path, body, _ in stand_in.seen if path == "/v1/completions"]
    assert len(seeds) == len(set(seeds)) == 4  # steps, whose seeds are neighbours, share no random numbers
    assert all(token == "Bearer s3cret" for _, _, token in stand_in.seen)
    assert "s3cret" not in repr(server)


def test_each_step_s_adapter_takes_the_place_of_the_last(stand_in, adapter, tmp_path):
    server = load(stand_in, tmp_path / "shared")
    (tmp_path / "shared" / "step-1").mkdir(parents=True)
    remote_rollout.sample(server, (None, adapter), [PROMPT], 1, SAMPLING, step=2)
    (loaded,) = [body for path, body, _ in stand_in.seen if path == "/v1/load_lora_adapter"]
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["step-2"]
    assert loaded["lora_path"] == str(tmp_path / "shared" / "step-2")
    again = checkpoint.read_adapter(tmp_path / "shared" / "step-2", adapter.config)
    assert all(torch.equal(again.b[name], b) for name, b in adapter.b.items())
    order = [path.rpartition("/")[2] for path, _, _ in stand_in.seen]
    assert order == ["unload_lora_adapter"] * 2 + ["load_lora_adapter", "completions"]
    gone = [body["lora_name"] for path, body, _ in stand_in.seen if path.endswith("unload_lora_adapter")]
    assert gone == [loaded["lora_name"].removesuffix("2") + "1", loaded["lora_name"]]
    assert stand_in.seen[-1][1]["model"] == loaded["lora_name"]


def test_whole_weights_go_where_the_server_reads_them_again(stand_in, base, adapter, tmp_path):
    """The adapter merged, in the place of shards and of the note on the old weights; vLLM's calls in their order, the model by its name."""
    decoder = Decoder.load(base, torch.float32)
    folder = tmp_path / "policy"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    url = f"http://127.0.0.1:{stand_in.server_port}/v1"
    server = remote_rollout.load(RolloutConfig(url=url, weights=str(folder)), [STOP], VOCAB, {})
    rollout, _ = remote_rollout.sample(server, (decoder, adapter), [PROMPT], 1, SAMPLING, step=1)
    assert rollout.response_ids == [[97, 98, STOP]]
    assert [(path, body) for path, body, _ in stand_in.seen[:3]] == [
        ("/collective_rpc", {"method": "reload_weights"}), ("/reset_prefix_cache", None), ("/v1/models", None)
    ]  # fmt: skip
    assert stand_in.seen[3][1]["model"] == "/shared/policy"
    assert {path.name for path in folder.iterdir()} == {path.name for path in base.iterdir()} - {"prepared.json"}
    found, expected = Decoder.load(folder, torch.float32).hf_names(), decoder.folded(adapter).hf_names()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
    stand_in.models = {"detail": "no"}
    with pytest.raises(TrainingStopped, match="must list the model"):
        remote_rollout.sample(server, (decoder, None), [PROMPT], 1, SAMPLING, step=2)
    assert torch.equal(Decoder.load(folder, torch.float32).head, decoder.head)
    (folder / "manifest.json").write_text("{}")
    for place in (folder, tmp_path):
        with pytest.raises(ConfigError, match="start the server on that"):
            remote_rollout.load(RolloutConfig(url=url, weights=str(place)), [STOP], VOCAB, {})


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"choices": [GOOD | {"token_ids": None}]}, "returns no token ids"),
        ({"choices": [{k: v for k, v in GOOD.items() if k != "token_ids"}]}, "returns no token ids"),
        ({"choices": [GOOD | {"logprobs": None}]}, "must answer a completion"),
        ({"text": "hi"}, "must answer a completion"),
        ({"choices": [GOOD, GOOD | {"index": 1}]}, "gave 2 responses to a prompt, 1 were"),
        ({"choices": [GOOD | {"prompt_token_ids": [104]}]}, "sampled after a prompt of 1 tokens"),
        ({"choices": [GOOD | {"token_ids": [97, STOP]}]}, "gave 2 tokens with 3 log-probs"),
        ({"choices": [GOOD | {"token_ids": [97, 98, VOCAB]}]}, "does it serve this base"),
        ({"choices": [GOOD | {"token_ids": [97] * 5, "logprobs": {"token_logprobs": [0.0] * 5}}]}, "at most 4 tokens"),
        ({"choices": [GOOD | {"logprobs": {"token_logprobs": [None, -1.0, -1.0]}}]}, "3 log-probs"),
        ({"choices": [GOOD | {"token_ids": [97, 98, 99]}]}, "took the stop token off"),
    ],
)
def test_what_is_no_answer_in_tokens_is_refused(stand_in, adapter, tmp_path, answer, says):
    stand_in.answers = [(200, answer)]
    with pytest.raises(TrainingStopped, match=says):
        remote_rollout.sample(load(stand_in, tmp_path), (None, adapter), [PROMPT], 1, SAMPLING, step=1)


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(stand_in, adapter, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(remote_rollout.time, "sleep", pauses.append)
    stand_in.answers = [(503, {}), (429, {}), (200, {"choices": [GOOD]})]
    remote_rollout.sample(load(stand_in, tmp_path), (None, adapter), [PROMPT], 1, SAMPLING, step=1)
    assert pauses == [1.0, 2.0]
    stand_in.seen.clear()
    stand_in.answers = [(400, {"error": "no such field"})]
    with pytest.raises(TrainingStopped, match=r"failed at /v1/completions \(400: .*no such field"):
        remote_rollout.sample(load(stand_in, tmp_path), (None, adapter), [PROMPT], 1, SAMPLING, step=1)
    assert [path for path, _, _ in stand_in.seen].count("/v1/completions") == 1
    stand_in.answers = [(500, {})]
    with pytest.raises(TrainingStopped, match="goes on from the last saved state"):
        remote_rollout.sample(load(stand_in, tmp_path), (None, adapter), [PROMPT], 1, SAMPLING, step=1)
    assert [path for path, _, _ in stand_in.seen].count("/v1/completions") == 1 + remote_rollout.ATTEMPTS


def test_a_token_that_is_not_there_is_said_before_anything_is_asked():
    config = RolloutConfig(url="http://gpu:8000/v1", adapters="a", token_variable="VLLM_KEY")
    with pytest.raises(ConfigError, match="VLLM_KEY is not set"):
        remote_rollout.load(config, [STOP], VOCAB, {})


def test_our_policy_server_gives_the_trainer_s_own_log_probs(base, adapter, tmp_path):
    """The whole protocol over a socket: adapter loaded, ids sampled, log-probs those of the training graph."""
    import uvicorn

    from plaudit.policy_server.app import PolicyServer, create_app

    decoder = Decoder.load(base, torch.float32)
    web = uvicorn.Server(uvicorn.Config(create_app(PolicyServer(base, "tiny", decoder)), port=0, log_level="error"))
    listener = uvicorn.Config(None, port=0, log_level="error").bind_socket()
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server = remote_rollout.load(
            RolloutConfig(url=url, adapters=str(tmp_path / "shared")),
            decoder.config.stop_ids,
            decoder.config.vocab_size,
        )
        prompts = [[104, 105], [111, 110, 101, 32, 50]]
        first, logprobs = remote_rollout.sample(server, (decoder, adapter), prompts, 3, Sampling(8, seed=1), step=1)
        second, _ = remote_rollout.sample(server, (decoder, adapter), prompts, 3, Sampling(8, seed=1), step=2)
    finally:
        web.should_exit = True
        thread.join()
        listener.close()
    assert first.response_ids == second.response_ids  # the same adapter under another name, the same seed
    assert len({tuple(ids) for ids in first.response_ids}) == 6
    own, counts, _ = response_logprobs(decoder, adapter, pack(first))
    torch.testing.assert_close(logprobs, torch.where(counts, own, 0.0), atol=1e-5, rtol=0)
    without, _, _ = response_logprobs(decoder, None, pack(first))
    assert float((logprobs - without)[counts].abs().max()) > 0.1  # it was the adapter that sampled
