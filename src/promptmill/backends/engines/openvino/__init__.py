"""The OpenVINO engine: GenAI's continuous batching on a CPU, without torch."""

import sys

# Its import reports itself to its makers, and writes a folder `intel` into the home folder; without this package it
# has a stub that does neither.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
