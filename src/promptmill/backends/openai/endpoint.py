"""URL, key and provider profile of one endpoint, and which key may go where."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit, urlunsplit

from promptmill.backends.openai.provider_profile import ProviderProfile
from promptmill.backends.openai.providers import profile_at, profile_of
from promptmill.config.environment import USUAL_KEYS
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import config_error, looks_like_key, redact
from promptmill.core.wording import close_matches

if TYPE_CHECKING:
    from promptmill.config.models import ResolvedConfig  # workers need no YAML


_BLOCK = "backend_configs.openai"
_SWITCHES = "name the endpoint in the configuration file or in PROMPTMILL_ENDPOINTS, or start with `--trust-client`"
_VARIABLE = re.compile(r"[A-Z]{1,20}|[A-Z][A-Z0-9]{0,14}(_[A-Z0-9]{1,15})+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_FRAMING = frozenset(
    {"content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "expect", "te", "trailer"}
)
# Behind one address several servers may listen; the operator's key is for the one that the operator named.
_OF_THE_OPERATOR = frozenset({"host", "proxy-authorization", "proxy-connection", "forwarded", "x-forwarded-host"})
# Keys as people paste them.
_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_ASSIGNED = re.compile(r"(?:export\s|set\s|\$env:)|[a-z_]*(?:KEY|TOKEN|SECRET)\s*=\s*\S", re.IGNORECASE)
_KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*_(?:KEY|TOKEN|SECRET)")
_PLACEHOLDER = re.compile(
    r"<.*>|\[.*\]|.*(?:\.\.\.|\u2026).*|(?:sk-)?(?:x{3,}|\*{3,})"
    r"|(?:sk-)?(?:your|my|insert|replace|paste)[-_ ].*(?:key|token|secret|here)"
    r"|.*(?:api[-_ ]?key|key[-_ ]?here|changeme)",
    re.IGNORECASE,
)
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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go. `headers` hold the key; `secrets` must not appear in any message.

    `key_note` says why no key is sent although there is one; it is told when the endpoint refuses. `own`: on this
    machine or in the network around it, so most likely a server of the operator's own.
    """

    url: str
    name: str
    headers: Mapping[str, str]
    secrets: tuple[str, ...]
    profile: ProviderProfile
    key_note: str = ""
    own: bool = False
    key_source: str = ""
    """Where the key comes from, in words; empty when none is sent."""


def endpoints(plan: ResolvedConfig, environ: Mapping[str, str] = os.environ) -> list[Endpoint]:
    """Return the endpoints of the plan's `base_url`, at least one.

    Raises `PromptmillError` (`invalid_config`) for a URL or key that cannot work.
    """
    settings = plan.settings.backend_configs.openai
    trusted = {_origin(parsed(url)) for url in _urls(plan.operator.backend_configs.openai)}
    return [
        _endpoint(url, plan, environ, key, named=_origin(url) in trusted)
        for url in map(parsed, _required_urls(settings))
        for key in _keys(settings)
    ]


def _keys(settings: OpenAISettings) -> list[str]:
    """Return the configured keys, `[""]` when there is none."""
    given = settings.api_key if isinstance(settings.api_key, list) else [settings.api_key]
    keys = [key.get_secret_value() for key in given if key is not None]
    return [key for key in keys if key.strip()] or [""]


def _required_urls(settings: OpenAISettings) -> list[str]:
    urls = _urls(settings)
    if not urls and settings.provider and (hosts := _named_profile(settings.provider).hosts):
        raise config_error(
            f"{_BLOCK}.base_url",
            f"is missing: {settings.provider} has an address for each customer, "
            f"--base-url https://NAME.{hosts[0].lstrip('.')}/…",
        )
    if not urls:
        raise config_error(
            f"{_BLOCK}.base_url",
            "is missing; set it to your endpoint, such as http://localhost:8000/v1, or set `provider`.",
        )
    return urls


