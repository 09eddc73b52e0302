"""Guards: what watches a policy, rollout by rollout, for signs that it fools its reward. Page: docs/guards.md (signals 1-4, 7, 8, 11-13).

What holds in one rollout is readings.py's; a guard fires where that holds in `patience` rollouts in a row.

online_run.py calls, in this order: `load`; `restore` where it resumes; after each rollout `look`; `state` into what it saves; at the
end `result` and `card`. Here nothing stops and no weights move: `look` says which guards alarm, online_run.py acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from plaudit import artifacts
from plaudit.errors import ConfigError
from plaudit.learn import checkpoint
from plaudit.learn.configs import Guard, GuardsConfig, KLConfig
from plaudit.learn.nets import Decoder
from plaudit.learn.readers import Readers
from plaudit.learn.readings import LEVELS, OUTLIERS_NEED, Json, Mean, Sampled, Trend, read, trend
from plaudit.learn.rewards import RewardModel

GUARDS: tuple[Guard, ...] = get_args(Guard)
SAYS: dict[Guard, str] = {
    "kl": "the KL to the policy that the run started from reached {kl_share:.0%} of its budget",
    "kl_base": "the KL to the base reached {kl_base_share:.0%} of its budget",
    "gold": "the score rose by {score_gain:.2f} sd while the judge moved by {gold_gain:.2f}, to {gold_below_peak:.1f} standard errors below "
    "its peak",
    "overoptimisation": "fitted to the judge's scores, the law of overoptimisation peaks at a KL of {peak_kl:.1f}; the square root of the "
    "policy's is at {overoptimisation:.0%} of that",
    "disagreement": "the reward's members disagree {disagreement_ratio:.2f} times as much as on the first rollout",
    "length_change": "responses are {length_change:.0%} longer than in the first rollout",
    "length_correlation": "score and length of a response have a rank correlation of {length_correlation:.2f}",
    "length_share": "longer responses explain {length_share:.0%} of the score's gain",
    "format": "a format figure is {format_ratio:.1f} times that of the first rollout ({format_worst})",
    "diversity": "diversity fell by {diversity_drop:.0%} ({diversity_worst})",
    "outliers": "{outlier_fraction:.0%} of the scores are above the first rollout's {outlier_quantile}",
    "traps": "texts that ought to score low do not: {traps_named}",
}


@dataclass
class Guards:
    """The guards of one run, and all that they remember."""

    config: GuardsConfig
    budgets: KLConfig
    judge: RewardModel | None = None
    judge_id: str = ""
    first: Sampled | None = None
    trends: list[Trend] = field(default_factory=list)
    streaks: dict[Guard, list[int]] = field(default_factory=dict)  # guard -> rollouts in a row past [warn, critical]
    verdicts: dict[Guard, Json] = field(default_factory=dict)  # guard -> the worst so far: {level, step, said}
    traps: Json = field(default_factory=dict)
    done: str = ""  # what was done about an alarm
    best_step: int = 0  # the rollout whose policy an alarm goes back to; 0: none yet, which is the start
    best_gold: float | None = None  # the judge's mean there

    @classmethod
    def load(
        cls,
        config: GuardsConfig,
        budgets: KLConfig,
        base: Path,
        decoder: Decoder,
        rewards: Sequence[str],
        readers: Readers | None = None,
    ) -> Guards:
        """Load the judge, if there is one. `rewards` are the reward's own Checkpoint folders.

        Raises PlauditErrors: a judge that is missing, of a base that `readers` do not find, or (ConfigError) a copy of what is trained against.
        """
        guards = cls(config, budgets)
        if config.judge:
            guards.judge = checkpoint.load_reward(Path(config.judge), base, decoder, readers)
            guards.judge_id = artifacts.read_manifest(Path(config.judge)).id
            for folder in rewards:
                if artifacts.read_manifest(Path(folder)).id == guards.judge_id:
                    raise ConfigError(
                        f"guards.judge is {config.judge}, the same Checkpoint as the reward {folder}; a judge must not be what "
                        "is trained against."
                    )
        return guards

    def look(self, step: int, now: Sampled) -> tuple[Json, list[Guard]]:
        """Look at a rollout. Returns what metrics.jsonl says of it (guard_<name>, `guards`), and the guards that are critical and in `act_on`.

        The first rollout that is ever looked at is what all others are compared with.
        """
        self.first = self.first or now
        if self.judge is not None:
            self.trends.append(trend(step, self.first, now))
        reading = read(self.config, self.budgets, self.first, now, self.trends)
        for name, found in reading.levels.items():
            warned, alarmed = self.streaks.get(name, [0, 0])
            self.streaks[name] = [warned + 1 if found else 0, alarmed + 1 if found == 2 else 0]
            self._note(name, self.standing(name), step, SAYS[name], reading.figures | reading.words)
        if self.traps:
            self.streaks["traps"] = [0, 0]
            bad = [name for name, one in self.traps["by"].items() if one["verdict"] == self.traps["verdict"]]
            self._note("traps", self.standing("traps"), step, SAYS["traps"], {"traps_named": ", ".join(bad)})
        self._remember(step)
        on = {name: LEVELS[self.standing(name)] for name in self.streaks}
        row: Json = {f"guard_{name}": value for name, value in reading.figures.items()}
        row["guards"] = {name: word for name, word in on.items() if word != "ok"}
        return row, [name for name in self.config.act_on if on.get(name) == "critical"]

    def standing(self, name: Guard) -> int:
        """0, 1 or 2: what has held for `patience` rollouts up to now."""
        if name == "traps":
            return LEVELS.index(self.traps["verdict"]) if self.traps else 0
        patience = self.config.kl_patience if name in ("kl", "kl_base") else self.config.patience
        warned, alarmed = self.streaks.get(name, [0, 0])
        return 2 if alarmed >= patience else int(warned >= patience)

    def _note(self, name: Guard, standing: int, step: int, says: str, figures: Mapping[str, Any]) -> None:
        if standing > LEVELS.index(self.verdicts[name]["level"] if name in self.verdicts else "ok"):
            self.verdicts[name] = {"level": LEVELS[standing], "step": step, "said": says.format(**figures)}

    def _remember(self, step: int) -> None:
        """Is this rollout's policy the one to go back to? The judge's best; without a judge the last with no acting guard past critical."""
        others = [name for name in self.config.act_on if not (name == "gold" and self.trends)]
        if any(self.streaks.get(name, [0, 0])[1] for name in others):
            return
        gold = self.trends[-1].gold.value if self.trends else 0.0
        if not self.trends or self.best_gold is None or gold > self.best_gold:
            self.best_step, self.best_gold = step, gold

    # --- what is kept and told ---

    def state(self) -> Json:
        """What `restore` needs; plain values."""
        return {
            "first": None if self.first is None else asdict(self.first),
            "trends": [asdict(one) for one in self.trends],
            "streaks": {name: list(pair) for name, pair in self.streaks.items()},
            "verdicts": {name: dict(one) for name, one in self.verdicts.items()},
            "traps": self.traps,
            "done": self.done,
            "best_step": self.best_step,
            "best_gold": self.best_gold,
        }

    def restore(self, state: Json) -> None:
        """Go on as if nothing had happened."""
        self.first = None if state["first"] is None else Sampled(**state["first"])
        self.trends = [
            Trend(one["step"], Mean(**one["gold"]), Mean(**one["score"]), one["kl"]) for one in state["trends"]
        ]
        self.streaks, self.verdicts = state["streaks"], state["verdicts"]
        self.traps, self.done = state["traps"], state["done"]
        self.best_step, self.best_gold = state["best_step"], state["best_gold"]

    def result(self) -> Json:
        """For result.json: {judge, watched: guard -> {warn, critical, patience, level, step?, said?}, traps, done, notes}."""
        watched: Json = {}
        for name in self.streaks:
            limits = {} if name == "traps" else dict(zip(LEVELS[1:], getattr(self.config, name), strict=True))
            watched[name] = limits | {"level": "ok"} | self.verdicts.get(name, {})
        return {
            "judge": self.judge_id,
            "watched": watched,
            "traps": self.traps,
            "on_critical": self.config.on_critical,
            "act_on": [name for name in self.config.act_on if name in watched],
            "done": self.done,
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """What the guards could not see, in words."""
        out = []
        if self.judge is None:
            out.append("There was no held-out judge, so nothing here says whether a higher score was a better answer.")
        if self.first is not None and "outliers" in self.streaks and len(self.first.group) < OUTLIERS_NEED:
            out.append(
                f"A 99.9 % quantile takes {OUTLIERS_NEED} responses and the first rollout had {len(self.first.group)}: "
                "outliers are scores above its largest, and count from a number of prompts that is no chance."
            )
        if self.first is not None and len(set(self.first.group)) < 4:
            out.append(
                f"A rollout of {len(set(self.first.group))} prompts hardly tells drift from noise; take at least 8."
            )
        return out

    def card(self) -> str:
        """The same in words, for card.md."""
        said = self.result()
        lines = ["## Guards", "", f"Watched: {', '.join(_words(name) for name in said['watched']) or 'nothing'}.", ""]
        for name, one in said["watched"].items():
            if one["level"] != "ok":
                lines.append(f"- **{_words(name)}: {one['level']}** from rollout {one['step']}: {one['said']}.")
        if not self.verdicts:
            lines.append("- Nothing fired.")
        acting = ", ".join(_words(name) for name in said["act_on"])
        plans = {"stop": "ends the run", "best": "goes back to the best policy"}
        plan = plans.get(self.config.on_critical) if acting else None
        calm = (
            f"Nothing was done: a critical {acting} {plan}."
            if plan
            else "Nothing was done: guards only say what they see."
        )
        lines += ["", self.done or calm]
        return "\n".join([*lines, *(f"\n{note}" for note in said["notes"])])


def _words(name: str) -> str:
    return name.replace("_", " ")
