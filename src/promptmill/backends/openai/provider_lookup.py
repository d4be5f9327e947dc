"""Look up the provider profile of an endpoint: by host or port, or by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import SplitResult

from promptmill.backends.openai.error_words import Cause
from promptmill.backends.openai.provider_profile import ProviderProfile
from promptmill.backends.openai.providers import DASHSCOPE_PHRASES, PROFILES
from promptmill.core.wording import close_matches

_TELLING = len("code=12345")


def _agreed() -> Mapping[str, Cause]:
    """Return the codes that no two profiles read differently and that are too long to be anything else."""
    found: dict[str, Cause] = {}
    differing: set[str] = set()
    for profile in PROFILES:
        for code, cause in profile.codes.items():
            if found.setdefault(code, cause) is not cause or len(code) < _TELLING:
                differing.add(code)
    return MappingProxyType({code: cause for code, cause in found.items() if code not in differing})


# Every host that is not listed: sent as given. A gateway passes on what those behind it say.
PLAIN = ProviderProfile("plain", public=False, codes=_agreed(), phrases=DASHSCOPE_PHRASES)
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"qwen": "dashscope", "gemini": "google", "moonshot": "kimi", "zhipu": "glm", "zai": "glm", "claude": "anthropic"}
)


def profile_at(url: SplitResult) -> ProviderProfile:
    """Return the profile of the endpoint at `url`, by its host or well-known local port."""
    host, port = url.hostname or "", url.port
    for profile in PROFILES:
        if any(host == known or host.endswith("." + known) for known in profile.hosts):
            return profile
        if port in profile.ports:
            return profile
    return PLAIN


def profile_named(name: str) -> ProviderProfile:
    """Return the profile called `name`; `PLAIN` for an unknown one."""
    return next((profile for profile in PROFILES if profile.name == name), PLAIN)


def profile_of(name: str) -> ProviderProfile:
    """Return the profile that `provider: NAME` means. Raises `KeyError` with what to write instead."""
    wanted = name.strip().lower()
    found = profile_named(_ALIASES.get(wanted, wanted))
    if found is PLAIN:
        known = [profile.name for profile in PROFILES]
        near = close_matches(wanted, [*known, *_ALIASES], n=1, cutoff=0.5)
        raise KeyError(f"did you mean {near[0]}?" if near else f"known providers: {', '.join(known)}.")
    return found


def listed(environ: Mapping[str, str] = os.environ) -> list[tuple[str, str, str, bool]]:
    """Return `(name, base URL, variable of the key, whether it is set)` of each profile."""
    return [
        (profile.name, profile.base_url, profile.key_env, bool(environ.get(profile.key_env, "").strip()))
        for profile in PROFILES
    ]
