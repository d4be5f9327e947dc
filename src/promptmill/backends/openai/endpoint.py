"""The URL, key and provider profile of each endpoint, and the rules that decide which key an endpoint gets."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import SplitResult, urlsplit, urlunsplit

from promptmill.backends.openai.dialects import DIALECTS, chat, gemini
from promptmill.backends.openai.dialects.deciding import COMPLETE, Deciding
from promptmill.backends.openai.key_text import key_problem
from promptmill.backends.openai.providers import (
    LOCAL,
    PLAIN,
    DecisionLimits,
    ProviderProfile,
    deciding,
    profile_at,
    profile_named,
    profile_of,
)
from promptmill.backends.openai.renewed_key import KeyCommand, RenewedKey
from promptmill.config.own_secrets import CUSTOM_HEADERS, custom_headers
from promptmill.config.settings import OF_ACCOUNT, USUAL_KEYS, OpenAISettings
from promptmill.core.errors import Named, PromptmillError, config_error, looks_like_key, redact
from promptmill.core.request import EMBEDDINGS, FileKind
from promptmill.core.wording import close_matches, did_you_mean
from promptmill.images.files import UNLIMITED, FileLimits

if TYPE_CHECKING:
    from promptmill.config.model_config import ModelConfig  # worker processes do not need YAML


FilesTaken: TypeAlias = Mapping[FileKind, FileLimits]
_BLOCK = "backend_configs.openai"
_SWITCHES = (
    "name the endpoint in the configuration file or in PROMPTMILL_ENDPOINTS, or start the server with "
    "`promptmill serve --trust-client`"
)
_VARIABLE = re.compile(r"[A-Z]{1,20}|[A-Z][A-Z0-9]{0,14}(_[A-Z0-9]{1,15})+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_FRAMING = frozenset(
    {"content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "expect", "te", "trailer"}
)
# Headers that only the operator may set, because they may select another server than the one that may get the key.
_OF_THE_OPERATOR = frozenset({"host", "proxy-authorization", "proxy-connection", "forwarded", "x-forwarded-host"})
WHERE = "backend_configs.openai.base_url"
COMPLETIONS = chat.PATH
_LIKE = "write it like http://localhost:8000/v1."
# The permitted characters of a host. With others, URL parsers may disagree about the end of the host.
_HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+(%[\w.-]+)?")
_PORT = re.compile(r":([^/:@\]]*)(?=/|$)")
_SCHEME = re.compile(
    r"^(https?)(?::/?(?!/)|:/{3,}|//+)(?=[\w\[])", re.IGNORECASE
)  # HTTP:/X, HTTP:X, HTTP:///X, HTTP//X
_OTHER_API = re.compile(r"(/completions|/embeddings|/models)$")
_LIST = "/models"  # every API lists its models there, so this path shows no dialect
_ANY_PATH = "|".join(sorted({dialect.PATH for dialect in DIALECTS.values()}))
_REQUESTS = re.compile(f"({_ANY_PATH})$")
_WRITTEN_REQUESTS = re.compile(rf"(?<=/v\d)({_ANY_PATH})$|{COMPLETIONS}$")  # other endings may be names of gateways
_COHERES_LAYER = re.compile("/compatibility/v1$")  # Cohere's API for OpenAI's clients has only chats and text vectors
KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "x-goog-api-key"})
"""The headers that may carry a key, in lower case."""
_OF_OPENAI = frozenset({"openai", "responses"})
"""OpenAI's dialects. Their servers may constrain an answer by a schema without showing the schema to the model."""
# The placeholder of a renewed key in the headers of an endpoint.
_KEY = "{api_key_command}"
_ACCOUNT_TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.|ya29\.")  # tokens of Entra ID (JSON Web Tokens) and of Google Cloud
_ONLY_API_KEYS = frozenset({"api-key", "x-goog-api-key"})
_AROUND = "\"'`<>()\u201c\u201d\u2018\u2019\u00ab\u00bb,;"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address and credentials of one endpoint. `headers` contain the key; no message may contain `secrets`.

    `key_note`: the reason why an existing key is not sent, for errors. `own`: the endpoint is on this machine or in its
    local network, so it is probably one of the operator's own servers.
    """

    url: str
    name: str
    headers: Mapping[str, str]
    secrets: tuple[str, ...]
    profile: ProviderProfile
    key_note: str = ""
    own: bool = False
    key_source: str = ""
    """The source of the key as text, such as "`api_key` of the configuration"; empty if no key is sent."""
    dialect: str = "openai"
    """The API of the endpoint: a name in `dialects.DIALECTS`."""
    renewed: RenewedKey | None = None
    """The renewed key, which replaces `_KEY` in `headers`; None if `headers` are complete."""

    @property
    def hidden(self) -> tuple[str, ...]:
        """The secrets that no message may contain."""
        return self.secrets if self.renewed is None else (*self.renewed.secrets, *self.secrets)

    def with_key(self, key: str) -> Endpoint:
        """Return the endpoint with the renewed key `key` in its headers.

        Azure and Google take a token of their accounts only as a bearer token, not in the header for an API key.
        """
        headers = {name: value.replace(_KEY, key) for name, value in self.headers.items()}
        if _ACCOUNT_TOKEN.match(key):
            headers = {name: value for name, value in headers.items() if name.lower() not in _ONLY_API_KEYS}
            headers.setdefault("Authorization", f"Bearer {key}")
        return replace(self, headers=headers, secrets=(key, *self.secrets), renewed=None)

    @property
    def base_url(self) -> str:
        """The common prefix of the endpoint's URLs, such as `http://localhost:8000/v1`."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=_REQUESTS.sub("", parts.path), query=""))


