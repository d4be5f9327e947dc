"""The transformers engine. Its own decode loop lets rows join and leave at any token."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

from promptmill.backends.engines import hardware
from promptmill.backends.engines.channel import Channel, Intake
from promptmill.backends.engines.model_loading import locate, require_packages

if TYPE_CHECKING:
    from promptmill.backends.engines.hf.language_model import HFOptions


def serve(options: HFOptions, channel: Channel) -> None:
    """Load the model in `options` (the `hf` block of the configuration), then answer the requests from `channel`.

    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`) if the model cannot be loaded.
    """
    gc.disable()  # saves a fifth of the time to import torch and transformers, which create no garbage
    _set_up_libraries()
    location = locate(
        options["model_name_or_path"],
        options["gguf_file"],
        channel.progress,
        lambda: require_packages("hf", "torch", "transformers"),
    )
    channel.progress("Starting transformers")
    # these modules import torch and transformers, so they are imported only after a model was found
    from promptmill.backends.engines.hf.decode_loop import Decoder, GenerateLoop
    from promptmill.backends.engines.hf.language_model import load_model
    from promptmill.backends.engines.hf.schedule import Schedule, capacity_for
    from promptmill.backends.engines.hf.sequence import SequenceBuilder

    model = load_model(location, options, channel.progress)
    schedule = Schedule(model.batching.border)
    sequences = SequenceBuilder(model, refuse_unsupported=options["unsupported"] == "error")
    intake = Intake(sequences.build, schedule, channel)
    capacity = capacity_for(model, options["batch_size"])
    chunk = hardware.prompt_chunk(model.device.type, model.parameters)
    loop = (
        Decoder(model, schedule, channel, capacity, chunk)
        if model.batching.joins
        else GenerateLoop(model, schedule, channel, capacity.rows, 4 * chunk)
    )
    gc.freeze()  # loaded objects stay in memory, so garbage collections can skip them
    gc.enable()
    channel.route(intake.handle)
    channel.send({"type": "loaded", "window": 2 * capacity.rows, "images": model.vision is not None})
    loop.run()


def _set_up_libraries() -> None:
    # If threads spin while they wait for each other, a step takes 10 times as long when other programs run, and the
    # server slows down. A spin count of 400 (some microseconds; only GNU's library uses it) gains 18 % on an idle
    # machine and costs 10 % on a busy one (measured on 2 cores); a count of 3,000 gains 30 % and costs 36 %.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "400")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
