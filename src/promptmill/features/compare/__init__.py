"""Compares the answers of several files or models to the same rows: figures, text, a page, and a judge."""

from promptmill.core.feature import Command, Feature

FEATURE = Feature(
    needs=("verbs",),
    words="outputs compared with each other and with right answers; a model that judges",
    commands=(
        Command(
            "compare",
            "compare outputs with each other and with right answers",
            "promptmill.features.compare.verb:COMPARE.add_options",
            writes=("report",),
        ),
    ),
    instructions="`compare` compares outputs of the same rows.",
    tools="promptmill.features.compare.tool:add",
    names={
        "Comparison": "promptmill.features.compare.comparison:Comparison",
        "compare": "promptmill.features.compare.comparison:compare",
    },
    variants="promptmill.features.compare.command:show_variants",
)
