"""python -m plaudit.policy_server --base FOLDER --name smollm2 --port P [--adapter NAME=PATH ...]

Prints `ready http://HOST:PORT/v1` when it answers. Ends with exit code 0 on SIGTERM and SIGINT, and when the process that started it has
gone; exit code 2 and one sentence as JSON on the last line of stderr for an error that can be fixed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

# Before torch is imported. A thread that waits for work spins for some microseconds, then sleeps: sleeping at once makes each small
# operation ten times slower, spinning for ever makes a step 25 times slower while another process works.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "4000")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from plaudit.errors import BadInput, ConfigError, PlauditError

PARENT_POLL_S = 0.5
GRACE_S = 5  # for answers in progress when the server is told to end


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        _serve(options)
    except PlauditError as error:
        print(json.dumps({"code": error.code, "message": error.message}), file=sys.stderr, flush=True)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m plaudit.policy_server", description="Checkpoints behind OpenAI's API."
    )
    parser.add_argument("--base", type=Path, required=True, help="prepared base model folder")
    parser.add_argument("--name", required=True, help="model name of the base without adapter")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=PATH", help="adapter to load at the start"
    )
    parser.add_argument(
        "--parent", type=int, default=os.getppid(), help="end with this process; default: who started it"
    )
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--max-rows", type=int, default=128, help="responses sampled at the same time")
    parser.add_argument("--max-context", type=int, default=2048, help="tokens of prompt and response together")
    parser.add_argument("--max-waiting", type=int, default=1024, help="responses that may wait; more get 503")
    parser.add_argument(
        "--prompt-cache-mb", type=int, default=512, help="memory for prompts that may be asked again; 0 keeps none"
    )
    parser.add_argument(
        "--logprobs-mode",
        choices=("raw_logprobs", "processed_logprobs"),
        default="raw_logprobs",
        help="log-probs of the model itself, or of the distribution after temperature, top_k, top_p and penalties",
    )
    parser.add_argument(
        "--reload-weights",
        action="store_true",
        help="POST /collective_rpc {method: reload_weights} reads the base folder's weights again: for a trainer that samples here",
    )
    return parser.parse_args(arguments)


def _serve(options: argparse.Namespace) -> None:
    listener = _listen(options.host, options.port)
    import torch
    import uvicorn

    from plaudit.learn import decoders
    from plaudit.learn.nets import pick_dtype
    from plaudit.policy_server.app import PolicyServer, create_app

    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = pick_dtype() if options.dtype == "auto" else getattr(torch, options.dtype)
    policy = PolicyServer(
        options.base,
        options.name,
        decoders.load(options.base, dtype),
        dict(_named(text) for text in options.adapter),
        max_rows=options.max_rows,
        max_context=options.max_context,
        max_waiting=options.max_waiting,
        prompt_cache_bytes=options.prompt_cache_mb * 1_000_000,
        processed_logprobs=options.logprobs_mode == "processed_logprobs",
        reload_weights=options.reload_weights,
    )
    config = uvicorn.Config(
        create_app(policy), log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_S, lifespan="on"
    )
    server = uvicorn.Server(config)
    # uvicorn ends its work, then raises the signal again: without these the process would die of it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    threading.Thread(target=_watch_parent, args=(options.parent, server), daemon=True).start()
    threading.Thread(target=_announce, args=(server, listener), daemon=True).start()
    server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Taken before the model is loaded, so that a port in use is known at once."""
    try:
        return socket.create_server((host, port), backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"The policy server cannot listen on {host}:{port} ({error.strerror}); choose another --port."
        ) from error


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise BadInput(f"--adapter {text!r} is not NAME=PATH.")
    return name, Path(path)


def _announce(server: object, listener: socket.socket) -> None:
    while not getattr(server, "started", False):
        time.sleep(0.01)
    host, port = listener.getsockname()[:2]
    print(f"ready http://{host}:{port}/v1", flush=True)


def _watch_parent(parent: int, server: object) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    server.should_exit = True  # type: ignore[attr-defined]
    time.sleep(GRACE_S + 5)
    os._exit(0)  # the graceful end hangs, and nobody is left to see to it


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
