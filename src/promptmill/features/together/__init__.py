"""Several rows in one request, each with its own answer."""

from promptmill.core.feature import Feature, Figure

FEATURE = Feature(
    words="several rows in one request: fewer tokens and requests, and a measure of what it costs in accuracy",
    needs=("packs",),
    options="promptmill.features.together.options:OPTIONS",
    sampling="promptmill.features.together.parameters:Together",
    answers=(
        "promptmill.features.together.rows_together:RowsTogether",
        "promptmill.features.together.evidence_together:EvidenceTogether",
    ),
    figures=(
        Figure(
            name="together",
            record="promptmill.features.together.together_status:TogetherStatus",
            facts="promptmill.features.together.together_status:facts",
            count="promptmill.features.together.together_status:count",
            option="together",
        ),
    ),
)
