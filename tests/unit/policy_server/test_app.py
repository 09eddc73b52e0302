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
        ({"tools": [{"type": "function"}]}, 400, "`tools`"),
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


def events(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_token_ids_are_those_that_were_sampled(base):
    """As vLLM spells it; the same ids go in again as a text completion's prompt and give the same answer."""
    more = {"n": 2, "return_token_ids": True, "logprobs": True}

    async def talk(client, server):
        chat = (await client.post("/chat/completions", json=CHAT | more)).json()
        streamed = (await client.post("/chat/completions", json=CHAT | more | {"stream": True})).text
        body = {name: CHAT[name] for name in ("model", "max_tokens", "seed")} | {"n": 2, "return_token_ids": True}
        text = (await client.post("/completions", json=body | {"prompt": chat["prompt_token_ids"]})).json()
        return chat, events(streamed), text, server.tokenizer.render(CHAT["messages"])

    chat, streamed, text, prompt = ask(base, talk)
    assert chat["prompt_token_ids"] == prompt
    assert text["object"] == "text_completion"
    for index, choice in enumerate(chat["choices"]):
        assert choice["token_ids"] == [entry["token_id"] for entry in choice["logprobs"]["content"]]
        own = [event["choices"][0] for event in streamed if event["choices"][0]["index"] == index]
        assert [one for event in own for one in event.get("token_ids", [])] == choice["token_ids"]
        same = text["choices"][index]
        assert (same["prompt_token_ids"], same["token_ids"]) == (prompt, choice["token_ids"])
        assert (same["text"], same["finish_reason"]) == (choice["message"]["content"], choice["finish_reason"])
    with_prompt = [event["choices"][0]["index"] for event in streamed if "prompt_token_ids" in event]
    assert sorted(with_prompt) == [0, 1]
    assert text["usage"] == chat["usage"]


def test_nothing_of_token_ids_where_nobody_asks(base):
    async def talk(client, server):
        chat = (await client.post("/chat/completions", json=CHAT)).text
        stream = (await client.post("/chat/completions", json=CHAT | {"stream": True})).text
        text = (await client.post("/completions", json={"model": "tiny", "prompt": "hi"})).text
        return chat + stream + text

    assert "token_ids" not in ask(base, talk)


def test_several_prompts_of_ids_and_texts_are_numbered_prompt_by_prompt(base):
    """Each is what it would be alone, whole and streamed; log-probs side by side as OpenAI has them."""
    body = {"model": "tiny", "max_tokens": 6, "seed": 5, "n": 2, "logprobs": 2, "return_token_ids": True}
    prompts = [[104, 105], [104, 105, 106, 107]]

    async def talk(client, server):
        both = (await client.post("/completions", json=body | {"prompt": prompts})).json()
        alone = [(await client.post("/completions", json=body | {"prompt": one})).json() for one in prompts]
        texts = (await client.post("/completions", json=body | {"prompt": ["hi", "hijk"]})).json()
        streamed = (await client.post("/completions", json=body | {"prompt": prompts, "stream": True})).text
        return both, alone, texts, events(streamed)

    both, alone, texts, streamed = ask(base, talk)
    said = [
        [(choice["token_ids"], choice["text"], choice["prompt_token_ids"]) for answer in each for choice in answer["choices"]]
        for each in ([both], alone, [texts])
    ]  # fmt: skip
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert said[0] == said[1] == said[2]
    assert both["usage"]["prompt_tokens"] == 6
    for choice in both["choices"]:
        logprobs = choice["logprobs"]
        assert len(set(map(len, logprobs.values()))) == 1
        assert len(logprobs["tokens"]) == len(choice["token_ids"])
        assert logprobs["text_offset"][:2] == [0, len(logprobs["tokens"][0])]
        for token, logprob, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        ):
            assert top[token] == logprob
            assert len(top) in (2, 3)
        own = [event["choices"][0] for event in streamed if event["choices"][0]["index"] == choice["index"]]
        assert "".join(event["text"] for event in own) == choice["text"]
        assert [one for event in own for one in event["token_ids"]] == choice["token_ids"]
        assert [at for event in own for at in event["logprobs"]["text_offset"]] == logprobs["text_offset"]
        assert [event["finish_reason"] for event in own][-1] == choice["finish_reason"]
        assert ["prompt_token_ids" in event for event in own] == [True] + [False] * (len(own) - 1)


def test_tokens_may_be_named_by_their_ids(base):
    more = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}

    async def talk(client, server):
        return (await client.post("/chat/completions", json=CHAT | more)).json()["choices"][0]["logprobs"]["content"]

    for entry in ask(base, talk):
        assert entry["token"] == f"token_id:{entry['token_id']}"
        assert entry["top_logprobs"][0]["token"].startswith("token_id:")


