"""`plaudit demo`: one whole turn of the loop with simulated people, from an empty home to a report; killed, it continues where it was.

It composes what people and machines do elsewhere by themselves: simulated people over HTTP, training programs as Runs, the release ledger,
the worker's monitors. Where the gate or the canary says no, what does not follow is skipped and the report says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.table import Table

from plaudit import demo_report
from plaudit.demo_steps import gather, house, improve, offer, watch
from plaudit.demo_steps.gather import Gathered, Tell
from plaudit.demo_steps.house import Demo
from plaudit.demo_steps.plan import Options
from plaudit.demo_steps.screen import Screen
from plaudit.demo_steps.summary import summarise
from plaudit.domain import GateVerdict, Json
from plaudit.settings import Settings

T = TypeVar("T")


@dataclass
class Clock:
    """Seconds by step, kept in demo.json over crashes, and the lines of the steps that are done."""

    home: Path
    screen: Screen
    said: dict[str, str] = field(default_factory=dict)

    def step(self, name: str, act: Callable[[Tell], T], say: Callable[[T], str] = str) -> T:
        """Run one step under a bar; count its seconds also where it fails."""
        number = len(self.said) + 1
        started = time.perf_counter()
        try:
            with self.screen.bar(number, name) as bar:
                found = act(bar.to)
        finally:
            self.add(name, time.perf_counter() - started)
        self.said[name] = say(found)
        self.screen.done(number, name, self.seconds[name], self.said[name])
        return found

    def add(self, name: str, seconds: float) -> None:
        notes = house.read_notes(self.home)
        notes["seconds"][name] = notes["seconds"].get(name, 0.0) + seconds
        house.write_notes(self.home, notes)

    @property
    def seconds(self) -> dict[str, float]:
        found: dict[str, float] = house.read_notes(self.home)["seconds"]
        return found

    def rows(self) -> list[Json]:
        seconds = self.seconds
        return [{"name": name, "seconds": seconds[name], "said": said} for name, said in self.said.items()]


def run(options: Options, screen: Screen, fresh: bool = False) -> Json:
    """The demo from wherever its home stands to the report. Returns the summary; `report.html` and `summary.json` lie in the home.

    Raises AlreadyRunning, ConfigError (the home holds something else), and what a step raises that cannot be done.
    """
    with house.held(options.home):
        settings = house.furnish(options, fresh)
        screen.say(_opening(options))
        base = house.prepare_base(settings)
        clock = Clock(options.home, screen)
        with house.MemoryWatch() as memory:
            summary = _live_through(options, settings, base, clock)
            started = time.perf_counter()
            pictures = demo_report.pictures(summary)
        notes = house.read_notes(options.home)
        notes["peak_memory_bytes"] = max(notes["peak_memory_bytes"], memory.peak_bytes)
        house.write_notes(options.home, notes)
        clock.add("report", time.perf_counter() - started)
        clock.said["report"] = "report.html and summary.json"
        summary["seconds"] = sum(clock.seconds[name] for name in clock.said)
        summary["peak_memory_bytes"] = notes["peak_memory_bytes"]
        summary["extra"] |= {"steps": clock.rows(), "hardware": house.hardware()}
        page, numbers = demo_report.write(summary, options.home, pictures)
        screen.done(len(clock.said), "report", clock.seconds["report"], f"{page} and {numbers.name}")
        show(summary, screen)
        return summary


def _live_through(options: Options, settings: Settings, base: Path, clock: Clock) -> Json:
    """Every step but the report."""
    with _started(options, settings, base, clock) as demo:
        step = clock.step
        improve.configure(demo)
        step("users ask", lambda tell: gather.ask_training(demo, tell))
        step("second answers", lambda tell: gather.draw_second(demo, tell))
        step("annotate", lambda tell: gather.annotate_training(demo, tell))
        report = step("agree", lambda tell: improve.agree(demo, tell), gather.describe_agreement)
        record = step("freeze", lambda tell: improve.freeze(demo, tell), gather.describe_snapshot)
        reward = step("reward model", lambda tell: improve.train_reward(demo, tell), _say_reward)
        policy = step("PPO", lambda tell: improve.train_policy(demo, tell), _say_ppo)
        judged = step("evaluate", lambda tell: improve.judge(demo, tell), _say_gate)
        hidden = step("hidden figures", lambda _: improve.hidden_figures(demo, judged), _say_hidden)
        outcome = None
        if judged.evaluation.gate == GateVerdict.PASS:
            outcome = step("release", lambda tell: offer.to_users(demo, judged.release, tell), _say_release)
        else:
            step("release", lambda _: offer.refuse_by_gate(demo, judged.release))
        watched = step("watch", lambda tell: watch.watch(demo, tell), lambda found: str(found["watch_says"]))
        simpler = None
        if options.baselines:
            simpler = step(
                "baselines",
                lambda tell: improve.baselines(demo, record, reward, hidden, tell),
                lambda found: str(found["says"]),
            )
        return summarise(
            demo, Gathered(report, record), reward, policy, judged.evaluation, hidden, outcome, watched, simpler
        )


@contextmanager
def _started(options: Options, settings: Settings, base: Path, clock: Clock) -> Iterator[Demo]:
    """Step 1: `plaudit up` runs while the block does; stopping it counts as time of the report."""
    with ExitStack() as stack:

        def start(tell: Tell) -> Demo:
            tell(0, 1)
            stack.enter_context(house.everything_up(settings))
            return house.move_in(options, settings, base)

        demo = clock.step("start", start, lambda _: f"service, policy server and worker at {settings.service_url}")
        try:
            yield demo
        finally:
            stopping = time.perf_counter()
            demo.store.close()
            stack.close()
            clock.add("report", time.perf_counter() - stopping)


# --- words ---------------------------------------------------------------------------------------------------------------


def _opening(options: Options) -> str:
    twin = f", negative twin: {options.twin}" if options.twin else ""
    return (
        f"One turn of the loop on {options.plan.base} with simulated people{twin}. "
        f"Everything lies in {options.home}; run the same command again to continue after an interruption."
    )


def _say_reward(found: improve.Trained) -> str:
    valid, simple = found.result["valid"], found.result["baselines"]
    beside = ", ".join(f"{name.replace('_', ' ')} {one['accuracy']['mean']:.2f}" for name, one in simple.items())
    return f"accuracy {valid['accuracy']['mean']:.2f} on {valid['n']} held-out pairs of simulated annotators ({beside})"


def _say_ppo(found: improve.Trained) -> str:
    result = found.result
    return f"{result['steps']} steps, score {result['score_first']:+.2f} to {result['score']:+.2f} sd, KL {result['kl']:.1f} nats"


def _say_gate(found: improve.Judged) -> str:
    rate = demo_report.interval(found.evaluation.figures["win_rate"])
    reasons = "".join(f"; {reason}" for reason in found.evaluation.reasons)
    return f"gate: {found.evaluation.gate}{reasons}; win rate {rate} (simulated)"


def _say_hidden(found: dict[str, object]) -> str:
    users = found["users"]
    assert isinstance(users, dict)
    return (
        f"simulated users' utility {users['base']:.3f} before, {users['candidate']:.3f} after, "
        f"difference {demo_report.interval(users['difference'], 3)}"
    )


def _say_release(found: offer.Offered) -> str:
    n = sum(found.figures["n_users"].values())
    end = "promoted, served, rolled back" if found.promoted else "not promoted"
    return f"canary says {found.decision} after {n} simulated users in {len(found.looks)} looks; {end}"


def show(summary: Json, screen: Screen) -> None:
    """The figures of the report, in the terminal."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for figure in demo_report.figures(summary):
        table.add_row(figure.name, figure.text, "[magenta]simulated[/]" if figure.simulated else "")
    screen.say("")
    screen.console.print(table)
    screen.say(demo_report.headline(summary))
