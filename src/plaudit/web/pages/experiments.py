"""Experiments: what users said about a candidate, look by look; and over all past ones, whether the reward means anything to the business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Experiment, ExperimentState, Json, Measurement, Release
from plaudit.errors import NotFound
from plaudit.loop import govern, opening
from plaudit.loop import reward_and_business as business
from plaudit.loop.govern import Permission
from plaudit.stats.sequential import SampleRatio, sample_ratio
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages.experiment_acts import moves
from plaudit.web.pages.plots import Bound, scatter, sequence
from plaudit.web.pages.shell import Column, Table, answer
from plaudit.web.pages.words import number
from plaudit.web.sign_in import signed_in

METRIC = "experiment_down_rate_difference"
DECLARED = "experiment_metric_difference"
REFRESH_MS = 5000  # of an experiment that runs
LISTED = (
    Column("candidate", "Candidate", "brief", href="/experiments/{id}"),
    Column("state", "State", "state"),
    Column("control", "Against", "brief"),
    Column("verdict", "Last look", "brief"),
    Column("n_users", "Users", "number"),
    Column("mean", "Thumbs down", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("created_at", "Began", "moment"),
    Column("ended_at", "Ended", "moment"),
    Column("id", "Experiment", "brief"),
)
LOOKS = (
    Column("number", "Look", "number"),
    Column("at", "When", "moment"),
    Column("n", "Users", "number"),
    Column("mean", "Difference", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
)
GUARDRAILS = (
    Column("name", "Guardrail", "brief"),
    Column("state", "State", "state"),
    Column("value", "Figure", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("threshold", "Fires at", "number"),
    Column("n", "Events or users", "number"),
    Column("said", "In words", "words"),
)
ARMS = (
    Column("arm", "Arm", "brief"),
    Column("release", "Release", "brief", href="/releases/{release_id}"),
    Column("n_users", "Users", "number"),
    Column("n_messages", "Messages", "number"),
    Column("up", "Thumbs up", "number"),
    Column("down", "Thumbs down", "number"),
    Column("down_rate", "Down per message", "number"),
    Column("down_low", "from", "number"),
    Column("down_high", "to", "number"),
    Column("feedback_rate", "With feedback", "number"),
)
METRICS = (
    Column("name", "Metric", "brief"),
    Column("role", "Role", "brief"),
    Column("state", "State", "state"),
    Column("control", "Control", "number"),
    Column("candidate", "Candidate", "number"),
    Column("mean", "Difference", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("n", "Users", "number"),
    Column("n_past", "With a past", "number"),
    Column("variance_left", "Variance left", "number"),
    Column("margin", "Margin", "number"),
    Column("waits", "Waits", "words"),
)
STAGES = (
    Column("stage", "Stage", "number"),
    Column("share", "Share in each arm", "number"),
    Column("started_at", "Began", "moment"),
)
POINTS = (
    Column("model", "Candidate", "brief", href="/releases/{release_id}"),
    Column("experiment_id", "Experiment", "brief", href="/experiments/{experiment_id}"),
    Column("state", "State", "state"),
    Column("reward", "Reward change", "number"),
    Column("reward_from", "Measured", "brief"),
    Column("mean", "Outcome change", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("n", "Users", "number"),
    Column("ended_at", "Ended", "moment"),
)
WORDS = {
    "promote": "Users show no harm and the goal is met. Two people and the gate decide beside it.",
    "hold": "Nothing is decided yet.",
    "roll_back": "A guardrail fired: the candidate is taken away from users.",
}
ENDED = {
    "promoted": "It ended with the candidate promoted.",
    "rolled_back": "It ended with the candidate taken away from users.",
    "stopped": "It was stopped before anything was decided.",
}
# What each guardrail watches, by its name.
WATCHED = {
    "first_thumbs_down": "each user's first thumbs-down falls on the candidate more often than chance; fires when e reaches the threshold",
    "first_error": "each user's first failed answer falls on the candidate more often than chance; fires when e reaches the threshold",
    "down_rate": "thumbs-down per message, candidate minus control; fires when the whole interval lies above the threshold",
    "return_rate": "share of users who came back, candidate minus control; fires when the whole interval lies below the threshold",
}


@dataclass(frozen=True)
class Look:
    """Everything that the page of one Experiment shows."""

    experiment: Experiment
    candidate: Release
    control: Release
    picture: Markup
    courses: tuple[tuple[str, Markup], ...]  # of declared metrics
    tables: tuple[Table, ...]
    ratio: SampleRatio | None
    n_double: int
    verdict: str
    words: str
    reasons: tuple[str, ...]
    at: datetime | None


# --- pages -------------------------------------------------------------------------------------------------------------


async def experiments(request: Request) -> Response:
    """GET /experiments."""
    door, me = door_of(request), signed_in(request)
    rows = await door.run(_listed, door.store, me.project_id)
    may_operate = govern.may(me.roles, Permission.OPERATE)
    canaries = await door.run(opening.idle, door.store, me.project_id) if may_operate else []
    empty = "No experiment yet. One begins when a release is a canary: here, or by `plaudit experiment start`."
    return answer(
        request,
        "experiments.html",
        [Table("experiments", "Experiments", LISTED, rows, empty)],
        may_operate=may_operate,
        canaries=canaries,
    )


async def experiment(request: Request) -> Response:
    """GET /experiments/{experiment_id}."""
    door, me = door_of(request), signed_in(request)
    look = await door.run(_look, door.store, me.project_id, request.path_params["experiment_id"])
    live = look.experiment.state == ExperimentState.RUNNING
    return answer(
        request,
        "experiment.html",
        look.tables,
        look=look,
        experiment=look.experiment,
        live=live,
        refresh_ms=REFRESH_MS,
        words=WORDS,
        moves=moves(look.experiment) if govern.may(me.roles, Permission.OPERATE) else [],
    )


async def reward(request: Request) -> Response:
    """GET /experiments/reward: does reward mean business? `?outcome=` chooses which."""
    door, project_id = door_of(request), signed_in(request).project_id
    names = await door.run(business.names, door.store, project_id)
    outcome = request.query_params.get("outcome", business.THUMBS)
    if outcome not in names:
        raise NotFound(f"Nobody has sent an outcome {outcome!r}; there are: {', '.join(names)}.")
    found = await door.run(business.ask, door.store, project_id, outcome)
    empty = "No experiment is over yet, so there is nothing to compare."
    table = Table("points", "Past experiments", POINTS, [_point(one) for one in found.points], empty)
    return answer(
        request, "reward.html", [table], found=found, names=names, picture=_scattered(found), fewest=business.FEWEST
    )


# --- reading -----------------------------------------------------------------------------------------------------------


def _listed(store: Store, project_id: str) -> list[Json]:
    with store.read() as tx:
        found = tx.find(Experiment, project_id=project_id, descending=True)
        model = {one.id: one.model for one in tx.find(Release, project_id=project_id)}
    rows = []
    for one in found:
        users, change = one.figures.get("n_users", {}), one.figures.get("down_rate_difference") or {}
        row = {
            "id": one.id,
            "candidate": model[one.candidate_id],
            "control": model[one.control_id],
            "state": one.state,
            "verdict": str(one.figures.get("verdict", "")).replace("_", " "),
            "n_users": sum(users.values()) if users else None,
            "created_at": one.created_at,
            "ended_at": one.ended_at,
        }
        rows.append(row | {key: change.get(key) for key in ("mean", "low", "high")})
    return rows


def _look(store: Store, project_id: str, experiment_id: str) -> Look:
    with store.read() as tx:
        found = tx.first(Experiment, id=experiment_id, project_id=project_id)
        if found is None:
            raise NotFound(f"There is no experiment {experiment_id!r} in this project.")
        candidate, control = tx.get(Release, found.candidate_id), tx.get(Release, found.control_id)
        labels = {"experiment": experiment_id}
        measured = tx.find(Measurement, project_id=project_id, metric=METRIC, labels=labels, order="window_end")
        courses = {
            name: tx.find(
                Measurement,
                project_id=project_id,
                metric=DECLARED,
                labels={"experiment": experiment_id, "metric": name},
                order="window_end",
            )
            for name in (str(one["name"]) for one in found.figures.get("metrics", ()))
        }
    figures = found.figures
    looks = _looks(measured)
    tables = [
        Table("looks", "Looks", LOOKS, looks, "Nobody has looked yet; the worker does, and `plaudit experiment look`."),
        Table("guardrails", "Guardrails", GUARDRAILS, _guardrails(figures), "No look yet."),
        Table("metrics", "Metrics", METRICS, _metrics(figures), "No other metric was declared."),
        Table("arms", "Arms", ARMS, _arms(figures, candidate, control), "Nobody was enrolled yet."),
        Table("stages", "Ramp", STAGES, _stages(found), ""),
    ]
    return Look(
        experiment=found,
        candidate=candidate,
        control=control,
        picture=_drawn(found, looks, "thumbs-down per message", found.rules.get("goal_margin")),
        courses=tuple((name, _drawn(found, _looks(rows), name)) for name, rows in courses.items() if rows),
        tables=tuple(tables),
        ratio=_ratio(figures),
        n_double=int(figures.get("n_double", 0)),
        verdict=str(figures.get("verdict", "")),
        words=_words(found),
        reasons=tuple(figures.get("reasons", ())),
        at=datetime.fromisoformat(figures["at"]) if "at" in figures else None,
    )


def _words(found: Experiment) -> str:
    if found.state != ExperimentState.RUNNING:
        return ENDED[str(found.state)]
    return WORDS.get(str(found.figures.get("verdict", "")), "Nobody has looked yet.")


def _looks(measured: Sequence[Measurement]) -> list[Json]:
    return [
        {"number": place, "at": one.window_end, "n": one.n, "mean": one.value, "low": one.low, "high": one.high}
        for place, one in enumerate(measured, 1)
    ]


def _drawn(found: Experiment, looks: Sequence[Json], name: str, margin: float | None = None) -> Markup:
    """The confidence sequence of a difference, with the ramp's stages and, where there is one, the margin of its goal."""

    def after(at: datetime) -> float:
        return (at - found.created_at).total_seconds()

    points = [
        Bound(after(one["at"]), one["mean"], one["low"], one["high"], f"look {one['number']}")
        for one in looks
        if one["low"] is not None and one["high"] is not None
    ]
    limits = [(0.0, "no difference"), *([(float(margin), "margin of the goal")] if margin else [])]
    begun = zip(found.stage_started_at, found.stages, strict=False)
    marks = [(after(datetime.fromisoformat(at)), f"{share:.0%} each".replace("%", " %")) for at, share in begun]
    about = f"{name}, candidate minus control, with the bounds that hold at every look."
    if points:
        last = points[-1]
        between = f"{number(last.mean)}, between {number(last.low)} and {number(last.high)}"
        about += f" The last of {len(points)} looks: {between}."
    return sequence(points, about, f"{name}, candidate − control", limits, marks)


