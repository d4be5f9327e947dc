"""The folders in which promptmill keeps this user's jobs, rows that are not in the user's files, and its cache."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from promptmill.system.safe_open import home_expanded

VARIABLE = "PROMPTMILL_STATE"
_SECRET_BYTES = 32  # as many as the digest has for which it is the key
JOBS, GIVEN = "jobs", "given"


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder in `PROMPTMILL_STATE`, or else the default folder of the user."""
    if named := environ.get(VARIABLE):
        return home_expanded(named).absolute()
    return own_folder()


def own_folder() -> Path:
    """Return promptmill's folder in the user's state folder, also if `PROMPTMILL_STATE` names another folder, which
    another user may have made."""
    import platformdirs

    return platformdirs.user_state_path("promptmill")


def own_secret() -> bytes | None:
    """Return random bytes that only this user has on this computer; None if `own_folder` is not writable."""
    file, secret = own_folder() / "secret", b""
    with contextlib.suppress(OSError):
        secret = file.read_bytes()
    if len(secret) != _SECRET_BYTES:
        new = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new.touch(mode=0o600)
            new.write_bytes(secrets.token_bytes(_SECRET_BYTES))
            new.replace(file)
            secret = file.read_bytes()
        except OSError:
            return None
    return secret


def cache_folder() -> Path:
    """Return `PROMPTMILL_CACHE`, or else promptmill's folder in the user's cache folder."""
    if named := os.environ.get("PROMPTMILL_CACHE"):
        return home_expanded(named)
    import platformdirs

    return platformdirs.user_cache_path("promptmill")


def private_folders() -> list[Path]:
    """Return the folders with the prompts and answers of all clients."""
    return [state_folder() / name for name in (JOBS, GIVEN)]
