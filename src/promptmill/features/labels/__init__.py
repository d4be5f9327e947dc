"""One label for each row, chosen from several answers."""

from promptmill.core.feature import Feature, Figure, PartEntry

FEATURE = Feature(
    needs=("embeddings",),
    options="promptmill.features.labels.options:OPTIONS",
    words="one label for each row, chosen from several answers: votes, a promise, a student",
    order_parts=(
        PartEntry(
            "sure",
            "promptmill.features.labels.sure:Sure",
            ("agree", "certainty", "second", "recall", "gold", "student", "embed_model"),
        ),
        PartEntry("votes", "promptmill.features.labels.votes:Votes"),
    ),
    figures=(
        Figure(
            name="sure",
            record="promptmill.features.labels.label_status:SureStatus",
            facts="promptmill.features.labels.label_status:facts",
            news="promptmill.features.labels.label_status:news",
            section="promptmill.features.labels.report_section:section",
        ),
        Figure(
            name="votes",
            record="promptmill.features.labels.label_status:VoteStatus",
            facts="promptmill.features.labels.label_status:vote_facts",
        ),
    ),
)
