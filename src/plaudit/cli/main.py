"""`plaudit`: one literal list of commands, each loaded when it is asked for. An error a user can fix is one sentence, exit code 2."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

import click

from plaudit.errors import PlauditError, Refused

# command -> (module:attribute, one line of help). The line stands here so that `plaudit --help` imports nothing.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "up": ("plaudit.cli.up:up", "Start service, policy server and worker."),
    "doctor": ("plaudit.cli.doctor:doctor", "Look at this installation and say what is found."),
    "project": ("plaudit.cli.project:project", "Make, list and change projects."),
    "key": ("plaudit.cli.key:key", "Make, list and revoke API keys."),
    "person": ("plaudit.cli.person:person", "Invite, list and remove people who sign in."),
    "models": ("plaudit.cli.models:models", "Prepare base models."),
    "annotate": ("plaudit.cli.annotate:annotate", "Aggregate answers into Preferences; show agreement."),
    "aggregate": ("plaudit.cli.aggregate:aggregate", "Who is right and who is reliable, from a file of labels."),
    "agreement": ("plaudit.cli.agreement:agreement", "How much the labels of a file agree, by every measure."),
    "snapshot": ("plaudit.cli.snapshot:snapshot", "Freeze Preferences into a folder, verify it."),
    "train": ("plaudit.cli.train:train", "Train a reward model or a policy."),
    "score": ("plaudit.cli.score:score", "Try a reward model on pairs or answers."),
    "runs": ("plaudit.cli.runs:runs", "What training does and did: list, figures, curves."),
    "import": ("plaudit.cli.import_:import_", "Read judgements from other tools' files."),
    "export": ("plaudit.cli.export:export", "Write a Checkpoint or a Snapshot as what other tools load."),
    "evaluate": ("plaudit.cli.evaluate:evaluate", "Compare a Checkpoint with the base and ask the gate."),
    "release": ("plaudit.cli.release:release", "Approve, promote and roll back Releases."),
    "registry": ("plaudit.cli.registry:registry", "Versions, their lineage, and whether their bytes are right."),
    "audit": ("plaudit.cli.audit:audit", "Verify the audit log against its signed anchors."),
    "experiment": ("plaudit.cli.experiment:experiment", "Assign users to two Releases and look at the outcome."),
    "outcomes": ("plaudit.cli.outcomes:outcomes", "Import the business's own metrics of users."),
    "interactions": ("plaudit.cli.interactions:interactions", "Import what was logged elsewhere."),
    "erase": ("plaudit.cli.erase:erase", "Erase what is kept of a user."),
    "quarantine": ("plaudit.cli.quarantine:quarantine", "Feedback that looks like abuse: find, hold, give back."),
    "webhook": ("plaudit.cli.webhook:webhook", "Tell a URL of feedback, alerts and changes of state."),
    "monitor": ("plaudit.cli.monitor:monitor", "Measure production, list alerts."),
    "loop": ("plaudit.cli.loop:loop", "Run the whole loop, when it is due."),
    "backup": ("plaudit.cli.backup:backup", "Write the whole installation to one file."),
    "restore": ("plaudit.cli.backup:restore", "Bring a backup into an empty home."),
    "store": ("plaudit.cli.store:store", "Move the rows to another database."),
    "demo": ("plaudit.cli.demo:demo", "The guided loop with simulated people."),
    "simulate": ("plaudit.cli.simulate:simulate", "Simulated people: whom does Plaudit find?"),
    "service": ("plaudit.cli.service:service", "The service alone (what `up` starts)."),
    "worker": ("plaudit.cli.worker:worker", "The worker alone (what `up` starts)."),
}


class Commands(click.Group):
    """A click group over COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="plaudit")
@click.option("--project", default=None, help="Name of the project that the command acts on (else: PLAUDIT_PROJECT).")
def plaudit(project: str | None) -> None:  # `options.open_home` reads it
    """The RLHF loop for production."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 the command says no, 2 an error a user can fix, 130 interrupted."""
    try:
        code = plaudit.main(args=arguments, prog_name="plaudit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except PlauditError as error:
        click.echo(f"plaudit: {error}", err=True)
        for reason in error.reasons if isinstance(error, Refused) else ():
            click.echo(f"  - {reason}", err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
