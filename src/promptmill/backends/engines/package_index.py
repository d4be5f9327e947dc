"""Download one wheel from the package index that pip or uv would use, without either of them (PEP 503, PEP 691)."""

from __future__ import annotations

import configparser
import html.parser
import json
import os
import ssl
import sys
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_PUBLIC = "https://pypi.org/simple"
_SILENCE_S = 60
_PIECE = 1 << 20
_LONGEST_PAGE = 32 << 20
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


class NotFetchedError(Exception):
    """The wheel could not be downloaded; the text gives the reason, without credentials."""


def fetch(package: str, file_name: str, target: Path, progress: Callable[[int], None]) -> None:
    """Write the wheel `file_name` of `package` to `target`; `progress` gets the number of bytes written so far.

    Raises `NotFetchedError` with the reason of the last index, and `OSError` when `target` cannot be written.
    """
    reason = "no package index is configured"
    for index in indexes():
        try:
            page = f"{index.rstrip('/')}/{package}/"
            with _open(page, _ACCEPT) as answer:
                content = answer.read(_LONGEST_PAGE)
                links = _links(content, answer.headers.get_content_type())
                base = answer.url
            if (link := links.get(file_name)) is None:
                reason = f"{_host(index)} has no {file_name}"
                continue
            with _open(urllib.parse.urljoin(base, link), "*/*") as answer:
                _save(answer, target, progress)
        except urllib.error.HTTPError as error:
            reason = f"{_host(index)} answered with status {error.code}"
        except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError) as error:
            why = getattr(error, "reason", None) or error
            reason = f"{_host(index)} cannot be reached ({type(why).__name__})"
        except (ValueError, UnicodeError):
            reason = f"{_host(index)} did not send an index page"
        else:
            return
    raise NotFetchedError(reason)


def indexes() -> Iterator[str]:
    """Yield the addresses of the indexes in order, each once: from uv's and pip's settings, else the public one."""
    found = [*_of_environment(), *_of_uv(), *_of_pip()]
    found = found if any(address.startswith("http") for address in found) else [*found, _PUBLIC]
    yield from dict.fromkeys(address.rstrip("/") for address in found)


def _of_environment() -> list[str]:
    names = (
        "UV_DEFAULT_INDEX",
        "UV_INDEX_URL",
        "PIP_INDEX_URL",
        "UV_INDEX",
        "UV_EXTRA_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
    )
    words = [word for name in names for word in os.environ.get(name, "").split()]
    return [word.partition("=")[2] if "=" in word.partition("://")[0] else word for word in words]  # uv: NAME=URL


def _of_pip() -> list[str]:
    home, windows = Path.home(), os.environ.get("APPDATA")
    files = [
        Path(sys.prefix) / ("pip.ini" if sys.platform == "win32" else "pip.conf"),
        Path(windows) / "pip" / "pip.ini" if windows else home / ".config" / "pip" / "pip.conf",
        home / "Library" / "Application Support" / "pip" / "pip.conf",
        home / ".pip" / "pip.conf",
        Path("/etc/pip.conf"),
    ]
    if named := os.environ.get("PIP_CONFIG_FILE"):
        files.insert(0, Path(named))
    found: list[str] = []
    for name in ("index-url", "extra-index-url"):
        for file in files:
            parser = configparser.RawConfigParser()
            try:
                parser.read(file, encoding="utf-8")
                found += parser.get("global", name, fallback="").split()
            except (configparser.Error, OSError, UnicodeError):
                continue
    return found


def _of_uv() -> list[str]:
    folder = Path(os.environ.get("APPDATA") or os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    try:
        settings: dict[str, Any] = tomllib.loads((folder / "uv" / "uv.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    named = settings.get("index") or []
    found = [entry.get("url") for entry in named if isinstance(entry, dict)] if isinstance(named, list) else []
    return [url for url in (settings.get("index-url"), *found) if isinstance(url, str)]


class _Anchors(html.parser.HTMLParser):
    """Collects the links of a page by the name of their file."""

    def __init__(self) -> None:
        super().__init__()
        self.links: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href")
        if tag == "a" and address:
            name = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rpartition("/")[2])
            self.links.setdefault(name, address)


def _links(content: bytes, kind: str) -> dict[str, str]:
    if kind.endswith("json"):
        return {entry["filename"]: entry["url"] for entry in json.loads(content).get("files", ())}
    anchors = _Anchors()
    anchors.feed(content.decode())
    return anchors.links


def _open(address: str, accept: str) -> Any:
    """Return the response of an `http` or `https` address. Raises `ValueError` for any other scheme."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in {"http", "https"}:
        raise ValueError(parts.scheme)
    certificates = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE") or None
    context = ssl.create_default_context(cafile=certificates) if parts.scheme == "https" else None
    opener = urllib.request.build_opener(*([urllib.request.HTTPSHandler(context=context)] if context else ()))
    opener.addheaders = [("Accept", accept), ("User-Agent", "promptmill")]
    if parts.username is not None:
        name, secret = (urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
        opener.addheaders.append(("Authorization", f"Basic {b64encode(f'{name}:{secret}'.encode()).decode()}"))
        address = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return opener.open(address, timeout=_SILENCE_S)


def _save(answer: Any, target: Path, progress: Callable[[int], None]) -> None:
    there = 0
    with target.open("wb") as file:
        while piece := answer.read(_PIECE):
            file.write(piece)
            there += len(piece)
            progress(there)


def _host(index: str) -> str:
    return urllib.parse.urlsplit(index).hostname or "the package index"
