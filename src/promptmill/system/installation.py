"""Commands that add an extra to this installation of promptmill, for error messages."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

_NAME = "promptmill"


@functools.cache
def _source() -> tuple[str, bool]:
    """Return the source from which promptmill was installed, and whether it is an editable checkout."""
    try:
        about = json.loads(importlib.metadata.distribution(_NAME).read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        about = {}
    url = urlsplit(about.get("url", ""))
    if url.scheme != "file":
        return (about.get("url", "") and f"{_NAME} @ {about['url']}") or _NAME, False
    from urllib.request import url2pathname  # imported on use: it takes 10 ms

    path = url2pathname(url.path)
    return path if Path(path).exists() else _NAME, bool(about.get("dir_info", {}).get("editable"))


def command_for(extra: str, *, prefix: Path | None = None, source: tuple[str, bool] | None = None) -> str:
    """Return the command that adds `extra` to this Python's environment."""
    prefix, (named, editable) = prefix or Path(sys.prefix), source or _source()
    name, at, url = named.partition(" @ ")
    wanted = shlex.quote(f"{name}[{extra}]{at}{url}")
    if (prefix / "uv-receipt.toml").is_file():
        return f"uv tool install --reinstall {'--editable ' if editable else ''}{wanted}"
    if (prefix / "pipx_metadata.json").is_file():
        return f"pipx install --force {'--editable ' if editable else ''}{wanted}"
    return f"{_install(prefix)} {'-e ' if editable else ''}{wanted}"


def command_for_package(package: str, *, prefix: Path | None = None, source: tuple[str, bool] | None = None) -> str:
    """Return the command that adds a package that no extra contains to this Python's environment.

    >>> command_for_package("gcsfs", prefix=Path("env"), source=("promptmill", False)).endswith("install gcsfs")
    True
    """
    prefix, (named, editable) = prefix or Path(sys.prefix), source or _source()
    if (prefix / "uv-receipt.toml").is_file():
        wanted = f"{'--editable ' if editable else ''}{shlex.quote(named)}"
        return f"uv tool install --reinstall {wanted} --with {package}"
    if (prefix / "pipx_metadata.json").is_file():
        return f"pipx inject {_NAME} {package}"
    return f"{_install(prefix)} {package}"


def _install(prefix: Path) -> str:
    """Return the beginning of a command that installs a package into an environment."""
    python = shlex.quote(str(prefix / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")))
    # Environments made by uv have no pip.
    has_pip = importlib.util.find_spec("pip") is not None
    return f"{python} -m pip install" if has_pip else f"uv pip install --python {python}"


def command_into(folder: Path, requirement: str, *, of_linux: bool = False) -> tuple[str, ...] | None:
    """Return a pip or uv command that installs a package alone into `folder`; None if there is no pip and no uv.

    pip and uv each use their own settings for indexes, proxies, certificates and passwords. `of_linux`: use the wheel
    for Linux on any system.
    """
    pip: tuple[str, ...] = ("install", "--no-user", "--disable-pip-version-check")
    pip = (*pip, "--platform", "manylinux2014_x86_64") if of_linux else pip
    ensurepip = importlib.util.find_spec("ensurepip")  # a part of Python that some systems omit
    wheels = [*Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl")] if ensurepip and ensurepip.origin else []
    if importlib.util.find_spec("pip") is not None:
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "pip", *pip)
    elif (uv := _uv()) is not None:
        command = (uv, "pip", "install", "--python", sys.executable)
        command = (*command, "--python-platform", "x86_64-manylinux2014") if of_linux else command
    elif wheels:
        command = (sys.executable, "-P", str(wheels[0] / "pip"), *pip)
    else:
        return None
    return (*command, "--no-deps", "--only-binary", ":all:", "--target", str(folder), requirement)


def _uv() -> str | None:
    """Return the path of the uv that runs this process, or else of the uv on PATH."""
    found = shutil.which(os.environ.get("UV", "")) or shutil.which("uv")
    # Only an absolute path is used: on Windows, `which` searches the working directory first.
    return found if found is not None and Path(found).is_absolute() else None


def adding(extra: str) -> str:
    """Return the hint with the command that adds `extra`."""
    return f"Run: {command_for(extra)}"