def endpoints(config: ModelConfig, environ: Mapping[str, str] = os.environ) -> list[Endpoint]:
    """Return the endpoints of the configuration's `base_url`, at least one.

    Raises `PromptmillError` (`invalid_config`) for a URL or key that cannot work.
    """
    settings = config.settings.backend_configs.openai
    trusted = set(map(_origin, addresses(config.operator.backend_configs.openai)))
    found = [
        _endpoint(given, config, environ, key, trusted) for given in _required_urls(settings) for key in _keys(settings)
    ]
    if not any(_needs_renewed(endpoint) for endpoint in found):
        return found
    renewed = RenewedKey(KeyCommand(settings), settings.max_delay)
    return [replace(endpoint, renewed=renewed) if _needs_renewed(endpoint) else endpoint for endpoint in found]


def _needs_renewed(endpoint: Endpoint) -> bool:
    return any(_KEY in value for value in endpoint.headers.values())


def apis(settings: OpenAISettings) -> set[tuple[str, str]]:
    """Return the provider and the dialect at each address of the settings. Raises the same errors as `endpoints`."""
    found: set[tuple[str, str]] = set()
    for given in _required_urls(settings):
        url = parsed(given)
        profile = _named_profile(settings.provider) if settings.provider else profile_at(url)
        dialect = _dialect_of(url.path, settings, profile)
        found.add((deciding(profile, dialect).name, dialect))
    return found


def decisions(settings: OpenAISettings) -> DecisionLimits | None:
    """Return the limits of a request (the smallest of all addresses) if the models decide; None if the models write.
    Raises the same errors as `endpoints`, and `invalid_config` if some models decide and others write."""
    limits: list[DecisionLimits] = []
    for name, api in (found := apis(settings)):
        if isinstance(dialect := DIALECTS[api], Deciding):
            limits.append(dialect.limits(profile_named(name)))
    if limits and len(limits) < len(found):
        raise config_error(WHERE, "has models that decide and models that write; name them as two models.")
    if not limits:
        return None
    return DecisionLimits(*map(min, zip(*(astuple(one) for one in limits), strict=True)))


def files_taken(settings: OpenAISettings) -> FilesTaken:
    """Return the limits of the files that the endpoints are known to take. Raises the same errors as `endpoints`."""
    return file_limits_of([(profile_named(name), dialect) for name, dialect in apis(settings)], settings.files)


