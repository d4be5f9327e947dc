"""Write the stubs of `promptmill` and `promptmill.api`: the types of their names, which are imported at first use.

The names of features are in them, too. A test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import promptmill
from promptmill.core.feature import names

PACKAGE = Path(promptmill.__file__).parent
_ERROR = {"PromptmillError": "promptmill.core.errors:PromptmillError"}


def stubs() -> dict[Path, str]:
    """Return the content of each stub."""
    return {
        PACKAGE / "__init__.pyi": _stub(vars(promptmill)["_names"](), "__version__: str"),
        PACKAGE / "api.pyi": _stub({**_ERROR, **names("api")}),
    }


def _stub(parts: Mapping[str, str], *others: str) -> str:
    places = sorted((where.partition(":")[0], name) for name, where in parts.items())
    return "\n".join(
        [
            "# Written by scripts/stubs.py: types for editors and type checkers; the module imports each name at its first use.",
            *(f"from {module} import {name} as {name}" for module, name in places),
            "",
            "__all__: list[str]",
            *others,
            "",
        ]
    )


if __name__ == "__main__":
    for path, content in stubs().items():
        path.write_text(content, encoding="utf-8")
