"""Batches, tokens, times and quarantine of feedback; and a state machine over many clients' retries, corrections and retractions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from plaudit.domain import Feedback, FeedbackKind, Interaction, Project
from plaudit.errors import BadInput, Conflict, Forbidden, PlauditError
from plaudit.loop import collect, feedback_tokens, govern
from plaudit.loop.feedback_tokens import Claims
from plaudit.store import feedback as chains
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]
RING = feedback_tokens.Ring({"k": b"k" * 32})


def thumb(interaction: Interaction, up: bool = True, **more: Any) -> dict[str, Any]:
    return {"interaction_id": interaction.id, "kind": "thumb", "value": up, **more}


def statuses(results: list[Any]) -> list[str]:
    return [type(one).__name__ if isinstance(one, PlauditError) else one.status for one in results]


def test_a_batch_is_its_items_one_after_the_other(store: Store, project: Project, chat: Chat) -> None:
    one, two = chat(), chat(answers=("a", "b"))
    batch = [
        thumb(one, idempotency_key="k1"),
        thumb(one, idempotency_key="k1"),  # a retry in the same batch
        thumb(one, up=False),
        thumb(one, up=False, idempotency_key="k1"),
        thumb(one, retract=True, value=None),
        {"interaction_id": two.id, "kind": "choice", "value": 1},
        {"interaction_id": two.id, "kind": "comment", "value": "fine"},
        {"interaction_id": two.id, "kind": "comment", "value": "fine"},
        thumb(two, response_index=7),
        {"interaction_id": "int_0", "kind": "thumb", "value": True},
        {"interaction_id": one.id, "kind": "applause"},
        "no object",
    ]
    results = collect.record_feedbacks(store, project.id, batch, NOW)
    assert statuses(results) == [
        "recorded", "replayed", "superseded", "Conflict", "superseded", "recorded", "recorded", "recorded",
        "NotFound", "NotFound", "BadInput", "BadInput",
    ]  # fmt: skip
    assert results[0].feedback.id == results[1].feedback.id  # type: ignore[union-attr]
    assert store.count(Feedback) == 6
    again = collect.record_feedbacks(store, project.id, batch[:2], NOW)
    assert statuses(again) == ["replayed", "replayed"]
    assert store.count(Feedback) == 6


def test_signals_carry_consent_and_seconds(store: Store, project: Project, chat: Chat) -> None:
    body = {"interaction_id": chat().id, "kind": "signal"}
    value = {"name": "dwell", "consent": False, "seconds": 3.5}
    (result,) = collect.record_feedbacks(store, project.id, [{**body, "value": value}], NOW)
    assert result.feedback.value == value  # type: ignore[union-attr]
    for wrong in ({"name": "dwell", "seconds": -1}, {"name": "dwell", "consent": "yes"}):
        (error,) = collect.record_feedbacks(store, project.id, [{**body, "value": wrong}], NOW)
        assert isinstance(error, BadInput)


def test_a_clock_may_be_a_little_wrong_and_not_more(store: Store, project: Project, chat: Chat) -> None:
    interaction = chat(now=NOW - timedelta(hours=1))

    def at(moment: datetime, offset: int = 0) -> Any:
        said = thumb(interaction, at=moment.isoformat(), user=f"u{moment}{offset}")
        return collect.record_feedbacks(store, project.id, [said], NOW)[0]

    assert at(NOW - timedelta(minutes=30)).feedback.created_at == NOW - timedelta(minutes=30)
    assert at(NOW + timedelta(minutes=4)).feedback.created_at == NOW  # nothing is ever later than now
    assert at(interaction.created_at - timedelta(minutes=4)).feedback.created_at == interaction.created_at
    assert isinstance(at(NOW + timedelta(minutes=6)), BadInput)
    assert isinstance(at(interaction.created_at - timedelta(minutes=6)), BadInput)
    for wrong in ("yesterday", "2026-03-01T12:00:00", 1_700_000_000, "9999-12-31T23:59:59-23:59"):
        (error,) = collect.record_feedbacks(store, project.id, [thumb(interaction, at=wrong)], NOW)
        assert isinstance(error, BadInput), wrong
        assert "at is" in error.message


def test_a_token_is_good_for_its_answer_its_kinds_and_its_user(store: Store, project: Project, chat: Chat) -> None:
    mine, other = chat(actor="ada"), chat(actor="bob")

    def claims(interaction: Interaction, actor: str | None = "ada", **more: Any) -> Claims:
        token = feedback_tokens.mint(RING, project.id, interaction.id, actor, NOW, **more)
        return feedback_tokens.check(RING, token, NOW)

    def tried(body: Any, token: Claims) -> Any:
        return collect.record_feedbacks(store, project.id, [body], NOW, [token])[0]

    assert tried(thumb(mine), claims(mine)).feedback.actor == "ada"
    for body, token, said in (
        (thumb(other), claims(mine), "is for int_"),
        (thumb(mine, user="bob"), claims(mine), "leave `user` out"),
        ({"interaction_id": mine.id, "kind": "edit", "value": "x"}, claims(mine, kinds=[FeedbackKind.THUMB]), "edit"),
        (thumb(mine), claims(mine, actor="bob"), "another user"),
    ):
        refused = tried(body, token)
        assert isinstance(refused, Forbidden), said
        assert said in refused.message
    assert store.count(Feedback) == 1


def test_logging_twice_with_a_key_is_one_interaction(store: Store, project: Project) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "responses": ["hello"], "idempotency_key": "k1"}
    first, again, other, wrong = collect.log_interactions(
        store,
        project.id,
        [body, body, {**body, "responses": ["no"]}, {**body, "idempotency_key": "k2", "at": "x"}],
        NOW,
    )
    assert isinstance(first, collect.Logged)
    assert isinstance(again, collect.Logged)
    assert (first.replayed, again.replayed, again.interaction.id) == (False, True, first.interaction.id)
    assert isinstance(other, Conflict)
    assert isinstance(wrong, BadInput)
    assert store.count(Interaction) == 1


# --- many clients --------------------------------------------------------------------------------------------------------

ACTORS = ("ada", "bob")
VALUES: dict[str, tuple[Any, ...]] = {
    "thumb": (True, False),
    "rating": (1, 5),
    "edit": ("x", "y"),
    "comment": ("c", "d"),
}
FIELDS = {"thumb": "up", "rating": "rating", "edit": "text"}


class Clients(RuleBasedStateMachine):
    """Clients act, in batches of any size, and send again what they sent before, out of order. The model: the value that stands per (user,
    kind), None where retracted; what each idempotency key did first; and how many rows there must be."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.sent: list[tuple[str, str, int, str]] = []
        self.latest: dict[tuple[str, str], Any] = {}
        self.used: dict[str, Any] = {}
        self.n_rows = 0

    @initialize()
    def open(self) -> None:
        self.store = open_store(f"sqlite:///{Path(self.folder.name) / 's.sqlite'}")
        project = govern.ensure_project(self.store, NOW)
        body = {"messages": [{"role": "user", "content": "q"}], "responses": ["a"], "user": "ada"}
        self.about = collect.log_interaction(self.store, project.id, body, NOW)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        self.folder.cleanup()

    acts = st.tuples(
        st.sampled_from(ACTORS),
        st.sampled_from(sorted(VALUES)),
        st.sampled_from([0, 1, -1]),  # which value; -1 retracts
        st.sampled_from(["", "k1", "k2", "k3", "k4", "k5"]),
    )

    @rule(batch=st.lists(acts, min_size=1, max_size=5))
    def act(self, batch: list[tuple[str, str, int, str]]) -> None:
        self.sent += batch
        self._send(batch)

    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        if self.sent:
            self._send(data.draw(st.lists(st.sampled_from(self.sent), min_size=1, max_size=5)))

    def _send(self, batch: list[tuple[str, str, int, str]]) -> None:
        expected = [self._expect(*act) for act in batch]
        results = collect.record_feedbacks(self.store, self.about.project_id, [self._body(*act) for act in batch], NOW)
        assert statuses(results) == expected

    def _body(self, actor: str, kind: str, which: int, key: str) -> dict[str, Any]:
        said = {"retract": True} if which < 0 else {"value": VALUES[kind][which]}
        return {
            "interaction_id": self.about.id,
            "kind": kind,
            "user": actor,
            **said,
            **({"idempotency_key": key} if key else {}),
        }

    def _expect(self, actor: str, kind: str, which: int, key: str) -> str:
        value = None if which < 0 else VALUES[kind][which]
        if kind == "comment" and value is None:
            return "BadInput"
        body, chain = (actor, kind, value), (actor, kind)
        if key in self.used:
            return "replayed" if self.used[key] == body else "Conflict"
        if kind == "comment":
            outcome = "recorded"
        elif chain not in self.latest:
            outcome = "NotFound" if value is None else "recorded"
        else:
            outcome = "replayed" if self.latest[chain] == value else "superseded"
        if outcome == "NotFound":
            return outcome
        if key:
            self.used[key] = body
        if outcome != "replayed":
            self.n_rows += 1
            if kind != "comment":
                self.latest[chain] = value
        return outcome

    @invariant()
    def the_latest_view_is_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.count(Feedback) == self.n_rows
        with self.store.read() as tx:
            standing = {
                (row.actor, str(row.kind)): row.value
                for row in chains.current(tx, self.about.project_id)
                if row.natural_key
            }
        assert standing == {
            (actor, kind): {FIELDS[kind]: value} for (actor, kind), value in self.latest.items() if value is not None
        }


Clients.TestCase.settings = settings(max_examples=10, stateful_step_count=10, deadline=None)
test_any_interleaving_of_many_clients_agrees_with_the_model = Clients.TestCase
