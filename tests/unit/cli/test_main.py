from __future__ import annotations

import importlib.util
import subprocess
import sys

import click
import pytest

from plaudit.cli import main as cli
from plaudit.errors import NotFound, Refused


def run(monkeypatch, raises: BaseException | None = None, *arguments: str) -> int:
    @click.command()
    @click.option("--number", type=int)
    def act(number: int | None) -> None:
        if raises is not None:
            raise raises

    monkeypatch.setattr(cli.Commands, "get_command", lambda self, context, name: act)
    with pytest.raises(SystemExit) as ended:
        cli.main(["act", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_what_a_user_can_fix_is_one_sentence_and_exit_code_two(monkeypatch, capsys) -> None:
    assert run(monkeypatch, NotFound("There is no release 'x'; list them.")) == 2
    assert capsys.readouterr().err == "plaudit: There is no release 'x'; list them.\n"


def test_a_refusal_lists_its_reasons(monkeypatch, capsys) -> None:
    assert run(monkeypatch, Refused("Not due.", ["12 new Preferences of 100", "alert length is open"])) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["  - 12 new Preferences of 100", "  - alert length is open"]


def test_a_bug_keeps_its_traceback(monkeypatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, ZeroDivisionError())


def test_a_wrong_option_is_explained_and_a_clean_end_is_zero(monkeypatch, capsys) -> None:
    assert run(monkeypatch) == 0
    assert run(monkeypatch, None, "--number", "x") == 2
    assert "'x' is not a valid integer" in capsys.readouterr().err
    assert run(monkeypatch, click.Abort()) == 130


def test_an_unknown_command_is_named(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["releese"])
    assert ended.value.code == 2
    assert "releese" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_of_the_list_loads_and_explains_itself(name, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert "Usage: plaudit" in capsys.readouterr().out


def test_help_imports_no_command_and_the_command_line_never_torch() -> None:
    program = f"""
import sys
from plaudit.cli import main as cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
assert not [name for name in sys.modules if name.startswith("plaudit.loop")], "the help imports the loop"
context = cli.click.Context(cli.plaudit)
for name in {list(cli.COMMANDS)!r}:
    cli.plaudit.get_command(context, name)
print([name for name in ("torch", "transformers", "sklearn", "scipy.stats") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_python_dash_m_is_the_same_program() -> None:
    assert importlib.util.find_spec("plaudit.cli.__main__") is not None
    done = subprocess.run(
        [sys.executable, "-m", "plaudit.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("plaudit, version ")
