"""Chat through Plaudit with the plain OpenAI SDK, then say with one request what the user thought of the answer.

PLAUDIT_URL=http://127.0.0.1:8484 PLAUDIT_KEY=plk_... python examples/chat_with_feedback.py "How do I reset my password?"
"""

import os
import sys

import httpx
from openai import OpenAI

URL = os.environ.get("PLAUDIT_URL", "http://127.0.0.1:8484")
KEY = os.environ["PLAUDIT_KEY"]  # role: application


def main(question: str) -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
    answer = client.chat.completions.create(
        model="plaudit",  # whatever release this user is assigned to
        messages=[{"role": "user", "content": question}],
        user="u-17",
        max_tokens=40,
        extra_body={"plaudit": {"training_use": "allowed"}},  # without it nothing of this is ever trained on
    )
    print(answer.choices[0].message.content)

    feedback = httpx.post(
        f"{URL}/v1/feedback",
        headers={"authorization": f"Bearer {KEY}"},
        json={"interaction_id": answer.id, "kind": "thumb", "value": {"up": True}},
    )
    feedback.raise_for_status()
    print(f"{answer.id}: thumb {feedback.json()['status']}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "How do I reset my password?")