def shows_forms(settings: OpenAISettings) -> bool:
    """Return whether models at all addresses are shown the answer's form. Raises the same errors as `endpoints`."""
    return all(api not in _OF_OPENAI or profile_named(name).json.is_shown for name, api in apis(settings))


def _keys(settings: OpenAISettings) -> list[str]:
    """Return the configured keys; `[""]` without keys."""
    given = settings.api_key if isinstance(settings.api_key, list) else [settings.api_key]
    keys = [key.get_secret_value() for key in given if key is not None]
    return [key for key in keys if key.strip()] or [""]


def _required_urls(settings: OpenAISettings) -> list[str]:
    urls = _urls(settings)
    if not urls and settings.provider and (example := _named_profile(settings.provider).site.example):
        raise config_error(
            f"{_BLOCK}.base_url",
            f"is missing: {settings.provider} has several addresses; give yours, such as ",
            Named("base_url", example),
        )
    if not urls:
        raise config_error(
            f"{_BLOCK}.base_url",
            "is missing; set it to your endpoint, such as http://localhost:8000/v1, or set `provider`.",
        )
    return urls


def addresses(settings: OpenAISettings) -> list[SplitResult]:
    """Return the addresses in the settings, perhaps none. Raises the same errors as `endpoints`."""
    return list(map(parsed, _urls(settings)))


def _urls(settings: OpenAISettings) -> list[str]:
    """Return the URLs of the settings: `base_url`, or, if it is empty, the address in the provider's profile."""
    if settings.base_url or settings.provider is None:
        return settings.base_url
    base_url = _named_profile(settings.provider).site.base_url
    return [base_url] if base_url else []


def _named_profile(provider: str) -> ProviderProfile:
    try:
        return profile_of(provider)
    except KeyError as error:
        raise config_error(f"{_BLOCK}.provider", f"unknown provider; {error.args[0]}") from None


def _dialect_of(path: str, settings: OpenAISettings, profile: ProviderProfile) -> str:
    """Return the dialect of an endpoint: from the configuration, from a complete path, or from the provider."""
    if settings.dialect is not None:
        return _known_dialect(settings.dialect)
    if isinstance(DIALECTS[profile.dialect], Deciding):
        return profile.dialect
    for name, dialect in DIALECTS.items():
        if path.endswith(dialect.PATH) and dialect.PATH != _LIST:
            if isinstance(dialect, Deciding):
                raise _no_dialect(path)
            return name
    if path.endswith("/anthropic/v1"):  # the base URL of Claude's own API at Bedrock and other gateways
        return "anthropic"
    if settings.provider is None and path.endswith(gemini.OPENAI_LAYER):
        return "openai"
    return profile.dialect


def _known_dialect(name: str) -> str:
    if name not in DIALECTS:
        meant = did_you_mean(name, list(DIALECTS), f"known APIs: {', '.join(DIALECTS)}.")
        raise config_error(f"{_BLOCK}.dialect", f"there is no API {redact(name[:40])}; {meant}")
    return name


def _no_dialect(path: str) -> PromptmillError:
    """Return the error for a missing dialect, if several APIs for decisions share the URL's path."""
    names = [name for name, dialect in DIALECTS.items() if isinstance(dialect, Deciding)]
    shown = path[path.rindex("/") :]
    said = f"is missing: several APIs share the path {shown}, so say which one it is: {', '.join(names)}."
    return config_error(f"{_BLOCK}.dialect", said)


def _for_requests(path: str, name: str, profile: ProviderProfile) -> str:
    """Return the path of requests in the dialect `name`, given the path that the user wrote."""
    dialect, base = DIALECTS[name], _WRITTEN_REQUESTS.sub("", path)
    if dialect is chat and profile.dialect == "gemini":  # Gemini's chat completions have a separate path
        return gemini.base(base) + gemini.OPENAI_LAYER + COMPLETIONS
    if path.endswith(dialect.PATH) or (isinstance(dialect, Deciding) and COMPLETE.search(path)):
        return path
    return dialect.base(base) + dialect.PATH