def _ratio(figures: Json) -> SampleRatio | None:
    """Both arms have the same share at every stage, so the totals are compared with one half."""
    users = figures.get("n_users", {})
    if not users or sum(users.values()) == 0:
        return None
    return sample_ratio([[users["control"], users["candidate"]]], (0.5, 0.5))


def _guardrails(figures: Json) -> list[Json]:
    return [
        {
            "name": one["name"].replace("_", " "),
            "state": "firing" if one["fired"] else "quiet",
            **{key: one[key] for key in ("value", "low", "high", "n")},
            "threshold": one["threshold"] + 0.0,  # no minus before a zero
            "said": one.get("said") or WATCHED.get(one["name"]),
        }
        for one in figures.get("guardrails", ())
    ]


def _metrics(figures: Json) -> list[Json]:
    """What was declared beside thumbs, where the look has it."""
    told = ("name", "role", "state", "control", "candidate", "margin", "waits")
    return [
        {key: one[key] for key in told}
        | {key: (one["difference"] or {}).get(key) for key in ("mean", "low", "high", "n")}
        | {
            key: (one.get("adjusted") or {}).get(of)
            for key, of in (("n_past", "n_users"), ("variance_left", "variance_fraction"))
        }
        for one in figures.get("metrics", ())
    ]


