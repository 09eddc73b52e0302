from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from plaudit.errors import ConfigError
from plaudit.settings import Settings, load, shown


def test_a_command_line_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    (tmp_path / "plaudit.toml").write_text('port = 1\npolicy_port = 2\nbase = "from file"\n')
    environ = {"PLAUDIT_PORT": "3", "PLAUDIT_BASE": "from environment"}
    made = load(tmp_path, environ, base="from the command line", host=None)
    assert (made.policy_port, made.port, made.base) == (2, 3, "from the command line")
    assert made.host == Settings.host
    assert made.home == tmp_path


def test_the_home_comes_from_the_environment_where_none_is_given(tmp_path: Path) -> None:
    assert load(environ={"PLAUDIT_HOME": str(tmp_path)}).home == tmp_path
    assert load(tmp_path / "given", {"PLAUDIT_HOME": str(tmp_path)}).home == tmp_path / "given"


def test_values_take_the_type_of_their_field(tmp_path: Path) -> None:
    made = load(tmp_path, {"PLAUDIT_LEASE_S": "7", "PLAUDIT_OVERLAP": "5", "PLAUDIT_CACHE": "~/there"})
    assert (made.lease_s, made.overlap) == (7.0, 5)
    assert made.cache == Path("~/there").expanduser()
    assert made.home.is_absolute()


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "plaudit.toml").write_text("prot = 8484\n")
    with pytest.raises(ConfigError, match=r"plaudit\.toml sets 'prot', which is not a setting; did you mean 'port'"):
        load(tmp_path, {})
    with pytest.raises(ConfigError, match=r"'overlp'.*'overlap'"):
        load(tmp_path / "other", {}, overlp=3)


def test_a_wrong_value_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="port is 'many'; give a int"):
        load(tmp_path, {"PLAUDIT_PORT": "many"})


def test_a_file_that_is_no_toml_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "plaudit.toml").write_text("port 8484\n")
    with pytest.raises(ConfigError, match=r"plaudit\.toml is not valid TOML"):
        load(tmp_path, {})


def test_every_setting_has_its_help() -> None:
    for field in fields(Settings):
        assert field.metadata.get("help", "").endswith("."), field.name


def test_addresses_derive_from_home_host_and_ports(tmp_path: Path) -> None:
    made = load(tmp_path, {})
    assert made.database_url == f"sqlite:///{tmp_path}/store.sqlite"
    assert (made.service_url, made.policy_url) == ("http://127.0.0.1:8484", "http://127.0.0.1:8485/v1")
    assert load(tmp_path, {}, store_url="postgresql://x").database_url == "postgresql://x"


def test_flags_and_tables_come_from_the_file_and_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "plaudit.toml").write_text('strict_requests = true\n[[filters]]\nname = "a"\n[[filters]]\nname = "b"\n')
    made = load(tmp_path, {})
    assert (made.strict_requests, made.telemetry) == (True, False)
    assert made.filters == ({"name": "a"}, {"name": "b"})
    told = load(tmp_path, {"PLAUDIT_STRICT_REQUESTS": "False", "PLAUDIT_FILTERS": '[{"name": "c"}]'})
    assert (told.strict_requests, told.filters) == (False, ({"name": "c"},))


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"PLAUDIT_TELEMETRY": "yes"}, "telemetry is 'yes'; give true or false"),
        ({"PLAUDIT_FILTERS": "x"}, "filters is 'x'; give a JSON list"),
        ({"PLAUDIT_FILTERS": "{}"}, r"write \[\[filters\]\] tables"),
    ],
)
def test_flags_and_tables_that_are_none_are_refused(tmp_path: Path, environ, says) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, environ)


def test_roles_are_all_or_named_ones() -> None:
    assert Settings().roles == {"gateway", "feedback", "console", "worker"}
    assert Settings(role="gateway, feedback").roles == {"gateway", "feedback"}
    for wrong in ("", "king", "all,gateway", "gateway,"):
        with pytest.raises(ConfigError, match=r"give all, or some of gateway, feedback, console, worker"):
            _ = Settings(role=wrong).roles


def test_the_feedback_keys_are_not_shown_with_the_settings() -> None:
    assert "planted" not in repr(Settings(feedback_keys="k:planted"))


def test_a_url_is_shown_without_its_password() -> None:
    assert shown("postgresql+psycopg://me:hunter2@db.example:5432/p") == "postgresql+psycopg://me:***@db.example:5432/p"
    for plain in ("sqlite:////tmp/a@b:c/store.sqlite", "http://127.0.0.1:8485/v1", "fake:", "postgresql://me@db/p"):
        assert shown(plain) == plain
