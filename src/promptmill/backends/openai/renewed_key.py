"""A key that expires, such as a cloud's token, which is valid for an hour. `api_key_command` prints the key.

A key is used until its expiry, if the command states an expiry; the command is run again shortly before. A key that the
endpoint refuses (`refusals.refuses_key`) is renewed, too. However many requests need a new key, the command runs
once for all of them. A key may change while requests wait for their turn, so a refused request is sent again with each
newer key. If a newer key is refused, too, and no request was accepted between the two refusals, the second refusal is
final.

A command that fails is run again with growing waits. Meanwhile, requests use the old key while it is valid.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any, TypeAlias

import orjson

from promptmill.backends.openai.key_text import key_problem
from promptmill.backends.protocol import Key
from promptmill.config.own_secrets import secrets_of, without_random
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError, redact, without_controls
from promptmill.system.subprocesses import Output, how_it_ended, output_of

_LIMIT_S = 30.0  # google-auth's limit for such programs; on a cold machine, `az` needs up to 10 s
_LARGEST_OUTPUT = 256 << 10  # bytes; the largest tokens, of Entra ID with many groups, have 20 KB
_EXCERPT = 300  # the last characters of a failed command's messages, which end with the cause
_FIRST_TRIES = 3  # attempts to get the first key; if they fail, a mistake is likelier than an outage
# azure-identity renews 5 minutes ahead. A key that is valid for minutes only is renewed after four fifths of that time.
_AHEAD_S, _AHEAD = 300.0, 0.2
# The names of key and expiry in JSON: kubectl's ExecCredential, `gcloud config config-helper`, `az`, OAuth 2.0.
_TOKENS = ("token", "access_token", "accessToken", "api_key", "apiKey", "id_token")
_LIFETIMES = ("expires_in", "expiresIn")
_EXPIRIES = (
    *("expirationTimestamp", "expires_on", "expiresOn", "expires_at", "expiresAt", "token_expiry"),
    *("expiration", "Expiration", "expiration_time", "expirationTime", "expiry", "expireTime"),
)
_INNER = ("status", "credential")
_MILLISECONDS = 1e11  # larger numbers are milliseconds, because as seconds, this would be the year 5138
_LOG = logging.getLogger(__name__)
Run: TypeAlias = Callable[[Sequence[str], float, int], Awaitable[Output]]
Sleep: TypeAlias = Callable[[float], Awaitable[None]]


class NoKeyError(PromptmillError):
    """The command printed no key."""


class KeyCommand:
    """Runs `api_key_command`. An instance can be the argument `fetch` of `RenewedKey`."""

    def __init__(
        self,
        settings: OpenAISettings,
        *,
        run: Run = output_of,
        clock: Callable[[], float] = time.time,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`clock`: Unix time."""
        self._command = settings.api_key_command or ()
        self._settings, self._run, self._clock, self._sleep = settings, run, clock, sleep
        self._name = f"`api_key_command` ({PurePath(self._command[0]).name:.40})"

    async def __call__(self, before: str) -> Key:
        """Return the key that the command prints. `before`: the previous key, or `""`. Raises `NoKeyError`.

        For the first key, few attempts are made; for a later key, failures may last `patience` seconds.
        """
        settings, began, failures = self._settings, self._clock(), 0
        while True:
            try:
                return await self._once(before)
            except NoKeyError as error:
                failures += 1
                is_mistake = not before and (failures == _FIRST_TRIES or error.code is Code.INVALID_CONFIG)
                if is_mistake or self._clock() - began > settings.patience:
                    raise
                _LOG.warning("%s It is run again.", error.message)
            await self._sleep(min(settings.max_delay, settings.base_delay * 2 ** min(failures - 1, 30)))

    async def _once(self, before: str) -> Key:
        try:
            output = await self._run(self._command, _LIMIT_S, _LARGEST_OUTPUT)
        except OSError as error:
            why = "was not found" if isinstance(error, FileNotFoundError) else f"cannot run: {error.strerror}"
            raise NoKeyError(
                Code.INVALID_CONFIG, f"{self._name} {why}.", "Correct the program's path; it is run without a shell."
            ) from None
        if output.status:
            problem = how_it_ended(output.status)
        elif output.status is None:
            problem = f"it did not end within {_LIMIT_S:g} s"
        elif isinstance(key := key_in(output.stdout, self._clock()), Key):
            return key
        else:
            problem = key
        words = output.stdout.decode("utf-8", "replace").split()
        said = without_controls(output.stderr.decode("utf-8", "replace"))
        said = without_random(redact(" ".join(said.split()), (*words, before, *secrets_of(os.environ))))
        said = said if len(said) <= _EXCERPT else f"…{said[-_EXCERPT:]}"
        raise NoKeyError(
            Code.UNAUTHORIZED,
            f"{self._name} printed no key: {problem}{f': {said}' if said else ''}.",
            "Run it in a shell: it must print the key, or a JSON object with the key, without asking anything.",
        )