def _arms(figures: Json, candidate: Release, control: Release) -> list[Json]:
    rows = []
    for arm, release in (("candidate", candidate), ("control", control)):
        if arm not in figures.get("n_users", {}):
            continue
        thumbs = figures["thumbs"][arm]
        down = thumbs["down_per_message"] or {}
        rows.append(
            {
                "arm": arm,
                "release": release.model,
                "release_id": release.id,
                "n_users": figures["n_users"][arm],
                "n_messages": figures["n_messages"][arm],
                "up": thumbs["up"],
                "down": thumbs["down"],
                "down_rate": down.get("mean"),
                "down_low": down.get("low"),
                "down_high": down.get("high"),
                "feedback_rate": (thumbs["feedback_rate"] or {}).get("mean"),
            }
        )
    return rows


def _stages(found: Experiment) -> list[Json]:
    begun = [datetime.fromisoformat(at) for at in found.stage_started_at]
    return [
        {"stage": place + 1, "share": share, "started_at": begun[place] if place < len(begun) else None}
        for place, share in enumerate(found.stages)
    ]


def _point(one: business.Point) -> Json:
    figures = one.outcome.to_dict() if one.outcome else dict.fromkeys(("mean", "low", "high", "n"))
    return {
        key: getattr(one, key)
        for key in ("model", "release_id", "experiment_id", "state", "reward", "reward_from", "ended_at")
    } | figures


def _scattered(found: business.Answer) -> Markup:
    points = [
        Bound(one.reward, one.outcome.mean, one.outcome.low, one.outcome.high, one.model)
        for one in found.counted
        if one.reward is not None and one.outcome is not None
    ]
    about = f"{len(points)} past experiments: the change of the reward from left to right, of {found.outcome} from below up."
    return scatter(points, about, "change of the reward", f"{_better(found.outcome)}, candidate − control")


def _better(outcome: str) -> str:
    return "thumbs-down avoided per message" if outcome == business.THUMBS else f"{outcome} per user"
