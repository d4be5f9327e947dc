"""Parameters of a request that promptmill applies itself, and the parameters that features add."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict


class _Applied:
    """The type of `APPLIED`."""


APPLIED: Final = _Applied()
"""The mark of a parameter that promptmill applies itself, for every backend: `Annotated[int | None, APPLIED]`.

Such a parameter is not sent to an endpoint, no backend lacks it, and a row does not set it.
"""


class Parameters(BaseModel):
    """The base class of `Sampling`, and of the parameters that a feature adds to it (`Feature.sampling`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def applied(cls) -> frozenset[str]:
        """Return the names of the parameters with the mark `APPLIED`."""
        return frozenset(name for name, field in cls.model_fields.items() if APPLIED in field.metadata)
