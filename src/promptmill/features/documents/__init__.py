"""Long rows: a text that exceeds the model's window is read in pieces, and the answers about the pieces are merged."""

from promptmill.core.feature import Feature, PlanEntry

FEATURE = Feature(
    words="rows longer than the model's window, read piece by piece",
    options="promptmill.features.documents.options:OPTIONS",
    plans=(
        PlanEntry("split", ("split", "overlap", "merge", "merge_prompt"), "promptmill.features.documents.plan:Split"),
    ),
)
