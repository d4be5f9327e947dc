"""A recipe: commands in a file; their outputs are inputs of later commands, with one budget and one way to resume."""

from promptmill.core.feature import Command, Feature

FEATURE = Feature(
    words="commands in one file, run in order: one progress, one budget, one resume",
    commands=(
        Command(
            "run",
            "run the commands of a recipe in order; only changed rows are sent again",
            "promptmill.features.recipes.command:add_options",
        ),
    ),
    before_job={"spending": "promptmill.features.recipes.spending:before_job"},
    after_job={"spending": "promptmill.features.recipes.spending:after_job"},
)