def _endpoint(
    given: str, config: ModelConfig, environ: Mapping[str, str], configured: str, trusted: Collection[str]
) -> Endpoint:
    """Return the endpoint at the URL `given`. `trusted`: the origins that the operator named."""
    settings = config.settings.backend_configs.openai
    url = parsed(given)
    host_profile = profile_at(url)
    profile = _named_profile(settings.provider) if settings.provider else host_profile
    is_own = _is_own(url, profile)
    if profile is PLAIN and is_own:
        profile = LOCAL
    name = _dialect_of(url.path, settings, profile)
    profile = deciding(profile, name)
    url = url._replace(path=_for_requests(url.path, name, profile))
    named = _origin(url) in trusted or config.trust_client
    for_environment = (
        named or (host_profile.site.public and url.scheme == "https") or _is_loopback(url) or _is_listed(url, environ)
    )
    key, source, note = _key_of(config, environ, configured, host_profile, named=named, for_environment=for_environment)
    own = settings.headers if named or "headers" in config.from_call else {}
    of_call = "headers" in config.from_call and not config.trust_client
    if key:
        if wrong := key_problem(key.strip()):
            if configured:
                raise config_error(f"{_block(config)}.api_key", wrong)
            raise config_error("", f"the key in the environment variable {source.split()[0]} {wrong}")
        key = key.strip()
    of_client = {}
    if config.trust_client or "api_key" not in config.from_call:  # otherwise, the key belongs to the caller's account
        of_client = _of_openais_client(environ, host_profile, has_key=bool(key), named=named, dialect=name)
    headers = _over(
        _over(_headers(url, key, profile, name), of_client),
        {
            _name(header, of_call=of_call): _header(f"{_BLOCK}.headers.{header}", value.get_secret_value())
            for header, value in own.items()
        },
    )
    lasting = [key] if key and key != _KEY else []
    secrets = (*lasting, *of_client.values(), *(value.get_secret_value() for value in own.values()))
    if not source and KEY_HEADERS & {header.lower() for header in own}:
        source = "`headers` of the configuration"
    return Endpoint(urlunsplit(url), url.netloc, headers, secrets, profile, note, is_own, source, name)


def _of_openais_client(
    environ: Mapping[str, str], host_profile: ProviderProfile, *, has_key: bool, named: bool, dialect: str
) -> dict[str, str]:
    """Return the headers that OpenAI's client reads from the environment, if they may be meant for this endpoint.

    The headers for organization and project are sent only to OpenAI, together with a key. Custom headers are also sent
    to an endpoint that the operator named, if it speaks OpenAI's API and belongs to no provider, such as a gateway.
    """
    account = host_profile.site.header_env
    headers = {
        header: _header(variable, environ[variable])
        for header, variable in (account.items() if has_key else ())
        if environ.get(variable)
    }
    is_openais = has_key and bool(account)
    is_gateway = named and not host_profile.site.public and dialect in _OF_OPENAI
    if is_openais or is_gateway:
        custom = {
            _name(name, source=CUSTOM_HEADERS): _header(CUSTOM_HEADERS, value)
            for name, value in custom_headers(environ).items()
        }
        headers = _over(headers, custom, source=CUSTOM_HEADERS)
    return headers


def _key_of(
    config: ModelConfig,
    environ: Mapping[str, str],
    configured: str,
    host_profile: ProviderProfile,
    *,
    named: bool,
    for_environment: bool,
) -> tuple[str, str, str]:
    """Return the key for an endpoint, its source, and the reason why an existing key is not sent.

    `named`: the operator named the endpoint. `for_environment`: it may get a key from the environment.
    """
    settings = config.settings.backend_configs.openai
    if configured:
        if "api_key" in config.from_call or named:
            return configured, "`api_key` of the configuration", ""
        return "", "", f"The configured key is not sent to an endpoint that only the call named: {_SWITCHES}."
    if settings.api_key_command:
        if named:
            return _KEY, "the output of `api_key_command`", ""
        return "", "", f"The key of `api_key_command` is not sent to an endpoint that only the call named: {_SWITCHES}."
    if not (key_and_source := _from_environment(settings, config, environ, host_profile)):
        return "", "", ""
    if config.keyless:
        return "", "", "No key is sent to a server that `backend: auto` found: name it as `base_url` to send one."
    if for_environment:
        return *key_and_source, ""
    return "", "", f"The key in the environment is not sent to an endpoint that only the call named: {_SWITCHES}."


