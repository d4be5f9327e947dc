"""Rows longer than the model's window: read piece by piece, and one answer made of the answers of the pieces."""

from promptmill.core.feature import Feature, PlanEntry

FEATURE = Feature(
    words="rows longer than the model's window, read piece by piece",
    options="promptmill.features.documents.options:OPTIONS",
    plans=(
        PlanEntry("split", ("split", "overlap", "merge", "merge_prompt"), "promptmill.features.documents.plan:Split"),
    ),
)
