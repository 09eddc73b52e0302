"""The audit chain's ends: one writer at a time per project."""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.domain import AuditEntry, Project
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_ENTRIES = TABLES[AuditEntry]
_PROJECTS = TABLES[Project]


def lock_head(tx: Transaction, project_id: str) -> AuditEntry | None:
    """The newest entry, None for an empty chain. Holds the project's row, so that no other link is made before this transaction ends."""
    tx.rows(sa.select(_PROJECTS.c.id).where(_PROJECTS.c.id == project_id).with_for_update())
    return newest(tx, project_id)


def newest(tx: Transaction, project_id: str) -> AuditEntry | None:
    """The entry with the highest number, None for an empty chain."""
    query = sa.select(_ENTRIES).where(_ENTRIES.c.project_id == project_id).order_by(_ENTRIES.c.seq.desc()).limit(1)
    found = tx.rows(query)
    return AuditEntry(**found[0]) if found else None
