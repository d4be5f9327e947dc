"""The division of a schema: its closed fields, which a model decides, and the open ones, which a model writes."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from promptmill.answers.form import form_of_schema
from promptmill.answers.response_format import schema_of
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, input_error
from promptmill.core.request import Sampling
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import listed

# Keywords of an object's schema that concern several of its fields.
_OF_SEVERAL = frozenset(
    {
        *("$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "minProperties", "maxProperties"),
        *("dependentRequired", "dependentSchemas", "dependencies", "patternProperties", "propertyNames"),
    }
)


class Divided(NamedTuple):
    """The `response_format` of each part of an answer."""

    closed: JsonObject
    open: JsonObject
    names: tuple[str, ...]
    """The names of all fields, in the order of the schema."""

    @classmethod
    def of(cls, sampling: Sampling) -> Divided:
        """Divide the schema of requests with these parameters.

        Raises `PromptmillError` (`invalid_input`) if there is no schema, or if one of the parts would have no field.
        """
        wanted = sampling.response_format
        schema = None if sampling.choices is not None else schema_of(wanted)
        form = None if schema is None else form_of_schema(schema, {})
        if wanted is None or schema is None or form is None:
            needs = Named("fields"), " or ", Named("schema"), ", whose fields the two models divide."
            raise input_error(Named("decide"), " needs ", *needs)
        names, written = [one.name for one in form.questions], form.open_fields
        if across := sorted(_OF_SEVERAL & schema.keys()):
            raise input_error(Named("decide"), f" divides the fields of a schema, but {across[0]} is about several.")
        if len(written) == len(names):
            raise input_error(
                Named("decide"),
                f" has nothing to decide: {listed(names, 3)} may have any value. Give a field its answers, as in ",
                Named("fields", "team:billing|tech"),
                ", or leave it out.",
            )
        if not written:
            raise input_error(
                Named("decide"),
                f" leaves nothing to write: {listed(names, 3)} have a few allowed answers. Name its model as the only "
                "one: ",
                Named("model", "MODEL"),
                ".",
            )
        closed = [name for name in names if name not in written]
        return cls(_part(wanted, schema, closed), _part(wanted, schema, written), tuple(names))


def _part(wanted: JsonObject, schema: JsonObject, names: Collection[str]) -> JsonDict:
    """Return a `response_format` for some of the fields of a schema."""
    part = {**schema, "properties": {name: schema["properties"][name] for name in names}}
    if isinstance(required := schema.get("required"), list):
        part["required"] = [name for name in required if name in names]
    return {**wanted, "json_schema": {**wanted["json_schema"], "schema": part}}


def with_form(config: ModelConfig, response_format: JsonObject) -> ModelConfig:
    """Return the settings for answers of another form."""
    return config.with_sampling({"response_format": response_format})
