"""Chat through Plaudit with the plain OpenAI SDK, then say with one request what the user thought of the answer: with the API key, or, as a
browser would, with the answer's own feedback token (the curl that it prints).

PLAUDIT_URL=http://127.0.0.1:8484 PLAUDIT_KEY=plk_... python examples/chat_with_feedback.py "How do I reset my password?"
"""

import json
import os
import sys

import httpx
from openai import OpenAI

URL = os.environ.get("PLAUDIT_URL", "http://127.0.0.1:8484")
KEY = os.environ["PLAUDIT_KEY"]  # role: application


def main(question: str) -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
    raw = client.chat.completions.with_raw_response.create(
        model="plaudit",  # whatever release this user is assigned to
        messages=[{"role": "user", "content": question}],
        user="u-17",
        max_tokens=40,
        extra_body={"plaudit": {"training_use": "allowed"}},  # without it nothing of this is ever trained on
    )
    answer = raw.parse()
    print(answer.choices[0].message.content)

    feedback = httpx.post(
        f"{URL}/v1/feedback",
        headers={"authorization": f"Bearer {KEY}"},
        json={"interaction_id": answer.id, "kind": "thumb", "value": {"up": True}},
    )
    feedback.raise_for_status()
    print(f"{answer.id}: thumb {feedback.json()['status']}")

    rating = json.dumps({"interaction_id": answer.id, "kind": "rating", "value": {"rating": 5}})
    token = raw.headers["x-plaudit-feedback-token"]  # about this answer only, for a day
    print(f"curl -sS {URL}/v1/feedback -H 'Authorization: Bearer {token}' -d '{rating}'")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "How do I reset my password?")
