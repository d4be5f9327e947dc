"""Parameters of a request that promptmill applies itself, and the parameters that features add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict

from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.feature import WITHOUT, Feature, features, part


class _Mark:
    """The type of marks of parameters."""


APPLIED: Final = _Mark()
"""The mark of a parameter that promptmill applies itself, for every backend: `Annotated[int | None, APPLIED]`.

Such a parameter is not sent to an endpoint, works with every backend, and is not set by a row.
"""


REPEATABLE: Final = _Mark()
"""The mark of a parameter that makes answers to equal requests equal at any temperature."""


OF_FIELDS: Final = _Mark()
"""The mark of a parameter that makes an answer depend on the fields in the request's prompt, see `Request.fields`."""


OF_OPERATOR: Final = _Mark()
"""The mark of a parameter that a call of an MCP client, or an HTTP request, may not set unless the operator trusts the
client."""


SOURCED: Final = _Mark()
"""The mark of a parameter that adds sources to answers, see `core.sources`."""


@dataclass(frozen=True, slots=True)
class OfPrograms(_Mark):
    """The mark of a parameter whose value may name a function or a file of this machine.

    Such a value comes from the operator's configuration, command line or program alone. Data never have one: not a
    call, whether trusted or not, not a row, a line of a batch, a stored job or a file of commands.
    """

    names_more: Callable[[Any, Any], bool]
    """Returns whether a value names a function or a file that the second value, which the operator has set, does
    not."""


@dataclass(frozen=True, slots=True)
class Protecting(_Mark):
    """The mark of a parameter that protects what is sent. Its values add up, from the configuration, the model, the
    call and the row: none takes another away. Each request that is made by a configuration has the parameter."""

    joined: Callable[[Any, Any], Any]
    """Returns the value that has the effects of both values."""


_Kind = TypeVar("_Kind", bound=_Mark)


class Parameters(BaseModel):
    """The base class of `Sampling`, and of the parameters that a feature adds to it (`Feature.sampling`)."""

    # `defer_build` is set because only the schema of the whole `Sampling` is used
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def marked(cls, mark: _Mark) -> frozenset[str]:
        """Return the names of the parameters with a mark."""
        return frozenset(name for name, field in cls.model_fields.items() if mark in field.metadata)

    @classmethod
    def marks(cls, kind: type[_Kind]) -> Mapping[str, _Kind]:
        """Return the marks of a kind, by the parameter's name."""
        pairs = ((name, mark) for name, field in cls.model_fields.items() for mark in field.metadata)
        return {name: mark for name, mark in pairs if isinstance(mark, kind)}


@dataclass(frozen=True, slots=True)
class Added:
    """The parameters that features add to the core's parameters."""

    classes: tuple[type[Parameters], ...] = ()
    mistake: str = ""
    """What is wrong with a feature's parameters, which are then left out; `""` if nothing is wrong."""

    @classmethod
    def to(cls, core: Iterable[str]) -> Added:
        """Return the parameters that features add to `core`. A mistake is raised only by `check`, not on import."""
        try:
            known = features()
        except PromptmillError as error:
            return cls(mistake=error.message)
        owners, classes, mistakes = dict.fromkeys(core, "promptmill"), list[type[Parameters]](), list[str]()
        for name, feature in known.items():
            if not feature.sampling:
                continue
            try:
                kind = part(feature.sampling)
            except PromptmillError as error:
                mistakes.append(f"{error.message} Put it into a module that does not import promptmill.core.request.")
                continue
            if mistake := _mistake(name, feature, kind, owners):
                mistakes.append(mistake)
                continue
            classes.append(kind)
            owners |= dict.fromkeys(kind.model_fields, name)
        return cls(tuple(classes), next(iter(mistakes), ""))

    @property
    def names(self) -> frozenset[str]:
        """The names of the added parameters."""
        return frozenset(name for kind in self.classes for name in kind.model_fields)

    def check(self) -> None:
        """Raise `PromptmillError` (`invalid_config`) if a feature's parameter, or the option for such a parameter, has
        no effect."""
        if self.mistake:
            raise config_error("", self.mistake)
        for name, feature in features().items():
            fields = part(feature.sampling).model_fields.keys() if feature.sampling and feature.options else ()
            for option in part(feature.options) if fields else ():
                if option.name in fields and (key := f"sampling_params.{option.name}") not in option.keys:
                    said = f"The option {option.name} of {name} does not set its sampling parameter {option.name}"
                    raise config_error("", f'{said}; add `keys=["{key}"]` to it. {_hides(name)}')


def _mistake(name: str, feature: Feature, kind: object, owners: Mapping[str, str]) -> str:
    """Return the problem of a feature's parameters, or `""`. `owners`: the owner of each earlier parameter."""
    if not (isinstance(kind, type) and issubclass(kind, Parameters)):
        return (
            f"{feature.sampling} is no subclass of `promptmill.core.parameter.Parameters`; make it one. {_hides(name)}"
        )
    for field, about in kind.model_fields.items():
        if other := owners.get(field):
            return f"The sampling parameter {field} of {name} is already one of {other}; rename it. {_hides(name)}"
        if about.default is not None:
            return f"The sampling parameter {field} of {name} needs the default None, for: not set. {_hides(name)}"
    return ""


def _hides(name: str) -> str:
    return f"{WITHOUT}={name} hides the feature {name}."