def key_in(output: bytes, now: float) -> Key | str:
    """Return the key in a command's output, or the problem with the output. `now`: Unix time.

    >>> key_in(b"ya29.a0\\n", 1000.0)
    Key(text='ya29.a0', expires_at=inf)
    >>> key_in(b'{"access_token": "ya29.a0", "expires_in": 3599}', 1000.0)
    Key(text='ya29.a0', expires_at=4599.0)
    """
    text = output.decode("utf-8-sig", "replace").strip()
    if not text:
        return "its output is empty"
    key = Key(text)
    if text[0] in '{"':
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return "its output begins like JSON, but is not"
        key = Key(value) if isinstance(value, str) else _key_in_object(value, now)
        if not key.text:
            signs = " but keys that sign requests" if "AccessKeyId" in value else ""
            return f"its JSON has none of {', '.join(_TOKENS)}{signs}"
    elif (until := _expiry_in_token(text)) is not None:
        key = Key(text, until)
    if problem := key_problem(key.text):
        return f"its output {problem.rstrip('.')}"
    is_long = len(key.text) > _LARGEST_OUTPUT // 2
    return "its output is more than a key" if is_long or " " in key.text else key


def _key_in_object(value: Mapping[str, Any], now: float) -> Key:
    objects = [value, *(inner for name in _INNER if isinstance(inner := value.get(name), dict))]
    tokens = [token for each in objects for name in _TOKENS if isinstance(token := each.get(name), str)]
    lifetimes = [now + seconds for each in objects for name in _LIFETIMES if (seconds := _seconds(each.get(name)))]
    moments = [moment for each in objects for name in _EXPIRIES if (moment := _moment(each.get(name)))]
    token = next((token.strip() for token in tokens if token.strip()), "")
    return Key(token, next(iter([*lifetimes, *moments]), math.inf))


def _seconds(value: object) -> float | None:
    """Return a number, which may be given as text; None for another value."""
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(value, int | float | str) and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
    return None


def _moment(value: object) -> float | None:
    """Return the Unix time of a number or of a text in ISO 8601. A text without a time zone is in local time."""
    if (seconds := _seconds(value)) is not None:
        return seconds / 1000 if seconds > _MILLISECONDS else seconds
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if isinstance(value, str):
            return datetime.fromisoformat(value.strip()).timestamp()
    return None


