"""The service: owns the models, runs calls on them, and counts the calls' outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from promptmill.backends import registry
from promptmill.backends.protocol import (
    LOOKED_AT,
    Call,
    Counts,
    Failure,
    Outcome,
    Share,
    Sink,
    Source,
    Stoppable,
)
from promptmill.config.backends import AUTO
from promptmill.config.configuration import Configuration, Overrides
from promptmill.config.model_config import DEFAULT, ModelConfig, unknown_model
from promptmill.core.bounds import MOST_LARGE, MOST_MODELS, MOST_SHARED
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.money import Budget
from promptmill.core.request import NOT_SHOWN, OF_FORM, Conversation, Request
from promptmill.core.values import JsonObject
from promptmill.service import choosing
from promptmill.service.driver import Driver, record_outcome
from promptmill.service.fallback import NotLoadedError, Router
from promptmill.service.list_call import ListSink, ListSource, ModelPart
from promptmill.service.model import TOY, Create, Loaded, Model, Models
from promptmill.steps.chain import around
from promptmill.steps.step import Step

_DRAIN_S = 30.0
_COUNTS = (
    *("done", "failed", "requests", "retries", "prompt_tokens", "completion_tokens"),
    *("cached", "repaired", "asked_again"),
)


class Service:
    """The models of a process, and the calls on them. The creator of the service closes it."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        config: ModelConfig | None = None,
        create: Create | None = None,
        drain_s: float = _DRAIN_S,
        is_shared: bool = False,
    ) -> None:
        """`config` replaces the configuration of the default model, which answers calls that name no model.

        `create` makes the backend for a configuration, instead of promptmill's own function. `drain_s`: the seconds for
        which calls may continue on a swapped model. `is_shared`: the service has several clients, and no client may
        learn another client's requests.
        """
        self._configuration = configuration
        self.is_shared = is_shared
        limit = configuration.config.operator.max_cost
        self.budget = None if limit is None else Budget(limit)
        """The limit for the total cost of all calls."""
        self.calls = _ServiceStats()
        self.observe: Observe = _unobserved
        """A context manager, entered for each call. It gets the call's sink, and yields a sink for the outcomes."""
        self.planning = asyncio.Lock()
        """The lock for a thread that reads the long settings of a call: several threads would slow the event loop."""
        self._models = Models(create, drain_s, self.budget, is_shared=is_shared)
        self._models.add(configuration.default, config or configuration.config)
        self._deciding = asyncio.Lock()
        self._closed = False

    def serve_clients(self, secrets: Iterable[str] = ()) -> None:
        """Apply the clients' file rule (see `system.call_files`) to all calls. Do this before the first call.

        `secrets`: secrets of the server in addition to the keys in configuration and environment.
        """
        self._configuration = self._configuration.for_clients(secrets, is_shared=self.is_shared)
        model = self._model()
        model.config = replace(model.config, call_files=self._configuration.config.call_files)

    @property
    def config(self) -> ModelConfig:
        """The configuration of the default model."""
        return self._model().config

    @property
    def models(self) -> list[str]:
        """The names of all models, the default one first."""
        return list(self._configuration.names)

    def config_of(self, name: str | None) -> ModelConfig:
        """Return the configuration of the model `name`. Raises `PromptmillError` if it is unknown or unusable."""
        return self._model(name).config

    @property
    def usable(self) -> list[str]:
        """The names of the models with a usable configuration."""
        return [about["name"] for about in self.described(self.models) if "reason" not in about]

    @property
    def offered(self) -> list[str]:
        """The names of the models that a client may choose."""
        allowed, config = self.config.operator.client_limits.models, self.config
        if allowed is None or config.trust_client:
            return self.models
        return [name for name in self.models if name in {*allowed, self._configuration.default}]

    def row_models(self, config: ModelConfig) -> frozenset[str] | None:
        """Return the models that rows of a file may name, in a job on `config`; None if they may name any."""
        allowed = config.operator.client_limits.models
        if allowed is None or config.trust_client:
            return None
        return frozenset({*self.offered, *allowed, DEFAULT, config.model})

    def row_configs(self, sampling: JsonObject) -> dict[str, ModelConfig]:
        """Return the usable models that rows may name in a job with this sampling, by name."""
        names = [name for name in self.usable if name in self.offered]
        return {name: self.config_of(name).with_sampling(sampling).capped for name in names}

    def offered_config(self, name: str | None) -> ModelConfig:
        """Return the configuration of the model that a client names, or the default one. Raises as `config_of` does."""
        if name and name not in {*self.offered, DEFAULT}:
            raise unknown_model(name, self.offered)
        return self.config_of(name)

    async def job_config(self, name: str | None, where: str = "model") -> ModelConfig:
        """Return the configuration for a job on the model `name`, which must be offered, or one that rows may name.

        `where`: the argument that names the model. Raises the errors of `config_of`.
        """
        if not name or name in {*self.offered, DEFAULT}:
            return self.config_of(name)
        if len(self.models) > 1:
            raise unknown_model(name, self.offered, where)
        config = await self.decided() if self.config.backend == AUTO else self.config
        allowed = self.row_models(config)
        if not config.record.any_model or (allowed is not None and name not in allowed):
            raise unknown_model(name, self.offered, where)
        return config.with_model(name)

    async def call_config(self, name: str | None) -> ModelConfig:
        """Return the configuration for a call on a client's model. If it is not offered, `extra_params` names it.

        Raises the errors of `job_config`.
        """
        config = await self.job_config(name)
        if not name or name in {*self.offered, DEFAULT}:
            return config
        extra = {**config.settings.extra_params, "model": name}
        return replace(config, settings=config.settings.model_copy(update={"extra_params": extra}))

    def widen(self, config: ModelConfig, most: int) -> None:
        """Allow `most` requests in flight to the model of `config`, if it is loaded and limits them itself."""
        model = self._models.get(config.name)
        for loaded in () if model is None else model.all_loaded():
            loaded.widen(most)

    def state_of(self, name: str) -> str:
        """Return the state of the model `name`: `not_loaded`, `loading`, `ready` or `failed`."""
        model = self._models.get(name)
        return "not_loaded" if model is None else model.state

    def described(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the backend, model, state and fallbacks of each model, or the reason why it is unusable."""
        models = []
        for name in names:
            about: dict[str, Any] = {"name": name, "is_default": name == self._configuration.default}
            try:
                config = self.config_of(name)
            except PromptmillError as error:
                models.append(about | {"state": "unusable", "reason": str(error)})
                continue
            about |= {"backend": config.backend, "model": config.model or None, "state": self.state_of(name)}
            about |= {"note": TOY} if config.is_embedded else {}
            models.append(about | ({"fallback": config.fallback} if config.fallback else {}))
        return models

    @property
    def activity(self) -> str:
        """The current step of a load as text; empty if no model is loading."""
        return self._models.activity

    @property
    def state(self) -> str:
        """The state: `not_loaded`, `loading`, `ready`, `failed` (the next call tries again) or `closed`."""
        return "closed" if self._closed else self._model().state

    async def decided(self, name: str | None = None) -> ModelConfig:
        """Return the configuration of a model. A backend or model that it leaves open is chosen once.

        Raises `PromptmillError` if the endpoint does not list its models, or lists several. A later call tries again.
        """
        model = self._model(name)
        if model.config.is_open:
            async with self._deciding:
                if model.config.backend == AUTO:
                    self._configuration = await choosing.decided(self._configuration)
                    model.config = self._configuration.config
                elif model.config.is_open:
                    model.config = await choosing.with_model(model.config)
        return model.config

    async def resolved_config(self, config: ModelConfig) -> ModelConfig:
        """Return a call's configuration, with the call's own sampling, after `decided` has chosen backend and model."""
        if not config.is_open:
            return config
        decided = await self.decided(config.name)
        own = {name: getattr(config.settings, name) for name in ("sampling_params", "extra_params")}
        return replace(decided, settings=decided.settings.model_copy(update=own))

    async def init(self, overrides: Overrides) -> None:
        """Load the configuration with `overrides` as the default model.

        An unchanged engine stays loaded, and gets the new sampling. Raises `PromptmillError`; the present model, if it
        still exists, then stays in use.
        """
        if overrides.backend in {AUTO, None} and self.configured_backend == AUTO:
            overrides = replace(overrides, backend=(await self.decided()).backend)
        elif overrides.backend == AUTO:
            raise config_error("backend", "`auto` is allowed only in the configuration; name a backend.")
        config = await choosing.with_model(self._configuration.overlaid(overrides))
        await self._model().swap(config, self._refuse_when_closed)

    @property
    def configured_backend(self) -> str:
        """The backend of the configuration, whatever calls have chosen since."""
        return self._configuration.config.backend

    async def generate(
        self,
        items: Sequence[Conversation | Request | PromptmillError],
        call: Call,
        *,
        system_prompt: str = "",
        config: ModelConfig | None = None,
        sink: ListSink | None = None,
    ) -> list[Outcome]:
        """Answer `items`: n conversations → n outcomes in order. An item that is an error becomes a failure.

        An item may also be a `Request`: `config` and `system_prompt` do not change its parameters. `config`: the
        configuration of a call with its own sampling (`ModelConfig.with_sampling`). `sink`: has the outcomes so far,
        for a caller that needs them after cancelling the call.

        If an error ends the call early (`deadline`, `shutdown`, `replaced`, `engine_died`, …), unanswered items fail
        with this error. Raises `PromptmillError` only if the backend cannot be loaded.
        """
        sink = sink or ListSink(len(items), MOST_LARGE, MOST_SHARED if self.is_shared else None)
        limit_s = self.config.settings.call_timeout
        unanswered: PromptmillError | None
        try:
            async with asyncio.timeout(limit_s):
                unanswered = await self.answer(items, sink, call, system_prompt=system_prompt, config=config)
        except TimeoutError:
            unanswered = too_long(limit_s)
        except PromptmillError as error:
            self.calls.unanswered(config or self.config, error.code, len(sink.missing))
            raise
        if unanswered is not None:
            self.calls.unanswered(config or self.config, unanswered.code, len(sink.missing))
        return sink.result(unanswered)

    async def generate_part(self, part: ModelPart, sink: ListSink | None = None) -> list[Outcome]:
        """Answer the items of a part of a call; see `generate`."""
        prompt, config = part.system_prompt, part.config
        return await self.generate(part.items, part.call, system_prompt=prompt, config=config, sink=sink)

    async def answer(
        self,
        items: Sequence[Conversation | Request | PromptmillError],
        sink: Sink,
        call: Call,
        *,
        system_prompt: str = "",
        config: ModelConfig | None = None,
    ) -> PromptmillError | None:
        """Answer `items` without a time limit, and put the outcomes into `sink` by position.

        Return the error for items without an outcome; None if all have one. Raises the errors of `generate`.
        """
        config = config or self.config
        settings = config.settings
        try:
            with self._counted(config, call, sink) as observed:
                for index, item in enumerate(items):
                    if isinstance(item, PromptmillError) and (
                        taken := record_outcome(index, Failure(item), observed, call)
                    ):
                        await taken
                if call.counts.done == len(items):
                    return None
                system = system_prompt or settings.system_prompt
                shown = registry.shown_by(config) if settings.sampling_params.sets(OF_FORM) else NOT_SHOWN
                source = ListSource(items, system, settings.sampling_params, settings.extra_params, shown)
                call.facts = replace(call.facts, has_images=any(map(_has_images, items[:LOOKED_AT])))
                await self._run(config, source, observed, call)
        except NotLoadedError:
            raise
        except PromptmillError as error:
            return error
        return None

    async def run(
        self,
        source: Source,
        sink: Sink,
        call: Call,
        of_job: ModelConfig | None = None,
        *,
        steps: Sequence[Step] = (),
    ) -> None:
        """Answer the requests of `source`, without `call_timeout`. `sink` receives the outcomes.

        `of_job`: the configuration of a job. A model that has replaced the job's model gets no row, because it may not
        be permitted to get the files. `steps`: the job's steps, which run outside of the model's chain.

        Raises `PromptmillError` if the model cannot be loaded, or if no request can continue.
        """
        config = self.config_of(None if of_job is None else of_job.name)
        with self._counted(config, call, sink) as observed:
            await self._run(config, source, observed, call, of_job, steps=steps)

    async def shutdown_engine(self) -> None:
        """Unload the engines to free their memory. A later call loads them again. (Endpoints use no memory.)"""
        reason = PromptmillError(Code.SHUTDOWN, "The engine was shut down by `vllm_shutdown`.")
        await self._models.unload(lambda config: config.record.is_engine, reason)

    async def aclose(self) -> None:
        """Unload all models and end the service. Running calls end with the code `shutdown`."""
        self._closed = True
        reason = PromptmillError(Code.SHUTDOWN, "The server is shutting down.")
        with contextlib.suppress(Exception):  # closing a backend failed
            await self._models.unload(lambda _: True, reason)

    @contextlib.contextmanager
    def _counted(self, config: ModelConfig, call: Call, sink: Sink) -> Iterator[Sink]:
        """Count a call during the `with` block. Yield the sink for its outcomes."""
        for warning in config.warnings:
            call.warn(warning)
        if len(self.models) > 1:
            call.model = config.name
        # The configuration is looked up again, because a model that it leaves open is chosen during the call.
        now = (lambda: self._model(config.name).config) if config.is_open else lambda: config
        counted = Counted(call, now, call.counts + Counts())
        with self.calls.counted(counted), self.observe(counted, sink) as observed:
            yield observed

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise PromptmillError(Code.SHUTDOWN, "The server is shutting down.")

    def _model(self, name: str | None = None) -> Model:
        """Return the model `name`; the default model if `name` is empty."""
        configuration = self._configuration
        if not name or (name == DEFAULT and name not in configuration.names):
            name = configuration.default
        if (model := self._models.get(name)) is not None:
            return model
        if name not in configuration.names:
            raise unknown_model(name, configuration.names)
        return self._models.add(name, configuration.config_of(name))

    async def _run(
        self,
        config: ModelConfig,
        source: Source,
        sink: Sink,
        call: Call,
        of_job: ModelConfig | None = None,
        *,
        steps: Sequence[Step] = (),
    ) -> None:
        """Run a call on the model of `config`, on models that its requests name, and on their fallbacks.

        Raises `NotLoadedError`, or the error that ended the run.
        """
        driver, enter = Driver(source, sink, call), partial(self._enter, of_job=of_job)
        if config.fallback or len(self.models) > 1:
            router = Router(config.name, self.config_of, frozenset({*self.offered, DEFAULT}), enter, call)
            try:
                await driver.run(around(steps, router.answer), router)
            finally:
                await router.aclose()
            return
        model, share = await enter(config.name, call, driver.stoppable)
        try:
            await driver.run(around(steps, model.answer), share)
        except PromptmillError as error:
            model.note(error)
            raise
        finally:
            await model.leave(call)

    async def _enter(
        self, name: str, call: Call, run: Stoppable, of_job: ModelConfig | None = None
    ) -> tuple[Loaded, Share]:
        """Enter the model `name`, loading it first if necessary. Raises `NotLoadedError`, or the error of the entry."""
        model = self._model(name)
        for last_try in (False, True):
            try:
                self._refuse_when_closed()
                await self.decided(name)
                loaded = await model.load()
            except PromptmillError as error:
                raise NotLoadedError.of(error) from None
            if of_job is not None and name == of_job.name and not of_job.is_same_model(loaded.config):
                raise PromptmillError(Code.REPLACED, "Another model was loaded before the job began.")
            permitted = None if of_job is None else of_job.files_to
            if permitted is not None and not permitted.issuperset(registry.endpoints_of_call(loaded.config)):
                problem = f"A call chose the endpoint of {name}, and it gets no text of local files."
                raise NotLoadedError(Code.INVALID_CONFIG, problem, "")
            call.chosen = call.chosen or loaded.config.chosen
            if loaded.warning:
                call.warn(loaded.warning)
            try:
                return loaded, loaded.enter(call, run)
            except PromptmillError as error:
                # If the engine died before this call, it is loaded again.
                if error.code is not Code.ENGINE_DIED or last_try:
                    raise
        raise AssertionError


def too_long(limit_s: float | None) -> PromptmillError:
    """Return the error for unanswered items of a call that exceeded `call_timeout`."""
    return PromptmillError(Code.DEADLINE, f"The call took longer than `call_timeout` ({limit_s:g} s).")


@dataclass(frozen=True, slots=True)
class Counted:
    """A running call, or a running round of a job, with a function that returns its configuration."""

    call: Call
    config: Callable[[], ModelConfig]
    before: Counts = field(default_factory=Counts)
    """The job's counts before this round, which `counts` leaves out."""

    @property
    def counts(self) -> Counts:
        """The counts of this call or round."""
        return self.call.counts - self.before


Observe: TypeAlias = Callable[[Counted, Sink], AbstractContextManager[Sink]]


def _unobserved(_: Counted, sink: Sink) -> AbstractContextManager[Sink]:
    return contextlib.nullcontext(sink)


@dataclass(slots=True)
class ModelTotals:
    """The sums over the calls on one model; if `config` is None, over the calls on all models after the first fifty."""

    config: ModelConfig | None
    of_job: bool
    calls: int = 0
    counts: Counts = field(default_factory=Counts)

    def add(self, counts: Counts) -> None:
        """Add a call."""
        self.calls += 1
        self.counts = self.counts + counts


class _ServiceStats:
    """Statistics of all calls. They are read from the `Call` objects, so that they do not slow running calls."""

    def __init__(self) -> None:
        self.started = time.time()
        self._number = 0
        self._running: dict[int, Counted] = {}
        self._ended: dict[tuple[object, ...], ModelTotals] = {}

    @contextlib.contextmanager
    def counted(self, counted: Counted) -> Iterator[None]:
        """Count a call, which is in progress during the `with` block."""
        self._number = number = self._number + 1
        self._running[number] = counted
        try:
            yield
        finally:
            del self._running[number]
            _of_model(self._ended, counted.config(), of_job=counted.call.facts.of_job).add(counted.counts)

    def unanswered(self, config: ModelConfig, code: Code, count: int) -> None:
        """Count the unanswered items of a call that ended early."""
        totals = _of_model(self._ended, config, of_job=False)
        totals.counts = totals.counts + Counts(done=count, codes=Counter({str(code): count}))

    @property
    def running(self) -> list[Counted]:
        """The running calls, the oldest first."""
        return list(self._running.values())

    def in_progress(self) -> list[dict[str, Any]]:
        """Return the progress of each running call, the oldest first. `total` is None if unknown."""
        now = time.monotonic()
        return [
            {
                "done": call.counts.done,
                "total": call.facts.total,
                "failed": call.counts.failed,
                "in_flight": call.in_flight,
                "seconds": round(now - call.started, 1),
            }
            for call in (running.call for running in self._running.values())
        ]

    def by_model(self) -> list[ModelTotals]:
        """Return the sums by model for all calls since the start, including running calls."""
        by_model = {key: replace(totals) for key, totals in self._ended.items()}
        for running in self._running.values():
            _of_model(by_model, running.config(), of_job=running.call.facts.of_job).add(running.counts)
        return list(by_model.values())

    def totals(self) -> dict[str, Any]:
        """Return the sums for all calls since the start, including running calls. `errors`: failures by code."""
        total = sum((totals.counts for totals in self.by_model()), Counts())
        counts = {"calls": self._number} | {name: getattr(total, name) for name in _COUNTS}
        return counts | {"errors": dict(total.codes.most_common())}


def _has_images(item: Conversation | Request | PromptmillError) -> bool:
    match item:
        case Request(conversation=conversation) | (Conversation() as conversation):
            return bool(conversation.sourced)
    return False


def _of_model(totals: dict[tuple[object, ...], ModelTotals], config: ModelConfig, *, of_job: bool) -> ModelTotals:
    """Return the sums for the configuration's model, creating them if necessary."""
    block = config.block
    key = config.backend, config.model, getattr(block, "provider", None), *getattr(block, "base_url", ()), of_job
    if key not in totals and len(totals) >= MOST_MODELS:
        return totals.setdefault((of_job,), ModelTotals(None, of_job))
    return totals.setdefault(key, ModelTotals(config, of_job))
