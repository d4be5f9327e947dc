"""A second look at lists: the model is asked for the items that it missed, and for the rest of a list that was cut."""

from promptmill.core.feature import Feature, Figure

FEATURE = Feature(
    words="a second look at lists, for the items that the model missed; a list that `max_tokens` cut is continued",
    options="promptmill.features.passes.options:OPTIONS",
    sampling="promptmill.features.passes.parameters:Passes",
    answers=(
        "promptmill.features.passes.second_looks:SecondLooks",
        "promptmill.features.passes.continued_lists:ContinuedLists",
    ),
    figures=(
        Figure(
            name="passes",
            record="promptmill.features.passes.pass_status:PassStatus",
            facts="promptmill.features.passes.pass_status:facts",
            count="promptmill.features.passes.pass_status:count",
            option="passes",
        ),
    ),
)
