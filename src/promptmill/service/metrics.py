"""The counts of a service's calls as families of series. `/metrics` and OpenTelemetry both use them.

Service.calls ──▶ samples ──▶ series ──┬──▶ text for Prometheus    (`http.prometheus`)
                                       └──▶ points for OTLP        (a feature)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from promptmill.backends import registry
from promptmill.backends.protocol import Histogram
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_MODELS
from promptmill.core.errors import redact
from promptmill.service.service import Service

CALLS: Mapping[str, tuple[str, str, str]] = {
    "calls_total": ("counter", "{call}", "Calls that asked a model, running ones included."),
    "calls_in_progress": ("gauge", "{call}", "Calls that run now."),
    "calls_waiting": (
        "gauge",
        "{call}",
        "Running calls of which no request is in flight, as every endpoint is paused.",
    ),
    "items_total": ("counter", "{item}", "Items of calls by outcome: answered, or the code of the failure."),
    "cached_items_total": ("counter", "{item}", "Items of calls answered without a request, by cache or duplicate."),
    "requests_total": ("counter", "{request}", "Requests sent for calls, retries included."),
    "retries_total": ("counter", "{request}", "Requests sent again for calls."),
    "refused_requests_total": ("counter", "{request}", "Requests of calls that an endpoint refused for load."),
    "input_tokens_total": ("counter", "{token}", "Prompt tokens of calls."),
    "cached_input_tokens_total": ("counter", "{token}", "Prompt tokens of calls that the provider had in its cache."),
    "output_tokens_total": ("counter", "{token}", "Tokens of the answers of calls."),
    "cost_dollars_total": ("counter", "{USD}", "Cost of calls in US dollars, where the price is known."),
    "requests_in_flight": ("gauge", "{request}", "Requests of calls in flight."),
    "requests_in_flight_limit": (
        "gauge",
        "{request}",
        "Most requests that may be in flight now at the endpoints of running calls.",
    ),
}
"""The families of metrics, each with its kind, unit and help text."""
COUNTS = {
    "requests": "requests_total",
    "retries": "retries_total",
    "refused": "refused_requests_total",
    "cached": "cached_items_total",
    "prompt_tokens": "input_tokens_total",
    "cached_tokens": "cached_input_tokens_total",
    "completion_tokens": "output_tokens_total",
}
"""The family for each field of `Counts`."""
_OTHER = ("other", "other")

Labels = tuple[str, str]
"""The labels of a series: the provider and the model."""


class Sample(NamedTuple):
    """A value of a family, with its `outcome` and `labels` (of a model) if the family has them."""

    family: str
    value: float
    labels: Labels | None = None
    outcome: str | None = None


Series: TypeAlias = dict[tuple[Labels | None, str | None], float]
"""The values of a family, by labels and outcome."""


class ModelLabels:
    """The labels of models: each of the first fifty models has its own, and all other models share one."""

    def __init__(self) -> None:
        self._named: set[Labels] = set()

    def of(self, provider: str, model: str) -> Labels:
        """Return the labels of a model."""
        labels = provider[:100], redact(model[: 2 * 100])[:100]
        if labels not in self._named and len(self._named) >= MOST_MODELS:
            return _OTHER
        self._named.add(labels)
        return labels

    def of_config(self, config: ModelConfig | None) -> Labels:
        """Return the labels of the configuration's model; for None, the labels that all further models share."""
        return _OTHER if config is None else self.of(registry.provider_of(config), config.model)


def samples(service: Service, labels_of: ModelLabels, *, of_job: bool) -> Iterator[Sample]:
    """Yield the counts of the service's calls or, with `of_job`, of its runs of jobs. Samples may have equal labels."""
    for totals in service.calls.by_model():
        if totals.of_job is not of_job:
            continue
        labels = labels_of.of_config(totals.config)
        yield Sample("calls_total", totals.calls, labels)
        yield Sample("items_total", totals.counts.done - totals.counts.failed, labels, "answered")
        for code, count in totals.counts.codes.items():
            yield Sample("items_total", count, labels, code)
        for name, family in COUNTS.items():
            yield Sample(family, getattr(totals.counts, name), labels)
        if totals.counts.cost is not None:
            yield Sample("cost_dollars_total", totals.counts.cost, labels)
    limits: dict[Labels, int] = {}
    for running in service.calls.running:
        call = running.call
        if call.facts.of_job is not of_job:
            continue
        labels = labels_of.of_config(running.config())
        yield Sample("calls_in_progress", 1, labels)
        yield Sample("calls_waiting", bool(call.waiting), labels)
        yield Sample("requests_in_flight", call.in_flight, labels)
        if call.flow is not None:  # one limit per model: its calls share the limits of its endpoints
            limits[labels] = max(limits.get(labels, 0), call.flow.limit)
    for labels, limit in limits.items():
        yield Sample("requests_in_flight_limit", limit, labels)


def series(found: Iterable[Sample]) -> dict[str, Series]:
    """Return the sums of samples with equal labels, by family."""
    families: dict[str, Series] = {}
    for family, value, labels, outcome in found:
        values = families.setdefault(family, {})
        values[labels, outcome] = values.get((labels, outcome), 0) + value
    return families


def durations(
    service: Service, labels_of: ModelLabels, *, of_job: bool | None = None
) -> dict[tuple[Labels, str], Histogram]:
    """Return histograms of the seconds from an item's request to its outcome, by model and code (`""`: answered).

    `of_job`: if False, items of calls are counted; if True, rows of jobs; if None, both.
    """
    histograms: dict[tuple[Labels, str], Histogram] = {}
    for totals in service.calls.by_model():
        if of_job is not None and totals.of_job is not of_job:
            continue
        for code, times in totals.counts.durations.items():
            key = labels_of.of_config(totals.config), code
            histograms[key] = (
                histograms.get(key, Histogram()) + times
            )  # copied, because the histograms continue to count
    return histograms
