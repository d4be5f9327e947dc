"""One label for each row, chosen from several answers."""

from promptmill.core.feature import Feature, PlanEntry

FEATURE = Feature(
    options="promptmill.features.labels.options:OPTIONS",
    words="one label for each row, chosen from several answers: votes, a promise, a student",
    plans=(
        PlanEntry(
            "sure",
            ("sure", "agree", "certainty", "second", "recall", "gold", "student"),
            "promptmill.features.labels.sure:Sure",
        ),
        PlanEntry("votes", ("votes",), "promptmill.features.labels.votes:Votes"),
    ),
)