def _urls(settings: OpenAISettings) -> list[str]:
    """Return where requests go: `base_url`, else the address of `provider`'s profile."""
    if settings.base_url or settings.provider is None:
        return settings.base_url
    base_url = _named_profile(settings.provider).base_url
    return [base_url] if base_url else []


def _named_profile(provider: str) -> ProviderProfile:
    try:
        return profile_of(provider)
    except KeyError as error:
        raise config_error(f"{_BLOCK}.provider", f"unknown provider; {error.args[0]}") from None


def _endpoint(
    url: SplitResult, plan: ResolvedConfig, environ: Mapping[str, str], configured: str, *, named: bool
) -> Endpoint:
    """Return the endpoint at `url`; `named` says whether the operator named it in the configuration."""
    settings = plan.settings.backend_configs.openai
    host_profile = profile_at(url)
    profile = _named_profile(settings.provider) if settings.provider else host_profile
    named = named or plan.trust_client
    for_environment = (
        named or (host_profile.public and url.scheme == "https") or _is_loopback(url) or _is_listed(url, environ)
    )
    key, source, note = "", "", ""
    if configured:
        if "api_key" in plan.from_call or named:
            key, source = configured, "`api_key` of the configuration"
        else:
            note = f"The configured key is not sent to an endpoint that only the call named: {_SWITCHES}."
    elif found := _from_environment(settings, plan, environ, host_profile):
        if plan.keyless:
            note = "No key is sent to a server that `backend: auto` found: name it as `base_url` to send one."
        elif for_environment:
            key, source = found
        else:
            note = f"The key in the environment is not sent to an endpoint that only the call named: {_SWITCHES}."
    own = settings.headers if named or "headers" in plan.from_call else {}
    of_call = "headers" in plan.from_call and not plan.trust_client
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        if wrong := key_problem(key.strip()):
            if configured:
                raise config_error(f"{_block(plan)}.api_key", wrong)
            raise config_error("", f"the key in the environment variable {source.split()[0]} {wrong}")
        key = key.strip()
        azure = (url.hostname or "").endswith(".openai.azure.com")
        headers |= {"api-key": key} if azure else {"Authorization": f"Bearer {key}"}
    headers = _over(
        headers,
        {
            _name(name, of_call=of_call): _header(f"headers.{name}", value.get_secret_value())
            for name, value in own.items()
        },
    )
    secrets = (*filter(None, [key]), *(value.get_secret_value() for value in own.values()))
    if not source and {"authorization", "api-key"} & {name.lower() for name in own}:
        source = "`headers` of the configuration"
    return Endpoint(urlunsplit(url), url.netloc, headers, secrets, profile, note, _is_own(url, profile), source)


def _from_environment(
    settings: OpenAISettings, plan: ResolvedConfig, environ: Mapping[str, str], host_profile: ProviderProfile
) -> tuple[str, str] | None:
    """Return the key that the environment holds for an endpoint on a host of `host_profile`, and where it is."""
    named = settings.api_key_env
    if named:
        if "api_key_env" in plan.from_call and not plan.trust_client and not named.endswith("_API_KEY"):
            # else a call could read any secret of the environment by its name
            raise config_error(f"{_BLOCK}.api_key_env", "from a call may only name a variable that ends in _API_KEY.")
        if not environ.get(named, "").strip():
            raise config_error(
                f"{_block(plan)}.api_key_env",
                f"{_variable(named)} is not set; `export` it in this shell, or name another.",
            )
        return environ[named], f"{named} in the environment"
    if settings.provider and host_profile.key_env and (key := environ.get(host_profile.key_env, "").strip()):
        return key, f"{host_profile.key_env} in the environment"  # a provider's own variable, and its own host
    usual = [name for name in USUAL_KEYS if environ.get(name)]
    over = f" (which goes before {usual[1]})" if usual[1:] else ""
    return (environ[usual[0]], f"{usual[0]} in the environment{over}") if usual else None


