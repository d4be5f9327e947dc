"""DataStudio's Python classes on the openai backend; they are in `promptmill.api`."""

from promptmill.core.feature import Feature

_CLASSES = "promptmill.features.datastudio.classes"
FEATURE = Feature(
    words="DataStudio's Python classes, in promptmill.api",
    names={f"api.{name}": f"{_CLASSES}:{name}" for name in ("BaseAPI", "InterruptedCall", "MPOpenAIAPI", "OpenAIAPI")},
)
