"""Your own function as a reward: `mypkg.rewards:polite`, f(messages, responses, token_ids, meta) -> scores.

N responses of a rollout in one call: `messages[i]` is the conversation (a list of {"role", "content"}) that `responses[i]` answers,
`token_ids[i]` its ids as they were sampled, `meta[i]` as in `answers.Answers`. It gives back N finite numbers, higher is better.

It is imported as any module: from the working directory (`python -m` puts it on the path) or PYTHONPATH. It runs in a thread of this
process, because Python can end no thread from outside: one that hangs is left behind, the run stops with a sentence, and the thread
dies with the process. Code that hangs without ever giving up the interpreter lock holds the whole process; no limit can help there.
The same inputs must give the same scores, or a resumed run is not the uninterrupted one.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from plaudit.errors import ConfigError, TrainingStopped
from plaudit.learn.answers import Answers, checked, shown
from plaudit.learn.configs import FunctionTerm


@dataclass(frozen=True)
class OwnFunction:
    """A loaded function. `source_sha256` is of its module's file alone: what that imports in turn is not covered."""

    term: FunctionTerm
    call: Callable[..., Any]
    source_sha256: str


def load(term: FunctionTerm) -> OwnFunction:
    """Import it. Raises ConfigError where there is no such module or function, or where it is async."""
    module_name, _, name = term.function.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of yours may raise anything while it is imported
        raise ConfigError(
            f"The reward function {term.function} cannot be imported ({type(error).__name__}: {error}); {module_name} is "
            f"looked for in {Path.cwd()} and in PYTHONPATH."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(f"{module.__file__} has no function {name!r}; it has: {', '.join(functions) or 'none'}.")
    if inspect.iscoroutinefunction(found):
        raise ConfigError(f"The reward function {term.function} is async; write it with a plain def.")
    path = inspect.getsourcefile(module)
    if path is None:
        raise ConfigError(
            f"The module of {term.function} has no source file, so its lineage could not be kept; give a .py file."
        )
    return OwnFunction(term, found, hashlib.sha256(Path(path).read_bytes()).hexdigest())


def score(own: OwnFunction, answers: Answers) -> Tensor:
    """Call it on a whole rollout.   N -> (N,) fp32

    Raises TrainingStopped where it raises, takes longer than `timeout_s`, or gives back anything but N finite numbers.
    """
    who, n = f"The reward function {own.term.function}", len(answers.texts)
    returned: list[Any] = []
    raised: list[Exception] = []

    def work() -> None:
        try:
            returned.append(own.call(answers.messages, answers.texts, answers.ids, answers.meta))
        except Exception as error:  # whatever it raises is told below
            raised.append(error)

    # A daemon: the interpreter does not wait for it at exit. No pool, whose threads it would wait for.
    thread = threading.Thread(target=work, name=own.term.function, daemon=True)
    thread.start()
    thread.join(own.term.timeout_s)
    if raised:
        place = traceback.extract_tb(raised[0].__traceback__)[-1]
        raise TrainingStopped(
            f"{who} raised {type(raised[0]).__name__} ({raised[0]}) in line {place.lineno} of {place.filename}; "
            f"it was given {n} responses, the first {shown(answers, 0)}."
        ) from raised[0]
    if not returned:
        at = _where(thread)
        raise TrainingStopped(
            f"{who} had not answered for {n} responses after {own.term.timeout_s:g} s{at}; make it faster, raise timeout_s, or run "
            "it as an http term in a process of its own."
        )
    return checked(returned[0], answers, who)


def _where(thread: threading.Thread) -> str:
    """Where a thread is now, in words; nothing where it has ended."""
    frame = sys._current_frames().get(thread.ident or 0)
    return f" and hangs in line {frame.f_lineno} of {frame.f_code.co_filename}" if frame is not None else ""
