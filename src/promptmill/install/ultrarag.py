"""`promptmill install ultrarag CHECKOUT`: its generation server becomes ours; everything else stays as it is."""

from __future__ import annotations

import sys
from pathlib import Path

from promptmill.core.errors import PromptmillError, config_error
from promptmill.install.steps import Step, backup_of, keep_latest, put_back, remove, write

_SERVER = Path("servers", "generation")
_LAUNCHER = _SERVER / "src" / "generation.py"
_BELONG = (_LAUNCHER, _SERVER / "parameter.yaml", Path("src", "ultrarag", "client.py"))
_NOTE = "promptmill-python.txt"  # the launcher reads it; nobody else's generation.py speaks of it


def install(checkout: Path, *, interpreter: str = sys.executable) -> list[Step]:
    """Return the steps that put our launcher, and which Python it hands over to, into `checkout`; none if it is there.

    Raises `PromptmillError` when that is not a checkout of UltraRAG.
    """
    launcher, note = _places(checkout)
    ours, told = launch_file().read_bytes(), f"{interpreter}\n".encode()
    steps = [] if _is_ours(launcher) else [keep_latest(launcher)]
    if launcher.read_bytes() != ours:
        steps.append(write(launcher, ours))
    if not note.exists() or note.read_bytes() != told:
        steps.append(write(note, told, like=launcher))  # whoever may read the launcher may read where it leads
    return steps


def undo(checkout: Path) -> list[Step]:
    """Return the steps that put the checkout's own generation server back; none if it is there.

    Raises `PromptmillError` when that is not a checkout of UltraRAG, or nothing was kept.
    """
    launcher, note = _places(checkout)
    backup = backup_of(launcher)
    steps = []
    if not _is_ours(launcher):  # brought back by other means
        steps += [remove(backup)] if backup.exists() else []
    elif backup.exists():
        steps.append(put_back(launcher))
    else:
        raise config_error("", f"{backup} is gone; `git checkout -- {_LAUNCHER.as_posix()}` there brings it back.")
    return [*steps, remove(note)] if note.exists() else steps


def launch_file() -> Path:
    """Return our launcher: in a wheel, else in a checkout of promptmill."""
    package = Path(__file__).parents[1]
    places = (package / _LAUNCHER, package.parents[1] / _LAUNCHER)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise config_error("", f"This installation of promptmill lacks {_LAUNCHER}; install promptmill again.")
    return found


def _places(checkout: Path) -> tuple[Path, Path]:
    """Return the launcher and its note."""
    lacking = [str(part) for part in _BELONG if not (checkout / part).is_file()]
    if lacking:
        raise _refusal(checkout, lacking[0])
    launcher = checkout.absolute() / _LAUNCHER
    return launcher, launcher.with_name(_NOTE)


def _refusal(checkout: Path, lacking: str) -> PromptmillError:
    return config_error("", f"{checkout.absolute()} is not a checkout of UltraRAG: {lacking} is missing.")


def _is_ours(launcher: Path) -> bool:
    return _NOTE.encode() in launcher.read_bytes()
