"""The import laws of architecture.md: import-linter's contracts in `.importlinter`, and the ones it cannot say."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "plaudit"
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "manager", "core", "misc"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every module named by an import statement anywhere in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_the_contracts_hold() -> None:
    # In a process of its own: import-linter configures logging and silences every logger that exists by then.
    command = [
        "-c",
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))",
    ]
    done = subprocess.run(
        [sys.executable, *command, str(ROOT / ".importlinter")], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


def test_imports_are_absolute() -> None:
    for path in modules():
        relative = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level
        ]
        assert not relative, path


CONFIGS = [str(path.relative_to(PACKAGE)) for path in sorted((PACKAGE / "learn" / "configs").glob("*.py"))]


@pytest.mark.parametrize("name", ["domain.py", "errors.py", *CONFIGS])
def test_the_lowest_layers_need_the_standard_library_only(name: str) -> None:
    """learn/configs is the one room of learn that others may import, so it must not bring torch along."""
    outside = {module for module in imported(PACKAGE / name) if module.split(".")[0] not in sys.stdlib_module_names}
    assert {
        module
        for module in outside
        if not module.startswith(("plaudit.domain", "plaudit.errors", "plaudit.learn.configs"))
    } <= set()


SIMULATED = ("simulate", "crowds")


@pytest.mark.parametrize("name", SIMULATED)
def test_simulated_people_know_the_client_only(name: str) -> None:
    """They act over HTTP like anybody else: an import of the store or the loop would let them cheat."""
    own = {module for module in imported(PACKAGE / f"{name}.py") if module.split(".")[0] == "plaudit"}
    allowed = {"plaudit", "plaudit.client", "plaudit.errors", *(f"plaudit.{one}" for one in SIMULATED)}
    assert {".".join(module.split(".")[:2]) for module in own} <= allowed


def test_only_demo_and_the_command_line_know_simulated_people() -> None:
    for path in modules():
        room = path.relative_to(PACKAGE).parts[0]
        if {f"plaudit.{one}" for one in SIMULATED} & set(imported(path)) and room.removesuffix(".py") not in SIMULATED:
            assert room == "cli" or room.startswith("demo"), path


def test_init_files_are_empty_or_a_list_of_names() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            names = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
            assert text or names or isinstance(node, ast.ImportFrom), f"{path}:{node.lineno}"


def test_no_file_is_named_after_nothing() -> None:
    assert [path for path in modules() if path.stem in FORBIDDEN_NAMES] == []


def test_only_settings_read_the_environment() -> None:
    """Law 5. learn's programs set thread variables for torch before it is imported; they are processes of their own."""
    for path in modules():
        name = str(path.relative_to(PACKAGE))
        if name == "settings.py" or name.startswith(("learn/", "policy_server/", "cli/", "demo")):
            continue
        source = ast.parse(path.read_text())
        reads = [
            node for node in ast.walk(source) if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
        ]
        assert not reads, f"{name} reads the environment; take a plain value instead"
