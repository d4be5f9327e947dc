"""Datasets of the Hugging Face Hub as inputs and outputs: `hf://datasets/owner/name`."""

from promptmill.core.feature import Feature, Format

FEATURE = Feature(
    words="datasets of the Hugging Face Hub as inputs and outputs",
    formats=(
        Format(
            names=("hf://",),
            store="promptmill.features.hub.store:HubStore",
            extra="hub",
            words="a row of a dataset, `hf://datasets/acme/mails`, see [datasets](tasks/datasets.md)",
        ),
    ),
)
