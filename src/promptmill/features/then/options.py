"""The option of the command after a job."""

from __future__ import annotations

from promptmill.options.option import Excluded, Flag, Option

OPTIONS = (
    Option(
        "then",
        str,
        "run this command when the job has ended, with the job's state and counts in its environment",
        flag=Flag(metavar="COMMAND"),
        argument=None,
        keyword=None,
        check="promptmill.features.then.command:check",
        excludes=[Excluded("validate", ", which runs no job")],
    ),
)
