"""`promptmill models --check`: tests each endpoint of a configuration stage by stage, and reports the results."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from promptmill.backends.model_ends import ModelEnd, listed_end
from promptmill.backends.openai import failures
from promptmill.backends.openai.dialects import DIALECTS
from promptmill.backends.openai.dialects.deciding import Deciding
from promptmill.backends.openai.discovery import ModelList, connected, read_models, which_models
from promptmill.backends.openai.endpoint import COMPLETIONS, Endpoint, endpoints
from promptmill.backends.openai.providers import LOCAL, PLAIN
from promptmill.backends.openai.refusals import SPOKE_TLS, with_key_hint
from promptmill.backends.openai.renewed_key import RenewedKey
from promptmill.backends.openai.reply import read_response, with_reasoning_apart
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.backends.openai.route import proxy_of, trust_of_environment
from promptmill.backends.openai.transport import Pool
from promptmill.backends.protocol import CheckStage
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.form import Choice, Form, Question
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.core.values import JsonObject
from promptmill.core.wording import close_matches, counted

_IN_ALL_S = 15.0
_TLS_PROBE_S = 3.0
# Paths of APIs that users often omit: OpenAI's own, Open WebUI's, Groq's, DashScope's.
_USUAL_PATHS = ("/v1", "/api/v1", "/api", "/openai/v1", "/compatible-mode/v1")
# The smallest `max_tokens` that the Responses API accepts. At Anthropic, reasoning needs more, so none is requested.
_FEWEST_TOKENS = 16
_NO_THINKING: JsonObject = MappingProxyType({"enable_thinking": None, "reasoning_effort": None})
_TRIAL = Form((Question("", "Does the text say yes?", Choice(("yes", "no"))),))
_REASONING_STARTED = "max_tokens or model output limit was reached"


async def diagnose(config: ModelConfig, report: Callable[[CheckStage], None], limit_s: float = _IN_ALL_S) -> None:
    """Test each endpoint of `config`, within `limit_s` seconds in total.

    Raises `PromptmillError` (`invalid_config`) for settings that cannot work.
    """
    stage = _Stages(report)
    try:
        async with asyncio.timeout(limit_s), connected(config) as pool:
            for endpoint in endpoints(config):
                await _Trial(config, endpoint, pool, stage).run()
    except TimeoutError:
        hint = "It accepts connections but does not answer." if stage.name != "connection" else "Is the address right?"
        if stage.name == "key":
            hint = "It was still running `api_key_command`."
        if stage.name == "answer":
            hint = "A model that is still loading may need longer: try again. Otherwise the server hangs."
        stage.failed(PromptmillError(Code.TIMEOUT, f"{stage.host} did not answer within {limit_s:g} s.", hint))


class _Stages:
    """Reports the outcome of the current stage."""

    def __init__(self, report: Callable[[CheckStage], None]) -> None:
        self._report = report
        self.name = self.host = ""

    def begin(self, name: str) -> None:
        self.name = name

    def ok(self, detail: str, name: str = "") -> None:
        self._report(CheckStage(name or self.name, ok=True, detail=redact(detail)))

    def warn(self, detail: str) -> None:
        self._report(CheckStage(self.name, ok=True, detail=redact(detail), warns=True))

    def failed(self, error: PromptmillError, name: str = "") -> None:
        self._report(CheckStage(name or self.name, ok=False, detail=redact(str(error)), code=str(error.code)))


class _Trial:
    """Tests one endpoint stage by stage, and stops at the first stage that fails."""

    def __init__(self, config: ModelConfig, endpoint: Endpoint, pool: Pool, stage: _Stages) -> None:
        self._config, self._endpoint, self._pool, self._stage = config, endpoint, pool, stage
        self._url = urlsplit(endpoint.url)
        self._settings = config.settings.backend_configs.openai
        self._listed: ModelList | PromptmillError | None = None
        stage.host = endpoint.name

    async def run(self) -> None:
        stage, profile = self._stage, self._endpoint.profile
        known = "" if profile is PLAIN or profile is LOCAL else f" ({profile.name})"
        stage.ok(f"{urlunsplit(self._url._replace(query=''))}{known}", "URL")
        if not await self._connects():
            return
        stage.begin("key")
        if self._endpoint.renewed is not None and not await self._has_key(self._endpoint.renewed):
            return
        if self._endpoint.key_source:
            stage.ok(self._endpoint.key_source)
        else:
            stage.ok(f"none is sent. {note}" if (note := self._endpoint.key_note) else "none is sent")
        model = await self._model()
        if model:
            await self._answers(model)

    async def _has_key(self, renewed: RenewedKey) -> bool:
        try:
            await renewed.current()
        except PromptmillError as error:
            self._stage.failed(error)
            return False
        return True

    async def _connects(self) -> bool:
        stage, url = self._stage, self._url
        proxy = proxy_of(self._endpoint.url, trust_env=self._settings.trust_env)
        stage.begin("connection")
        if proxy is not None:
            stage.ok(f"through the proxy {proxy.host}:{proxy.port} that the environment names")
            return True
        started = time.monotonic()
        context = await asyncio.to_thread(trust_of_environment) if url.scheme == "https" else None
        if context is not None:
            stage.begin("TLS")
        try:
            _, writer = await asyncio.open_connection(url.hostname, url.port or (443 if context else 80), ssl=context)
        except ssl.SSLError as error:
            stage.failed(failures.tls_error(self._endpoint, error))
            return False
        except OSError as error:
            problem = failures.classify_exception(error, self._endpoint).error
            if context is not None and problem.code is Code.CONNECTION_LOST and await self._speaks_plain_http():
                problem = failures.plain_port(self._endpoint)
            if context is not None and problem.code is not Code.TLS:
                stage.begin("connection")
            stage.failed(problem)
            return False
        try:
            seconds = time.monotonic() - started
            secured = writer.get_extra_info("ssl_object")
            stage.ok(f"{self._endpoint.name} in {seconds * 1000:.0f} ms", "connection")
            if secured is not None:
                stage.ok(_certificate(secured))
        finally:
            writer.close()
        return True

    async def _model(self) -> str:
        """Report the models of the endpoint. Return the model name for requests, or `""`."""
        stage, named = self._stage, self._settings.model_name
        stage.begin("models")
        try:
            listed = self._listed = await read_models(self._pool, self._endpoint)
        except PromptmillError as error:
            if self._url.scheme == "http" and await self._port_speaks_tls(error):
                stage.failed(failures.tls_port(self._endpoint), "TLS")
                return ""
            self._listed = error
            if not named:
                stage.failed(PromptmillError(error.code, error.message, "Name the model in `model_name`."))
                return ""
            report = stage.warn if error.code is Code.UNAUTHORIZED else stage.ok
            report(f"the list is unavailable ({error.message.rstrip('.')})")
            self._warn_of_end(named, listed_end(self._endpoint.profile.name, named))
            return named
        where = f"{listed.server} has " if listed.server else ""
        model = listed.get(named) if named else listed.only()
        if model is not None:
            context = f", context {model.context:,} tokens" if model.context else ""
            others = f" (one of {len(listed.models)})" if len(listed.models) > 1 else ""
            stage.ok(f"{where}{model.name}{context}{others}")
            self._warn_of_end(model.name, model.end)
            return named or model.name
        if not named:
            stage.failed(PromptmillError(Code.INVALID_CONFIG, which_models(self._endpoint, listed), ""))
            return ""
        names = [one.name for one in listed.models]
        near = close_matches(named, names, n=3, cutoff=0.4)
        stage.warn(f"{named} is not among them: {', '.join(near) or str(listed) or 'none'}")
        self._warn_of_end(named, listed_end(self._endpoint.profile.name, named))
        return named

    def _warn_of_end(self, model: str, end: ModelEnd | None) -> None:
        if end is not None:
            self._stage.warn(f"{model} {end.words()}")

    async def _answers(self, model: str) -> None:
        stage, endpoint = self._stage, self._endpoint
        stage.begin("answer")
        if isinstance(DIALECTS[endpoint.dialect], Deciding):
            await self._decides(model)
            return
        fewest = 1 if endpoint.dialect == "openai" else _FEWEST_TOKENS
        without = {"response_format": None} if fewest == 1 else {"response_format": None, **_NO_THINKING}
        sampling = self._config.settings.sampling_params.model_copy(update={"max_tokens": fewest, **without})
        conversation = conversation_from_prompt("Say yes.", "the trial prompt")
        request = Request(0, conversation, sampling, self._config.settings.extra_params)
        thinking = self._settings.enable_thinking if fewest == 1 else None
        encoder = RequestEncoder(endpoint, model, enable_thinking=thinking, stream=False)
        head = encoder.head(request)
        for name in head.refused:
            stage.warn(f"{endpoint.name} does not accept `{name}`; requests leave it out")
        started = time.monotonic()
        try:
            response = await self._pool.send(head.endpoint, encoder.encode(head, conversation, {}))
            outcome: Any = read_response(response.status, response.headers, response.content(), endpoint)
        except (failures.TransportError, PromptmillError, OSError, ValueError) as error:
            outcome = failures.classify_exception(error, endpoint)
        seconds = time.monotonic() - started
        if isinstance(outcome, failures.RetryDecision):
            if _REASONING_STARTED in outcome.error.message:
                stage.ok(f"{model} started to reason after {seconds:.2f} s; it needs a larger `max_tokens` than 1")
                return
            hinted = with_key_hint(endpoint, outcome.error, outcome.status)
            stage.failed(await self._with_hint(hinted, outcome, model))
            return
        answer = with_reasoning_apart(outcome)
        tokens = answer.usage.completion_tokens
        stage.ok(f"{counted(tokens, 'token')} in {seconds:.2f} s")
        if answer.is_empty and not answer.reasoning and answer.finish_reason != "length":
            stage.warn(f"the answer is empty (finish_reason {answer.finish_reason}): is {model} a chat model?")

    async def _decides(self, model: str) -> None:
        """Ask a deciding model one question."""
        stage, endpoint = self._stage, self._endpoint
        request = Request(0, conversation_from_prompt("Say yes.", "the trial prompt"), Sampling(), form=_TRIAL)
        encoder = RequestEncoder(endpoint, model, enable_thinking=None, stream=False)
        head, started = encoder.head(request), time.monotonic()
        try:
            body, questions = encoder.decision(head, request, {})
            response = await self._pool.send(head.endpoint, body)
            wanted = head.wanted._replace(questions=questions, model=model)
            outcome: Any = read_response(response.status, response.headers, response.content(), endpoint, wanted)
        except (failures.TransportError, PromptmillError, OSError, ValueError) as error:
            outcome = failures.classify_exception(error, endpoint)
        seconds = time.monotonic() - started
        if isinstance(outcome, failures.RetryDecision):
            hinted = with_key_hint(endpoint, outcome.error, outcome.status)
            stage.failed(await self._with_hint(hinted, outcome, model))
            return
        named = f" by {outcome.answered_by}" if outcome.answered_by else ""
        stage.ok(f"one decision{named} in {seconds:.2f} s")

    async def _with_hint(self, error: PromptmillError, decision: failures.RetryDecision, model: str) -> PromptmillError:
        """Return the error of the trial request with a hint, which uses the results of earlier stages."""
        if self._url.scheme == "http" and await self._port_speaks_tls(error):
            return failures.tls_port(self._endpoint)
        if error.code not in {Code.NOT_FOUND, Code.BAD_RESPONSE} and decision.status != 405:
            return error
        if isinstance(self._listed, ModelList):
            if error.code is Code.NOT_FOUND and not self._listed.get(model):
                return PromptmillError(error.code, error.message, which_models(self._endpoint, self._listed))
            return error
        if self._endpoint.dialect == "openai" and (base := await self._api_elsewhere()):
            hint = f"The API is at {base}: set `base_url` to that."
            return PromptmillError(error.code, error.message, hint)
        return error

    async def _api_elsewhere(self) -> str | None:
        """Return another base URL on the same host that lists models, or None."""
        base = self._endpoint.base_url
        origin = urlunsplit((self._url.scheme, self._url.netloc, "", "", ""))
        for candidate in (f"{base}/v1", *(origin + path for path in _USUAL_PATHS)):
            if candidate == base:
                continue
            try:
                elsewhere = replace(self._endpoint, url=f"{candidate}{COMPLETIONS}")
                await read_models(self._pool, elsewhere, _TLS_PROBE_S)
            except PromptmillError:
                continue
            return candidate
        return None

    async def _port_speaks_tls(self, error: PromptmillError) -> bool:
        if any(words in error.message.lower() for words in SPOKE_TLS):
            return True
        if error.code not in {Code.CONNECTION_LOST, Code.BAD_RESPONSE, Code.BAD_REQUEST}:
            return False
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the connection only tests whether the port speaks TLS; nothing is sent
        try:
            async with asyncio.timeout(_TLS_PROBE_S):
                _, writer = await asyncio.open_connection(self._url.hostname, self._url.port or 80, ssl=context)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    async def _speaks_plain_http(self) -> bool:
        try:
            async with asyncio.timeout(_TLS_PROBE_S):
                reader, writer = await asyncio.open_connection(self._url.hostname, self._url.port or 443)
                try:
                    writer.write(f"HEAD / HTTP/1.1\r\nHost: {self._url.netloc}\r\nConnection: close\r\n\r\n".encode())
                    return (await reader.read(5)) == b"HTTP/"
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False


def _certificate(secured: Any) -> str:
    until = (secured.getpeercert() or {}).get("notAfter", "")
    return f"{secured.version()}, certificate valid until {until}" if until else str(secured.version())
