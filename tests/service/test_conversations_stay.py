"""A conversation stays with the release that it began under: over the gateway, over GET /v1/assignment, and for logged interactions."""

from __future__ import annotations

import time

import openai

from plaudit.client import Plaudit
from plaudit.domain import Interaction, Release, ReleaseState, new_id, utc_now
from plaudit.loop import experiment, serving

QUESTION = [{"role": "user", "content": "Where is my parcel?"}]


def test_a_conversation_stays_with_its_release(start_service) -> None:
    service = start_service()
    key = service.key("application")
    with Plaudit(service.url, key) as application:

        def ask(conversation: str, user: str | None) -> Interaction:
            extra = {"plaudit": {"conversation_id": conversation}}
            given = openai.omit if user is None else user
            asked = application.openai.chat.completions.create(
                model="plaudit", messages=QUESTION, max_tokens=4, user=given, extra_body=extra
            )
            return service.store.get(Interaction, asked.id)

        first = ask("before", None)
        live, user = service.store.find(Release)[0], begin_experiment(service)
        deadline = time.monotonic() + 60
        while application.assign(user)["model"] != "fake-2":
            assert time.monotonic() < deadline, "the gateway does not see the experiment"
            time.sleep(0.02)
        assert application.assign(user, "before")["model"] == "fake-1"
        stayed, fresh = ask("before", user), ask("after", user)
        nobody = ask("after", None)
        logged = service.store.get(
            Interaction,
            application.log(QUESTION, ["x"], user=user, conversation_id="before", release_id=live.id),
        )

    def said(turn: Interaction) -> tuple[str | None, str | None]:
        return turn.served_release_id, turn.arm

    assert said(first) == said(stayed) == said(logged) == (live.id, None)
    assert logged.experiment_id is None
    assert said(fresh) == (fresh.release_id, "candidate")
    assert said(nobody) == (fresh.release_id, None)
    assert fresh.release_id != live.id


def begin_experiment(service) -> str:
    """A canary `fake-2` for half of all users; a user who meets it."""
    control, now = service.store.find(Release)[0], utc_now()
    candidate = Release(
        id=new_id(Release), project_id=service.project.id, checkpoint_id=None, model="fake-2",
        upstream="fake:", state=ReleaseState.CANARY, created_at=now, state_at=now,
    )  # fmt: skip
    service.store.add(candidate)
    experiment.start(service.store, service.project.id, candidate.id, control.id, now, stages=(0.5,))
    config = serving.serving_config(service.store, service.project.id)
    return next(f"u{n}" for n in range(100) if serving.assign(config, f"u{n}").release_id == candidate.id)
