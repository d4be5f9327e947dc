"""Masks: personal data is replaced before anything is sent, and put back in the answers."""

from promptmill.core.feature import Feature, Figure

FEATURE = Feature(
    words="personal data is replaced by masks before anything is sent, and put back in answers, quotes and outputs",
    options="promptmill.features.mask.options:OPTIONS",
    sampling="promptmill.features.mask.parameters:Masked",
    answers=("promptmill.features.mask.masking:MaskedRequests",),
    doubts={"mask": "promptmill.features.mask.mask_status:doubt_of"},
    figures=(
        Figure(
            name="masks",
            record="promptmill.features.mask.mask_status:MaskStatus",
            facts="promptmill.features.mask.mask_status:facts",
            section="promptmill.features.mask.mask_status:section",
            count="promptmill.features.mask.mask_status:count",
            option="mask",
        ),
    ),
)
