"""`promptmill install ultrarag CHECKOUT`: its generation server becomes ours; everything else stays as it is.

One file of the checkout changes, which it tracks: `git checkout` brings the original back and nothing stays behind.
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
_OURS = b"PROMPTMILL_PYTHON"  # nobody else's generation.py speaks of it


def install(checkout: Path) -> list[Step]:
    """Return the steps that put our launcher, which hands over to this Python, into `checkout`; none if it is there.

    Raises `PromptmillError` when that is not a checkout of UltraRAG.
    """
    launcher = _launcher_in(checkout)
    ours = launch_file().read_bytes().replace(_PLACE, f"INTERPRETER = {sys.executable!a}".encode(), 1)
    steps = [] if _is_ours(launcher) else [keep_at(_backup_of(launcher), launcher)]
    return steps if launcher.read_bytes() == ours else [*steps, write(launcher, ours)]


def undo(checkout: Path) -> list[Step]:
    """Return the steps that put the checkout's own generation server back; none if it is there.

    Raises `PromptmillError` when that is not a checkout of UltraRAG, or nothing was kept.
    """
    launcher = _launcher_in(checkout)
    backup = _backup_of(launcher)
    if not _is_ours(launcher):  # brought back by other means
        return [remove(backup)] if backup.exists() else []
    if not backup.exists():
        raise config_error("", f"{backup} is gone; `git checkout -- {_LAUNCHER.as_posix()}` there brings it back.")
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
    """Return where the checkout's own server is kept: not in the checkout, where nobody tracks it."""
    import platformdirs

    name = hashlib.sha256(os.fsencode(launcher.resolve())).hexdigest()[:16]
    return platformdirs.user_state_path("promptmill") / "ultrarag" / name / launcher.name


def _refusal(checkout: Path, lacking: str) -> PromptmillError:
    return config_error("", f"{checkout.absolute()} is not a checkout of UltraRAG: {lacking} is missing.")


def _is_ours(launcher: Path) -> bool:
    return _OURS in launcher.read_bytes()
