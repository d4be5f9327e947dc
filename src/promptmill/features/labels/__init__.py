"""One label for each row, chosen from several answers."""

from promptmill.core.feature import Feature, PlanEntry

FEATURE = Feature(
    words="one label for each row, chosen from several answers: votes",
    plans=(PlanEntry("votes", ("votes",), "promptmill.features.labels.votes:Votes"),),
)
