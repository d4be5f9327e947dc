"""The folders in which promptmill keeps this user's jobs, rows that are not in the user's files, and its cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from promptmill.system.safe_open import home_expanded

VARIABLE = "PROMPTMILL_STATE"
JOBS, GIVEN = "jobs", "given"


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder in `PROMPTMILL_STATE`, or else the default folder of the user."""
    if named := environ.get(VARIABLE):
        return home_expanded(named).absolute()
    import platformdirs

    return platformdirs.user_state_path("promptmill")


def cache_folder() -> Path:
    """Return `PROMPTMILL_CACHE`, or else promptmill's folder in the user's cache folder."""
    if named := os.environ.get("PROMPTMILL_CACHE"):
        return home_expanded(named)
    import platformdirs

    return platformdirs.user_cache_path("promptmill")


def private_folders() -> list[Path]:
    """Return the folders with the prompts and answers of all clients."""
    return [state_folder() / name for name in (JOBS, GIVEN)]
