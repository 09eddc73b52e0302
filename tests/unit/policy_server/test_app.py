"""Routes over ASGI: shapes, statuses, adapters, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import json
import shutil

import httpx
import pytest
import torch

from plaudit.learn import base_models, checkpoint
from plaudit.learn.nets import Adapter, Decoder
from plaudit.policy_server.app import MAX_BODY_BYTES, PolicyServer, create_app

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "seed": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def policy(base, tmp_path_factory):
    adapter = Adapter(Decoder.load(base, torch.float32).config, 4, 8, first_layer=1, seed=1)
    for b in adapter.b.values():
        b.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("policies") / "v1"
    checkpoint.save_policy(folder, adapter, base, {}, {})
    return folder


def ask(base, talk, **options):
    """Run `talk(client, server)` against a fresh server."""
    server = PolicyServer(base, "tiny", Decoder.load(base, torch.float32), **options)
    app = create_app(server)

    async def run():
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://t/v1", timeout=60) as client:
                return await talk(client, server)

    return asyncio.run(run())


def test_a_completion_has_every_field_and_counts_tokens(base):
    async def talk(client, server):
        return (
            await client.post("/chat/completions", json=CHAT | {"n": 3, "logprobs": True, "top_logprobs": 2})
        ).json()

    body = ask(base, talk)
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    assert body["id"].startswith("chatcmpl-")
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    sampled = 0
    for choice in body["choices"]:
        content = choice["logprobs"]["content"]
        sampled += len(content)
        assert choice["finish_reason"] == ("stop" if content[-1]["token_id"] == 256 else "length")
        assert (
            bytes(b for entry in content if entry["token_id"] < 256 for b in [entry["token_id"]]).decode(
                errors="replace"
            )
            == choice["message"]["content"]
        )
        assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in content)
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": sampled, "total_tokens": 5 + sampled}


def test_a_seed_repeats_streamed_or_not(base):
    async def talk(client, server):
        whole = [
            (await client.post("/chat/completions", json=CHAT)).json()["choices"][0]["message"]["content"]
            for _ in range(2)
        ]
        text = (await client.post("/chat/completions", json=CHAT | {"stream": True})).text
        other = (await client.post("/chat/completions", json=CHAT | {"seed": 2})).json()["choices"][0]["message"][
            "content"
        ]
        return whole, text, other

    whole, text, other = ask(base, talk)
    assert whole[0] == whole[1] != other
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == whole[0]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [event["choices"][0]["finish_reason"] for event in events][-1] in ("stop", "length")
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
    assert text.endswith("data: [DONE]\n\n")
    assert not any("usage" in event for event in events)


def test_usage_is_the_last_chunk_where_asked(base):
    async def talk(client, server):
        body = CHAT | {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
        return (await client.post("/chat/completions", json=body)).text

    events = [json.loads(line[6:]) for line in ask(base, talk).splitlines() if line.startswith("data: {")]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["prompt_tokens"] == 5
    assert {event["choices"][0]["index"] for event in events[:-1]} == {0, 1}


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"model": "other"}, 404, "loaded are 'tiny'"),
        ({"max_tokens": 4000}, 400, "context is 2048"),
        ({"messages": [{"role": "user", "content": "x" * 3000}], "max_tokens": None}, 400, "3003 tokens"),
        ({"n": 17}, 400, "`n`"),
        ({"temperature": 3}, 400, "`temperature`"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url"),
    ],
)
def test_what_cannot_be_answered_is_said(base, change, status, word):
    async def talk(client, server):
        return await client.post("/chat/completions", json=CHAT | change)

    response = ask(base, talk)
    assert response.status_code == status
    assert word in response.json()["error"]["message"]


def test_bodies_that_are_not_json_or_too_large(base):
    async def talk(client, server):
        return [
            (await client.post("/chat/completions", content=content)).status_code
            for content in (b"{", b"[]", b"\xff", b"x" * (MAX_BODY_BYTES + 1))
        ]

    assert ask(base, talk) == [400, 400, 400, 413]


def test_parts_and_the_developer_role_are_understood(base):
    async def talk(client, server):
        plain = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi you"}]
        parts = [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "hi "}, {"type": "text", "text": "you"}]},
        ]
        return [
            (await client.post("/chat/completions", json=CHAT | {"messages": messages})).json()["choices"]
            for messages in (plain, parts)
        ]

    one, two = ask(base, talk)
    assert one == two


def test_adapters_come_and_go_as_with_vllm(base, policy):
    async def talk(client, server):
        async def text(model):
            response = await client.post("/chat/completions", json=CHAT | {"model": model, "temperature": 0})
            return response.status_code, response.json().get("choices", [{}])[0].get("message")

        seen = [await text("v1")]
        load = {"lora_name": "v1", "lora_path": str(policy)}
        loaded = [await client.post("/load_lora_adapter", json=load) for _ in range(2)]
        models = [model["id"] for model in (await client.get("/models")).json()["data"]]
        seen += [await text("v1"), await text("tiny")]
        unloaded = [await client.post("/unload_lora_adapter", json={"lora_name": "v1"}) for _ in range(2)]
        seen.append(await text("v1"))
        return seen, loaded, models, unloaded

    seen, loaded, models, unloaded = ask(base, talk)
    assert [status for status, _ in seen] == [404, 200, 200, 404]
    assert seen[1][1] != seen[2][1]
    assert [response.status_code for response in loaded] == [200, 400]
    assert "already" in loaded[1].text
    assert models == ["tiny", "v1"]
    assert [response.status_code for response in unloaded] == [200, 404]
    assert "not found" in unloaded[1].text


def test_adapters_that_do_not_fit_are_refused(base, policy, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(policy, changed)
    with (changed / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")

    async def talk(client, server):
        bodies = [
            {"lora_name": "a", "lora_path": str(changed)},
            {"lora_name": "a", "lora_path": str(tmp_path / "nowhere")},
            {"lora_name": "a"},
            {"lora_name": "tiny", "lora_path": str(policy)},
        ]
        return [
            (await client.post("/load_lora_adapter", json=body)).status_code for body in bodies
        ], server.adapters.names()

    assert ask(base, talk) == ([400, 404, 400, 400], ["tiny"])


def test_an_adapter_given_at_the_start_is_there(base, policy):
    async def talk(client, server):
        return [model["id"] for model in (await client.get("/models")).json()["data"]]

    assert ask(base, talk, adapters={"v1": policy}) == ["tiny", "v1"]


def test_health_follows_the_worker(base):
    async def talk(client, server):
        healthy = await client.get("http://t/healthz")
        server.engine.stop()
        return healthy, await client.get("http://t/healthz")

    healthy, stopped = ask(base, talk)
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok", "running": 0, "waiting": 0})
    assert stopped.status_code == 503


def test_too_many_waiting_is_503_with_a_time(base):
    async def talk(client, server):
        return await client.post("/chat/completions", json=CHAT | {"n": 3})

    response = ask(base, talk, max_waiting=2)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_rows(base, stream):
    """The raw ASGI call, whose client disconnects once sampling has begun."""

    async def talk(client, server):
        server.engine._loop.stop_ids = frozenset()
        app = create_app(server)
        body = json.dumps(CHAT | {"max_tokens": 2000, "stream": stream}).encode()
        begun = asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
            "headers": [], "http_version": "1.1", "asgi": {"version": "3.0"}, "scheme": "http",
        }  # fmt: skip
        call = asyncio.create_task(app(scope, receive, send))
        while not server.engine.load["running"]:
            await asyncio.sleep(0.001)
        (running,) = server.engine._running.values()
        begun.set()
        await asyncio.gather(call, return_exceptions=True)
        while server.engine.load["running"]:
            await asyncio.sleep(0.001)
        return running.row

    row = ask(base, talk)
    assert row.end == "dropped"
    assert len(row.ids) < 2000
