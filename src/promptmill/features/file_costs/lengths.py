"""Reads the length of a recording in a child process, with limits on memory and time: a recording is untrusted."""

from __future__ import annotations

import atexit
import importlib.util
import io
import os
from typing import Any, BinaryIO

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.system import frames, subprocesses
from promptmill.system.installation import adding

_COMPUTING_S = 10.0  # 25 MB of Ogg take 10 ms, and 25 MB without a frame of an MP3 4 s
_REPLY_S = 60.0  # the limit of wall time, for a busy machine
_MEMORY = 1 << 29  # enough for a recording of 75 MB, the most that a provider takes
_UNSURE = 2
"""The highest length that is reserved for a compressed recording, as a multiple of the length that it states. An MP3
may state none; tinytag estimates it from the first 30 seconds."""


class LengthReader:
    """Reads lengths in a child process, which is started for the first recording. Any thread may call it."""

    def __init__(self) -> None:
        self._helper = subprocesses.Helper(__name__, _REPLY_S)

    def seconds(self, file: BinaryIO, name: str) -> tuple[float, float]:
        """Return the likely and the highest length of a recording in seconds. `name`: its name in messages. Raises
        `PromptmillError` (`invalid_input`, `missing_dependency`)."""
        if importlib.util.find_spec("tinytag") is None:
            raise PromptmillError(Code.MISSING_DEPENDENCY, "The lengths of recordings need tinytag.", adding("audio"))
        try:
            reply = self._helper.ask(frames.packed({"size": os.fstat(file.fileno()).st_size}), file)
        except OSError:
            reply = None
        if reply is None or not reply.get("seconds"):
            raise input_error(f"The length of {name} cannot be read.")
        return reply["seconds"], reply["most"]

    def end(self) -> None:
        """End the process, even during a read."""
        self._helper.end()


READER = LengthReader()
"""The reader that this process uses."""
atexit.register(READER.end)


def _reply(asked: frames.Frame, incoming: BinaryIO) -> frames.Frame:
    """In the child: return the length of the recording in `incoming`. The length of samples that are not compressed
    follows from their number, whatever the header states."""
    from tinytag import TinyTag

    size = int(asked["size"])
    found: Any = TinyTag.get(file_obj=io.BytesIO(incoming.read(size)), tags=False)
    seconds = float(found.duration or 0.0)
    if found.mime_type.startswith("audio/wav") and found.is_lossless and found.bitrate:
        seconds = most = size * 8 / (found.bitrate * 1000)
    else:
        most = _UNSURE * seconds
    return {"seconds": seconds, "most": most}


def main() -> None:
    """Serve the parent process."""
    unknown = {"seconds": 0.0}
    subprocesses.serve_parent(_reply, lambda *_: unknown, ("tinytag",), memory=_MEMORY, computing_s=_COMPUTING_S)


if __name__ == "__main__":
    main()
