"""The transformers engine: find the model, load it, answer until the process ends."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from typing import Any

from promptmill.backends.engines import hardware
from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.intake import Intake
from promptmill.backends.engines.model_location import locate, require_packages


def serve(options: Mapping[str, Any], channel: Channel) -> None:
    """Load the model that `options` (the `hf` block of the configuration) name, then answer what `channel` brings.

    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`) when it cannot be loaded.
    """
    gc.disable()  # a fifth of the time to import torch and transformers: nothing of them is garbage
    _set_up_libraries()
    location = locate(
        options["model_name_or_path"],
        options["gguf_file"],
        channel.progress,
        lambda: require_packages("hf", "torch", "transformers"),
    )
    channel.progress("Starting transformers")
    # torch and transformers, only now that there is something to load
    from promptmill.backends.engines.hf.batches import Decoder
    from promptmill.backends.engines.hf.decode_loop import GenerateLoop
    from promptmill.backends.engines.hf.language_model import load_model
    from promptmill.backends.engines.hf.prompt import PromptBuilder
    from promptmill.backends.engines.hf.schedule import Schedule, room_for

    model = load_model(location, options, channel.progress)
    schedule = Schedule(model.border)
    prompts = PromptBuilder(model, refuse_unsupported=options["unsupported"] == "error")
    intake = Intake(prompts.row, schedule, channel)
    room = room_for(model, options["batch_size"])
    chunk = hardware.prompt_chunk(model.device.type, model.parameters)
    loop = (
        Decoder(model, schedule, channel, room, chunk)
        if model.merges_rows
        else GenerateLoop(model, schedule, channel, room.rows, 4 * chunk)
    )
    gc.freeze()  # what is loaded stays; collections need not look at it again
    gc.enable()
    channel.route(intake.handle)
    channel.send({"type": "loaded", "window": 2 * room.rows, "images": model.vision is not None})
    loop.run()


def _set_up_libraries() -> None:
    """Say to native libraries, before they are imported, what they read from the environment."""
    # Threads that spin while they wait for each other make a step 10 times as long when anything else runs on this
    # machine, and keep the server from running. A few microseconds of it (GNU's library alone takes the number) bring
    # 18 % on an idle machine and cost 10 % where all cores are busy (measured on 2 cores); 3,000 turns bring 30 and
    # cost 36.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "400")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Else transformers has a service of its makers convert a model of the hub that has no safetensors.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