def _headers(url: SplitResult, key: str, profile: ProviderProfile, dialect: str) -> dict[str, str]:
    """Return the headers of each request, without the headers that the user configured. `key` may be empty."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    is_azure = (url.hostname or "").endswith(".openai.azure.com")
    if key and is_azure:
        headers |= {"api-key": key}
    elif key and dialect != profile.dialect:
        headers |= {"Authorization": f"Bearer {key}"}  # in addition: gateways may check this header or the dialect's
    if not (is_azure and dialect in _OF_OPENAI):
        headers |= DIALECTS[dialect].headers(key)
    return headers


def _from_environment(
    settings: OpenAISettings, config: ModelConfig, environ: Mapping[str, str], host_profile: ProviderProfile
) -> tuple[str, str] | None:
    """Return the environment's key for an endpoint on a host of `host_profile`, and the name of its source."""
    named = settings.api_key_env
    if named:
        if "api_key_env" in config.from_call and not config.trust_client and not named.endswith("_API_KEY"):
            # any other name is refused, because a call could read every secret in the environment
            raise config_error(f"{_BLOCK}.api_key_env", "from a call may only name a variable that ends in _API_KEY.")
        if not environ.get(named, "").strip():
            raise config_error(
                f"{_block(config)}.api_key_env",
                f"{_variable(named)} is not set; `export` it in this shell, or name another.",
            )
        return environ[named], f"{named} in the environment"
    if settings.provider and host_profile.site.key_env and (key := environ.get(host_profile.site.key_env, "").strip()):
        return key, f"{host_profile.site.key_env} in the environment"  # used only for this provider's host
    usual = [name for name in USUAL_KEYS if environ.get(name)]
    over = f" (which takes precedence over {usual[1]})" if usual[1:] else ""
    return (environ[usual[0]], f"{usual[0]} in the environment{over}") if usual else None


def _block(config: ModelConfig) -> str:
    return f"models.{config.name}.openai" if config.name in config.operator.models else _BLOCK


def _variable(name: str) -> str:
    # a name that looks like a key is not shown: the user may have written the key instead of the variable's name
    shows = _VARIABLE.fullmatch(name) and not looks_like_key(name)
    return f"the environment variable {name}" if shows else "the environment variable that it names"


def _name(name: str, *, of_call: bool = False, source: str = f"{_BLOCK}.headers") -> str:
    if not _HEADER_NAME.fullmatch(name) or name.lower() in _FRAMING:
        raise config_error(source, "contains an invalid or reserved header name; correct or remove it.")
    if of_call and name.lower() in _OF_THE_OPERATOR:
        raise config_error(f"{_BLOCK}.headers", f"a call may not set {name}; leave it out, or {_SWITCHES}.")
    return name


def _over(headers: Mapping[str, str], own: Mapping[str, str], *, source: str = f"{_BLOCK}.headers") -> dict[str, str]:
    """Return `headers` updated with `own`. Header names are case-insensitive."""
    names = {name.lower() for name in own}
    if len(names) < len(own):
        raise config_error(source, "contains the same name twice; header names are case-insensitive.")
    return {name: value for name, value in headers.items() if name.lower() not in names} | dict(own)


def _header(source: str, value: str) -> str:
    value = value.strip()
    if not value.isascii() or not value.isprintable():
        raise config_error(
            source, "contains a line break or a character that HTTP headers cannot carry; copy it again."
        )
    return value


def _origin(url: SplitResult) -> str:
    return f"{url.scheme}://{url.netloc.lower()}"


