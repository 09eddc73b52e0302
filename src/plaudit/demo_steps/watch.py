"""Step 12: production is watched, angry users make an alert fire, calm ones resolve it, and the next turn starts when it is due.

Nothing is measured here: the worker of `plaudit up` does that on its schedule, from what arrives over HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from plaudit.demo_steps import gather
from plaudit.demo_steps.gather import Tell
from plaudit.demo_steps.house import Demo, command, once
from plaudit.domain import Alert, AlertState, Json, Measurement, SnapshotRecord, utc_now
from plaudit.errors import Unavailable
from plaudit.loop import monitor, release
from plaudit.loop.worker import WINDOW_INTERACTIONS

ANGRY, CALM = -4.0, 1.5  # log-odds added to a thumbs-up: an angry crowd, a content one
RULE = "satisfaction_fell"
METRIC = "thumbs_up_rate"
ROUNDS = 4  # of visits, until the alert follows the mood
MEASURED_S = 600.0  # a busy machine is slow, not broken
NEXT_TURN = "turn-2"


def watch(demo: Demo, tell: Tell) -> Json:
    """Everything of step 12: {alerts, due, watch_says} for the report."""
    due: list[Json] = []
    _until_reference(demo, tell)
    fired = _until_alert(demo, AlertState.FIRING, "watch-angry", ANGRY, tell)
    due.append(once(demo, "due.1", lambda: _ask_loop(demo, "while the alert fires"), alert=fired))
    resolved = _until_alert(demo, AlertState.RESOLVED, "watch-calm", CALM, tell)
    gather.draw_second(demo, tell, prefix="watch", batch=NEXT_TURN, most=demo.options.plan.n_next)
    gather.work_off(demo, demo.crowd, tell)
    due.append(once(demo, "due.2", lambda: _ask_loop(demo, "after new comparisons were answered"), alert=resolved))
    snapshots = demo.store.count(SnapshotRecord, project_id=demo.project_id)
    alert = demo.store.get(Alert, fired)
    started = "the next turn started" if due[-1]["started"] else f"the next turn waits: {'; '.join(due[-1]['reasons'])}"
    return {
        "alerts": _alerts(demo),
        "due": due,
        "n_snapshots": snapshots,
        "watch_says": f"alert {alert.rule} fired ({alert.message.rstrip('.')}) and was resolved; simulated users; {started}",
    }


def _visit(demo: Demo, prefix: str, mood: float, tell: Tell) -> None:
    """Users come, then the worker has measured every window that it has the traffic for."""
    visits = gather.visits(demo, "traffic", prefix, demo.options.plan.visits_per_mood, mood=mood)
    if gather.ask(demo, visits, tell):
        _wait(lambda: _n_waiting(demo) < WINDOW_INTERACTIONS, "measure the visits")


def _until_reference(demo: Demo, tell: Tell) -> None:
    """Calm visits until one whole window lies after the moment when the live release became live: what a change is measured against."""
    since = release.live(demo.store, demo.project_id).live_at
    for number in range(1, ROUNDS + 1):
        rows = demo.store.find(Measurement, project_id=demo.project_id, metric=METRIC)
        if any(not row.labels and row.n >= _rule().min_samples and since and row.window_start >= since for row in rows):
            return
        _visit(demo, f"watch-first-{number}", CALM, tell)


def _rule() -> monitor.AlertRule:
    return next(rule for rule in monitor.RULES if rule.name == RULE)


def _n_waiting(demo: Demo) -> int:
    return monitor.n_waiting(demo.store, demo.project_id, utc_now())


def _wait(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + MEASURED_S
    while not holds():
        if time.monotonic() > deadline:
            raise Unavailable(
                f"The worker did not {what} within {MEASURED_S:.0f} s; see its log in the home's logs folder."
            )
        time.sleep(0.1)


def _until_alert(demo: Demo, state: AlertState, prefix: str, mood: float, tell: Tell) -> str:
    """Rounds of visits in one mood until the rule's alert has been in `state`; returns its id."""
    for number in range(1, ROUNDS + 1):
        _visit(demo, f"{prefix}-{number}", mood, tell)
        wanted = (state,) if state == AlertState.RESOLVED else (state, AlertState.RESOLVED)
        found = demo.store.find(Alert, project_id=demo.project_id, rule=RULE, state=wanted)
        if found:
            return found[0].id
    raise Unavailable(
        f"Alert {RULE} is not {state} after {ROUNDS} rounds of simulated visits; see `plaudit monitor alerts`."
    )


def _ask_loop(demo: Demo, when: str) -> Json:
    """`plaudit loop run --when-due`, as a person or a timer would."""
    done = command(demo, "loop", "run", "--when-due", "--until", "snapshot")
    refused = done.returncode == 2 and "not due" in done.stderr
    if done.returncode != 0 and not refused:
        raise Unavailable(f"`plaudit loop run --when-due` failed: {done.stderr.strip() or done.stdout.strip()}")
    lines = [line.strip() for line in (done.stderr if refused else done.stdout).splitlines()]
    reasons = [line.removeprefix("- ") for line in lines if line.startswith("- ")] if refused else [lines[-1]]
    return {"when": when, "started": not refused, "reasons": reasons}


def _alerts(demo: Demo) -> Json:
    """The rule's measurements over time and what became of every alert."""
    rule = _rule()
    rows = [
        row
        for row in demo.store.find(Measurement, project_id=demo.project_id, metric=METRIC, order="window_end")
        if not row.labels
    ]
    start = rows[0].window_end if rows else utc_now()
    events: list[tuple[datetime, Json]] = []
    for alert in demo.store.find(Alert, project_id=demo.project_id):
        events.append((alert.opened_at, _event(alert.opened_at, alert, "fired", alert.message)))
        if alert.resolved_at:
            events.append((alert.resolved_at, _event(alert.resolved_at, alert, "resolved", f"now {alert.value:+.3f}")))
    return {
        "metric": METRIC,
        "title": "thumbs up, share of thumbs",
        "rows": [{"seconds": (row.window_end - start).total_seconds(), "value": row.value, "n": row.n} for row in rows],
        "bands": [
            ((one.opened_at - start).total_seconds(), ((one.resolved_at or utc_now()) - start).total_seconds())
            for one in demo.store.find(Alert, project_id=demo.project_id, rule=RULE)
        ],
        "rule": {"name": rule.name, "metric": rule.metric, "warn": rule.warn, "critical": rule.critical},
        "events": [event for _, event in sorted(events, key=lambda pair: pair[0])],
    }


def _event(at: datetime, alert: Alert, state: str, message: str) -> Json:
    return {"at": f"{at:%H:%M:%S}", "rule": alert.rule, "state": state, "message": message}
