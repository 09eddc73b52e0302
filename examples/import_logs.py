"""Last month's logs become Interactions: write them as JSON Lines, then import the file, as often as you like; nothing is recorded twice.

python examples/import_logs.py logs.jsonl
plaudit interactions import logs.jsonl
"""

import json
import sys
from pathlib import Path

# What your own logs hold; here two turns, the second with what its user said.
LOGS = [
    {"who": "u-17", "when": "2026-01-05T09:30:00+00:00", "question": "Is it open?", "answer": "Yes, until six.", "liked": None},
    {"who": "u-18", "when": "2026-01-05T09:31:00+00:00", "question": "How do I pay?", "answer": "No idea.", "liked": False},
]  # fmt: skip


def interaction(row: dict) -> dict:
    """One line of the file: the body of POST /v1/interactions, with what the user said beside it."""
    said = [] if row["liked"] is None else [{"kind": "thumb", "value": {"up": row["liked"]}}]
    return {
        "messages": [{"role": "user", "content": row["question"]}],
        "responses": [row["answer"]],
        "user": row["who"],
        "at": row["when"],
        "model": "last-month",
        "training_use": "allowed",  # only if these users have agreed
        "feedback": said,
    }


def main(file: str) -> None:
    Path(file).write_text("".join(json.dumps(interaction(row)) + "\n" for row in LOGS))
    print(f"{file}: {len(LOGS)} interactions")


if __name__ == "__main__":
    main(sys.argv[1])