def image_types_of(endpoints: Sequence[Endpoint]) -> frozenset[str] | None:
    """Return the media types that all endpoints support; None if the types are not limited."""
    known = [types for endpoint in endpoints if (types := endpoint.profile.images.types) is not None]
    return frozenset.intersection(*known) if known else None


def file_limits_of(places: Iterable[tuple[ProviderProfile, str]], own: Collection[FileKind]) -> FilesTaken:
    """Return the limits of the kinds of files that all endpoints with these profiles and dialects are known to take.

    `own`: the kinds that the endpoints take according to the configuration.
    """
    taken = [
        {
            kind: limits
            for kind in DIALECTS[dialect].FILES
            if (limits := profile.files.get(kind) or (UNLIMITED[kind] if kind in own else None))
        }
        for profile, dialect in places
    ]
    common = set.intersection(*map(set, taken)) if taken else set()
    return {kind: min((one[kind] for one in taken), key=lambda limits: limits.size) for kind in common}


def _is_loopback(url: SplitResult) -> bool:
    address = ip_address_of(url.hostname or "")
    # other names do not count: x.localhost may resolve to another machine
    return url.hostname == "localhost" or (address is not None and address.is_loopback)


def _is_own(url: SplitResult, profile: ProviderProfile) -> bool:
    host = url.hostname or ""
    return is_near(host) and (not profile.site.hosts or ip_address_of(host) is not None)


def elsewhere(endpoint: Endpoint, path: str) -> Endpoint:
    """Return the endpoint for requests that are not chats, such as `/embeddings`."""
    url = urlsplit(endpoint.url)
    base = _REQUESTS.sub("", url.path.removesuffix("/"))
    if endpoint.dialect == "gemini":
        keys = [value for name, value in endpoint.headers.items() if name.lower() == "x-goog-api-key"]
        more = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        endpoint = replace(endpoint, headers={**endpoint.headers, **more})
        base += gemini.OPENAI_LAYER
    if path != EMBEDDINGS:
        base = _COHERES_LAYER.sub("/v2", base)
    return replace(endpoint, url=urlunsplit(url._replace(path=base + path)), dialect="openai")


def endpoints_of_call(config: ModelConfig, environ: Mapping[str, str]) -> list[str]:
    """Return the configuration's endpoints that a call chose and the operator did not name, without their queries.

    If the call has its own key or headers, the operator's endpoints are included, too. Endpoints on this machine are no
    exception, because programs of other users, containers and tunnels listen on its loopback interface too.
    """
    own = config.file or config.operator
    blocks = [config.operator.backend_configs.openai, own.backend_configs.openai]
    blocks += [model.openai for model in own.models.values() if model.openai is not None]
    named: set[str] = set()
    for block in blocks:
        with contextlib.suppress(PromptmillError):  # a model with an invalid URL in the configuration file is ignored
            named.update(map(_origin, addresses(block)))
    is_of_call = bool(OpenAISettings.marked(OF_ACCOUNT) & config.from_call)
    return [
        f"{url.scheme}://{url.netloc}{_WRITTEN_REQUESTS.sub('', url.path) or '/v1'}"
        for url in addresses(config.settings.backend_configs.openai)
        if is_of_call
        or not (_origin(url) in named or _is_listed(url, environ) or _is_allowed(url, own.allowed_endpoints))
    ]


def _is_allowed(url: SplitResult, listed: Sequence[str]) -> bool:
    """Return whether `allowed_endpoints` contains the address, its host with the port, or its host."""
    names = {url.hostname, url.netloc.lower()}
    return any(
        _origin(parsed(entry)) == _origin(url) if "://" in entry else entry.strip().lower() in names for entry in listed
    )


def _is_listed(url: SplitResult, environ: Mapping[str, str]) -> bool:
    listed = {host.strip().lower() for host in environ.get("PROMPTMILL_ENDPOINTS", "").split(",")}
    return bool(listed & {url.hostname, url.netloc.lower()})


