"""The OpenVINO engine: GenAI's continuous batching on a CPU, without torch."""
