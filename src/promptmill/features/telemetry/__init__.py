"""Spans and metrics of calls and jobs for OpenTelemetry."""

from promptmill.core.feature import Feature, Observation

FEATURE = Feature(
    words="spans and metrics of calls and jobs for OpenTelemetry",
    observation=Observation("OTEL_", "promptmill.features.telemetry.telemetry"),
)
