"""The worker: what happens by itself. It looks at the running experiment, measures production, and takes queued Runs, one thing at a time.

Guarding comes first and often: a harmful candidate is rolled back within about `GUARD_S`. A window of production is measured when it holds
enough traffic, or after an hour; `learn score` runs on a sample of it unless something trains (the cores are busy then). An error in one duty is
logged and the others go on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from plaudit.domain import (
    Checkpoint,
    CheckpointKind,
    Erasure,
    ErasureReason,
    Measurement,
    Project,
    Run,
    RunState,
    utc_now,
)
from plaudit.errors import ConfigError, Conflict, NotFound, PlauditError
from plaudit.learn.configs import PROGRAMS
from plaudit.loop import abuse, anchors, erasure, mirror, monitor, pipeline, programs, release, train, webhooks
from plaudit.loop.mlflow_server import MlflowServer
from plaudit.settings import Settings
from plaudit.store.database import Store
from plaudit.store.monitoring import Answer

log = logging.getLogger("plaudit.worker")

GUARD_S = 2.0
TICK_S = 0.5
STOP_S = 10.0
WINDOW_INTERACTIONS = 50  # that close a window
WINDOW_MAX = timedelta(hours=1)
RETAIN_EVERY = timedelta(days=1)  # each time the store's file is rewritten
ON_ABUSE = ("show", "quarantine")
SUSPECT_WINDOW = timedelta(hours=1)
MIRROR_PAUSE_MAX_S = 900.0  # between two tries, while MLflow does not answer
# Nobody waits for a monitor's scores: where the cores are busy, answers come first.
BACKGROUND = ("nice", "-n", "10", *train.PROGRAM)
TRAINING_STEPS = tuple(name for name in PROGRAMS if name != "score")


def run(settings: Settings, store: Store, stop: threading.Event) -> None:
    """Work until `stop` is set. Safe beside other workers: Runs are leased, rollbacks lose their race with a Conflict. Raises ConfigError."""
    if settings.on_abuse not in ON_ABUSE:
        raise ConfigError(f"on_abuse is {settings.on_abuse!r}; choose show or quarantine.")
    labour = threading.Thread(target=_labour, args=(settings, store, stop), name="labour", daemon=True)
    labour.start()
    messenger = threading.Thread(target=_tell, args=(store, stop), name="messenger", daemon=True)
    messenger.start()
    if settings.mlflow_url:
        copyist = threading.Thread(target=_copy, args=(settings, store, stop), name="copyist", daemon=True)
        copyist.start()
    while not stop.wait(GUARD_S):  # a thread of its own: a training run may take hours, a harmful candidate may not
        for project in store.find(Project):
            _duty("guard", lambda p=project: guard(store, p.id))  # type: ignore[misc]
    labour.join(timeout=STOP_S)  # what still works then is killed with this process, and its Run is taken over later


def _tell(store: Store, stop: threading.Event) -> None:
    """Webhooks, in a thread of their own: neither a training run nor a receiver that is slow to answer holds up the other."""
    while not stop.wait(GUARD_S):
        for project in store.find(Project):
            _duty("webhooks", lambda p=project: webhooks.deliver(store, p.id, utc_now()))  # type: ignore[misc]


def _copy(settings: Settings, store: Store, stop: threading.Event) -> None:
    """The mirror in MLflow, in a thread of its own: it only reads the store, so nothing here ever waits for it. What is wrong is logged when it
    begins and when it ends, and tried again after pauses that double."""
    pause, wrong = 0.0, ""
    while not stop.wait(pause):
        try:
            said = "; ".join(mirror_once(settings, store))
            pause = settings.monitor_interval_s
        except PlauditError as error:
            said, pause = error.message, min(max(2 * pause, settings.monitor_interval_s), MIRROR_PAUSE_MAX_S)
        except Exception:
            log.exception("mlflow failed; it is tried again")
            said, pause = wrong, MIRROR_PAUSE_MAX_S
        if said and not wrong:
            log.warning("mlflow: %s It is tried again.", said)
        elif wrong and not said:
            log.info("mlflow: up to date again")
        wrong = said


def mirror_once(settings: Settings, store: Store) -> list[str]:
    """One pass over all projects: what MLflow could not take. Raises Unavailable, BadInput."""
    problems: list[str] = []
    with MlflowServer(settings.mlflow_url, settings.mlflow_token) as server:
        for project in store.find(Project):
            problems += mirror.mirror(store, project, server, settings.mlflow_prefix).problems
    return problems


def _labour(settings: Settings, store: Store, stop: threading.Event) -> None:
    """Everything that takes long, one after the other."""
    owner = train.new_owner()
    measured = -math.inf
    scorer = programs.Resident(BACKGROUND)
    while not stop.wait(TICK_S):
        scorer.rest()
        monitors = time.monotonic() - measured >= settings.monitor_interval_s
        for project in store.find(Project):
            if monitors:
                _duty("monitor", lambda p=project: monitor_once(settings, store, p.id, owner, program=scorer))  # type: ignore[misc]
                _duty("clean", lambda p=project: clean(settings, store, p.id, utc_now()))  # type: ignore[misc]
                _duty("anchor", lambda p=project: anchor(settings, store, p.id))  # type: ignore[misc]
                measured = time.monotonic()
            _duty("queue", lambda p=project: take_queued(settings, store, p.id, owner, stop))  # type: ignore[misc]
    scorer.close()


def guard(store: Store, project_id: str) -> bool:
    """Look at the running experiment; True where its candidate was rolled back."""
    try:
        acted = pipeline.guard(store, project_id, utc_now())
    except NotFound:  # nothing is live yet
        return False
    if acted is not None and acted[1]:
        log.warning("rolled back: %s", "; ".join(acted[0].reasons))
    return acted is not None and acted[1]


def monitor_once(
    settings: Settings,
    store: Store,
    project_id: str,
    owner: str,
    now: datetime | None = None,
    force: bool = False,
    program: programs.Program = BACKGROUND,
) -> list[Measurement]:
    """Measure the window since the last one, if it is worth it (or `force`), and let the rules judge. [] where it is not yet."""
    now = now or utc_now()
    start = monitor.window_start(store, project_id)
    if start is None or now <= start:
        return []
    n_waiting = monitor.n_waiting(store, project_id, now)
    if not n_waiting or not (force or n_waiting >= WINDOW_INTERACTIONS or now - start >= WINDOW_MAX):
        return []
    answers = monitor.sample_answers(store, project_id, start, now, settings.monitor_sample)
    scores = score_answers(settings.home, store, project_id, answers, owner, program)
    rows = monitor.measure(store, project_id, start, now, scores)
    for alert in monitor.evaluate_rules(store, project_id, now):
        log.warning("alert %s %s: %s", alert.rule, alert.state, alert.message)
    return rows


def clean(settings: Settings, store: Store, project_id: str, now: datetime) -> None:
    """What the settings want gone or held: old content, tainted content whose time has come, feedback that looks like abuse."""
    aged = store.first(Erasure, project_id=project_id, reason=ErasureReason.AGE)
    if settings.retention_days > 0 and (aged is None or now - aged.created_at >= RETAIN_EVERY):
        erasure.retain(store, settings.home, project_id, settings.retention_days, now)
    for id in erasure.purge(store, project_id, now):
        log.warning("purged: %s", id)
    erasure.compact(store, project_id, now)
    if settings.on_abuse == "quarantine":
        for held in abuse.quarantine_suspects(store, project_id, now - SUSPECT_WINDOW, now):
            log.warning("quarantined %s: %s", held.id, held.reason)


def anchor(settings: Settings, store: Store, project_id: str) -> None:
    """Sign the audit log's head outside the store, where it has moved."""
    file = anchors.file_of(settings.home, settings.audit_anchor)
    anchors.anchor(store, project_id, settings.home, file, utc_now())


