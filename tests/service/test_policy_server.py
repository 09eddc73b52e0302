"""The policy server as a process, through the official SDK: `python -m plaudit.policy_server` on the tiny model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import openai
import pytest
import torch

from plaudit.learn import base_models, checkpoint
from plaudit.learn.nets import Adapter, Decoder

HI = [{"role": "user", "content": "hi"}]


def launch(base, *more):
    command = [
        sys.executable,
        "-m",
        "plaudit.policy_server",
        "--base",
        str(base),
        "--name",
        "tiny",
        "--port",
        "0",
        *more,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("ready http://127.0.0.1:"), line + process.stderr.read()
    return process, line.split()[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def policy(base, tmp_path_factory):
    adapter = Adapter(Decoder.load(base, torch.float32).config, 4, 8, seed=1)
    for b in adapter.b.values():
        b.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("policies") / "v1"
    checkpoint.save_policy(folder, adapter, base, {}, {})
    return folder


@pytest.fixture(scope="module")
def url(base, policy):
    process, url = launch(base, "--adapter", f"v1={policy}")
    yield url
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()
    process.stderr.close()


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_completion(client):
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_completion_tokens=9, n=2, logprobs=True, seed=4
    )
    assert [choice.message.role for choice in answer.choices] == ["assistant", "assistant"]
    assert answer.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in answer.choices)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_stream(client):
    options = {"model": "tiny", "messages": HI, "max_tokens": 9, "seed": 4}
    whole = client.chat.completions.create(**options)
    with client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_token_ids_go_out_and_in(client):
    """As a trainer's rollouts use it: ids out of a chat, the prompt's ids into a text completion, the same ids out."""
    own = {"extra_body": {"return_token_ids": True}}
    chat = client.chat.completions.create(model="tiny", messages=HI, max_tokens=9, n=2, seed=4, **own)
    options = {"model": "tiny", "max_tokens": 9, "n": 2, "seed": 4, "logprobs": 0}
    text = client.completions.create(prompt=chat.prompt_token_ids, **options, **own)
    assert [choice.token_ids for choice in text.choices] == [choice.token_ids for choice in chat.choices]
    assert [choice.text for choice in text.choices] == [choice.message.content for choice in chat.choices]
    for choice in text.choices:
        assert len(choice.logprobs.token_logprobs) == len(choice.token_ids)
        assert choice.prompt_token_ids == chat.prompt_token_ids
    with client.completions.create(prompt=chat.prompt_token_ids, stream=True, **options, **own) as stream:
        streamed = [one for chunk in stream for one in chunk.choices]
    for choice in text.choices:
        mine = [one for one in streamed if one.index == choice.index]
        assert [token for one in mine for token in one.token_ids] == choice.token_ids


def test_stop_strings(client):
    options = {"model": "tiny", "messages": HI, "max_tokens": 40, "seed": 4}
    text = client.chat.completions.create(**options).choices[0].message.content
    assert len(text) > 5
    cut = client.chat.completions.create(**options, stop=[text[3:5]]).choices[0]
    assert cut.message.content == text[: text.index(text[3:5])]
    assert cut.finish_reason == "stop"


def test_models_and_errors(client):
    assert [model.id for model in client.models.list()] == ["tiny", "v1"]
    with pytest.raises(openai.NotFoundError, match="gpt"):
        client.chat.completions.create(model="gpt", messages=HI)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="tiny", messages=HI, temperature=9)


def test_many_at_once_on_two_policies_equal_each_alone(url, client):
    async def run():
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as together:
            return await asyncio.gather(
                *(
                    together.chat.completions.create(
                        model=("tiny", "v1")[i % 2], messages=HI, max_tokens=20, seed=i, temperature=0.8
                    )
                    for i in range(40)
                )
            )

    for i, answer in enumerate(asyncio.run(run())):
        if i % 8 < 2:
            alone = client.chat.completions.create(
                model=("tiny", "v1")[i % 2], messages=HI, max_tokens=20, seed=i, temperature=0.8
            )
            assert answer.choices[0].message == alone.choices[0].message


def test_adapters_over_http(url, policy):
    with httpx.Client(base_url=url, timeout=60) as client:
        load = {"lora_name": "v2", "lora_path": str(policy)}
        assert client.post("/load_lora_adapter", json=load).status_code == 200
        assert client.post("/load_lora_adapter", json=load).status_code == 400
        assert client.post("/load_lora_adapter", json=load | {"load_inplace": True}).status_code == 200
        assert client.post("/unload_lora_adapter", json={"lora_name": "v2"}).status_code == 200


def test_a_port_in_use_is_a_sentence(base):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "plaudit.policy_server", "--base", str(base), "--name", "t", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    said = json.loads(done.stderr.splitlines()[-1])
    assert said["code"] == "config_error"
    assert port in said["message"]


def test_sigterm_in_the_middle_of_an_answer_ends_it_cleanly(base):
    process, url = launch(base)
    try:
        lines = []

        def read():
            body = {"model": "tiny", "messages": HI, "max_tokens": 2000, "stream": True, "n": 16}
            with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as response:
                for line in response.iter_lines():
                    lines.append(line)
                    if len(lines) == 3:
                        process.send_signal(signal.SIGTERM)

        reader = threading.Thread(target=read)
        reader.start()
        assert process.wait(30) == 0
        reader.join(30)
        assert len(lines) >= 3
    finally:
        process.kill()
        process.communicate()


def test_it_ends_with_its_parent(base):
    """A shell starts it and is killed; the server notices and goes."""
    script = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'plaudit.policy_server', '--base', {str(base)!r}, '--name', 't',"
        " '--port', '0'], stdout=subprocess.PIPE, text=True)\n"
        "print(child.pid, child.stdout.readline(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline().split()[0])
    descriptor = os.pidfd_open(pid)
    try:
        parent.kill()
        parent.wait()
        import select

        ready, _, _ = select.select([descriptor], [], [], 30)
        assert ready, "the server outlived its parent by 30 s"
    finally:
        os.close(descriptor)
        parent.communicate()
