"""YAML files as inputs and outputs of `promptmill bulk`, and a command that shows the fields of one."""

from promptmill.core.feature import Command, Feature, Format

FEATURE = Feature(
    words="YAML files as inputs and outputs, and their fields",
    commands=(Command("yaml-fields", "list the fields of a YAML file of rows", "yaml_rows.fields:add_options"),),
    formats=(Format(names=(".yaml", ".yml"), read="yaml_rows.rows:read", write="yaml_rows.rows:write"),),
)
