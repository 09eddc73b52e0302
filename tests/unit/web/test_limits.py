from __future__ import annotations

import pytest

from plaudit.domain import DEFAULT_PROJECT, utc_now
from plaudit.errors import RateLimited
from plaudit.loop import feedback_tokens
from plaudit.loop.feedback_tokens import Ring
from plaudit.settings import Settings
from plaudit.web import limits
from plaudit.web.limits import Buckets, Limits

RING = Ring({"k1": b"s" * 32})


def claims(interaction_id: str, actor: str | None) -> feedback_tokens.Claims:
    token = feedback_tokens.mint(RING, DEFAULT_PROJECT, interaction_id, actor, utc_now())
    return feedback_tokens.check(RING, token, utc_now())


def test_a_full_bucket_gives_its_burst_at_once_then_its_rate() -> None:
    buckets = Buckets(rate=2.0, burst_s=3.0)  # six at once, then one each half second
    assert [buckets.take("a", 10.0) for _ in range(6)] == [0.0] * 6
    assert buckets.take("a", 10.0) == pytest.approx(0.5)
    assert buckets.take("a", 10.4) == pytest.approx(0.1)  # a refusal takes nothing
    assert buckets.take("a", 10.5) == 0.0
    assert buckets.take("a", 10.5) == pytest.approx(0.5)
    assert buckets.take("b", 10.5) == 0.0  # each has its own


def test_over_a_long_time_no_more_than_rate_and_burst_gets_through() -> None:
    buckets = Buckets(rate=5.0, burst_s=2.0)
    n_taken = sum(buckets.take("a", n / 50) == 0.0 for n in range(50 * 60))  # 50 a second for a minute
    assert n_taken == pytest.approx(5.0 * 60 + 10, abs=1)  # what flowed in, and what was in it
    assert buckets.take("a", 1000.0) == 0.0


def test_a_bucket_holds_one_at_least() -> None:
    buckets = Buckets(rate=0.1, burst_s=1.0)
    assert [buckets.take("a", 0.0), buckets.take("a", 0.0)] == [0.0, pytest.approx(10.0)]


def test_the_memory_has_an_end_and_keeps_who_asked_last(monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_BUCKETS", 2)
    buckets = Buckets(rate=1.0, burst_s=1.0)
    for name in ("a", "b", "a", "c"):
        buckets.take(name, 0.0)
    assert set(buckets._full_at) == {"a", "c"}


def test_a_rate_of_zero_is_no_limit() -> None:
    unlimited = Limits(Settings())
    for _ in range(10_000):
        unlimited.key("key_1")
        unlimited.actor(DEFAULT_PROJECT, "u")


def test_one_user_has_one_bucket_for_chats_and_tokens_and_projects_have_their_own() -> None:
    now = [0.0]
    limited = Limits(Settings(rate_per_actor=1.0, rate_burst_s=2.0), clock=lambda: now[0])
    limited.actor(DEFAULT_PROJECT, "u")
    limited.token(claims("int_1", "u"))
    with pytest.raises(RateLimited, match="rate_per_actor") as refused:
        limited.actor(DEFAULT_PROJECT, "u")
    assert refused.value.retry_after_s == 1
    limited.actor("prj_other", "u")
    for _ in range(10):
        limited.actor(DEFAULT_PROJECT, None)
        limited.key("key_1")
    now[0] = 1.0
    limited.actor(DEFAULT_PROJECT, "u")
    assert "u" not in str(list(limited._actors._full_at))  # pseudonyms stay out of it


def test_a_token_of_nobody_is_limited_by_its_answer() -> None:
    limited = Limits(Settings(rate_per_actor=1.0, rate_burst_s=1.0), clock=lambda: 0.0)
    limited.token(claims("int_1", None))
    limited.token(claims("int_2", None))
    with pytest.raises(RateLimited):
        limited.token(claims("int_1", None))


def test_a_key_waits_in_whole_seconds() -> None:
    limited = Limits(Settings(rate_per_key=0.4, rate_burst_s=1.0), clock=lambda: 0.0)
    limited.key("key_1")
    with pytest.raises(RateLimited, match=r"This API key .*rate_per_key.* in 2\.5 s") as refused:
        limited.key("key_1")
    assert refused.value.retry_after_s == 3  # rounded up: who comes back then is let in