def _block(plan: ResolvedConfig) -> str:
    return f"models.{plan.name}.openai" if plan.name in plan.operator.models else _BLOCK


def _variable(name: str) -> str:
    # a key that somebody took for the name of its variable is not shown
    shows = _VARIABLE.fullmatch(name) and not looks_like_key(name)
    return f"the environment variable {name}" if shows else "the environment variable that it names"


def _name(name: str, *, of_call: bool) -> str:
    if not _HEADER_NAME.fullmatch(name) or name.lower() in _FRAMING:
        raise config_error(f"{_BLOCK}.headers", "holds a name that no header of yours can have; correct or remove it.")
    if of_call and name.lower() in _OF_THE_OPERATOR:
        raise config_error(f"{_BLOCK}.headers", f"a call may not set {name}; leave it out, or {_SWITCHES}.")
    return name


def _over(headers: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return `headers` with `own` over them; capitals in names do not count."""
    names = {name.lower() for name in own}
    if len(names) < len(own):
        raise config_error(f"{_BLOCK}.headers", "holds the same name twice; capitals do not count in names of headers.")
    return {name: value for name, value in headers.items() if name.lower() not in names} | dict(own)


def _header(key: str, value: str) -> str:
    value = value.strip()
    if not value.isascii() or not value.isprintable():
        raise config_error(
            f"{_BLOCK}.{key}", "holds a line break or a character that no HTTP header can carry; copy it again."
        )
    return value


def _origin(url: SplitResult) -> str:
    return f"{url.scheme}://{url.netloc.lower()}"


def _is_loopback(url: SplitResult) -> bool:
    host = url.hostname or ""
    if host == "localhost":  # alone: who is asked for names below it may be anybody
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_own(url: SplitResult, profile: ProviderProfile) -> bool:
    host = url.hostname or ""
    return is_near(host) and (not profile.hosts or is_address(host))


def elsewhere(endpoint: Endpoint, path: str) -> Endpoint:
    """Return the endpoint for another request than one for a chat, such as `/embeddings`."""
    url = urlsplit(endpoint.url)
    base = url.path.removesuffix("/").removesuffix(COMPLETIONS)
    return replace(endpoint, url=urlunsplit(url._replace(path=base + path)))


def _is_listed(url: SplitResult, environ: Mapping[str, str]) -> bool:
    listed = {host.strip().lower() for host in environ.get("PROMPTMILL_ENDPOINTS", "").split(",")}
    return bool(listed & {url.hostname, url.netloc.lower()})


def key_problem(key: str) -> str:
    """Return what is wrong with a key, already stripped, that no endpoint can have given like this; `""` if nothing."""
    if key[:1] in _QUOTES or key[-1:] in _QUOTES:
        curly = " of a web page" if not key[0].isascii() or not key[-1].isascii() else ""
        return f"has quotes{curly} around it that are not part of the key; remove them."
    if re.match(r"bearer\s", key, re.IGNORECASE):
        return "begins with `Bearer `, which is not part of the key and is sent anyway; leave it out."
    if _ASSIGNED.match(key):
        return "holds a whole assignment, NAME=KEY; keep only what is behind the equals sign."
    if "\n" in key or "\r" in key:
        return "holds more than one line; keep the key alone."
    if not key.isascii() or not key.isprintable():
        return "holds a character that no key can have, such as a curly quote or a dash of a web page; copy it again."
    return ""


def names_key_variable(key: str) -> bool:
    """Return whether `key` is the name of the environment variable that holds one, such as `OPENAI_API_KEY`."""
    return _KEY_VARIABLE.fullmatch(key) is not None and not key.startswith(("YOUR", "MY_"))


def is_placeholder_key(key: str) -> bool:
    """Return whether `key` is what an example shows in a key's place, such as `sk-...` or `YOUR_API_KEY`."""
    return len(key) < 60 and _PLACEHOLDER.fullmatch(key) is not None


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
