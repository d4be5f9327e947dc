"""The report of a job: one HTML file with its figures, its course, its failures and its rows."""

from promptmill.core.feature import Command, Control, Feature

FEATURE = Feature(
    options="promptmill.features.report.options:OPTIONS",
    words="one HTML file of a job: figures, course, failures and rows",
    commands=(
        Command(
            "report",
            "write all of a job into one HTML file, to browse and search",
            "promptmill.features.report.command:add_options",
        ),
    ),
    controls=(Control("promptmill.features.report.options:CONTROL", "promptmill.features.report.call_report:written"),),
    after_job="promptmill.features.report.command:after_job",
)
