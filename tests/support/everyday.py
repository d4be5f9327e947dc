"""Cases of a parametrized test of which a few suffice for every day: the others run with `scripts/test --all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def everyday(cases: Iterable[Any], *chosen: Any) -> list[Any]:
    """Return `cases` as parameters, where all but the `chosen` ones are thorough."""
    found = list(cases)
    missing = [case for case in chosen if case not in found]
    assert not missing, f"no such cases: {missing}"
    return [
        case
        if case in chosen
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough)
        for case in found
    ]
