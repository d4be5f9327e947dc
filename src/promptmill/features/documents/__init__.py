"""Long rows: a text that exceeds the model's window is read in pieces, and the answers about the pieces are merged. The
texts of PDFs are those that a viewer shows."""

from promptmill.core.errors import Code, Named
from promptmill.core.feature import Feature, Figure, PartEntry

FEATURE = Feature(
    needs=("sources",),
    words="rows longer than the model's window, read piece by piece; PDFs without layers that are off",
    remedies={
        Code.CONTEXT_LENGTH: (
            Named("split", "auto"),
            " ",
            Named("again", "failed"),
            " reads rows that are too long in pieces",
        )
    },
    options="promptmill.features.documents.options:OPTIONS",
    doubts={"": "promptmill.features.documents.differences:doubt_of"},
    figures=(
        Figure(
            name="documents",
            record="promptmill.features.documents.differences:DocumentStatus",
            facts="promptmill.features.documents.differences:facts",
        ),
    ),
    pdf_pages="promptmill.features.documents.pdf_layers:hide",
    order_parts=(PartEntry("split", "promptmill.features.documents.plan:Split", ("overlap", "merge", "merge_prompt")),),
)
