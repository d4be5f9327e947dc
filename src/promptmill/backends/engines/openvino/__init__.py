"""The OpenVINO engine: GenAI's continuous batching on a CPU, without torch."""

from __future__ import annotations

from promptmill.backends.engines.channel import Channel, Intake, WaitingRows
from promptmill.backends.engines.openvino.location import OpenVINOOptions, find
from promptmill.system.runtime import without_telemetry

without_telemetry()


def serve(options: OpenVINOOptions, channel: Channel) -> None:
    """Load the model in `options` (the `openvino` block), then answer the requests from `channel`.

    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`) if the model cannot be loaded.
    """
    path = find(options["model_name_or_path"], options["gguf_file"], channel.progress)
    # these modules import openvino, so they are imported only after a model was found
    from promptmill.backends.engines.openvino.pipeline import PipelineDecoder, PipelineRow, load_model
    from promptmill.backends.engines.openvino.prompt import PromptBuilder

    model = load_model(path, options, channel.progress)
    waiting: WaitingRows[PipelineRow] = WaitingRows()
    prompts = PromptBuilder(model, refuse_unsupported=options["unsupported"] == "error")
    intake = Intake(prompts.row, waiting, channel)
    decoder = PipelineDecoder(model, waiting, channel)
    channel.route(intake.handle)
    channel.send({"type": "loaded", "window": 2 * model.rows, "images": model.reads_images})
    decoder.run()
