"""Parse `base_url` as people write it; for a mistake, say what was probably meant."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from promptmill.core.errors import config_error, redact
from promptmill.core.wording import close_matches

WHERE = "backend_configs.openai.base_url"
COMPLETIONS = "/chat/completions"
_LIKE = "write it like http://localhost:8000/v1."
_LONGEST_SHOWN = 100
# A sign that ends the name for one reader of URLs may be a part of it for another, so neither is asked.
_HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+(%[\w.-]+)?")
_LONGEST_PORT = 5
_PORT = re.compile(r":([^/:@\]]*)(?=/|$)")
_SCHEME = re.compile(r"(https?)(?::/?(?!/)|:/{3,}|//+)(?=[\w\[])", re.IGNORECASE)  # HTTP:/X, HTTP:X, HTTP:///X, HTTP//X
_OTHER_API = re.compile(r"(/completions|/responses|/messages|/embeddings|/models)$")
_AROUND = "\"'`<>()\u201c\u201d\u2018\u2019\u00ab\u00bb,;"


def parsed(url: str) -> SplitResult:
    """Return the URL of the completions endpoint for what people write: host, `…/v1`, or the whole.

    Raises `PromptmillError` (`invalid_config`) for what cannot be one, with what was most likely meant.
    """
    url = url.strip()
    if slip := _slip(url):
        raise config_error(WHERE, slip)
    try:
        if "://" not in url:  # as people write it: localhost:11434, api.example.com/v1
            url = f"{'http' if is_near(urlsplit(f'//{url}').hostname or '') else 'https'}://{url}"
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise config_error(WHERE, _no_port(url, error)) from None
    if port == 0 or not parts.hostname:
        raise config_error(WHERE, f"{_display(url)}names no {'host' if port else 'port or host'}; {_LIKE}")
    if not _HOST.fullmatch(parts.hostname):
        raise config_error(WHERE, f"{_display(url)}names a host that no computer can have; {_LIKE}")
    if parts.username is not None or parts.password is not None:
        raise config_error(WHERE, "holds a user name or password; put the key into `api_key_env` or `headers`.")
    path = parts.path.rstrip("/")
    if (other := _OTHER_API.search(path)) and not path.endswith(COMPLETIONS) and "/v1/" in path:
        there = _display(f"{parts.scheme}://{parts.netloc}{path.removesuffix(other[1])}")
        raise config_error(WHERE, f"ends in {other[1]}, which is another request than a chat; write {there.rstrip()}.")
    if not path.endswith(COMPLETIONS):
        path = (path or "/v1") + COMPLETIONS
    return parts._replace(path=path, fragment="")


def is_near(host: str) -> bool:
    """Return whether `host` is this machine or in the network around it."""
    if is_address(host):
        return ipaddress.ip_address(host).is_private  # loopback among them
    return "." not in host or host.endswith((".local", ".internal", ".lan", ".home.arpa"))


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _slip(url: str) -> str:
    """Return what is wrong with a URL that was mistyped or not copied as it is, and what is meant; else `""`."""
    if not url:
        return "is empty; write the server's address, like http://localhost:8000/v1."
    if variable := re.search(r"\$\{?(\w+)", url):
        return (
            f"holds ${variable[1]} as it stands: in a shell put it into double quotes, in a file write "
            f"${{{variable[1]}}}."
        )
    if bare := url.strip(_AROUND):
        if bare != url:
            return f"{_display(url)}has quotes, brackets or a comma around it that do not belong to it; {_meant(bare)}"
        if re.search(r"\s", url):
            return f"{_display(url)}has a space in it; {_meant(''.join(url.split()))}"
    if url.isdigit():
        return f"{url[:12]} is a port without a host; did you mean localhost:{url[:12]}?"
    if (scheme := _SCHEME.match(url)) and not re.match(r"https?:\d+(/|$)", url):
        meant = _meant(f"{scheme[1].lower()}://{url[scheme.end() :]}")
        return f"{_display(url)}should have :// behind {scheme[1]}; {meant}"
    if twice := re.match(r"https?://(https?(?::/|//).*)", url):
        return f"{_display(url)}begins with http twice; {_meant(twice[1])}"
    name, colon, rest = url.partition("://")
    if colon and name.lower() not in {"http", "https"}:
        near = close_matches(name.lower(), ("https", "http"), n=1, cutoff=0.6)
        if near:
            return f"{_display(url)}begins with {name[:20]}://; {_meant(f'{near[0]}://{rest}')}"
        return f"{_display(url)}should start with http:// or https://; {_LIKE}"
    return ""


def _no_port(url: str, error: ValueError) -> str:
    if "@" in url:
        return f"is not a URL; {_LIKE}"
    found = _PORT.search(url.partition("://")[2] or url)
    if found and "out of range" in str(error):
        return f"port {found[1][:12]} is above 65535."
    if found and found[1] and not found[1].isdigit():
        if len(found[1]) > _LONGEST_PORT:  # as a password is that stands before a forgotten @
            return f"has no number where its port should be; {_LIKE}"
        return f"{_display(url)}has {found[1]!r} where its port should be, a number; {_LIKE}"
    return f"{_display(url)}is not a URL; {_LIKE}"


def _meant(url: str) -> str:
    return f"did you mean {shown.rstrip()}?" if (shown := _display(url)) else _LIKE


def _display(url: str) -> str:
    """Return a URL and a space, to be followed by what is wrong with it; `""` for one that may hold a password."""
    url = url.partition("?")[0]
    return "" if "@" in url or redact(url) != url else f"{url[:_LONGEST_SHOWN]} "
