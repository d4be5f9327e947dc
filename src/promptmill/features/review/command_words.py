"""The command that a page of a review shows."""

from __future__ import annotations

import shlex

from promptmill.features.review import review_page
from promptmill.features.review.reviewed import LABEL, Review
from promptmill.jobs.columns.column_names import VARIANT


def command(found: Review) -> str:
    """Return the command that stores a page's decisions or, if rows have several answers, measures these answers."""
    saved = review_page.saved_as(found)
    taken = "review", found.job_id, "--take", saved
    measured = "compare", found.job_id, "--by", VARIANT, "--gold", f"{saved}:{LABEL}"
    return shlex.join(["promptmill", *(taken if found.can_take else measured)])
