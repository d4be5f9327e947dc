"""Decisions over the service, from any model: OpenAI's `/v1/decisions` and TypeSafe's `/v1/systemone`.

http checks ─▶ paths ─▶ openai_api | system_one: evidence, questions ─▶ deciding: requests to the model
                          └──────── replies ◀── the probability of each option, or why there is none ◀──┘
"""

from promptmill.core.feature import Face, Feature

FEATURE = Feature(
    needs=("openai_server",),
    words="yes or no, one of several, a level: questions with probabilities for programs that ask deciding models",
    faces=(
        Face("decisions", "OpenAI's decisions at /v1/decisions", "promptmill.features.decisions.paths:OpenAIDecisions"),
        Face("systemone", "System One at /v1/systemone", "promptmill.features.decisions.paths:SystemOne"),
    ),
)
