"""One row becomes many: a row of the output for each item of a list in the answer."""

from promptmill.core.feature import Feature, Figure, PartEntry

FEATURE = Feature(
    words="a row of the output for each item of a list in the answer, such as the lines of an invoice",
    options="promptmill.features.items.options:OPTIONS",
    order_parts=(PartEntry("rows_from", "promptmill.features.items.items:Items", options=("schema",), is_shape=True),),
    figures=(
        Figure(
            name="items",
            record="promptmill.features.items.item_status:ItemStatus",
            facts="promptmill.features.items.item_status:facts",
            count="promptmill.features.items.item_status:count",
            option="rows_from",
        ),
    ),
)
