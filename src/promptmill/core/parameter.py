"""Parameters of a request that promptmill applies itself, and the parameters that features add."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict


class _Mark:
    """The type of marks of parameters."""


APPLIED: Final = _Mark()
"""The mark of a parameter that promptmill applies itself, for every backend: `Annotated[int | None, APPLIED]`.

Such a parameter is not sent to an endpoint, no backend lacks it, and a row does not set it.
"""


REPEATABLE: Final = _Mark()
"""The mark of a parameter with which equal requests have equal answers, whatever the temperature is."""


class Parameters(BaseModel):
    """The base class of `Sampling`, and of the parameters that a feature adds to it (`Feature.sampling`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def marked(cls, mark: _Mark) -> frozenset[str]:
        """Return the names of the parameters with a mark."""
        return frozenset(name for name, field in cls.model_fields.items() if mark in field.metadata)
