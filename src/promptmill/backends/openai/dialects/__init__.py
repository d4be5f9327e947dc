"""The formats of each API's requests and replies. Replies, except decisions, are converted to chat completions.

`DIALECTS` maps names to dialects. A dialect is a module of this folder, or the object `DIALECT` in the module. The
dialect of chat completions is named `openai`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import cast

from promptmill.backends.openai.dialects.dialect import Dialect


def _found() -> Iterator[Dialect]:
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        found = getattr(module, "DIALECT", module)
        if hasattr(found, "NAME"):
            yield cast("Dialect", found)


DIALECTS: Mapping[str, Dialect] = MappingProxyType({found.NAME: found for found in _found()})
