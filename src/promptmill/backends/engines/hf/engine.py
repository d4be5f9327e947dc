"""The transformers engine: find the model, load it, answer until the process ends."""

from __future__ import annotations

import gc
import os
import threading
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from promptmill.backends.engines import hardware
from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.model_location import locate, require_packages
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.system.frames import Frame, packed_error

if TYPE_CHECKING:
    from promptmill.backends.engines.hf.prompt import PromptBuilder
    from promptmill.backends.engines.hf.schedule import Schedule


def serve(options: Mapping[str, Any], channel: Channel) -> None:
    """Load the model that `options` (the `hf` block of the configuration) name, then answer what `channel` brings.

    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`) when it cannot be loaded.
    """

    def report(text: str) -> None:
        channel.send({"type": "progress", "text": text})

    gc.disable()  # a fifth of the time to import torch and transformers: nothing of them is garbage
    _set_up_libraries()
    location = locate(options["model_name_or_path"], options["gguf_file"], report, _require_packages)
    report("Starting transformers")
    # torch and transformers, only now that there is something to load
    from promptmill.backends.engines.hf.decoder import Decoder
    from promptmill.backends.engines.hf.loading import load_model
    from promptmill.backends.engines.hf.prompt import PromptBuilder
    from promptmill.backends.engines.hf.schedule import Schedule

    model = load_model(location, options, report)
    schedule = Schedule(model.border)
    intake = _Intake(PromptBuilder(model, refuse_unsupported=options["unsupported"] == "error"), schedule, channel)
    batch_size = options["batch_size"]
    chunk = hardware.prompt_chunk(model.device.type, model.parameters)
    decoder = Decoder(model, schedule, channel, batch_size, chunk)
    gc.freeze()  # what is loaded stays; collections need not look at it again
    gc.enable()
    channel.route(intake.handle)
    channel.send({"type": "loaded", "window": 2 * batch_size, "images": model.vision is not None})
    decoder.run()


def _require_packages() -> None:
    require_packages("hf", "torch", "transformers")


def _set_up_libraries() -> None:
    """Say to native libraries, before they are imported, what they read from the environment."""
    # Threads that spin while they wait for each other make a step 10 times as long when anything else runs on this
    # machine, and keep the server from running. A few microseconds of it (GNU's library alone takes the number) bring
    # 18 % on an idle machine and cost 10 % where all cores are busy (measured on 2 cores); 3,000 turns bring 30 and
    # cost 36.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "400")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class _Intake:
    """Messages in, rows into the schedule: one thread reads, another renders and tokenizes, run by run in turn.

    Two, so that a cancellation is heard while a prompt of megabytes is tokenized.
    """

    def __init__(self, prompts: PromptBuilder, schedule: Schedule, channel: Channel) -> None:
        self._prompts = prompts
        self._schedule = schedule
        self._channel = channel
        self._changed = threading.Condition()
        self._submitted: dict[int, deque[Frame]] = {}
        threading.Thread(target=self._prepare, name="prepare", daemon=True).start()

    def handle(self, message: Frame) -> None:
        """Take a message from the server."""
        with self._changed:
            if message["type"] == "submit":
                self._submitted.setdefault(message["run"], deque()).append(message)
                self._changed.notify()
            elif message["type"] == "cancel":
                self._submitted.pop(message["run"], None)
                self._schedule.cancel(message["run"])

    def _prepare(self) -> None:
        while True:
            message = self._next()
            try:
                self._schedule.add(self._prompts.row(message))
            except Exception as error:  # noqa: BLE001 (this item's alone)
                if not isinstance(error, PromptmillError):
                    reason = redact((str(error).splitlines() or [""])[0])[:200]
                    error = PromptmillError(
                        Code.INTERNAL, f"The prompt could not be prepared: {type(error).__name__}: {reason}"
                    )
                self._channel.send(
                    {"type": "outcome", "run": message["run"], "id": message["id"], "error": packed_error(error)}
                )

    def _next(self) -> Frame:
        """Return the next message of the run whose turn it is, waiting for one."""
        with self._changed:
            while not self._submitted:
                self._changed.wait()
            run, queue = next(iter(self._submitted.items()))
            del self._submitted[run]
            message = queue.popleft()
            if queue:
                self._submitted[run] = queue  # behind the others
            return message
