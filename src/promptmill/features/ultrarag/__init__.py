"""UltraRAG's generation server: launch path, arguments and calls. `servers/generation/` starts `launch.main`."""

from promptmill.core.feature import Feature

FEATURE = Feature(words="the generation server of UltraRAG's pipelines, started by servers/generation")
