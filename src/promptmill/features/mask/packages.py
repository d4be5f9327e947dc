"""The packages that some kinds of values need."""

from __future__ import annotations

import importlib
from types import ModuleType

from promptmill.core.errors import Code, PromptmillError
from promptmill.system.installation import adding


def needed(package: str, kind: str) -> ModuleType:
    """Import a package. Raises `PromptmillError` (`missing_dependency`)."""
    try:
        return importlib.import_module(package)
    except ImportError:
        problem = f"The kind `{kind}` of masks needs {package}."
        raise PromptmillError(Code.MISSING_DEPENDENCY, problem, adding("mask")) from None
