"""Every relative link leads somewhere, and every command that a page tells a reader to type exists with its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from plaudit.cli.main import plaudit as root
from plaudit.learn.configs import PROGRAMS
from plaudit.policy_server import __main__ as policy_server

from .conftest import ROOT, Page, all_pages

PAGES = all_pages()
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
SHELLS = ("sh", "bash", "shell", "console")


def name_of(page: Page) -> str:
    return str(page.path.relative_to(ROOT))


def anchors(page: Page) -> set[str]:
    """As GitHub makes them: lower case, without punctuation, hyphens for spaces."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in page.headings()}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Page) -> None:
    for link in LINK.findall(page.prose):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        assert target.exists(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors(Page(target, target.read_text())), f"{link}: there is no such heading"


def test_every_page_is_on_the_map() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text())}
    assert {path.resolve() for path in index.parent.glob("*.md")} - {index.resolve()} <= linked


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every line in a shell block, without comments."""
    for page in PAGES:
        for block in (block for language in SHELLS for block in page.blocks(language)):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    yield name_of(page), words


LINES = list(shell_lines())


def test_there_are_commands_to_check() -> None:
    pages = {page for page, _ in LINES}
    assert {"README.md", "docs/quickstart.md", "docs/demo.md", "docs/release.md"} <= pages


@pytest.mark.parametrize(
    ("page", "words"), LINES, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_commands_exist(page: str, words: list[str]) -> None:
    match words:
        case ["make", *targets]:
            check_make(targets)
        case ["plaudit", *rest]:
            check_plaudit(rest)
        case ["python", "-m", "plaudit.learn", program, *_]:
            assert program in (*PROGRAMS, "prepare")
        case ["torchrun", *options, "-m", "plaudit.learn", program, "RUN_DIR"]:
            assert program in PROGRAMS
            assert all(option.startswith("--") for option in options)
        case ["python", "-m", "plaudit.policy_server", *options]:
            policy_server._parse(options)
        case ["source", ".venv/bin/activate"] | ["export", _]:
            pass
        case _:
            pytest.fail(f"{page} tells a reader to type {words[0]!r}, which no test knows how to check.")


def check_make(words: list[str]) -> None:
    known = set(TARGET.findall((ROOT / "Makefile").read_text()))
    targets = [word for word in words if "=" not in word]
    assert targets
    assert set(targets) <= known
    for word in words:
        variable, equals, value = word.partition("=")
        if equals:
            assert f"$({variable})" in (ROOT / "Makefile").read_text()
            if variable == "ARGS" and targets == ["demo"]:
                check_plaudit(["demo", *shlex.split(value)])


def check_plaudit(words: list[str]) -> None:
    """The words name a command, its options exist, and they parse."""
    command: click.Command = root
    context = click.Context(root)
    rest = list(words)
    while isinstance(command, click.Group):
        below = command.get_command(context, rest[0]) if rest else None
        assert below is not None, f"plaudit {' '.join(words)}: there is no such command"
        command, rest = below, rest[1:]
    files = {"people.py", "prompts.jsonl", "reward.json"}  # that the page tells the reader to write first
    given = [str(Path(__file__)) if word in files else word for word in rest]
    command.make_context(" ".join(words), given, resilient_parsing=False).close()
