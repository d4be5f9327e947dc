"""YAML files as inputs and outputs, a command that lists their fields, and an option for rows with long answers."""

from promptmill.core.feature import Command, Feature, Format, PartEntry

FEATURE = Feature(
    words="YAML files as inputs and outputs, and their fields; long answers again",
    commands=(Command("yaml-fields", "list the fields of a YAML file of rows", "acme.fields:add_options"),),
    formats=(Format(names=(".yaml", ".yml"), read="acme.rows:read", write="acme.rows:write"),),
    options="acme.long:OPTIONS",
    order_parts=(PartEntry("long_to", "acme.long:LongAgain"),),
)
