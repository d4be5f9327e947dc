"""YAML files as inputs and outputs of `promptmill bulk`, a command that shows the fields of one, and an option that
asks rows with long answers again at another model."""

from promptmill.core.feature import Command, Feature, Format, PlanEntry

FEATURE = Feature(
    words="YAML files as inputs and outputs, and their fields; long answers again",
    commands=(Command("yaml-fields", "list the fields of a YAML file of rows", "acme.fields:add_options"),),
    formats=(Format(names=(".yaml", ".yml"), read="acme.rows:read", write="acme.rows:write"),),
    options="acme.long:OPTIONS",
    plans=(PlanEntry("long_to", ("long_to",), "acme.long:LongAgain"),),
)