def score_answers(
    home: Path,
    store: Store,
    project_id: str,
    answers: list[Answer],
    owner: str,
    program: programs.Program = BACKGROUND,
) -> Mapping[str, Mapping[str, float]]:
    """Response id -> `score` by the newest reward Checkpoint, and `kl` to the base for answers of our own policies. Empty before there is a
    reward model, and while something trains."""
    rewards = [c for c in store.find(Checkpoint, project_id=project_id) if c.kind == CheckpointKind.REWARD]
    if not rewards or not answers or training(store, project_id):
        return {}
    try:
        base = pipeline.base_folder(home)
    except NotFound:
        return {}
    reward = release.verified_checkpoint(store, rewards[-1].id)
    found: dict[str, dict[str, float]] = {}
    policies = sorted({answer.checkpoint_id for answer in answers if answer.checkpoint_id})
    for place, checkpoint_id in enumerate(policies or [""]):
        # The base's answers go along with the first policy's, marked as not its own: a second process would load the model again.
        mine = [a for a in answers if a.checkpoint_id == checkpoint_id or (place == 0 and not a.checkpoint_id)]
        config = {"base": str(base), "reward": reward.folder, "measures": ["score"]}
        if checkpoint_id:
            policy = release.verified_checkpoint(store, checkpoint_id)
            config |= {"policy": policy.folder, "measures": ["score", "kl"]}
        own = [bool(answer.checkpoint_id) for answer in mine]
        rows = [row | {"by_policy": said} for row, said in zip(monitor.score_rows(mine), own, strict=True)]
        run = pipeline.score(store, project_id, home, "monitor", rows, config, owner, program)
        for line in train.read_scores(run):
            found[line["id"]] = {name: line[name] for name in ("score", "kl") if name in line}
    monitor.keep_scores(store, project_id, reward.id, found, utc_now())
    return found


def training(store: Store, project_id: str) -> bool:
    """Whether a training program runs now: its lease lives."""
    runs = store.find(Run, project_id=project_id, step=TRAINING_STEPS, state=RunState.RUNNING)
    return any(run.lease_expires_at is not None and run.lease_expires_at > utc_now() for run in runs)


def take_queued(
    settings: Settings,
    store: Store,
    project_id: str,
    owner: str,
    stop: threading.Event | None = None,
    program: tuple[str, ...] = train.PROGRAM,
) -> Run | None:
    """Do the oldest queued training Run; None where there is none. Told to stop, it gives the Run back."""
    queued = store.find(Run, project_id=project_id, state=RunState.QUEUED, step=tuple(PROGRAMS), limit=1)
    if not queued:
        return None
    one = queued[0]
    return train.run_training(
        store,
        project_id,
        one.step,
        one.config,
        one.inputs,
        settings.home / "runs",
        one.key,
        None,
        utc_now(),
        owner=owner,
        program=program,
        stop=stop,
    )


def _duty(name: str, act: Callable[[], object]) -> None:
    try:
        act()
    except KeyboardInterrupt:
        log.info("%s: told to stop", name)
    except Conflict as error:
        log.info("%s: %s", name, error)  # another worker was first
    except Exception:
        log.exception("%s failed; it is tried again", name)
