"""Copies of live requests for a Release in shadow, behind a limit of their own: who is answered never waits for them, and where the limit is
reached a copy is left out. Only figures of what comes back are recorded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from plaudit.backends import Backend
from plaudit.domain import Interaction, Release, utc_now
from plaudit.errors import PlauditError
from plaudit.loop import shadow
from plaudit.openai_protocol import Answer, ChatRequest, Gathered
from plaudit.settings import Settings
from plaudit.web.recorder import Recorder

log = logging.getLogger("plaudit.web")


class Shadowing:
    """`copy` is called for every turn and returns at once; `stop` ends what still runs."""

    def __init__(self, settings: Settings, recorder: Recorder, backend: Callable[[str], Backend]) -> None:
        self._settings = settings
        self._recorder = recorder
        self._backend = backend
        self._running: set[asyncio.Task[None]] = set()
        self.n_left_out = 0  # drawn, but too many were on their way

    def copy(self, release: Release | None, asked: ChatRequest, interaction: Interaction) -> None:
        if release is None or not shadow.drawn(release.id, interaction.id, self._settings.shadow_fraction):
            return
        if len(self._running) >= self._settings.shadow_concurrency:
            self.n_left_out += 1
            return
        task = asyncio.create_task(self._ask(release, replace(asked, stream=False), interaction.id))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _ask(self, release: Release, asked: ChatRequest, interaction_id: str) -> None:
        began = time.monotonic()
        answer: Answer | None = None
        try:
            gathered = Gathered()
            gathered.add(await self._backend(release.upstream).complete(asked.for_upstream(release.model)))
            answer = gathered.answer()
        except PlauditError as error:
            log.info("%s in shadow failed: %s", release.id, error)
        row = shadow.answered(release, interaction_id, answer, (time.monotonic() - began) * 1000, utc_now())
        self._recorder.submit(row)  # nobody waits for it
