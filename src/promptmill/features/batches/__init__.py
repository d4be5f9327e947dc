"""The Batch APIs of providers: answers arrive within a day, at a lower price."""

from promptmill.core.feature import Feature, Figure, PartEntry, WayEntry

FEATURE = Feature(
    options="promptmill.features.batches.options:OPTIONS",
    words="rows answered by the Batch API of a provider, at a lower price",
    ways=(
        WayEntry(
            "batch",
            "promptmill.features.batches.batch_round:BatchWay",
            "promptmill.features.batches.stored_batches",
            tables={
                "batch": "CREATE TABLE batch (id INTEGER PRIMARY KEY, value TEXT NOT NULL)",
                "batched": (
                    "CREATE TABLE batched (batch INTEGER, custom INTEGER, key INTEGER, asked BLOB, line INTEGER, "
                    "name TEXT, at INTEGER, among INTEGER, status INTEGER, reply BLOB, PRIMARY KEY (batch, custom)) "
                    "WITHOUT ROWID"
                ),
                "batched_rows": "CREATE INDEX batched_rows ON batched (key)",
                "batched_lines": "CREATE INDEX batched_lines ON batched (batch, line)",
            },
            tier="batch",
        ),
    ),
    order_parts=(PartEntry("batch", "promptmill.features.batches.batch_order:BatchOrder"),),
    figures=(
        Figure(
            name="batch",
            record="promptmill.features.batches.batch_status:BatchStatus",
            facts="promptmill.features.batches.batch_status:facts",
        ),
    ),
)
