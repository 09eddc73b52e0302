"""The service stays light: nothing that trains or draws is imported by it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "sklearn", "pyarrow", "altair", "transformers", "openai", "pandas", "matplotlib")
HEAVY += ("scipy.stats", "scipy.special")

PROGRAM = f"""
import sys
from pathlib import Path
from plaudit.settings import Settings
from plaudit.store.database import open_store
from plaudit.web.app import create_app
home = Path(sys.argv[1])
store = open_store(f"sqlite:///{{home / 'store.sqlite'}}")
create_app(Settings(home=home), store)
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_a_created_app_has_imported_nothing_heavy(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
