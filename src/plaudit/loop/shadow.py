"""Shadow: a candidate answers copies of live requests. Nobody is shown its answers, no metric, experiment or Snapshot counts them; only
figures are kept, no text, so that there is nothing to erase."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from plaudit.domain import CompletionStatus, Json, Release, ShadowAnswer, new_id
from plaudit.errors import NotFound
from plaudit.loop.suites import is_refusal
from plaudit.openai_protocol import Answer
from plaudit.stats.assignment import N_BUCKETS, bucket
from plaudit.stats.intervals import mean_interval
from plaudit.store import shadow as stored
from plaudit.store.database import Store
from plaudit.store.shadow import Pair

MOST_PAIRS = 10_000  # newest ones that figures are of
_OPENING_CHARS = 200  # that `is_refusal` reads


def drawn(release_id: str, interaction_id: str, fraction: float) -> bool:
    """Whether this request is copied; a hash decides, so that another process would decide alike."""
    return bucket(release_id, interaction_id) < fraction * N_BUCKETS


def answered(
    release: Release, interaction_id: str, answer: Answer | None, latency_ms: float, now: datetime
) -> ShadowAnswer:
    """What is kept of one answer; None: the model server failed."""
    text = answer.choices[0].text if answer and answer.choices else ""
    return ShadowAnswer(
        id=new_id(ShadowAnswer),
        project_id=release.project_id,
        release_id=release.id,
        interaction_id=interaction_id,
        status=CompletionStatus.OK if answer and answer.choices else CompletionStatus.ERROR,
        latency_ms=latency_ms,
        n_chars=len(text),
        n_tokens=answer.completion_tokens if answer else None,
        refused=is_refusal(text),
        created_at=now,
    )


def figures(store: Store, project_id: str, release_id: str) -> Json:
    """Errors, latency, length and refusals in shadow and live, of the same requests, each difference with an interval by user. Raises
    NotFound for a Release of another project, or where nothing was copied."""
    with store.read() as tx:
        release = tx.first(Release, id=release_id, project_id=project_id)
        if release is None:
            raise NotFound(f"There is no Release {release_id!r}.")
        pairs = stored.pairs(tx, project_id, release_id, MOST_PAIRS, _OPENING_CHARS)
    if not pairs:
        raise NotFound(f"Release {release_id} was not copied any request yet; see `shadow_fraction`.")
    ended = [one for one in pairs if one.live_status is not None]
    both = [one for one in ended if one.status == one.live_status == CompletionStatus.OK and one.live_chars is not None]
    failed = CompletionStatus.ERROR
    return {
        "release_id": release_id,
        "n": len(pairs),
        "figures": {
            "errors": _figure(ended, [(one.status == failed, one.live_status == failed) for one in ended]),
            "latency": _figure(both, [(one.latency_ms, one.live_latency_ms or 0.0) for one in both]),
            "length": _figure(both, [(one.n_chars, one.live_chars or 0) for one in both]),
            "refusals": _figure(both, [(one.refused, is_refusal(one.live_opening or "")) for one in both]),
        },
    }


def _figure(pairs: Sequence[Pair], values: Sequence[tuple[float, float]]) -> Json:
    """Means of both sides, and of their difference request by request, clustered by user."""
    users = [one.unit for one in pairs]
    differences = [float(mine) - float(live) for mine, live in values]
    return {
        "shadow": sum(float(mine) for mine, _ in values) / len(values) if values else None,
        "live": sum(float(live) for _, live in values) / len(values) if values else None,
        "difference": mean_interval(differences, users).to_dict() if len(set(users)) > 1 else None,
        "n": len(values),
    }
