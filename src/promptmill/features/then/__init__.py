"""A command of the user that runs when a job has ended."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="a command of yours runs when a job has ended",
    options="promptmill.features.then.options:OPTIONS",
    before_job={"then": "promptmill.features.then.command:before_job"},
    after_job={"then": "promptmill.features.then.command:after_job"},
)