def _expiry_in_token(token: str) -> float | None:
    """Return the expiry that a JSON Web Token states (`exp`); None for other tokens."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    with contextlib.suppress(ValueError, binascii.Error):
        payload = orjson.loads(binascii.a2b_base64(parts[1].replace("-", "+").replace("_", "/") + "=="))
        return _seconds(payload.get("exp")) if isinstance(payload, dict) else None
    return None


class RenewedKey:
    """A key that is renewed. All requests of this process share it."""

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[Key]],
        failed_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`fetch` takes the last key and returns a new key. After a `PromptmillError`, it is not called for `failed_s`.

        `clock`: Unix time.
        """
        self.fetch = fetch
        self._failed_s, self._clock = failed_s, clock
        self._key = Key("", -math.inf)
        self._renew_at = -math.inf
        self._begun = self._ended = 0
        """The numbers of the fetch that began last and of the fetch that ended last."""
        self._fetching: asyncio.Task[None] | None = None
        self._failed: PromptmillError | None = None
        self._failed_until = -math.inf
        self.secrets: tuple[str, ...] = ()
        """The present and the previous key. No message may contain them."""
        self.accepted = 0
        """The number of requests that were accepted, with any key."""
        self.in_flight = 0
        self._news = asyncio.Event()

    async def current(self) -> str:
        """Return the key for a request. Raises the same errors as `fetch`."""
        now = self._clock()
        if now >= self._key.expires_at:
            await self._fetched()
        elif now >= self._renew_at and now >= self._failed_until:
            self._start()
        return self._key.text

    async def after(self, key: str) -> Key:
        """Return the present key if it differs from `key`; if not, fetch a new key, which may be equal to `key`.

        If a fetch in progress still returns the old key, another fetch follows. Raises the same errors as `fetch`.
        """
        later = self._begun + 1
        while self._key.text == key and self._ended < later:
            await self._fetched()
        return self._key

    async def _fetched(self) -> None:
        if self._failed is not None and self._clock() < self._failed_until:
            raise self._failed
        await asyncio.shield(self._start())

    def _start(self) -> asyncio.Task[None]:
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._fetching

    async def _fetch(self) -> None:
        self._begun += 1
        try:
            key = await self.fetch(self._key.text)
        except PromptmillError as error:
            self._failed, self._failed_until = error, self._clock() + self._failed_s
            raise
        now = self._clock()
        left_s = key.expires_at - now
        if left_s <= 0:  # this machine's clock is wrong, or the key is old: the endpoint decides whether it is valid
            key, left_s = Key(key.text), math.inf
        # a program that prints the same key until the key expires is run again only after the expiry
        ahead_s = 0.0 if key.text == self._key.text else min(_AHEAD_S, _AHEAD * left_s)
        if key.text != self._key.text:
            self.secrets = (key.text, *self.secrets[:1])
        self._key, self._ended, self._renew_at = key, self._begun, now + left_s - ahead_s

    async def aclose(self) -> None:
        """End a fetch in progress, and its program."""
        if self._fetching is not None and not self._fetching.done():
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    def report(self, *, accepted: bool) -> None:
        """Record that a request is no longer in flight."""
        self.in_flight -= 1
        self.accepted += accepted
        self._news.set()

    async def decided(self, accepted: int) -> bool:
        """Return whether more than `accepted` requests have been accepted; if not, wait while any are in flight."""
        while self.accepted == accepted and self.in_flight:
            self._news.clear()
            await self._news.wait()
        return self.accepted > accepted


class KeyUse:
    """The keys with which one request is sent."""

    def __init__(self, renewed: RenewedKey) -> None:
        self._renewed = renewed
        self._key = ""
        self._refusals = 0
        """The number of refused keys since any request was last accepted."""
        self._accepted = renewed.accepted

    async def key(self) -> str:
        """Return the key for the next attempt. Raises the same errors as `RenewedKey.current`."""
        self._key = await self._renewed.current()
        return self._key

    @contextlib.contextmanager
    def sending(self) -> Iterator[Callable[[int], None]]:
        """The context of an attempt. The yielded function gets the status of the response."""
        accepted = False

        def answered(status: int) -> None:
            nonlocal accepted
            accepted = status < 400

        self._renewed.in_flight += 1
        try:
            yield answered
        finally:
            self._renewed.report(accepted=accepted)

    async def is_renewed(self) -> bool:
        """Return, after a refusal, whether a newer key may be accepted. Raises the same errors as `fetch`."""
        renewed = self._renewed
        if renewed.accepted > self._accepted:
            self._refusals, self._accepted = 0, renewed.accepted
        self._refusals += 1
        if self._refusals > 1 and not await renewed.decided(self._accepted):
            return False
        return (await renewed.after(self._key)).text != self._key