def test_the_requests_own_stops_are_told(base):
    async def talk(client, server):
        free = (await client.post("/chat/completions", json=CHAT | {"return_token_ids": True})).json()["choices"][0]
        token, text = free["token_ids"][4], free["message"]["content"]
        by_token = {"stop_token_ids": [token], "return_token_ids": True}
        return free, token, [
            (await client.post("/chat/completions", json=CHAT | change)).json()["choices"][0]
            for change in (by_token, {"stop": [text[2:4]]})
        ]  # fmt: skip

    free, token, (by_token, by_text) = ask(base, talk)
    assert free["stop_reason"] is None
    assert (by_token["stop_reason"], by_token["token_ids"][-1], by_token["finish_reason"]) == (token, token, "stop")
    assert (by_text["stop_reason"], by_text["finish_reason"]) == (free["message"]["content"][2:4], "stop")


def test_processed_log_probs_are_of_the_sampled_distribution(base):
    body = CHAT | {"logprobs": True, "top_logprobs": 1, "top_k": 1}

    async def talk(client, server):
        return (await client.post("/chat/completions", json=body)).json()["choices"][0]["logprobs"]["content"]

    raw, processed = ask(base, talk), ask(base, talk, processed_logprobs=True)
    assert [entry["token_id"] for entry in raw] == [entry["token_id"] for entry in processed]
    assert all(entry["logprob"] == pytest.approx(0, abs=1e-6) for entry in processed)
    assert all(entry["logprob"] < -0.01 for entry in raw)


def test_an_adapter_is_exchanged_in_its_place(base, policy, tmp_path):
    """load_inplace: what is kept of the old one's prompts must not answer for the new one."""
    decoder = Decoder.load(base, torch.float32)
    other = Adapter(decoder.config, 4, 8, first_layer=1, seed=2)
    for b in other.b.values():
        b.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(2))
    checkpoint.save_policy(tmp_path / "v2", other, base, {}, {})

    async def talk(client, server):
        async def said():
            body = CHAT | {"model": "v1", "temperature": 0}
            return (await client.post("/chat/completions", json=body)).json()["choices"][0]["message"]["content"]

        first = [await said(), await said()]
        load = {"lora_name": "v1", "lora_path": str(tmp_path / "v2")}
        statuses = [
            (await client.post("/load_lora_adapter", json=load | more)).status_code
            for more in (
                {},
                {"load_inplace": "yes"},
                {"load_inplace": True},
                {"lora_name": "tiny", "load_inplace": True},
            )
        ]
        exchanged = await said()
        return first, statuses, exchanged, {adapter for adapter, _ in server.engine._loop._cache.prompts._entries}

    first, statuses, exchanged, kept = ask(base, talk, adapters={"v1": policy}, prompt_cache_bytes=10**8)

    async def alone(client, server):
        body = CHAT | {"model": "v2", "temperature": 0}
        return (await client.post("/chat/completions", json=body)).json()["choices"][0]["message"]["content"]

    assert statuses == [400, 400, 200, 400]
    assert first[0] == first[1] != exchanged
    assert len(kept) == 1  # nothing of the one that has gone
    assert exchanged == ask(base, alone, adapters={"v2": tmp_path / "v2"})


def test_weights_are_read_again_between_answers(base, tmp_path):
    """vLLM's call: the answer in progress ends with the old weights, the next is of the new ones, and no cached prompt outlives them."""
    folder = tmp_path / "policy"
    shutil.copytree(base, folder)
    other = Decoder.load(base, torch.float32)
    with torch.no_grad():
        other.get_parameter("head").mul_(-1.0)
    greedy = CHAT | {"temperature": 0, "max_tokens": 40, "logprobs": True}

    async def talk(client, server):
        async def said():
            body = (await client.post("/chat/completions", json=greedy)).json()
            return [entry["token_id"] for entry in body["choices"][0]["logprobs"]["content"]]

        async def reload(method="reload_weights"):
            return await client.post("http://t/collective_rpc", json={"method": method})

        first = await said()
        under_way = asyncio.create_task(said())
        while not server.engine.load["running"]:
            await asyncio.sleep(0)
        checkpoint.write_weights(folder, other, None)
        answers = [await reload(), await reload("save_sharded_state"), await client.post("http://t/reset_prefix_cache")]
        statuses = [answer.status_code for answer in answers]
        shape = json.loads((folder / "config.json").read_text())
        second = await said()
        (folder / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 64}))
        return first, await under_way, second, statuses, (await reload()).json()["error"]["message"]

    first, under_way, second, statuses, shape = ask(folder, talk, prompt_cache_bytes=10**8, reload_weights=True)
    assert statuses == [200, 400, 200]
    assert first == under_way != second
    assert "another shape" in shape

    async def alone(client, server):
        body = (await client.post("/chat/completions", json=greedy)).json()
        refused = await client.post("http://t/collective_rpc", json={"method": "reload_weights"})
        ids = [entry["token_id"] for entry in body["choices"][0]["logprobs"]["content"]]
        return ids, refused.json()["error"]["message"]

    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    ids, refused = ask(folder, alone)
    assert second == ids
    assert "--reload-weights" in refused


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
