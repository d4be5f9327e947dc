"""The option for masks."""

from __future__ import annotations

from promptmill.options.option import Argument, Excluded, Flag, Option

OPTIONS = (
    Option(
        "mask",
        str,
        "replace personal data before anything is sent, and put it back: `email,phone,iban,card,id,names.csv`",
        flag=Flag(metavar="KINDS", is_common=True, brief="hide email,phone,iban,card,id,names.csv before sending"),
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.mask"],
        excludes=[
            Excluded("image_column", "; personal data in an image cannot be masked"),
            Excluded("audio_column", "; personal data in a recording cannot be masked"),
        ],
        names="file or function",
    ),
)
