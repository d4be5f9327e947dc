"""The command that prints scripts for shells, which then complete promptmill's commands with Tab."""

from promptmill.core.feature import Command, Feature

FEATURE = Feature(
    words="completion of commands, options, files, jobs and models with Tab, in five shells",
    commands=(
        Command(
            "completion",
            "print a script that completes commands, options, files, jobs and models with Tab",
            "promptmill.features.completion.command:add_options",
        ),
    ),
)
