"""What the gateway serves by: one immutable object per project, swapped whole when the ledger changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plaudit.domain import Assignment, Project
from plaudit.errors import NotFound, PlauditError, Unavailable
from plaudit.loop import serving
from plaudit.loop.serving import ServingConfig
from plaudit.store.database import Store

POLL_S = 0.5
log = logging.getLogger("plaudit.web")


@dataclass(frozen=True)
class Serving:
    """A project and what answers its users now."""

    project: Project
    config: ServingConfig


class ServingConfigs:
    """The latest Serving of every project that was asked for; `poll` keeps them fresh, a store that fails leaves them as they are."""

    def __init__(self, store: Store, run: Callable[..., Any], run_within: Callable[..., Any] | None = None) -> None:
        self._store = store
        self._run = run
        self._run_within = run_within or run  # ends with Unavailable where the store takes too long
        self._known: dict[str, Serving] = {}

    async def current(self, project_id: str) -> Serving:
        """Raises Unavailable where the project has no live release yet."""
        found = self._known.get(project_id)
        return found if found is not None else await self.refresh(project_id)

    def knows(self, project_id: str) -> bool:
        return project_id in self._known

    async def refresh(self, project_id: str) -> Serving:
        """Read the ledger now."""
        try:
            found: Serving = await self._run(self._read, project_id)
        except NotFound as error:
            raise Unavailable(error.message, retry_after_s=2.0) from error
        self._known[project_id] = found
        return found

    async def assign(
        self,
        now: Serving,
        actor: str | None,
        conversation_id: str | None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Assignment:
        """Which Release answers this turn. Asks the store how the conversation began only while there are two Releases to choose from."""
        began: Assignment | None = None
        if conversation_id is not None and not now.config.one_release:
            try:
                began = await self._run_within(serving.began, self._store, now.project.id, conversation_id)
            except Unavailable as error:
                log.warning("A conversation is assigned without its beginning: %s", error)
        return serving.assign(now.config, actor, began, attributes)

    async def poll(self) -> None:
        """For ever: refresh what is known."""
        while True:
            await asyncio.sleep(POLL_S)
            for project_id in list(self._known):
                try:
                    await self.refresh(project_id)
                except PlauditError as error:
                    log.warning("Serving on with the last known releases: %s", error)

    def _read(self, project_id: str) -> Serving:
        return Serving(self._store.get(Project, project_id), serving.serving_config(self._store, project_id))
