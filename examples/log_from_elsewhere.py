"""An application that calls its model itself: ask Plaudit which release this user is assigned to, log what was answered, pass feedback on.

PLAUDIT_URL=http://127.0.0.1:8484 PLAUDIT_KEY=plk_... python examples/log_from_elsewhere.py
"""

import os

from plaudit.client import Plaudit

QUESTION = "Where is my parcel?"


def answer(model: str, question: str) -> list[str]:
    """Your own call of the model; here two fixed answers, both of which the user is shown."""
    return [f"{model} cannot say {question.lower()}", "Please open Orders and choose Track."]


def main() -> None:
    with Plaudit(os.environ.get("PLAUDIT_URL", "http://127.0.0.1:8484"), os.environ["PLAUDIT_KEY"]) as plaudit:
        assigned = plaudit.assign("u-18")
        interaction_id = plaudit.log(
            [{"role": "user", "content": QUESTION}],
            answer(assigned["model"], QUESTION),
            user="u-18",
            training_use="allowed",
            attributes={"language": "en"},
            release_id=assigned["release_id"],
        )
        plaudit.feedback.choose(interaction_id, 1)  # the second answer was the better one
        said = plaudit.feedback.comment(interaction_id, "The other one guessed.", reasons=["made_up"])
        print(f"{interaction_id} by {assigned['model']}: comment {said['status']}")


if __name__ == "__main__":
    main()
