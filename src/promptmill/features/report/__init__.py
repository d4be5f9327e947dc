"""The report of a job: an HTML file with its figures, course, failures and rows."""

from promptmill.core.feature import Feature, JobAction, StatusArgument

FEATURE = Feature(
    uses=("sources",),
    options="promptmill.features.report.options:OPTIONS",
    words="one HTML file of a job: figures, course, failures and rows",
    job_actions=(
        JobAction(
            ("html", "open"),
            "to report",
            "promptmill.features.report.command_options:add_options",
            "promptmill.features.report.command:written",
        ),
    ),
    controls=(
        StatusArgument(
            "promptmill.features.report.options:CONTROL", "promptmill.features.report.job_page:write_of_call"
        ),
    ),
    after_job={"report": "promptmill.features.report.command:after_job"},
)
