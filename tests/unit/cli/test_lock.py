from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from plaudit.cli import lock
from plaudit.errors import AlreadyRunning


def test_a_held_home_is_refused_with_the_process_that_holds_it(tmp_path) -> None:
    with lock.held(tmp_path, {"service": "http://127.0.0.1:1"}):
        with (
            pytest.raises(AlreadyRunning, match=rf"process {os.getpid()} at http://127.0.0.1:1"),
            lock.held(tmp_path, {}),
        ):
            pass
        assert lock.holder(tmp_path) == {"pid": os.getpid(), "service": "http://127.0.0.1:1"}
    assert lock.holder(tmp_path) is None
    with lock.held(tmp_path, {}):
        assert lock.holder(tmp_path) == {"pid": os.getpid()}


def test_a_home_without_a_lock_is_free(tmp_path) -> None:
    assert lock.holder(tmp_path / "never") is None


def test_a_killed_holder_holds_nothing(tmp_path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom plaudit.cli import lock\n"
        "with lock.held(Path(sys.argv[1]), {}):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert lock.holder(tmp_path) == {"pid": process.pid}
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert lock.holder(tmp_path) is None
    with lock.held(tmp_path, {}):
        pass


def test_roles_share_a_home_and_each_is_there_once(tmp_path) -> None:
    gateway, console = {"gateway", "feedback"}, {"console", "worker"}
    with lock.held(tmp_path, {"service": "http://a"}, gateway):
        assert lock.holder(tmp_path) == {"pid": os.getpid(), "service": "http://a"}
        with lock.held(tmp_path, {"service": "http://b"}, console):
            with pytest.raises(AlreadyRunning, match="http://b"), lock.held(tmp_path, {}, {"worker"}):
                pass
            with pytest.raises(AlreadyRunning, match="http://a"), lock.held(tmp_path, {}, {"gateway"}):
                pass
            with pytest.raises(AlreadyRunning), lock.held(tmp_path, {}):
                pass
        with lock.held(tmp_path, {}, {"worker"}):
            pass
    with (
        lock.held(tmp_path, {"service": "http://c"}),
        pytest.raises(AlreadyRunning, match="http://c"),
        lock.held(tmp_path, {}, {"worker"}),
    ):
        pass
    assert lock.holder(tmp_path) is None
