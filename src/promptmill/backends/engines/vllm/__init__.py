"""The vLLM engine, as it runs in its own process."""