def parsed(url: str) -> SplitResult:
    """Parse a user's `base_url`, which may be a host, `…/v1`, or the complete URL of requests.

    Raises `PromptmillError` (`invalid_config`) for an invalid URL, and suggests the most likely URL.
    """
    url = url.strip()
    if slip := _slip(url):
        raise config_error(WHERE, slip)
    try:
        if "://" not in url:  # users write localhost:11434, or api.example.com/v1, without the scheme
            url = f"{'http' if is_near(urlsplit(f'//{url}').hostname or '') else 'https'}://{url}"
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise config_error(WHERE, _no_port(url, error)) from None
    if port == 0 or not parts.hostname:
        raise config_error(WHERE, f"{_display(url)}has no {'host' if port else 'port or host'}; {_LIKE}")
    if not _HOST.fullmatch(parts.hostname):
        raise config_error(WHERE, f"{_display(url)}contains an invalid host name; {_LIKE}")
    if parts.username is not None or parts.password is not None:
        raise config_error(WHERE, "contains a user name or password; put the key into `api_key_env` or `headers`.")
    path = parts.path.rstrip("/")
    if (other := _OTHER_API.search(path)) and not path.endswith(COMPLETIONS) and "/v1/" in path:
        there = _display(f"{parts.scheme}://{parts.netloc}{path.removesuffix(other[1])}")
        raise config_error(WHERE, f"ends in {other[1]}, which is not the path of chats; write {there.rstrip()}.")
    return parts._replace(netloc=parts.netloc.lower(), path=path, fragment="")


def is_near(host: str) -> bool:
    """Return whether `host` is this machine or in its local network."""
    if (address := ip_address_of(host)) is not None:
        return address.is_private  # also true for loopback
    return "." not in host or host.endswith((".local", ".internal", ".lan", ".home.arpa"))


def ip_address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return `host` as an IP address; None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _slip(url: str) -> str:
    """Return the mistake in a mistyped or badly copied URL, with a suggested URL; `""` for a URL without a mistake."""
    if not url:
        return "is empty; write the server's address, like http://localhost:8000/v1."
    if variable := re.search(r"\$\{?(\w+)", url):
        return (
            f"contains ${variable[1]} unexpanded: in a shell put it into double quotes, in a file write "
            f"${{{variable[1]}}}."
        )
    meant = f"localhost:{url[:12]}" if url.isdigit() else _straightened(url)
    if meant != url:
        likely = _display(meant).rstrip()
        return f"{_display(url)}is mistyped; {f'did you mean {likely}?' if likely else _LIKE}"
    if "://" in url and not url.lower().startswith(("http://", "https://")):
        return f"{_display(url)}should start with http:// or https://; {_LIKE}"
    return ""


def _straightened(url: str) -> str:
    """Return `url` without common mistakes: copied quotes and spaces, a mistyped or doubled scheme."""
    url = "".join(url.strip(_AROUND).split())
    url = re.sub(r"https?://(?=https?(?::/|//))", "", url, count=1)
    if not re.match(r"https?:\d+(/|$)", url):  # https:8000 may be a host and a port
        url = _SCHEME.sub(lambda match: f"{match[1].lower()}://", url, count=1)
    name, colon, rest = url.partition("://")
    if colon and name.lower() not in {"http", "https"}:
        near = close_matches(name.lower(), ("https", "http"), n=1, cutoff=0.6)
        return f"{near[0]}://{rest}" if near else url
    return url


def _no_port(url: str, error: ValueError) -> str:
    if "@" in url:  # the digits may be part of a password
        return f"is not a URL; {_LIKE}"
    port = _PORT.search(url.partition("://")[2] or url)
    if port and "out of range" in str(error):
        return f"port {port[1][:12]} is above 65535."
    # a longer word is not shown: it may be a password, if the user forgot the @ after it
    shown = "" if port is None or len(port[1]) > 5 else f"{_display(url)}"
    return f"{shown}{'is not a URL' if port is None else 'has a port that is not a number'}; {_LIKE}"


def _display(url: str) -> str:
    """Return a URL and a space, as the start of a sentence; `""` if the URL may contain a password."""
    url = url.partition("?")[0]
    return "" if "@" in url or redact(url) != url else f"{url[:100]} "
