from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from plaudit.cli import family
from plaudit.cli.family import Child, Family, last_sentence
from plaudit.demo_steps.house import free_port
from plaudit.errors import Unavailable


def child(program: str, name: str = "child") -> Child:
    return Child(name, lambda: [sys.executable, "-c", program], None)


@pytest.fixture
def kin(tmp_path):
    made = Family(tmp_path, threading.Event(), {"PLAUDIT_TOLD": "yes"})
    yield made
    made.stop()


def until(true) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_that_ends_at_its_start_is_quoted(kin, tmp_path) -> None:
    kin.start(child("import sys; sys.exit('no such base')"))
    until(lambda: kin._running[0].process.poll() is not None)
    with pytest.raises(Unavailable, match=rf"The child ended at its start: no such base \(all of it: {tmp_path}"):
        kin.wait_until_healthy()


def test_a_child_is_told_what_the_parent_was_told(kin, tmp_path) -> None:
    kin.start(child("import os; print(os.environ['PLAUDIT_TOLD'])"))
    kin._running[0].process.wait(30)
    assert (tmp_path / "child.log").read_text() == "yes\n"


def test_a_fallen_child_starts_again_with_a_fresh_command_until_it_keeps_falling(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(family, "MAX_FALLS", 2)
    asked = []

    def command() -> list[str]:
        asked.append(1)
        return [sys.executable, "-c", f"print('start {len(asked)}')"]

    kin = Family(tmp_path, threading.Event(), {})
    kin.start(Child("child", command, None))
    with pytest.raises(Unavailable, match="keeps falling: start 3"):
        kin.watch()
    kin.stop()
    assert len(asked) == 3


def test_a_child_that_will_not_end_is_ended(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(family, "STOP_S", 0.3)
    kin = Family(tmp_path, threading.Event(), {})
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    kin.start(child(stubborn))
    until(lambda: (tmp_path / "child.log").read_text() == "up\n")
    kin.stop()
    assert kin._running[0].process.returncode == -signal.SIGKILL


def test_a_child_ends_with_its_parent() -> None:
    # The one in the middle starts a child that watches it, and dies.
    watcher = "import sys, time; from plaudit.cli.family import end_with; end_with(int(sys.argv[1])); print('up', flush=True); time.sleep(60)"
    middle = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {watcher!r}, str(os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", middle], capture_output=True, text=True, check=True, timeout=60)
    import psutil

    def gone() -> bool:
        try:
            return psutil.Process(int(done.stdout)).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    until(gone)


def test_a_signal_stops_whatever_the_main_thread_is_at() -> None:
    # With a handler that sets the event itself this hangs: Event.wait holds that lock between two of its steps.
    program = """
import signal
from plaudit.cli.family import told_to_stop
stop = told_to_stop(signal.SIGTERM)
with stop._cond:
    signal.raise_signal(signal.SIGTERM)
print(stop.wait(30))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"


def test_up_ends_with_the_process_that_asked_for_it(tmp_path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [sys.executable, "-m", "plaudit.cli", "up", "--home", str(tmp_path), "--base", "tiny"]
    command += ["--port", str(free_port()), "--policy-port", str(free_port()), "--parent", str(gone.pid)]
    up = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert up.wait(60) in (0, -signal.SIGTERM)
    finally:
        up.kill()


def test_the_last_sentence_is_the_message_of_a_program_of_ours() -> None:
    assert last_sentence("warning\n" + '{"code": "not_found", "message": "There is no base."}\n') == "There is no base."
    assert last_sentence("a\nb\n\n") == "b"
    assert last_sentence("") == "it said nothing"
