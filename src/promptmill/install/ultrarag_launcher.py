"""`promptmill install ultrarag CHECKOUT`: replace its generation server by ours, and nothing else.

One file changes, and the checkout tracks it: `git checkout` restores the original and leaves no other trace.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from promptmill.core.errors import PromptmillError, config_error
from promptmill.install.steps import Step, keep_at, put_back, remove, write

_SERVER = Path("servers", "generation")
_LAUNCHER = _SERVER / "src" / "generation.py"
_BELONG = (_LAUNCHER, _SERVER / "parameter.yaml", Path("src", "ultrarag", "client.py"))
_PLACE = b'INTERPRETER = ""'
_OURS = b"PROMPTMILL_PYTHON"  # no other generation.py contains it


def install(checkout: Path) -> list[Step]:
    """Return the steps that put our launcher, which starts this Python, into `checkout`; none if it is there already.

    Raises `PromptmillError` when `checkout` is not a checkout of UltraRAG.
    """
    launcher = _launcher_in(checkout)
    ours = launch_file().read_bytes().replace(_PLACE, f"INTERPRETER = {sys.executable!a}".encode(), 1)
    steps = [] if _is_ours(launcher) else [keep_at(_backup_of(launcher), launcher)]
    return steps if launcher.read_bytes() == ours else [*steps, write(launcher, ours)]


def undo(checkout: Path) -> list[Step]:
    """Return the steps that restore the checkout's own generation server; none if it is there already.

    Raises `PromptmillError` when `checkout` is not a checkout of UltraRAG, or when there is no copy of its server.
    """
    launcher = _launcher_in(checkout)
    backup = _backup_of(launcher)
    if not _is_ours(launcher):  # restored by other means
        return [remove(backup)] if backup.exists() else []
    if not backup.exists():
        raise config_error("", f"{backup} is missing; run `git checkout -- {_LAUNCHER.as_posix()}` in the checkout.")
    return [put_back(launcher, backup)]


def launch_file() -> Path:
    """Return our launcher: in a wheel, else in a checkout of promptmill."""
    package = Path(__file__).parents[1]
    places = (package / _LAUNCHER, package.parents[1] / _LAUNCHER)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise config_error("", f"This installation of promptmill lacks {_LAUNCHER}; install promptmill again.")
    return found


def _launcher_in(checkout: Path) -> Path:
    lacking = [str(part) for part in _BELONG if not (checkout / part).is_file()]
    if lacking:
        raise _refusal(checkout, lacking[0])
    return checkout.absolute() / _LAUNCHER


def _backup_of(launcher: Path) -> Path:
    """Return the path for the copy of the checkout's own server, outside of the checkout."""
    import platformdirs

    name = hashlib.sha256(os.fsencode(launcher.resolve())).hexdigest()[:16]
    return platformdirs.user_state_path("promptmill") / "ultrarag" / name / launcher.name


def _refusal(checkout: Path, lacking: str) -> PromptmillError:
    return config_error("", f"{checkout.absolute()} is not a checkout of UltraRAG: {lacking} is missing.")


def _is_ours(launcher: Path) -> bool:
    return _OURS in launcher.read_bytes()
