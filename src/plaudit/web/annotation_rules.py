"""The settings of annotation as the rules that `loop` takes."""

from __future__ import annotations

from plaudit.loop.quality import Rules
from plaudit.settings import Settings


def rules_of(settings: Settings) -> Rules:
    return Rules(
        gold_fraction=settings.gold_fraction,
        extra_votes=settings.extra_votes,
        audit_fraction=settings.audit_fraction,
        pay=settings.pay_per_answer,
        budget=settings.annotation_budget,
    )
