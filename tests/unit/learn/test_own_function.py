"""A function of yours: found, called with what was sampled, and never trusted."""

import hashlib
import importlib
import subprocess
import sys
import threading

import pytest

from plaudit.errors import ConfigError, TrainingStopped
from plaudit.learn import own_function
from plaudit.learn.answers import Answers
from plaudit.learn.configs import FunctionTerm

READ = Answers(
    [[{"role": "user", "content": "hello?"}], [{"role": "user", "content": "bye?"}]],
    ["please", "no"],
    [[1, 2, 3], [4]],
    [{"prompt": 0, "finished": True, "n_tokens": 3}, {"prompt": 1, "finished": False, "n_tokens": 1}],
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(source): a module of the path, forgotten after the test; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"rewards_of_{tmp_path.name}"

    def write(source):
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    yield write
    sys.modules.pop(name, None)


def load(module, source, function="f", **fields):
    return own_function.load(FunctionTerm(name="own", function=f"{module(source)}:{function}", **fields))


def test_it_gets_the_rollout_and_its_scores_come_back(module):
    own = load(
        module,
        "def f(messages, responses, token_ids, meta):\n"
        "    rows = zip(messages, responses, token_ids, meta)\n"
        "    return [len(m[-1]['content']) + 10 * len(r) + 100 * sum(t) + 1000 * d['finished'] for m, r, t, d in rows]\n",
    )
    assert own_function.score(own, READ).tolist() == [6 + 60 + 600 + 1000, 4 + 20 + 400]


def test_the_source_is_known_by_its_hash(module, tmp_path):
    source = "def f(*_):\n    return [0.0, 0.0]\n"
    assert load(module, source).source_sha256 == hashlib.sha256(source.encode()).hexdigest()


@pytest.mark.parametrize(
    ("source", "function", "words"),
    [
        ("def polite(*_): ...\n", "f", ["no function 'f'", "polite"]),
        ("f = 3\n", "f", ["no function 'f'"]),
        ("async def f(*_): ...\n", "f", ["async"]),
        ("import nowhere_to_be_found\n", "f", ["nowhere_to_be_found", "PYTHONPATH"]),
        ("raise KeyError('boom')\n", "f", ["KeyError", "boom"]),
    ],
)
def test_a_function_that_is_not_there_is_a_sentence(module, source, function, words):
    with pytest.raises(ConfigError) as refusal:
        load(module, source, function)
    for word in words:
        assert word in refusal.value.message


def test_a_module_that_is_not_there_is_a_sentence():
    with pytest.raises(ConfigError, match=r"cannot be imported .*no_such_module_here is looked for in"):
        own_function.load(FunctionTerm(name="own", function="no_such_module_here:f"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [1.0]", ["1 scores for 2 responses"]),
        ("return [1.0, float('nan')]", ["nan", "response 1", "'no'", "'bye?'"]),
        ("return [1.0, 'good']", ["'good'", "response 1"]),
        ("return None", ["NoneType"]),
        ("return (1.0 for _ in range(2))", ["generator"]),
        ("raise ValueError('what is this')", ["ValueError", "what is this", "line 2", "'please'"]),
    ],
)
def test_what_is_wrong_stops_the_run_with_a_sentence(module, body, words):
    own = load(module, f"def f(messages, responses, token_ids, meta):\n    {body}\n")
    with pytest.raises(TrainingStopped) as stopped:
        own_function.score(own, READ)
    for word in [own.term.function, *words]:
        assert word in stopped.value.message


def test_a_hanging_function_stops_the_run_and_is_left_behind(module):
    own = load(
        module,
        "import threading\nrelease = threading.Event()\ndef f(*_):\n    release.wait()\n    return [0.0, 0.0]\n",
        timeout_s=0.05,
    )
    with pytest.raises(
        TrainingStopped, match=r"had not answered for 2 responses after 0\.05 s and hangs in line \d+ of"
    ):
        own_function.score(own, READ)
    left = next(thread for thread in threading.enumerate() if thread.name == own.term.function)
    assert left.daemon
    sys.modules[own.term.function.partition(":")[0]].release.set()
    left.join(60)
    assert not left.is_alive()


def test_a_hanging_function_does_not_keep_the_process(module, tmp_path):
    name = module("import time\ndef f(*_):\n    time.sleep(600)\n")
    code = f"""
from plaudit.errors import TrainingStopped
from plaudit.learn import own_function
from plaudit.learn.answers import Answers
from plaudit.learn.configs import FunctionTerm
own = own_function.load(FunctionTerm(name="own", function="{name}:f", timeout_s=0.1))
try:
    own_function.score(own, Answers([[]], ["a"], [[1]], [{{}}]))
except TrainingStopped:
    raise SystemExit(2)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, timeout=200)  # -c looks in the cwd
    assert ended.returncode == 2
